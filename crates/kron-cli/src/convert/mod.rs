//! `kron convert IN OUT --to FORMAT`: writes an adapter in another format.

mod fit;
mod gguf_lora;
mod hugging_face;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use kron_adapter::Adapter;
use kron_adapter::algebra::Join;
use kron_adapter::combine::sums_as_lora;
use kron_adapter::peft::LoraOptions;
use kron_adapter::resolve::resolve_module_names;
use kron_adapter::text::one_line;
use kron_adapter::{Format, LeftOut, Loaded, OutputFormat, lycoris};
use kron_core::Split;
use serde::Serialize;

use crate::choice::{Choice, left_out};
use crate::count::Count;
use crate::dtype::DtypeArg;
use crate::error::exit_codes;
use crate::model::Base;
use crate::overwriting::{check_model_not_overwriting, check_not_overwriting};
use crate::table::{short, table};
use crate::{Error, Result, TextOrJson, progress};

/// Field of the metadata, and of PEFT's configuration, for the base model's name.
const BASE_NAME: &str = "base_model_name_or_path";

/// Write an adapter in another format.
///
/// Factors are copied bit for bit. An adapter that the other format cannot express is refused. Tensors
/// trained beside the factors go along, as modules_to_save in a PEFT folder, except a head that kron-train
/// trained; LyCORIS and GGUF hold none. A note names those that are left out.
///
/// As a LoRA (--to lora) every adapter runs in any engine: ΔW = s·(A ⊗ B)·(I ⊗ C) is a LoRA of rank
/// a_in·r, or a_out·r from the other side. The smaller rank is written, as a PEFT folder. Each product
/// A·B is rounded once to float32; nothing else is lost.
#[derive(Debug, clap::Args)]
#[command(after_help = concat!(
    "Layers of a LoRA that differ in rank or scale get a rank_pattern and an alpha_pattern. PEFT reads\n",
    "them; some engines ignore them. For those, --uniform pads every layer with zeros to the largest\n",
    "rank and multiplies scales that differ into B, so that r and lora_alpha suffice: so vLLM and\n",
    "mistral.rs load it, which ignore or lack some of PEFT's fields.\n\n",
    "A LoKr of many blocks is hundreds of times as large as a LoRA, and a small file must not fill a disk\n",
    "unasked: beyond 64 times the input, --max-size tells how large the LoRA may be.\n\n",
    "A LoRA becomes a Kron-LoRA only with --fit, which is lossy. The relative error of every layer is\n",
    "printed; if one exceeds --max-error, nothing is written. A fit may take 64 times the multiply-adds of\n",
    "`kron inspect`, and ends there with a note.\n\n",
    "LyCORIS replaces each dot of a module's name by an underscore, and only the model tells them\n",
    "apart. PEFT's formats need the model's own names: give the model with --base. A module that the\n",
    "model does not have is refused.\n\n",
    "With --to hf, IN is a GGUF model of the LLaMA family, and OUT a new folder that transformers loads.\n\n",
    "With --to gguf-lora, OUT is an adapter for llama.cpp (--lora OUT) and Ollama (ADAPTER OUT), on a GGUF of\n",
    "the LLaMA family. --base gives names, sizes and heads: that GGUF, or the config.json of the model it was\n",
    "made of. A GGUF has the rows of q and k in another order, and so has B there. The file has one alpha;\n",
    "a layer of another scale has the ratio in its B, which rounds once unless the ratio is a power of two.\n\n",
    "`kron export --lora IN OUT` is an older name of `kron convert --to lora IN OUT`.\n\n",
    exit_codes!("written", "the adapter is invalid or cannot be expressed in the format"),
    "Examples:\n",
    "  kron convert peft-lokr/ adapter.safetensors\n",
    "  kron convert adapter.safetensors lora/ --to lora\n",
    "  kron export --lora adapter.safetensors lora/ --uniform --base-name meta-llama/Llama-3.1-8B\n",
    "  kron convert lycoris.safetensors lokr/ --to peft-lokr --base llama-3-8b\n",
    "  kron convert model.gguf model/ --to hf --dtype bf16\n",
    "  kron convert adapter.safetensors lora.gguf --to gguf-lora --base model.gguf\n",
    "  kron convert lora/ fit.safetensors --fit --a-out 2 --a-in 2 --rank 16 --max-error 0.9",
))]
pub struct Args {
    /// Adapter file or PEFT folder; with --to hf a GGUF model
    input: PathBuf,
    /// File to write, or folder for lora, peft-lokr and hf
    output: PathBuf,
    #[command(flatten)]
    choice: Choice,
    /// Format to write
    #[arg(long, value_enum, default_value = "kron")]
    to: FormatArg,
    /// Side of the product that takes A, with --to lora and gguf-lora [default: the one of smaller rank]
    #[arg(long, value_enum)]
    side: Option<Side>,
    /// Give all layers one rank and one scale, with --to lora
    #[arg(long)]
    uniform: bool,
    /// Replace LoRA layers by the nearest Kron-LoRA layers, which is lossy
    #[arg(long, requires_all = ["a_out", "a_in", "rank"])]
    fit: bool,
    /// Rows of A, at least 1, with --fit
    #[arg(long, value_name = "N", requires = "fit", value_parser = clap::value_parser!(u32).range(1..))]
    a_out: Option<u32>,
    /// Columns of A, at least 1, with --fit
    #[arg(long, value_name = "N", requires = "fit", value_parser = clap::value_parser!(u32).range(1..))]
    a_in: Option<u32>,
    /// Rank of B·C, at least 1, with --fit
    #[arg(long, value_name = "N", requires = "fit", value_parser = clap::value_parser!(u32).range(1..))]
    rank: Option<u32>,
    /// Largest relative error ‖ΔW' − ΔW‖ / ‖ΔW‖ accepted for a layer, with --fit
    #[arg(long, requires = "fit", default_value_t = 0.01)]
    max_error: f64,
    /// Largest LoRA to write, such as 500M or 8G [default: 64 times the input, at least 32 MiB]
    #[arg(long, value_name = "BYTES", value_parser = max_size)]
    max_size: Option<u64>,
    /// Model (a safetensors file or a folder) whose module names replace LyCORIS's; with --to gguf-lora a
    /// GGUF, or a config.json or its folder
    #[arg(long, value_name = "MODEL")]
    base: Option<PathBuf>,
    /// Name or path of the base model in what is written, base_model_name_or_path of PEFT
    #[arg(long, value_name = "NAME")]
    base_name: Option<String>,
    /// Leave out the trained tensors that the format cannot hold, which are listed
    #[arg(long)]
    factors_only: bool,
    /// Type of the values, with --to hf and gguf-lora (f32 or f16) [default: f32]
    #[arg(long, value_enum)]
    dtype: Option<DtypeArg>,
    /// Replace the output when it exists
    #[arg(long)]
    force: bool,
}

/// Side of the product up·down that takes A.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Side {
    /// Rank a_in·r: up = A ⊗ B, down = I ⊗ C
    In,
    /// Rank a_out·r: up = I ⊗ B, down = A ⊗ C
    Out,
}

/// Format to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FormatArg {
    /// One safetensors file of this project
    Kron,
    /// PEFT folder with LoRA, of rank a_in·r or a_out·r
    Lora,
    /// PEFT folder with LoKr
    PeftLokr,
    /// LyCORIS file with LoKr
    Lycoris,
    /// GGUF file with a LoRA for llama.cpp and Ollama, of rank a_in·r or a_out·r
    GgufLora,
    /// Hugging Face folder of a GGUF model, its weights dequantised
    Hf,
}

/// Printed result.
#[derive(Debug, Serialize)]
pub struct Report {
    input: String,
    from: Format,
    output: String,
    to: FormatArg,
    layers: Vec<Row>,
    notes: Vec<String>,
    /// Tensors or modules of the input that were not read.
    left_out: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Row {
    module: String,
    shape: String,
    /// Rank of the written LoRA.
    lora_rank: Option<usize>,
    /// ‖ΔW' − ΔW‖ / ‖ΔW‖ of the fit.
    error: Option<f64>,
}

/// Converts, reports, and returns 0.
///
/// # Errors
/// The adapter is invalid or cannot be expressed in the format, a fit exceeds the largest error,
/// or the output exists or cannot be written.
pub fn run(args: &Args, form: TextOrJson) -> Result<ExitCode> {
    let as_lora = [FormatArg::Lora, FormatArg::GgufLora].contains(&args.to);
    if args.side.is_some() && !as_lora {
        return Err(Error::usage(
            "--side chooses between two LoRAs, so it goes with --to lora and --to gguf-lora",
        ));
    }
    if args.max_size.is_some() && !as_lora {
        return Err(Error::usage("--max-size limits a LoRA, so it goes with --to lora and --to gguf-lora"));
    }
    if args.base_name.is_some() && ![FormatArg::Kron, FormatArg::Lora, FormatArg::PeftLokr].contains(&args.to)
    {
        return Err(Error::usage(
            "--base-name goes with --to kron, lora and peft-lokr, which keep such a name",
        ));
    }
    if args.to == FormatArg::GgufLora {
        return gguf_lora::run(args, form);
    }
    if args.uniform && args.to != FormatArg::Lora {
        return Err(Error::usage("--uniform gives a LoRA one rank and scale, so it goes with --to lora"));
    }
    let Some(mut to) = args.to.adapter_format() else {
        if args.fit || args.base.is_some() || args.force {
            return Err(Error::usage("--to hf writes a new folder, and takes --dtype alone"));
        }
        let dtype = args.dtype.unwrap_or(DtypeArg::F32);
        return hugging_face::run(&args.input, &args.output, dtype.into(), form);
    };
    if args.dtype.is_some() {
        return Err(Error::usage(
            "--dtype is the type of what a GGUF holds, so it goes with --to hf and --to gguf-lora",
        ));
    }
    let folder = [FormatArg::Lora, FormatArg::PeftLokr].contains(&args.to);
    let sources = [Some(&args.input), args.base.as_ref()];
    sources
        .into_iter()
        .flatten()
        .try_for_each(|source| check_not_overwriting(source, &args.output, folder))?;
    let loaded = args.choice.read(&args.input)?;
    if args.to != FormatArg::Lora {
        loaded.check_writable()?;
    }
    if args.base.is_none() {
        check_names(&loaded, args.to)?;
    }
    let Loaded { path, limits, format, fan_in_fan_out, mut adapter, mut notes, mut left_out, .. } = loaded;
    if let Some(path) = &args.base {
        let base = Base::open(path)?;
        check_model_not_overwriting(path, &base, &args.output, folder)?;
        let resolved = resolve_module_names(&adapter, &base)?;
        adapter = resolved.adapter;
        notes.extend(resolved.notes);
    }
    if let Some(name) = &args.base_name {
        let mut metadata = adapter.metadata().clone();
        metadata.insert(BASE_NAME.into(), name.clone());
        adapter = adapter.with_metadata(metadata)?;
    }
    if args.fit || args.to == FormatArg::Lora {
        let mut of_sums = limits.clone();
        if let Some(most) = args.max_size {
            of_sums.bytes = of_sums.bytes.with_limit(most);
        }
        let lora = sums_as_lora(&adapter, args.side.map(Side::of), &mut of_sums);
        adapter = lora?.into_owned();
    }
    let mut errors = None;
    if let (true, Some(a_out), Some(a_in), Some(rank)) = (args.fit, args.a_out, args.a_in, args.rank) {
        let split = Split { a_out: a_out as usize, a_in: a_in as usize };
        let rank = rank as usize;
        let fitted = fit::fit(&adapter, &limits, fit::FitOptions { split, rank, max_error: args.max_error })?;
        adapter = fitted.adapter;
        errors = Some(fitted.errors);
        notes.extend(fitted.note);
    }
    let max_bytes = Some(args.max_size.unwrap_or(limits.bytes.left()));
    let lora =
        LoraOptions { join: args.side.map(Side::of), uniform: args.uniform, max_bytes, fan_in_fan_out };
    if let OutputFormat::Lora(options) = &mut to {
        *options = lora;
    }
    left_out.extend(args.leave_out(to.left_out(&adapter))?);
    write(&adapter, to, &args.output, args.force)?;
    let ranks = if args.to == FormatArg::Lora { lora.ranks(adapter.layers()) } else { Vec::new() };
    let mut layers = rows(&adapter, &ranks);
    for (row, error) in layers.iter_mut().zip(errors.into_iter().flatten()) {
        row.error = Some(error);
    }
    let report = Report {
        input: path,
        from: format,
        output: args.output.display().to_string(),
        to: args.to,
        layers,
        notes,
        left_out,
    };
    form.print(&report, Report::table)?;
    Ok(ExitCode::SUCCESS)
}

/// Parses the value of `--max-size`.
fn max_size(text: &str) -> Result<u64, String> {
    let Count(bytes) =
        text.parse().map_err(|_| "it is not a number of bytes such as 500M or 8G, at least 1".to_string())?;
    Ok(bytes)
}

/// Parts of a pipeline of diffusers, before the names of their modules.
const PIPELINE: [&str; 7] =
    ["unet", "transformer", "transformer_2", "text_encoder", "text_encoder_2", "text_encoder_3", "prior"];

/// Fails if no model has a module of the adapter's names: PEFT would find none, and of an unknown prefix no file
/// would tell later that it is one.
fn check_names(loaded: &Loaded, to: FormatArg) -> Result<()> {
    let to_peft = [FormatArg::Lora, FormatArg::PeftLokr].contains(&to);
    if let Some(module) = loaded.underscored().filter(|module| to_peft || !lycoris::is_lycoris(module)) {
        return Err(Error::usage(format!(
            "{module} is {}'s name, with an underscore for each dot, which is in no model; --base MODEL gives the model's own",
            if loaded.format == Format::KohyaLora { "Kohya" } else { "LyCORIS" }
        )));
    }
    let mut modules = loaded.adapter.layers().iter().map(|layer| layer.module());
    let of_pipeline = |module: &&str| {
        module.split_once('.').is_some_and(|(part, _)| PIPELINE.contains(&part))
            && loaded.format == Format::DiffusersLora
    };
    match modules.find(of_pipeline).filter(|_| to_peft) {
        Some(module) => Err(Error::usage(format!(
            "{module} may have the name of a pipeline's part before the model's own, which PEFT would not find; --base MODEL tells"
        ))),
        None => Ok(()),
    }
}

impl Args {
    /// Returns the names of trained tensors that the format cannot hold.
    ///
    /// # Errors
    /// There are some, and the caller did not choose to leave them out.
    fn leave_out(&self, left: impl IntoIterator<Item = LeftOut>) -> Result<Vec<String>> {
        let left: Vec<LeftOut> = left.into_iter().collect();
        match left.first().filter(|_| !self.factors_only) {
            Some(first) => Err(first.error()),
            None => Ok(left.into_iter().flat_map(|left| left.tensors).collect()),
        }
    }
}

impl FormatArg {
    /// Returns the format of an adapter; `None` where it takes a model as well, or is a model's.
    fn adapter_format(self) -> Option<OutputFormat> {
        match self {
            FormatArg::Kron => Some(OutputFormat::Kron),
            FormatArg::Lora => Some(OutputFormat::Lora(LoraOptions::default())),
            FormatArg::PeftLokr => Some(OutputFormat::PeftLokr),
            FormatArg::Lycoris => Some(OutputFormat::Lycoris),
            FormatArg::GgufLora | FormatArg::Hf => None,
        }
    }
}

impl Side {
    fn of(self) -> Join {
        match self {
            Side::In => Join::Up,
            Side::Out => Join::Down,
        }
    }
}

fn write(adapter: &Adapter, to: OutputFormat, out: &Path, force: bool) -> Result<()> {
    let bar = progress::items(adapter.layers().len(), "layers");
    let contents = to.encode(adapter, &|layers| {
        bar.inc(layers);
        Ok(())
    })?;
    bar.finish_and_clear();
    progress::write_output(out, &contents, force)
}

/// Returns a row for each layer; `ranks` is empty where no LoRA was written.
fn rows(adapter: &Adapter, ranks: &[usize]) -> Vec<Row> {
    let row = |(i, layer): (usize, &kron_adapter::Layer)| Row {
        module: layer.module().into(),
        shape: layer.shape().to_string(),
        lora_rank: ranks.get(i).copied(),
        error: None,
    };
    adapter.layers().iter().enumerate().map(row).collect()
}

impl Report {
    fn table(&self) -> String {
        // Empty columns are left out.
        let ranks = self.layers.iter().any(|row| row.lora_rank.is_some());
        let errors = self.layers.iter().any(|row| row.error.is_some());
        let rows = self.layers.iter().map(|row| {
            let rank = ranks.then(|| row.lora_rank.map_or(String::new(), |r| r.to_string()));
            let error = errors.then(|| row.error.map_or(String::new(), short));
            [row.module.clone(), row.shape.clone()].into_iter().chain(rank).chain(error).collect()
        });
        let header = ["module", "shape"].into_iter();
        let header = header.chain(ranks.then_some("LoRA rank")).chain(errors.then_some("error of the fit"));
        let mut text = format!(
            "{} ({}) → {} ({} layers)\n\n{}",
            one_line(&self.input),
            self.from,
            one_line(&self.output),
            self.layers.len(),
            table(&header.collect::<Vec<_>>(), 2, rows)
        );
        for note in &self.notes {
            text += &format!("\n\nnote: {}", one_line(note));
        }
        text + &left_out(&self.left_out)
    }
}
