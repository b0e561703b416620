//! `kron convert IN OUT --to FORMAT`: the same adapter in another format, or a refusal.

mod fit;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use kron_adapter::Adapter;
use kron_adapter::peft::{self, Form};
use kron_adapter::{Format, Loaded, lycoris};
use serde::Serialize;

use crate::apart::apart;
use crate::error::exit_codes;
use crate::named::named;
use crate::table::{short, table};
use crate::{Error, Output, Result, watch};

/// Write an adapter in another format.
///
/// Factors are copied bit for bit; a conversion to LoRA is lossless but for one
/// rounding of A·B to float32. What the other format cannot say is refused.
#[derive(Debug, clap::Args)]
#[command(after_help = concat!(
    "A LoRA becomes a Kron-LoRA only with --fit, which loses something: the relative error of every\n",
    "layer is printed, and one above --max-error is refused. Without --to, the output is kron.\n\n",
    "LyCORIS writes an underscore for each dot of a module's name; only the model knows which they\n",
    "were. For PEFT's formats, which need the model's own names, give it by --base; a module that it\n",
    "does not have is refused.\n\n",
    exit_codes!("written", "the adapter is at fault or has no such form"),
    "Example: kron convert tests/golden/model_llama/lokr adapter.safetensors --to kron\n",
    "         kron convert adapter.safetensors lora/ --to lora --side in\n",
    "         kron convert lycoris.safetensors lokr/ --to peft-lokr --base llama-3-8b\n",
    "         kron convert lora/ fit.safetensors --fit --a-in 2 --a-out 2 --rank 16 --max-error 0.9",
))]
pub struct Args {
    /// Adapter file or PEFT folder
    pub(crate) input: PathBuf,
    /// File to write, or folder for lora and peft-lokr
    pub(crate) output: PathBuf,
    /// Format to write
    #[arg(long, value_enum, default_value = "kron")]
    pub(crate) to: To,
    /// Which LoRA to write [default: the one of smaller rank]
    #[arg(long, value_enum)]
    pub(crate) side: Option<Side>,
    /// One rank and one scale for all layers of the LoRA
    #[arg(long)]
    pub(crate) uniform: bool,
    /// Replace the LoRA layers by the nearest Kron-LoRA ones, which loses something
    #[arg(long, requires_all = ["a_in", "a_out", "rank"])]
    pub(crate) fit: bool,
    /// Columns of A, with --fit
    #[arg(long, requires = "fit")]
    pub(crate) a_in: Option<usize>,
    /// Rows of A, with --fit
    #[arg(long, requires = "fit")]
    pub(crate) a_out: Option<usize>,
    /// Rank of B·C, with --fit
    #[arg(long, requires = "fit")]
    pub(crate) rank: Option<usize>,
    /// Largest relative error ‖ΔW' − ΔW‖ / ‖ΔW‖ of a layer that is accepted, with --fit
    #[arg(long, requires = "fit", default_value_t = 0.01)]
    pub(crate) max_error: f64,
    /// Model, a safetensors file or a folder, whose names replace LyCORIS's
    #[arg(long, value_name = "MODEL")]
    pub(crate) base: Option<PathBuf>,
    /// Replace the output when it exists
    #[arg(long)]
    pub(crate) force: bool,
}

/// On which side of the product A goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Side {
    /// Rank a_in·r: up = A ⊗ B, down = I ⊗ C
    In,
    /// Rank a_out·r: up = I ⊗ B, down = A ⊗ C
    Out,
}

/// What can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum To {
    /// One file of ours
    Kron,
    /// PEFT folder, LoRA of rank a_in·r or a_out·r
    Lora,
    /// PEFT folder, LoKr
    PeftLokr,
    /// LyCORIS file, LoKr
    Lycoris,
}

/// What is printed.
#[derive(Debug, Serialize)]
pub struct Report {
    input: String,
    from: Format,
    output: String,
    to: To,
    layers: Vec<Row>,
    notes: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Row {
    module: String,
    shape: String,
    /// Rank of the LoRA that was written.
    lora_rank: Option<usize>,
    /// ‖ΔW' − ΔW‖ / ‖ΔW‖ of the fit.
    error: Option<f64>,
}

/// Converts, reports, and returns 0.
///
/// # Errors
/// An adapter that is at fault or has no form in the other format, a fit above
/// the largest error, and an output that exists or cannot be written.
pub fn run(args: &Args, output: Output) -> Result<ExitCode> {
    if args.side.is_some() && args.to != To::Lora {
        return Err(Error::usage("--side chooses between two LoRAs, so it goes with --to lora"));
    }
    if args.uniform && args.to != To::Lora {
        return Err(Error::usage("--uniform gives a LoRA one rank and scale, so it goes with --to lora"));
    }
    let folder = [To::Lora, To::PeftLokr].contains(&args.to);
    let sources = [Some(&args.input), args.base.as_ref()];
    sources.into_iter().flatten().try_for_each(|source| apart(source, &args.output, folder))?;
    let loaded = kron_adapter::read(&args.input)?;
    loaded.check_writable()?;
    let Loaded { path, format, adapter, notes, .. } = loaded;
    let mut adapter = match &args.base {
        Some(base) => named(&adapter, base)?,
        None => adapter,
    };
    check_names(&adapter, args.to)?;
    let mut errors = None;
    if let (true, Some(a_out), Some(a_in), Some(rank)) = (args.fit, args.a_out, args.a_in, args.rank) {
        let fitted = fit::fit(&adapter, fit::Wish { a_out, a_in, rank, max_error: args.max_error })?;
        adapter = fitted.adapter;
        errors = Some(fitted.errors);
    }
    let form = Form { side: args.side.map(Side::of), uniform: args.uniform };
    write(&adapter, args.to.of(form), &args.output, args.force)?;
    let ranks = if args.to == To::Lora { form.ranks(adapter.layers()) } else { Vec::new() };
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
    };
    output.print(&report, Report::table)?;
    Ok(ExitCode::SUCCESS)
}

/// That PEFT, where it is to read the adapter, finds the modules in a model.
fn check_names(adapter: &Adapter, to: To) -> Result<()> {
    let mut modules = adapter.layers().iter().map(|layer| layer.module());
    match modules.find(|module| lycoris::is_lycoris(module)) {
        Some(module) if [To::Lora, To::PeftLokr].contains(&to) => Err(Error::usage(format!(
            "{module} is LyCORIS's name, which PEFT finds in no model; --base MODEL gives the model's own"
        ))),
        _ => Ok(()),
    }
}

impl To {
    fn of(self, form: Form) -> kron_adapter::To {
        match self {
            To::Kron => kron_adapter::To::Kron,
            To::Lora => kron_adapter::To::Lora(form),
            To::PeftLokr => kron_adapter::To::PeftLokr,
            To::Lycoris => kron_adapter::To::Lycoris,
        }
    }
}

impl Side {
    fn of(self) -> peft::Side {
        match self {
            Side::In => peft::Side::In,
            Side::Out => peft::Side::Out,
        }
    }
}

fn write(adapter: &Adapter, to: kron_adapter::To, out: &Path, force: bool) -> Result<()> {
    let bar = watch::items(adapter.layers().len(), "layers");
    let contents = to.contents(adapter, &|layers| {
        bar.inc(layers);
        Ok(())
    })?;
    bar.finish_and_clear();
    watch::place(out, &contents, force)
}

/// A row for each layer; `ranks` is empty where no LoRA was written.
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
        // Columns that say nothing are left out.
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
            self.input,
            self.from,
            self.output,
            self.layers.len(),
            table(&header.collect::<Vec<_>>(), 2, rows)
        );
        for note in &self.notes {
            text += &format!("\n\nnote: {note}");
        }
        text
    }
}
