//! `kron plan`: an adapter's shapes and costs before anything is trained.
//!
//! ```text
//! preset ──────┐
//! config.json ─┴─ Model ─┬─ Report    one method, layer by layer, against the others
//!                        ├─ Choices   the splits nearest to a budget
//!                        └─ Golden    the paper's counts
//! ```

mod budget;
mod count;
mod paper;
mod report;
mod text;

use std::path::PathBuf;
use std::process::ExitCode;

use kron_adapter::plan::{Linear, Method, Model, PRESETS, preset};
use kron_core::Split;
use serde::Serialize;

use crate::model::{Config, Layers};
use crate::{Error, Output, Result};

pub use budget::Choices;
pub use count::Count;
pub use paper::Golden;
pub use report::Report;

/// Plan an adapter: shapes, parameters and costs, layer by layer and against other methods.
///
/// The model is a preset or any config.json of the LLaMA, Mistral, Qwen2, Qwen3, Gemma, BERT,
/// RoBERTa, DistilBERT or GPT-2 families; no weights are read. Without --split the paper's rule
/// picks the outer factor. A split that does not divide a layer is reduced to the largest divisor
/// below it, and the row says so.
#[derive(Debug, clap::Args)]
#[command(after_help = concat!(
    "Costs are per token: multiply-adds of the adapter's forward pass, and the bytes of T that\n",
    "backward needs. An optimizer holds two float32 moments, 8 bytes a trained parameter, and a\n",
    "gradient takes 4 more. In CSV a row of the layer `all` is a method over the whole model.\n\n",
    "Exit codes: 0 planned; 1 the configuration is at fault; 2 the call is at fault.\n\n",
    "Examples:\n",
    "  kron plan mistral-7b --rank 8\n",
    "  kron plan --config model/config.json --split 2,16 --layers q_proj,v_proj --csv\n",
    "  kron plan llama-3-8b --budget 5.7M\n",
    "  kron plan --paper"
))]
pub struct Args {
    /// A preset: mistral-7b, llama-2-7b, llama-3-8b or distilbert
    #[arg(required_unless_present_any = ["config", "paper"], conflicts_with_all = ["config", "paper"])]
    preset: Option<String>,
    /// A model's config.json, or its folder
    #[arg(long, conflicts_with = "paper", value_name = "PATH")]
    config: Option<PathBuf>,
    /// r
    #[arg(
        long,
        default_value_t = 8,
        value_parser = clap::value_parser!(u32).range(1..),
        conflicts_with_all = ["budget", "paper"]
    )]
    rank: u32,
    /// The outer factor's sides a_in,a_out [default: the paper's rule]
    #[arg(long, value_name = "A_IN,A_OUT", conflicts_with_all = ["budget", "paper"])]
    split: Option<String>,
    /// Only these layers, by name
    #[arg(long, value_delimiter = ',', conflicts_with = "paper")]
    layers: Vec<String>,
    /// List the legal (a_in, a_out, r) whose parameters come nearest to a number: 5708448, 840k, 5.7M
    #[arg(long, conflicts_with = "paper")]
    budget: Option<Count>,
    /// How many choices --budget lists
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    top: u32,
    /// Print the counts of the paper's tables
    #[arg(long)]
    paper: bool,
    /// Print CSV instead of a table
    #[arg(long)]
    csv: bool,
}

/// Plans, and prints the result.
///
/// # Errors
/// An unknown preset or layer, a split or rank that no layer can have, and a
/// configuration that lacks what is needed.
pub fn run(args: &Args, output: Output) -> Result<ExitCode> {
    if args.csv && output == Output::Json {
        return Err(Error::usage("--csv and --json are two forms of one result: give one of them"));
    }
    if args.paper {
        return print(args.csv, output, &Golden::new()?, Golden::table, Golden::csv);
    }
    let Layers { model, notes } = layers(args)?;
    let rank = args.rank as usize;
    if let Some(Count(target)) = args.budget {
        let choices = Choices::new(&model, target, args.top as usize, notes)?;
        return print(args.csv, output, &choices, Choices::table, Choices::csv);
    }
    let method = match &args.split {
        Some(text) => Method::Kron { split: split(text)?, rank },
        None => Method::paper(&model, rank),
    };
    print(args.csv, output, &Report::new(&model, method, notes)?, Report::table, Report::csv)
}

fn print<T: Serialize>(
    csv: bool,
    output: Output,
    value: &T,
    table: fn(&T) -> String,
    as_csv: fn(&T) -> String,
) -> Result<ExitCode> {
    output.print(value, if csv { as_csv } else { table })?;
    Ok(ExitCode::SUCCESS)
}

/// The model's layers, or those of them that were asked for.
fn layers(args: &Args) -> Result<Layers> {
    let all = match (&args.config, &args.preset) {
        (Some(path), _) => Config::read(path)?.layers()?,
        (None, name) => {
            let name = name.as_deref().unwrap_or_default();
            let model = preset(name).ok_or_else(|| {
                let known = PRESETS.map(str::to_lowercase).join(", ");
                Error::usage(format!(
                    "{name:?} is no preset; there are {known}, and --config for any other model"
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
        return Err(Error::usage(format!("there is no layer {unknown:?}, only {}", names.join(", "))));
    }
    let wanted = |linear: &&Linear| args.layers.iter().any(|name| name == linear.name());
    let linears = all.model.linears().iter().filter(wanted).cloned().collect();
    let model = Model::new(all.model.name(), all.model.hidden(), linears, all.model.also_trained());
    Ok(Layers { model: model.map_err(usage)?, notes: all.notes })
}

fn split(text: &str) -> Result<Split> {
    let side = |side: &str| side.trim().parse::<usize>().ok().filter(|&n| n > 0);
    match text.split_once(',').map(|(a_in, a_out)| (side(a_in), side(a_out))) {
        Some((Some(a_in), Some(a_out))) => Ok(Split { a_in, a_out }),
        _ => Err(Error::usage(format!("--split is {text:?}, but it is two positive integers: a_in,a_out"))),
    }
}

fn usage(error: kron_adapter::Error) -> Error {
    Error::usage(error.to_string())
}
