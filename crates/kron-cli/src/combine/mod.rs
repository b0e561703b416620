//! `kron combine ADAPTER:WEIGHT … OUT`: several adapters as one.

use std::path::PathBuf;
use std::process::ExitCode;

use kron_adapter::combine::{Majority, Method, combine};
use kron_adapter::peft::LoraOptions;
use kron_adapter::resolve::resolve_module_names;
use kron_adapter::text::one_line;
use kron_adapter::{Adapter, Loaded, OutputFormat};
use serde::Serialize;

use crate::choice::{Choice, left_out};
use crate::error::exit_codes;
use crate::model::Base;
use crate::overwriting::{check_model_not_overwriting, check_not_overwriting};
use crate::table::table;
use crate::weighted::Weighted;
use crate::{Error, Result, TextOrJson, progress};

/// Combine adapters into one, as PEFT's add_weighted_adapter does.
///
/// cat stacks the factors: ΔW is Σ w·ΔW exactly, and the ranks add up. It takes every adapter; a layer that
/// is no LoRA, and that two adapters have, is stacked as the equal LoRA.
///
/// The other methods sum the factors of LoRAs of one rank, each multiplied by √|w·s|, as PEFT does. That is not
/// Σ w·ΔW: the product of the sums has products of one adapter's B and another's A.
#[derive(Debug, clap::Args)]
#[command(after_help = concat!(
    "ties keeps the largest values and averages those of the majority's sign (arXiv 2306.01708). dare keeps\n",
    "random values and divides them by the density (arXiv 2311.03099); equal seeds give equal files.\n",
    "magnitude-prune keeps the largest values.\n\n",
    "A layer that one adapter alone has goes along. Trained tensors have no weighted sum, and are refused unless\n",
    "--factors-only is given. `kron merge BASE A:0.7 B:-0.3 OUT` merges the same sum as cat without a file.\n\n",
    exit_codes!("written", "an adapter is invalid, or the adapters do not fit together"),
    "Examples:\n",
    "  kron combine style/:0.7 chat/:-0.3 both.safetensors\n",
    "  kron combine a/ b/ both/ --to lora --how ties --density 0.2",
))]
pub struct Args {
    /// Adapters: files or PEFT folders, each with a weight after a colon, `lora:0.7`, or with the weight 1
    #[arg(required = true, value_name = "ADAPTER[:WEIGHT]")]
    adapters: Vec<Weighted>,
    /// File to write, or folder for lora
    output: PathBuf,
    /// How the factors are combined
    #[arg(long, value_enum, default_value = "cat")]
    how: How,
    /// Share of the values that is kept, above 0 and up to 1, with ties, dare and magnitude-prune
    #[arg(long)]
    density: Option<f64>,
    /// Seed of the choice, with dare-linear and dare-ties [default: 0]
    #[arg(long)]
    seed: Option<u64>,
    /// Rule for the sign of the majority, with ties and dare-ties [default: total]
    #[arg(long, value_enum)]
    majority: Option<MajorityArg>,
    /// Format to write
    #[arg(long, value_enum, default_value = "kron")]
    to: To,
    /// Model (a safetensors file or a folder) whose module names all adapters get
    #[arg(long, value_name = "MODEL")]
    base: Option<PathBuf>,
    /// Leave out the tensors that were trained beside the factors, which a note names
    #[arg(long)]
    factors_only: bool,
    #[command(flatten)]
    choice: Choice,
    /// Replace the output when it exists
    #[arg(long)]
    force: bool,
}

/// How factors are combined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
enum How {
    /// Stacked factors, exact
    Cat,
    /// Weighted sums of the factors
    Linear,
    /// Largest values, averaged over the majority's sign
    Ties,
    /// Random values, summed
    DareLinear,
    /// Random values, averaged over the majority's sign
    DareTies,
    /// Largest values, summed
    MagnitudePrune,
}

/// Rule for the sign of the majority.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum MajorityArg {
    /// Sign of the sum of the values
    Total,
    /// Sign of most values
    Frequency,
}

/// Format to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
enum To {
    /// One safetensors file of this project
    Kron,
    /// PEFT folder with LoRA
    Lora,
}

/// Printed result.
#[derive(Debug, Serialize)]
struct Report {
    adapters: Vec<Source>,
    how: How,
    output: String,
    to: To,
    layers: Vec<Row>,
    /// Names of tensors or modules of the adapters that were not chosen.
    left_out: Vec<String>,
    notes: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Source {
    path: String,
    weight: f64,
    layers: usize,
}

#[derive(Debug, Serialize)]
struct Row {
    module: String,
    shape: String,
    /// Number of adapters that have the module.
    adapters: usize,
}

/// Combines, reports, and returns 0.
///
/// # Errors
/// An adapter is invalid, the adapters do not fit together, or the output exists or cannot be written.
pub fn run(args: &Args, form: TextOrJson) -> Result<ExitCode> {
    let method = args.method()?;
    let folder = args.to == To::Lora;
    let sources = args.adapters.iter().map(|adapter| &adapter.path).chain(&args.base);
    sources.into_iter().try_for_each(|source| check_not_overwriting(source, &args.output, folder))?;
    let base = args.base.as_deref().map(Base::open).transpose()?;
    if let (Some(path), Some(base)) = (&args.base, &base) {
        check_model_not_overwriting(path, base, &args.output, folder)?;
    }
    let mut notes = Vec::new();
    let loaded = args.adapters.iter().map(|weighted| args.read(weighted, base.as_ref(), &mut notes));
    let loaded = loaded.collect::<Result<Vec<_>>>()?;
    let limits = loaded.iter().map(|loaded| loaded.limits.clone()).reduce(|all, next| all.and(&next));
    let mut limits = limits.ok_or_else(|| Error::usage("no adapter is given"))?;
    let weighted: Vec<(&Adapter, f64)> =
        loaded.iter().zip(&args.adapters).map(|(loaded, given)| (&loaded.adapter, given.weight)).collect();
    let adapter = combine(&weighted, method, &mut limits)?;
    notes.extend(no_shared_module(&weighted));
    let format = match args.to {
        To::Kron => OutputFormat::Kron,
        To::Lora => {
            let max_bytes = Some(limits.bytes.left());
            OutputFormat::Lora(LoraOptions { max_bytes, ..LoraOptions::default() })
        }
    };
    let contents = format.encode(&adapter, &|_| Ok(()))?;
    progress::write_output(&args.output, &contents, args.force)?;
    let count = |module: &str| weighted.iter().filter(|(adapter, _)| adapter.layer(module).is_some()).count();
    let rows = adapter.layers().iter().map(|layer| Row {
        module: layer.module().into(),
        shape: layer.shape().to_string(),
        adapters: count(layer.module()),
    });
    let sources = loaded.iter().zip(&args.adapters).map(|(loaded, given)| Source {
        path: loaded.path.clone(),
        weight: given.weight,
        layers: loaded.adapter.modules(),
    });
    let report = Report {
        adapters: sources.collect(),
        how: args.how,
        output: args.output.display().to_string(),
        to: args.to,
        layers: rows.collect(),
        left_out: loaded.iter().flat_map(|loaded| loaded.left_out.clone()).collect(),
        notes,
    };
    form.print(&report, Report::table)?;
    Ok(ExitCode::SUCCESS)
}

impl Args {
    /// Returns the method with its options.
    fn method(&self) -> Result<Method> {
        let sparse = !matches!(self.how, How::Cat | How::Linear);
        let density = match (self.density, sparse) {
            (Some(density), true) => density,
            (None, true) => {
                return Err(Error::usage("--density is missing: the share of the values that is kept"));
            }
            (Some(_), false) => {
                return Err(Error::usage("--density goes with ties, dare and magnitude-prune"));
            }
            (None, false) => 1.0,
        };
        let dare = matches!(self.how, How::DareLinear | How::DareTies);
        if self.seed.is_some() && !dare {
            return Err(Error::usage(
                "--seed chooses values at random, so it goes with dare-linear and dare-ties",
            ));
        }
        let ties = matches!(self.how, How::Ties | How::DareTies);
        if self.majority.is_some() && !ties {
            return Err(Error::usage("--majority goes with ties and dare-ties"));
        }
        let seed = self.seed.unwrap_or(0);
        let majority = match self.majority {
            None | Some(MajorityArg::Total) => Majority::Total,
            Some(MajorityArg::Frequency) => Majority::Frequency,
        };
        Ok(match self.how {
            How::Cat => Method::Cat,
            How::Linear => Method::Linear,
            How::Ties => Method::Ties { density, majority },
            How::DareLinear => Method::DareLinear { density, seed },
            How::DareTies => Method::DareTies { density, seed, majority },
            How::MagnitudePrune => Method::MagnitudePrune { density },
        })
    }

    /// Reads an adapter, gives its modules the model's names, and leaves out what the caller chose to.
    fn read(&self, weighted: &Weighted, base: Option<&Base>, notes: &mut Vec<String>) -> Result<Loaded> {
        let mut loaded = self.choice.read_each(&weighted.path)?;
        loaded.check_writable()?;
        let mut own = std::mem::take(&mut loaded.notes);
        if let Some(base) = base {
            let resolved = resolve_module_names(&loaded.adapter, base)?;
            loaded.adapter = resolved.adapter;
            own.extend(resolved.notes);
        }
        if let Some(names) = loaded.adapter.trained_summary().filter(|_| self.factors_only) {
            own.push(format!("--factors-only leaves these trained tensors out: {names}"));
            loaded.left_out.extend(loaded.adapter.trained_tensors().iter().map(|t| t.name().to_string()));
            loaded.adapter = loaded.adapter.with_trained_tensors(Vec::new())?;
        }
        notes.extend(own.into_iter().map(|note| format!("{}: {note}", loaded.path)));
        Ok(loaded)
    }
}

/// Returns a note where several adapters have no module in common.
fn no_shared_module(adapters: &[(&Adapter, f64)]) -> Option<String> {
    let [(first, _), rest @ ..] = adapters else { return None };
    let shared = |module: &str| rest.iter().any(|(adapter, _)| adapter.layer(module).is_some());
    let none = !rest.is_empty() && !first.layers().iter().any(|layer| shared(layer.module()));
    none.then(|| {
        "the first adapter shares no module with another; --base MODEL gives all of them the model's names"
            .into()
    })
}

impl Report {
    fn table(&self) -> String {
        let row = |row: &Row| vec![row.module.clone(), row.shape.clone(), row.adapters.to_string()];
        let sources =
            self.adapters.iter().map(|source| format!("{} × {}", source.weight, one_line(&source.path)));
        let mut text = format!(
            "{} → {} ({} layers)\n\n{}",
            sources.collect::<Vec<_>>().join(" + "),
            one_line(&self.output),
            self.layers.len(),
            table(&["module", "shape", "adapters"], 2, self.layers.iter().map(row))
        );
        for note in &self.notes {
            text += &format!("\n\nnote: {}", one_line(note));
        }
        text + &left_out(&self.left_out)
    }
}
