//! `kron plan`: an adapter's shapes and costs, before training.
//!
//! ```text
//! preset ─────────────┐
//! config.json ────────┤
//! safetensors or GGUF ┴─ Model ─┬─ Report    one method, layer by layer, against the others
//!                               ├─ Choices   the splits nearest to a budget
//!                               └─ Golden    the paper's counts
//! ```

mod budget;
mod columns;
mod paper;
mod report;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use kron_adapter::gguf::{Gguf, is_gguf};
use kron_adapter::plan::{DEFAULT_SPLIT, Linear, Method, Model, PRESETS, preset};
use kron_adapter::resolve::BaseTensors;
use kron_adapter::text::nearly;
use kron_core::Split;
use safetensors::Dtype;
use serde::Serialize;

use crate::model::{Base, Config, INDEX, Layers, SINGLE, linear_layers, scanned_layers};
use crate::{Error, Result, TextOrJson};

pub use crate::count::Count;
pub use budget::Choices;
pub use paper::Golden;
pub use report::Report;

/// Plan an adapter: its shapes, parameters and costs, compared with other methods.
///
/// The model is a preset, a model on disk of whatever family (a safetensors file, a folder, an index of shards, a
/// GGUF), or any config.json of the LLaMA, Mistral, Qwen2, Qwen3, Gemma, BERT, RoBERTa, DistilBERT or GPT-2 families;
/// of a model on disk names and sizes are read, no weights. ΔW = s·A ⊗ (B·C) splits each layer by the
/// outer factor A, which is a_out × a_in. Without --a-out and --a-in it is 2 × 2. A side
/// that does not divide a layer is reduced to the largest divisor below it, and a note reports it.
#[derive(Debug, clap::Args)]
#[command(after_help = concat!(
    "mul-adds are the multiply-adds of an adapter's forward pass for a token. CSV and JSON also have the\n",
    "sizes of B and C, the bytes of T that backward needs for a token, and the bytes of the adapter, of\n",
    "its gradient and of an optimizer's two float32 moments. In CSV, a row of the layer `all` is a method\n",
    "over the whole model.\n\n",
    "Exit codes: 0 planned; 1 the configuration is invalid; 2 invalid arguments.\n\n",
    "Examples:\n",
    "  kron plan mistral-7b --rank 8\n",
    "  kron plan model.safetensors --layers q_proj,v_proj\n",
    "  kron plan --config model/config.json --a-out 16 --a-in 2 --layers q_proj,v_proj --csv\n",
    "  kron plan llama-3-8b --budget 5.7M\n",
    "  kron plan --paper"
))]
pub struct Args {
    /// Preset (mistral-7b, llama-2-7b, llama-3-8b or distilbert), or a model's file or folder
    #[arg(required_unless_present_any = ["config", "paper"], conflicts_with_all = ["config", "paper"])]
    model: Option<String>,
    /// A model's config.json, or the folder that holds it
    #[arg(long, conflicts_with = "paper", value_name = "PATH")]
    config: Option<PathBuf>,
    /// Rank r of B·C, at least 1
    #[arg(
        long,
        value_name = "N",
        default_value_t = 8,
        value_parser = clap::value_parser!(u32).range(1..),
        conflicts_with_all = ["budget", "paper"]
    )]
    rank: u32,
    /// Rows of A, at least 1 [default: 2]
    #[arg(
        long,
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..),
        requires = "a_in",
        conflicts_with_all = ["split", "budget", "paper"]
    )]
    a_out: Option<u32>,
    /// Columns of A, at least 1 [default: 2]
    #[arg(
        long,
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..),
        requires = "a_out",
        conflicts_with_all = ["split", "budget", "paper"]
    )]
    a_in: Option<u32>,
    /// Older form of --a-out and --a-in, with the columns first
    #[arg(
        long,
        hide = true,
        value_name = "A_IN,A_OUT",
        value_parser = split,
        conflicts_with_all = ["budget", "paper"]
    )]
    split: Option<Split>,
    /// Plan only these layers, by name
    #[arg(long, value_name = "NAMES", value_delimiter = ',', conflicts_with = "paper")]
    layers: Vec<String>,
    /// List the shapes whose number of parameters is nearest to this one: 5708448, 840k, 5.7M
    #[arg(long, value_name = "PARAMS", conflicts_with = "paper")]
    budget: Option<Count>,
    /// Number of shapes that --budget lists, at least 1
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    top: u32,
    /// Show which layers a PEFT folder with LoKr and a LyCORIS file can hold
    #[arg(long, conflicts_with_all = ["budget", "paper"])]
    format: bool,
    /// Print the parameter counts of the paper's tables
    #[arg(long)]
    paper: bool,
    /// Print CSV instead of a table
    #[arg(long)]
    csv: bool,
}

/// Plans, and prints the result.
///
/// # Errors
/// The preset or a layer is unknown, a layer cannot have the split or the rank, or the configuration
/// lacks a field.
pub fn run(args: &Args, form: TextOrJson) -> Result<ExitCode> {
    if args.csv && form == TextOrJson::Json {
        return Err(Error::usage("--csv and --json are two forms of one result: give one of them"));
    }
    if args.paper {
        return print(args.csv, form, &Golden::new()?, Golden::table, Golden::csv);
    }
    let Layers { model, notes } = layers(args)?;
    let rank = args.rank as usize;
    if let Some(Count(target)) = args.budget {
        let choices = Choices::new(&model, target, args.top as usize, notes)?;
        return print(args.csv, form, &choices, Choices::table, Choices::csv);
    }
    let pair = args.a_out.zip(args.a_in);
    let pair = pair.map(|(a_out, a_in)| Split { a_out: a_out as usize, a_in: a_in as usize });
    let method = Method::Kron { split: pair.or(args.split).unwrap_or(DEFAULT_SPLIT), rank };
    print(args.csv, form, &Report::new(&model, method, notes, args.format)?, Report::table, Report::csv)
}

fn print<T: Serialize>(
    csv: bool,
    form: TextOrJson,
    value: &T,
    table: fn(&T) -> String,
    as_csv: fn(&T) -> Result<String>,
) -> Result<ExitCode> {
    let csv = csv.then(|| as_csv(value)).transpose()?;
    form.print(value, |value| csv.unwrap_or_else(|| table(value)))?;
    Ok(ExitCode::SUCCESS)
}

/// Returns the model's layers, or only those that `--layers` names.
fn layers(args: &Args) -> Result<Layers> {
    let all = match (&args.config, &args.model) {
        (Some(path), _) => linear_layers(&Config::read(path)?)?,
        (None, name) => of_model(name.as_deref().unwrap_or_default())?,
    };
    if args.layers.is_empty() {
        return Ok(all);
    }
    let names: Vec<&str> = all.model.linears().iter().map(Linear::name).collect();
    if let Some(unknown) = args.layers.iter().find(|name| !names.contains(&name.as_str())) {
        return Err(Error::usage(format!(
            "no layer is named {unknown:?}{}; the layers are {}",
            meant(names.iter().copied(), unknown),
            names.join(", ")
        )));
    }
    let wanted = |linear: &&Linear| args.layers.iter().any(|name| name == linear.name());
    let linears = all.model.linears().iter().filter(wanted).cloned().collect();
    let model = Model::new(all.model.name(), all.model.hidden(), linears, all.model.also_trained());
    Ok(Layers { model: model.map_err(Error::into_usage)?, notes: all.notes })
}

/// Returns the layers of a preset, or of a model on disk.
fn of_model(name: &str) -> Result<Layers> {
    if let Some(model) = preset(name) {
        return Ok(Layers { model, notes: Vec::new() });
    }
    let path = Path::new(name);
    if !path.exists() {
        let known = PRESETS.map(str::to_lowercase);
        return Err(Error::usage(format!(
            "{name:?} is neither a preset nor a file or folder{}; presets are {}, and --config takes a config.json",
            meant(known.iter().map(String::as_str), name),
            known.join(", ")
        )));
    }
    if is_gguf(path) {
        let gguf = Gguf::open(path)?;
        let tensors = gguf.tensors().iter().map(|(name, tensor)| (name, Dtype::F32, tensor.shape.clone()));
        return scanned_layers(&BaseTensors::new(gguf.path(), tensors));
    }
    let is_json = path.extension().is_some_and(|extension| extension == "json");
    let is_index = path.file_name().is_some_and(|file| file == INDEX);
    match path {
        path if is_index => {
            let folder = path.parent().filter(|folder| folder.components().next().is_some());
            scanned_layers(&Base::open(folder.unwrap_or(Path::new(".")))?)
        }
        path if is_json => linear_layers(&Config::read(path)?),
        path if path.is_dir() && !path.join(INDEX).exists() && !path.join(SINGLE).exists() => {
            linear_layers(&Config::read(path)?)
        }
        path => scanned_layers(&Base::open(path)?),
    }
}

/// Returns the nearest name as a question, if it is near.
fn meant<'a>(names: impl IntoIterator<Item = &'a str>, text: &str) -> String {
    nearly(names, &text.to_lowercase()).map_or(String::new(), |name| format!(" (did you mean {name}?)"))
}

/// Parses the value of `--split`.
fn split(text: &str) -> Result<Split, &'static str> {
    let side = |side: &str| side.trim().parse::<u32>().ok().filter(|&n| n > 0).map(|n| n as usize);
    match text.split_once(',').map(|(a_in, a_out)| (side(a_in), side(a_out))) {
        Some((Some(a_in), Some(a_out))) => Ok(Split { a_out, a_in }),
        _ => Err("it is not two integers a_in,a_out, each from 1 to 4294967295"),
    }
}
