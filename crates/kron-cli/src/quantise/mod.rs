//! `kron quantise PATH`: the error of ΔW when B and C are rounded to 8 or 4 bits.
//!
//! This is a measurement; no 4-bit values are stored. With `--out` the rounded factors
//! are written as float32, so that they can be evaluated.

mod blocks;

use std::path::PathBuf;
use std::process::ExitCode;

use kron_adapter::Layer;
use kron_adapter::Output;
use kron_adapter::algebra::Delta;
use kron_adapter::limits::Cost;
use kron_adapter::text::one_line;
use kron_core::Theta;
use serde::Serialize;

use crate::batches::in_batches;
use crate::choice::{Choice, left_out};
use crate::error::exit_codes;
use crate::overwriting::check_not_overwriting_files;
use crate::table::{short, table};
use crate::{Error, Result, TextOrJson, progress};

use blocks::{Bits, bytes, round};

/// Measure the error of 8-bit or 4-bit factors.
///
/// B and C, or the full inner factor, are rounded to the nearest of 255 or 15 levels. The levels are
/// symmetric about 0, with one float32 scale for each block of consecutive values. A stays float32: it
/// is small, and every row of ΔW depends on it.
#[derive(Debug, clap::Args)]
#[command(after_help = concat!(
    "The error is ‖ΔW' − ΔW‖ / ‖ΔW‖ of the rounded factors. --out writes them as a float32 file of\n",
    "this project, so that they can be evaluated; the file is as large as the adapter.\n\n",
    exit_codes!("measured", "the adapter is invalid"),
    "Examples:\n",
    "  kron quantise adapter.safetensors --bits 4\n",
    "  kron quantise adapter.safetensors --bits 4 --out rounded.safetensors",
))]
pub struct Args {
    /// Adapter file or PEFT folder
    path: PathBuf,
    #[command(flatten)]
    choice: Choice,
    /// Bits of a value
    #[arg(long, value_enum)]
    bits: Bits,
    /// Consecutive values that share a scale, at least 1
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    block: u32,
    /// Write the rounded factors, as float32
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Replace the output when it exists
    #[arg(long, requires = "out")]
    force: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    path: String,
    bits: u32,
    block: usize,
    layers: Vec<Row>,
    /// √Σ‖ΔW' − ΔW‖² / √Σ‖ΔW‖² over the layers.
    error: f64,
    /// One sentence each.
    notes: Vec<String>,
    /// Tensors or modules of the adapter that were not read.
    left_out: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Row {
    module: String,
    shape: String,
    /// Bytes as float32.
    bytes: usize,
    /// Bytes after rounding, with the scales.
    quantised_bytes: usize,
    error: f64,
    #[serde(skip)]
    norm: f64,
}

/// Measures, reports, and returns 0.
///
/// # Errors
/// The adapter cannot be read or has a sum of terms, or the output exists or cannot be written.
pub fn run(args: &Args, form: TextOrJson) -> Result<ExitCode> {
    args.out.iter().try_for_each(|out| check_not_overwriting_files(&args.path, out))?;
    let (bits, block) = (args.bits, args.block as usize);
    let loaded = args.choice.read(&args.path)?;
    if args.out.is_some() {
        loaded.check_writable()?;
    }
    loaded.adapter.check_no_sums("kron quantise")?;
    let (layers, mut limits) = (loaded.adapter.layers(), loaded.limits.clone());
    for layer in layers {
        let (what, cost) = (format!("rounding layer {}", layer.module()), cost(layer));
        limits.bytes.check(&what, cost.bytes)?;
        limits.work.spend(&what, cost.work)?;
    }
    let bar = progress::items(layers.len(), "layers");
    let done = in_batches(
        layers,
        |layer| cost(layer).bytes,
        limits.bytes.left(),
        |layer| {
            let done = quantise(layer, bits, block);
            bar.inc(1);
            done
        },
    );
    let done = done.into_iter().collect::<kron_adapter::Result<Vec<_>>>();
    bar.finish_and_clear();
    let refused = |e: kron_adapter::Error| Error::data(format!("{}: {e}", loaded.path));
    let (layers, rows): (Vec<_>, Vec<_>) = done.map_err(refused)?.into_iter().unzip();
    if let Some(out) = &args.out {
        let bytes = loaded.adapter.with_layers(layers).and_then(|a| a.to_bytes()).map_err(refused)?;
        progress::write_output(out, &Output::File(bytes), args.force)?;
    }
    let square = |of: fn(&Row) -> f64| rows.iter().map(|row| of(row).powi(2)).sum::<f64>().sqrt();
    let (lost, all) = (square(|row| row.error * row.norm), square(|row| row.norm));
    let error = if lost == 0.0 { 0.0 } else { lost / all };
    let kept = |names| format!("tensors trained beside the factors stay as they are: {names}");
    let notes = loaded.notes.iter().cloned().chain(loaded.adapter.trained_summary().map(kept)).collect();
    let (path, left_out) = (loaded.path, loaded.left_out);
    let report = Report { path, bits: bits.count(), block, layers: rows, error, notes, left_out };
    form.print(&report, Report::table)?;
    Ok(ExitCode::SUCCESS)
}

/// Returns the cost of [`quantise`]: three norms, an inner product, and the rounded factors twice.
fn cost(layer: &Layer) -> Cost {
    let (shape, norm) = (layer.shape(), Delta::norm_cost(layer.shape()));
    let Cost { bytes, work } = norm.then(norm).then(norm).then(Delta::inner_cost(shape, shape));
    Cost { bytes: bytes + 8 * shape.params() as u128, work }
}

fn quantise(layer: &Layer, bits: Bits, block: usize) -> kron_adapter::Result<(Layer, Row)> {
    let (shape, theta) = (*layer.shape(), layer.theta());
    let a = &theta.as_slice()[..shape.a_len()];
    let [b, c] = [theta.b(), theta.c()].map(|factor| round(factor, bits, block));
    let rounded = Layer::new(layer.module(), layer.scaling(), Theta::from_factors(shape, a, &b, &c)?)?;
    let delta = Delta::new(layer);
    let row = Row {
        module: layer.module().into(),
        shape: shape.to_string(),
        bytes: 4 * shape.params(),
        quantised_bytes: 4 * a.len() + bytes(b.len(), bits, block) + bytes(c.len(), bits, block),
        error: delta.relative_distance(&Delta::new(&rounded))?,
        norm: delta.norm(),
    };
    Ok((rounded, row))
}

impl Report {
    fn table(&self) -> String {
        let rows = self.layers.iter().map(|row| {
            let rest = [row.bytes.to_string(), row.quantised_bytes.to_string(), short(row.error)];
            [vec![row.module.clone(), row.shape.clone()], rest.to_vec()].concat()
        });
        let mut text = format!(
            "{}: {} bits, blocks of {}, A in float32\n\n{}\n\nall layers: error {}",
            one_line(&self.path),
            self.bits,
            self.block,
            table(&["module", "shape", "bytes", "rounded", "error of ΔW"], 2, rows),
            short(self.error)
        );
        for note in &self.notes {
            text += &format!("\n\nnote: {}", one_line(note));
        }
        text + &left_out(&self.left_out)
    }
}
