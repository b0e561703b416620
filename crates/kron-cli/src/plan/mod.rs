//! `kron plan`: an adapter's shapes and costs, before training.
//!
//! ```text
//! preset ──────┐
//! config.json ─┴─ Model ─┬─ Report    one method, layer by layer, against the others
//!                        ├─ Choices   the splits nearest to a budget
//!                        └─ Golden    the paper's counts
//! ```

mod budget;
mod columns;
mod paper;
mod report;

use std::path::PathBuf;
use std::process::ExitCode;

use kron_adapter::plan::{Linear, Method, Model, PRESETS, preset};
use kron_core::Split;
use serde::Serialize;

use crate::model::{Config, Layers, linear_layers};
use crate::{Error, Result, TextOrJson};

pub use crate::count::Count;
pub use budget::Choices;
pub use paper::Golden;
pub use report::Report;

/// Plan an adapter: its shapes, parameters and costs, compared with other methods.
///
/// The model is a preset or any config.json of the LLaMA, Mistral, Qwen2, Qwen3, Gemma, BERT,
/// RoBERTa, DistilBERT or GPT-2 families; no weights are read. ΔW = s·A ⊗ (B·C) splits each layer by the
/// outer factor A, which is a_out × a_in. Without --a-out and --a-in the paper's rule picks it. A side
/// that does not divide a layer is reduced to the largest divisor below it, and a note reports it.
#[derive(Debug, clap::Args)]
#[command(after_help = concat!(
    "Costs are per token: multiply-adds of the adapter's forward pass, and the bytes of T that\n",
    "backward needs. An optimizer holds two float32 moments, 8 bytes per trained parameter; a\n",
    "gradient takes 4 bytes more. In CSV, a row of the layer `all` is a method over the whole model.\n\n",
    "Exit codes: 0 planned; 1 the configuration is invalid; 2 invalid arguments.\n\n",
    "Examples:\n",
    "  kron plan mistral-7b --rank 8\n",
    "  kron plan --config model/config.json --a-out 16 --a-in 2 --layers q_proj,v_proj --csv\n",
    "  kron plan llama-3-8b --budget 5.7M\n",
    "  kron plan --paper"
))]
pub struct Args {
    /// Preset: mistral-7b, llama-2-7b, llama-3-8b or distilbert
    #[arg(required_unless_present_any = ["config", "paper"], conflicts_with_all = ["config", "paper"])]
    preset: Option<String>,
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
    /// Rows of A, at least 1 [default: the paper's rule]
    #[arg(
        long,
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..),
        requires = "a_in",
        conflicts_with_all = ["split", "budget", "paper"]
    )]
    a_out: Option<u32>,
    /// Columns of A, at least 1 [default: the paper's rule]
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
    let method = match pair.or(args.split) {
        Some(split) => Method::Kron { split, rank },
        None => Method::paper(&model, rank),
    };
    print(args.csv, form, &Report::new(&model, method, notes)?, Report::table, Report::csv)
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
    let all = match (&args.config, &args.preset) {
        (Some(path), _) => linear_layers(&Config::read(path)?)?,
        (None, name) => {
            let name = name.as_deref().unwrap_or_default();
            let model = preset(name).ok_or_else(|| {
                let known = PRESETS.map(str::to_lowercase).join(", ");
                Error::usage(format!(
                    "{name:?} is not a preset; presets are {known}; use --config for another model"
                ))
            })?;
            Layers { model, notes: Vec::new() }
        }
    };
    if args.layers.is_empty() {
        return Ok(all);
    }
    let names: Vec<&str> = all.model.linears().iter().map(Linear::name).collect();
    if let Some(unknown) = args.layers.iter().find(|name| !names.contains(&name.as_str())) {
        return Err(Error::usage(format!(
            "no layer is named {unknown:?}; the layers are {}",
            names.join(", ")
        )));
    }
    let wanted = |linear: &&Linear| args.layers.iter().any(|name| name == linear.name());
    let linears = all.model.linears().iter().filter(wanted).cloned().collect();
    let model = Model::new(all.model.name(), all.model.hidden(), linears, all.model.also_trained());
    Ok(Layers { model: model.map_err(Error::into_usage)?, notes: all.notes })
}

/// Parses the value of `--split`.
fn split(text: &str) -> Result<Split, &'static str> {
    let side = |side: &str| side.trim().parse::<u32>().ok().filter(|&n| n > 0).map(|n| n as usize);
    match text.split_once(',').map(|(a_in, a_out)| (side(a_in), side(a_out))) {
        Some((Some(a_in), Some(a_out))) => Ok(Split { a_out, a_in }),
        _ => Err("it is not two integers a_in,a_out, each from 1 to 4294967295"),
    }
}
