//! The record of a run: `bench.json` and `bench.csv`.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::engines::Kind;
use crate::machine::Machine;
use crate::problem::TimedPasses;

/// A whole run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// The conditions of the run.
    pub meta: Meta,
    /// One row per engine, layer, number of rows, dtype, rank and pass.
    pub rows: Vec<Row>,
}

/// The conditions of a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Meta {
    /// The machine and the program.
    #[serde(flatten)]
    pub machine: Machine,
    /// Start of the run, RFC 3339, UTC.
    pub date: String,
    /// Seconds of the whole run.
    pub seconds: f64,
    /// Threads in use.
    pub threads: usize,
    /// Instruction set of kron-core's kernels, or the device.
    pub isa: String,
    /// Rank of Kron-LoRA, and of LoRA at equal rank.
    pub rank: usize,
    /// alpha of alpha / r.
    pub alpha: f32,
    /// Bytes of X and Y together that a cell goes through before it uses a set again.
    pub rotated_bytes: usize,
    /// The rates that bound every engine.
    pub roof: Roof,
    /// The fastest products, per engine and layer.
    pub gemm: Vec<GemmChoice>,
    /// The spread of the base layer timed twice.
    pub noise_floor: Noise,
}

/// Rates measured in the same process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Roof {
    /// Bytes read plus bytes written per second of the best copy.
    pub copy_bytes_per_s: f64,
    /// Float operations per second of the kernels' own multiply-adds.
    pub flops_per_s: Vec<Rate>,
}

/// The multiply-add rate of a dtype.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Rate {
    /// Dtype of the activations.
    pub dtype: String,
    /// Float operations per second.
    pub flops_per_s: f64,
}

/// The result of autotuning an engine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GemmChoice {
    /// The engine.
    pub engine: Kind,
    /// Output width.
    pub d_out: usize,
    /// Input width.
    pub d_in: usize,
    /// Dtype of the activations.
    pub dtype: String,
    /// The adapter's rank; 0 for the base layer.
    pub rank: usize,
    /// Rows of the trial.
    pub rows: usize,
    /// The products of forward.
    pub forward: String,
    /// The products of backward.
    pub backward: String,
}

impl GemmChoice {
    /// Returns true if both are results for the same engine and sizes.
    pub fn same_case(&self, other: &Self) -> bool {
        let key = |c: &Self| (c.engine, c.d_out, c.d_in, c.dtype.clone(), c.rank, c.rows);
        key(self) == key(other)
    }
}

/// The distance of two timings of the same work: |m₁/m₂ − 1| of the base layer's medians.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Noise {
    /// The median over the layers.
    pub median: Option<f64>,
    /// The largest.
    pub worst: Option<f64>,
    /// Layers that were timed twice; the slowest are timed once.
    pub cells: usize,
}

/// One engine on one layer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    /// The engine.
    pub engine: Kind,
    /// The model.
    pub model: String,
    /// The layer of the model.
    pub layer: String,
    /// Output width.
    pub d_out: usize,
    /// Input width.
    pub d_in: usize,
    /// Number of tokens.
    pub rows: usize,
    /// Dtype of the activations.
    pub dtype: String,
    /// Rank of the adapter; 0 for the base layer.
    pub rank: usize,
    /// Rows of A; 1 for LoRA, 0 for the base layer.
    pub a_out: usize,
    /// Columns of A; 1 for LoRA, 0 for the base layer.
    pub a_in: usize,
    /// Trained parameters.
    pub params: usize,
    /// The timed passes.
    pub pass: TimedPasses,
    /// Median seconds; absent if the engine was not timed.
    pub median_s: Option<f64>,
    /// The 10 % quantile.
    pub q10_s: Option<f64>,
    /// The 90 % quantile.
    pub q90_s: Option<f64>,
    /// The ideal algorithm's bytes over the median, in 10⁹ bytes per second.
    pub gbps: Option<f64>,
    /// Those bytes per second over the copy bandwidth.
    pub copy_fraction: Option<f64>,
    /// The roof's time over the median.
    pub roof_fraction: Option<f64>,
    /// The ideal algorithm's float operations.
    pub flops: f64,
    /// Bytes of T, of buffers kept between calls, and of the peak allocated during a call.
    pub extra_bytes: usize,
    /// Largest relative error against float64 over the pass's results; absent if it is NaN.
    pub rel_error: Option<f64>,
    /// True if every result is within its tolerance; a wrong engine is not timed.
    pub ok: bool,
    /// Time of `lora-gemm` at equal rank over this time.
    pub speedup: Option<f64>,
    /// Interleaved rounds behind the quantiles.
    pub rounds: usize,
    /// Rows on which the results were checked: fewer for slow engines.
    pub rows_checked: usize,
}

/// The identity of a measurement: equal keys are the same measurement in two runs.
pub type Key<'a> = (Kind, &'a str, &'a str, usize, &'a str, usize, usize, usize, TimedPasses);

impl Row {
    /// Returns the row's identity.
    pub fn key(&self) -> Key<'_> {
        let r = self;
        (r.engine, &r.model, &r.layer, r.rows, &r.dtype, r.rank, r.a_out, r.a_in, r.pass)
    }

    /// Returns true if both rows time the same pass of the same layer with the same tokens.
    pub fn same_cell(&self, other: &Row) -> bool {
        let cell = |r: &Row| (r.model.clone(), r.layer.clone(), r.rows, r.dtype.clone(), r.pass);
        cell(self) == cell(other)
    }
}

impl Record {
    /// Fills in every row's speed-up over `lora-gemm` at equal rank.
    pub fn compare(&mut self) {
        let rank = self.meta.rank;
        let rivals: Vec<Row> =
            self.rows.iter().filter(|r| r.engine == Kind::LoraGemm && r.rank == rank).cloned().collect();
        for row in &mut self.rows {
            let rival = rivals.iter().find(|r| r.same_cell(row)).and_then(|r| r.median_s);
            row.speedup = rival.zip(row.median_s).map(|(rival, own)| rival / own);
        }
    }

    /// Writes `bench.json` and `bench.csv` into `folder`, each replacing an older file in one step.
    ///
    /// # Errors
    /// Fails if the file system does.
    pub fn write(&self, folder: &Path) -> std::io::Result<()> {
        let replace = |name: &str, bytes: &[u8]| {
            let (new, file) = (folder.join(format!("{name}.new")), folder.join(name));
            std::fs::write(&new, bytes)?;
            std::fs::rename(new, file)
        };
        replace("bench.json", (serde_json::to_string_pretty(self)? + "\n").as_bytes())?;
        let mut csv = csv::Writer::from_writer(Vec::new());
        for row in &self.rows {
            csv.serialize(row)?;
        }
        replace("bench.csv", &csv.into_inner().map_err(|e| e.into_error())?)
    }

    /// Reads a `bench.json`.
    ///
    /// # Errors
    /// Fails if the file cannot be read or is not a record, with one sentence that names it.
    pub fn read(path: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(path).map_err(|e| format!("baseline {}: {e}", path.display()))?;
        serde_json::from_str(&text)
            .map_err(|e| format!("baseline {} is not a bench.json: {e}", path.display()))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Makes a row of the default layer.
    pub(crate) fn row(engine: Kind, rank: usize, pass: TimedPasses, median: Option<f64>) -> Row {
        Row {
            engine,
            model: "mistral-7b".into(),
            layer: "q".into(),
            d_out: 4096,
            d_in: 4096,
            rows: 256,
            dtype: "f32".into(),
            rank,
            a_out: 1,
            a_in: 1,
            params: 65_536,
            pass,
            median_s: median,
            q10_s: median.map(|m| 0.9 * m),
            q90_s: median.map(|m| 1.1 * m),
            gbps: median.map(|m| 1.0 / m),
            copy_fraction: median.map(|_| 0.5),
            roof_fraction: median.map(|_| 0.6),
            flops: 1e8,
            extra_bytes: 1 << 20,
            rel_error: Some(1e-7),
            ok: median.is_some(),
            speedup: None,
            rounds: 7,
            rows_checked: 256,
        }
    }

    /// Makes a record of the rows at rank 8.
    pub(crate) fn record(rows: Vec<Row>) -> Record {
        let meta = Meta {
            machine: Machine::this(),
            date: "2026-01-01T00:00:00Z".into(),
            seconds: 1.0,
            threads: 2,
            isa: "portable".into(),
            rank: 8,
            alpha: 32.0,
            rotated_bytes: 1 << 26,
            roof: Roof {
                copy_bytes_per_s: 2e10,
                flops_per_s: vec![Rate { dtype: "f32".into(), flops_per_s: 1e11 }],
            },
            gemm: vec![],
            noise_floor: Noise::default(),
        };
        let mut record = Record { meta, rows };
        record.compare();
        record
    }

    #[test]
    fn ratios_are_against_two_products_of_equal_rank_in_the_same_cell() {
        let record = record(vec![
            row(Kind::LoraGemm, 2, TimedPasses::Both, Some(1.0)),
            row(Kind::LoraGemm, 8, TimedPasses::Both, Some(3.0)),
            row(Kind::LoraGemm, 8, TimedPasses::Forward, Some(9.0)),
            row(Kind::KronFused, 8, TimedPasses::Both, Some(1.5)),
            row(Kind::KronDense, 8, TimedPasses::Both, None),
        ]);
        let speedups: Vec<_> = record.rows.iter().map(|r| r.speedup).collect();
        assert_eq!(speedups, [Some(3.0), Some(1.0), Some(1.0), Some(2.0), None]);
    }

    #[test]
    fn a_record_survives_its_file() {
        let record = record(vec![row(Kind::KronFused, 8, TimedPasses::Both, Some(0.1 + 0.2))]);
        let folder = tempfile::tempdir().unwrap();
        record.write(folder.path()).unwrap();
        let back = Record::read(&folder.path().join("bench.json")).unwrap();
        assert_eq!(back.rows[0].median_s, Some(0.1 + 0.2));
        assert_eq!(back.meta.machine.cpu, record.meta.machine.cpu);
        let csv = std::fs::read_to_string(folder.path().join("bench.csv")).unwrap();
        assert_eq!(csv.lines().count(), 2);
        assert!(csv.starts_with("engine,model,layer,d_out,d_in,rows,dtype,rank,a_out,a_in,params,pass,"));
        // A later record takes its place, and nothing else is left.
        super::tests::record(vec![row(Kind::KronFused, 8, TimedPasses::Both, Some(0.5))])
            .write(folder.path())
            .unwrap();
        let back = Record::read(&folder.path().join("bench.json")).unwrap();
        assert_eq!(back.rows[0].median_s, Some(0.5));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
        let missing = Record::read(&folder.path().join("none.json")).unwrap_err();
        assert!(missing.contains("none.json"), "{missing}");
    }
}
