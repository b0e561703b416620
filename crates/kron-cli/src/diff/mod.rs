//! `kron diff A B`: the distance between two adapters of one model.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use kron_adapter::algebra::Delta;
use kron_adapter::combine::sums_as_lora;
use kron_adapter::limits::{Cost, Limits};
use kron_adapter::resolve::resolve_module_names;
use kron_adapter::text::{first_and_more, one_line};
use kron_adapter::{Adapter, Layer, Loaded, TrainedTensor, lycoris};
use serde::Serialize;

use crate::batches::in_batches;
use crate::choice::{Choice, left_out};
use crate::model::Base;
use crate::table::{short, table};
use crate::{Error, Result, TextOrJson, progress};

/// Compare two adapters layer by layer.
///
/// Prints the cosine and the distance of ΔW and ΔW', computed from the factors. The adapters may be of
/// different kinds. A module that only one of them adapts has ΔW = 0 in the other. Of tensors trained beside the
/// factors, a note says whether they are equal.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The distance is ‖ΔW − ΔW'‖; `relative` divides it by ‖ΔW‖ of the first adapter. A relative distance\n\
below about 1e-8 is rounding noise. The cosine takes both ΔW as vectors; it is empty where one is 0.\n\
LyCORIS replaces each dot of a module's name by an underscore; --base restores the model's names.\n\n\
Exit codes: 0 compared, however different; 1 an adapter is invalid, or layers of one module have\n\
different sizes; 2 invalid arguments.\n\n\
Example: kron diff lora/ adapter.safetensors")]
pub struct Args {
    /// First adapter
    first: PathBuf,
    /// Second adapter
    second: PathBuf,
    /// Model (a safetensors file or a folder) whose module names replace LyCORIS's
    #[arg(long, value_name = "MODEL")]
    base: Option<PathBuf>,
    #[command(flatten)]
    choice: Choice,
}

#[derive(Debug, Serialize)]
struct Report {
    first: String,
    second: String,
    layers: Vec<Row>,
    total: Row,
    /// Names of tensors or modules of both adapters that were not chosen.
    left_out: Vec<String>,
    /// Limits of the comparison, one sentence each.
    notes: Vec<String>,
}

/// One module, or all modules together.
#[derive(Debug, Serialize)]
struct Row {
    module: String,
    norm: f64,
    other_norm: f64,
    cosine: Option<f64>,
    distance: f64,
    relative_distance: f64,
}

/// Compares, reports, and returns 0.
///
/// # Errors
/// An adapter cannot be read, or layers of one module have different sizes.
pub fn run(args: &Args, form: TextOrJson) -> Result<ExitCode> {
    let base = args.base.as_deref().map(Base::open).transpose()?;
    let mut notes = Vec::new();
    let [first, second] = [&args.first, &args.second].map(|path| read(args, path, base.as_ref(), &mut notes));
    let (first, second) = (first?, second?);
    let modules: BTreeSet<&str> = modules(&first.adapter).chain(modules(&second.adapter)).collect();
    let modules: Vec<&str> = modules.into_iter().collect();
    notes.extend(no_shared_module(&first, &second));
    notes.extend(trained_tensors(&first.adapter, &second.adapter));
    let bar = progress::items(modules.len(), "layers");
    let [ours, theirs] = [&first, &second].map(|loaded| by_module(&loaded.adapter));
    let pairs: Vec<Pair> = modules
        .iter()
        .map(|module| Pair { module, ours: ours.get(module).copied(), theirs: theirs.get(module).copied() })
        .collect();
    let mut limits = first.limits.and(&second.limits);
    pairs.iter().try_for_each(|pair| pair.spend(&mut limits))?;
    let parts = in_batches(
        &pairs,
        |pair| pair.cost().bytes,
        limits.bytes.left(),
        |pair| {
            let parts = Parts::new(pair.ours, pair.theirs);
            bar.inc(1);
            parts
                .map(|parts| (pair.module, parts))
                .map_err(|e| Error::data(format!("module {}: {e}", pair.module)))
        },
    );
    let parts = parts.into_iter().collect::<Result<Vec<_>>>()?;
    bar.finish_and_clear();
    let total = parts.iter().fold(Parts::default(), |sum, (_, p)| sum.plus(p)).row("all".into());
    let layers = parts.iter().map(|(module, parts)| parts.row(module.to_string())).collect();
    let left_out = [first.left_out, second.left_out].concat();
    let report = Report { first: first.path, second: second.path, layers, total, left_out, notes };
    form.print(&report, Report::table)?;
    Ok(ExitCode::SUCCESS)
}

/// Reads an adapter and gives its modules the model's names.
fn read(args: &Args, path: &Path, base: Option<&Base>, notes: &mut Vec<String>) -> Result<Loaded> {
    let mut loaded = args.choice.read_each(path)?;
    loaded.adapter = sums_as_lora(&loaded.adapter, None, &mut loaded.limits)?.into_owned();
    if let Some(base) = base {
        let resolved = resolve_module_names(&loaded.adapter, base)?;
        loaded.adapter = resolved.adapter;
        notes.extend(resolved.notes.into_iter().map(|note| format!("{}: {note}", loaded.path)));
    }
    Ok(loaded)
}

/// Returns a note when no module is in both adapters, so that each is compared with 0.
fn no_shared_module(first: &Loaded, second: &Loaded) -> Option<String> {
    let theirs = by_module(&second.adapter);
    let shared = modules(&first.adapter).any(|module| theirs.contains_key(module));
    let lycoris = |loaded: &Loaded| modules(&loaded.adapter).any(lycoris::is_lycoris);
    let hint =
        if lycoris(first) != lycoris(second) { "; --base MODEL gives LyCORIS's the model's own" } else { "" };
    let [one, other] = [first, second].map(|loaded| modules(&loaded.adapter).next().unwrap_or_default());
    (!shared).then(|| {
        format!("no module is in both adapters, so each is compared with 0: names are as {one} and as {other}{hint}")
    })
}

/// Returns a note on the tensors trained beside the factors, which are compared for equality alone.
fn trained_tensors(first: &Adapter, second: &Adapter) -> Option<String> {
    let both = [first, second].map(Adapter::trained_tensors);
    let names: BTreeSet<&str> = both.into_iter().flatten().map(TrainedTensor::name).collect();
    let differ = names.iter().filter(|name| first.trained_tensor(name) != second.trained_tensor(name));
    let differ = match first_and_more(differ) {
        None => "are equal in both adapters".to_string(),
        Some(names) => format!("differ in {names}"),
    };
    (!names.is_empty()).then(|| format!("the tensors trained beside the factors, {}, {differ}", names.len()))
}

fn modules(adapter: &Adapter) -> impl Iterator<Item = &str> {
    adapter.layers().iter().map(Layer::module)
}

fn by_module(adapter: &Adapter) -> HashMap<&str, &Layer> {
    adapter.layers().iter().map(|layer| (layer.module(), layer)).collect()
}

/// The layers of one module.
struct Pair<'a> {
    module: &'a str,
    ours: Option<&'a Layer>,
    theirs: Option<&'a Layer>,
}

impl Pair<'_> {
    /// Returns the cost of both norms and of the inner product.
    fn cost(&self) -> Cost {
        let shapes = [self.ours, self.theirs].map(|layer| layer.map(Layer::shape));
        let norms = shapes.into_iter().flatten().map(Delta::norm_cost).fold(Cost::default(), Cost::then);
        match shapes {
            [Some(ours), Some(theirs)] => norms.then(Delta::inner_cost(ours, theirs)),
            _ => norms,
        }
    }

    /// Fails if the comparison takes more memory or work than is left of the two files' limits.
    fn spend(&self, limits: &mut Limits) -> Result<()> {
        let (what, cost) = (format!("comparing module {}", self.module), self.cost());
        limits.bytes.check(&what, cost.bytes)?;
        limits.work.spend(&what, cost.work)
    }
}

/// ‖ΔW‖², ‖ΔW'‖² and ⟨ΔW, ΔW'⟩.
#[derive(Clone, Copy, Default)]
struct Parts {
    ours: f64,
    theirs: f64,
    inner: f64,
}

impl Parts {
    fn new(first: Option<&Layer>, second: Option<&Layer>) -> kron_adapter::Result<Self> {
        let (first, second) = (first.map(Delta::new), second.map(Delta::new));
        let square = |delta: &Option<Delta>| delta.as_ref().map_or(0.0, |d| d.norm().powi(2));
        let inner = match (&first, &second) {
            (Some(x), Some(y)) => x.inner(y)?,
            _ => 0.0,
        };
        Ok(Self { ours: square(&first), theirs: square(&second), inner })
    }

    fn plus(self, other: &Self) -> Self {
        let Self { ours, theirs, inner } = other;
        Self { ours: self.ours + ours, theirs: self.theirs + theirs, inner: self.inner + inner }
    }

    fn row(&self, module: String) -> Row {
        let (norm, other_norm) = (self.ours.sqrt(), self.theirs.sqrt());
        let distance = (self.ours + self.theirs - 2.0 * self.inner).max(0.0).sqrt();
        let cosine = self.inner / (norm * other_norm);
        Row {
            module,
            norm,
            other_norm,
            cosine: cosine.is_finite().then(|| cosine.clamp(-1.0, 1.0)),
            distance,
            relative_distance: if distance == 0.0 { 0.0 } else { distance / norm },
        }
    }
}

impl Report {
    fn table(&self) -> String {
        let rows = self.layers.iter().chain([&self.total]).map(|row| {
            let cosine = row.cosine.map_or("–".into(), |c| format!("{c:.6}"));
            let [ours, theirs] = [row.norm, row.other_norm].map(short);
            vec![row.module.clone(), ours, theirs, cosine, short(row.distance), short(row.relative_distance)]
        });
        let header = ["module", "‖ΔW‖", "‖ΔW'‖", "cosine", "distance", "relative"];
        let mut text = format!(
            "{} and {}\n\n{}",
            one_line(&self.first),
            one_line(&self.second),
            table(&header, 1, rows)
        );
        for note in &self.notes {
            text += &format!("\n\nnote: {}", one_line(note));
        }
        text + &left_out(&self.left_out)
    }
}
