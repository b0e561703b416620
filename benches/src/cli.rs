//! The command line, and the only place that refuses it.

use std::path::{Path, PathBuf};

use clap::Parser;
use kron_adapter::plan::paper_split;
use kron_core::{Dtype, KronOp, KronShape, Scale, Split};

use crate::engines::Kind;
use crate::machine;
use crate::models::{self, Layer, Model};
use crate::problem::TimedPasses;
use crate::record::Record;
use crate::schedule::{Entry, Group, Schedule};

/// Largest rank, number of rows, and side of A.
const LARGEST: usize = i32::MAX as usize;

/// alpha of alpha / r: the paper's.
const ALPHA: f32 = 32.0;

/// Kron-LoRA against LoRA on the layers of real models.
///
/// Without arguments: the layers of Mistral-7B, rows 1, 16, 256 and 2048, f32 and bf16,
/// every engine, both passes. A list is separated by commas.
#[derive(Debug, Parser)]
#[command(name = "kron-bench", version)]
pub struct Cli {
    /// Models of shapes.toml.
    #[arg(long, value_delimiter = ',', default_value = "mistral-7b")]
    model: Vec<String>,
    /// Layers: q, kv, gate_up, down [default: all that the model has].
    #[arg(long, value_delimiter = ',')]
    layers: Vec<String>,
    /// Tokens, 1 to 2147483647 [default: 1,16,256,2048].
    #[arg(long, value_delimiter = ',')]
    rows: Vec<String>,
    /// Rank of Kron-LoRA, and of LoRA at equal rank, 1 to 2147483647.
    #[arg(long, default_value = "8")]
    rank: String,
    /// Rows of the outer factor A [default: the paper's rule].
    #[arg(long)]
    a_out: Option<String>,
    /// Columns of the outer factor A [default: the paper's rule].
    #[arg(long)]
    a_in: Option<String>,
    /// Activations: f32, f16, bf16.
    #[arg(long, value_delimiter = ',', default_value = "f32,bf16")]
    dtype: Vec<String>,
    /// Device to measure on: cpu, or cuda:0 for the first CUDA device.
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Threads, 1 to 1024 [default: all].
    #[arg(long)]
    threads: Option<String>,
    /// Engines [default: all that run there].
    #[arg(long, value_delimiter = ',')]
    engines: Vec<String>,
    /// Passes: forward, forward+backward.
    #[arg(long, value_delimiter = ',', default_value = "forward,forward+backward")]
    passes: Vec<String>,
    /// Folder for bench.json, bench.csv and index.html.
    #[arg(long, default_value = "report")]
    out: PathBuf,
    /// An earlier bench.json to compare with.
    #[arg(long)]
    baseline: Option<PathBuf>,
    /// Also write the summary as a Markdown table.
    #[arg(long)]
    markdown: Option<PathBuf>,
    /// Seconds to aim at, 1 to 86400; the more, the more rounds [default: 85].
    #[arg(long)]
    seconds: Option<String>,
    /// Ten seconds: rows 1, 16 and 128 of the smallest two layers; on a CUDA device with warm caches and a false roof.
    #[arg(long)]
    smoke: bool,
}

impl Cli {
    /// Checks every value and makes the schedule, before anything is written.
    ///
    /// # Errors
    /// Fails on a bad value, with one sentence that names the value and the rule it breaks.
    pub fn schedule(self) -> Result<Schedule, String> {
        let models = distinct(&self.model, |name| {
            models::models()
                .iter()
                .find(|m| m.name == name)
                .ok_or_else(|| format!("model {name:?} is not one of {}", models::names()))
        })?;
        let rank = positive("rank", &self.rank)?;
        let dtypes = distinct(&self.dtype, |d| d.parse::<Dtype>().map_err(|e| e.to_string()))?;
        let device = device(&self.device)?;
        let engines = match self.engines.as_slice() {
            // The order of adapter and layer matters where memory is the limit; a CPU's time is in the layer.
            [] => Kind::ALL.into_iter().filter(|&k| device.is_some() || k != Kind::KronFirst).collect(),
            some => distinct(some, |e| one_of("engine", e, &Kind::ALL, Kind::name))?,
        };
        let passes = distinct(&self.passes, |p| one_of("pass", p, &TimedPasses::ALL, TimedPasses::name))?;
        let default_rows: &[&str] =
            if self.smoke { &["1", "16", "128"] } else { &["1", "16", "256", "2048"] };
        let rows = match self.rows.as_slice() {
            [] => distinct(default_rows, |r| positive("rows", r))?,
            some => distinct(some, |r| positive("rows", r))?,
        };
        let all = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = self.threads.as_deref().map_or(Ok(all), |t| at_most("threads", t, 1024))?;
        let default_seconds = if self.smoke { 8 } else { 85 };
        let seconds =
            self.seconds.as_deref().map_or(Ok(default_seconds), |s| at_most("seconds", s, 86_400))?;
        let split = |side: &Option<String>, name| side.as_deref().map(|v| positive(name, v)).transpose();
        let (a_out, a_in) = (split(&self.a_out, "a_out")?, split(&self.a_in, "a_in")?);

        let mut groups = Vec::new();
        for model in models {
            let paper = paper_split(model.hidden);
            let split = Split { a_out: a_out.unwrap_or(paper.a_out), a_in: a_in.unwrap_or(paper.a_in) };
            for layer in chosen_layers(model, &self.layers, self.smoke)? {
                let entries = entries(model, layer, split, rank, &engines)?;
                for &dtype in &dtypes {
                    let (rows, entries) = (rows.clone(), entries.clone());
                    groups.push(Group { model, layer, dtype, rows, entries });
                }
            }
        }
        let baseline = self.baseline.as_deref().map(Record::read).transpose()?;
        check_folder(&self.out)?;
        if let Some(file) = &self.markdown {
            check_file(file)?;
        }
        let schedule = Schedule {
            groups,
            passes,
            rank,
            alpha: ALPHA,
            device,
            smoke: self.smoke,
            threads,
            seconds: seconds as f64,
            out: self.out,
            markdown: self.markdown,
            baseline,
        };
        check_memory(&schedule)?;
        Ok(schedule)
    }
}

/// Lists every engine on a layer; LoRA at equal rank and at equal parameters.
fn entries(
    model: &Model,
    layer: &Layer,
    split: Split,
    rank: usize,
    engines: &[Kind],
) -> Result<Vec<Entry>, String> {
    let dims = layer.dims();
    let here = |e: kron_core::Error| format!("{e} (layer {} of {})", layer.name, model.name);
    let op = |shape: KronShape| {
        // The scale is the same for every engine, so that the equal-parameter LoRA adds as much.
        let scale = Scale::alpha_over_r(ALPHA, rank).map_err(here)?;
        Ok::<_, String>(KronOp::new(shape, scale))
    };
    let kron = op(KronShape::kron(dims, split, rank).map_err(here)?)?;
    let lora = |rank| op(KronShape::lora(dims, rank).map_err(here)?);
    let equal_params =
        ((kron.shape.params() as f64 / (dims.d_out + dims.d_in) as f64).round() as usize).max(1);
    let mut list = Vec::new();
    for &kind in engines {
        list.push(Entry { kind, problem: kind.problem(kron, lora(rank)?) });
        if matches!(kind, Kind::LoraGemm | Kind::LoraFused) && equal_params != rank {
            list.push(Entry { kind, problem: kind.problem(kron, lora(equal_params)?) });
        }
    }
    Ok(list)
}

/// Returns the layers with the given names; without names all, or with `smoke` the two smallest.
fn chosen_layers<'a>(model: &'a Model, names: &[String], smoke: bool) -> Result<Vec<&'a Layer>, String> {
    if names.is_empty() {
        let mut layers: Vec<&Layer> = model.layers.iter().collect();
        if smoke {
            layers.sort_by_key(|l| l.d_out * l.d_in);
            layers.truncate(2);
        }
        return Ok(layers);
    }
    distinct(names, |name| {
        model.layers.iter().find(|l| l.name == name).ok_or_else(|| {
            let has: Vec<&str> = model.layers.iter().map(|l| l.name.as_str()).collect();
            format!("layer {name:?} is not one of {}, which {} has", has.join(", "), model.name)
        })
    })
}

/// Parses each distinct name once.
fn distinct<S: AsRef<str>, T>(
    names: &[S],
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<Vec<T>, String> {
    let mut seen: Vec<&str> = Vec::new();
    for name in names {
        if !seen.contains(&name.as_ref()) {
            seen.push(name.as_ref());
        }
    }
    seen.into_iter().map(parse).collect()
}

/// Finds the value with the given name.
fn one_of<T: Copy>(what: &str, name: &str, all: &[T], of: fn(T) -> &'static str) -> Result<T, String> {
    all.iter().copied().find(|&t| of(t) == name).ok_or_else(|| {
        let names: Vec<&str> = all.iter().map(|&t| of(t)).collect();
        format!("{what} {name:?} is not one of {}", names.join(", "))
    })
}

/// Parses `cpu`, or `cuda:` and the number of a device of this machine.
fn device(text: &str) -> Result<Option<usize>, String> {
    let number = text.strip_prefix("cuda:").and_then(|number| number.parse().ok());
    match number {
        None if text == "cpu" => Ok(None),
        None => Err(format!("device is {text:?}, but it is cpu or cuda: and a number, such as cuda:0")),
        Some(ordinal) => crate::device::check(ordinal).map(|()| Some(ordinal)),
    }
}

/// Parses a whole number from 1 to [`LARGEST`].
fn positive(what: &str, text: &str) -> Result<usize, String> {
    at_most(what, text, LARGEST)
}

/// Parses a whole number from 1 to `limit`.
fn at_most(what: &str, text: &str, limit: usize) -> Result<usize, String> {
    match text.parse() {
        Ok(n) if n > 0 && n <= limit => Ok(n),
        Ok(n) if n > limit => Err(format!("{what} is {n}, but it is at most {limit}")),
        _ => Err(format!("{what} is {text:?}, but it is a whole number from 1 to {limit}")),
    }
}

/// Fails if the folder neither exists nor can be created.
fn check_folder(out: &Path) -> Result<(), String> {
    let first = out.ancestors().find(|p| p.as_os_str().is_empty() || p.exists());
    match first {
        Some(p) if !p.as_os_str().is_empty() && !p.is_dir() => {
            Err(format!("out is {}, but {} is not a folder", out.display(), p.display()))
        }
        _ => Ok(()),
    }
}

/// Fails if the file cannot be created.
fn check_file(file: &Path) -> Result<(), String> {
    let parent = file.parent().filter(|p| !p.as_os_str().is_empty());
    if file.is_dir() {
        return Err(format!("markdown is {}, but that is a folder", file.display()));
    }
    if let Some(parent) = parent.filter(|p| !p.is_dir()) {
        return Err(format!("markdown is {}, but {} is not a folder", file.display(), parent.display()));
    }
    Ok(())
}

/// Fails if a cell needs more memory than is free.
fn check_memory(schedule: &Schedule) -> Result<(), String> {
    let Some(available) = machine::available_memory() else { return Ok(()) };
    for group in &schedule.groups {
        for &rows in &group.rows {
            let need = group.bytes(rows);
            if need > u128::from(available) {
                return Err(format!(
                    "rows = {rows} on {} × {} in {} needs {:.1} GB, but {:.1} GB are free",
                    group.layer.d_out,
                    group.layer.d_in,
                    group.dtype,
                    need as f64 / 1e9,
                    available as f64 / 1e9
                ));
            }
        }
    }
    Ok(())
}
