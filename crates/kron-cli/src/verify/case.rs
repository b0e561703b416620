//! A golden case in memory: the op, its operands, and the stored results.

use std::collections::BTreeMap;
use std::path::Path;

use kron_core::{Dtype, KronOp, KronShape, Scale};
use ndarray::Array2;
use sha2::{Digest, Sha256};

use super::index::{Entry, Factor};
use super::quantity::{Outputs, Quantity};
use kron_adapter::Tensors;
use kron_adapter::elements::file_dtype;

use crate::Result;

/// Elements that T or U of one case may have: 2 GiB in float64. The limit exists because the sizes
/// multiply, so that a small file could ask for any amount of memory.
const MAX_ELEMENTS: usize = 1 << 28;

/// Number of rows of the merged weight that a file samples, without the last row.
const SAMPLED: usize = 4;

/// One checked case. All values are float64 and exactly those of the file.
#[derive(Debug)]
pub struct Case {
    /// Name in the index.
    pub name: String,
    /// Shape and scale, the latter rounded to float32.
    pub op: KronOp,
    /// The scale as the index gives it.
    pub scale: f64,
    /// Dtype of x, dy and the layer's outputs.
    pub dtype: Dtype,
    /// Dtype of the stored factors.
    pub adapter_dtype: Dtype,
    /// True if y has a bias.
    pub bias: bool,
    /// X, n × d_in.
    pub x: Array2<f64>,
    /// dY, n × d_out.
    pub dy: Array2<f64>,
    /// A.
    pub w1: W1,
    /// B, b_out × r; `None` when the inner factor is full.
    pub b: Option<Array2<f64>>,
    /// C, r × c_in, or M, b_out × c_in.
    pub c: Array2<f64>,
    /// Stored reference, `ref.*`.
    pub reference: Outputs,
    /// Results of each framework, by its prefix.
    pub frameworks: BTreeMap<String, Outputs>,
}

/// A as it is stored.
#[derive(Debug)]
pub enum W1 {
    /// a_out × a_in.
    Full(Array2<f64>),
    /// a_out × k times k × a_in.
    Product(Array2<f64>, Array2<f64>),
}

impl Case {
    /// Reads a case's file and checks it against the index.
    ///
    /// # Errors
    /// The file is missing, damaged or altered, a tensor is missing, or a dtype or shape differs from the
    /// index.
    pub fn read(dir: &Path, entry: &Entry) -> Result<Self> {
        let shape = entry.shape()?;
        let scale = entry.scale()?;
        let op = KronOp::new(shape, Scale::new(scale as f32).map_err(|e| entry.refuse(e))?);
        let file = Tensors::read(&entry.path(dir)?)?;
        check_identity(entry, &file)?;
        check_listing(entry, &file)?;
        let lead = lead(entry, &file, &op)?;
        let (dtype, adapter) = (entry.dtype.dtype(), entry.adapter_dtype.dtype());
        let (n, s) = (lead.iter().product(), &shape);
        let read = Reader { entry, file: &file };
        let w1 = match entry.w1 {
            Factor::Full => W1::Full(read.matrix("lokr_w1", adapter, s.a_out(), s.a_in())?),
            Factor::Decomposed => {
                let k = file.info("lokr_w1_a")?.shape.last().copied().unwrap_or(0);
                W1::Product(
                    read.matrix("lokr_w1_a", adapter, s.a_out(), k)?,
                    read.matrix("lokr_w1_b", adapter, k, s.a_in())?,
                )
            }
        };
        let (b, c) = match s.rank() {
            None => (None, read.matrix("lokr_w2", adapter, s.b_out(), s.c_in())?),
            Some(r) => (
                Some(read.matrix("lokr_w2_a", adapter, s.b_out(), r)?),
                read.matrix("lokr_w2_b", adapter, r, s.c_in())?,
            ),
        };
        let dims = |q| dims(q, s, &lead, &w1);
        let quantities: Vec<_> = Quantity::ALL.into_iter().filter(|&q| !dims(q).is_empty()).collect();
        let mut reference = Outputs::new();
        let mut frameworks = BTreeMap::<String, Outputs>::new();
        for &q in &quantities {
            let name = format!("ref.{}", q.in_reference());
            if is_required(q) || file.has(&name) {
                reference.insert(q, read.tensor(&name, Some(Dtype::F32), &dims(q))?);
            }
        }
        for name in file.names() {
            let Some((prefix, rest)) = name.split_once('.').filter(|(prefix, _)| *prefix != "ref") else {
                continue;
            };
            if let Some(&q) = quantities.iter().find(|q| q.in_framework() == rest) {
                let values = read.tensor(&name, None, &dims(q))?;
                frameworks.entry(prefix.into()).or_default().insert(q, values);
            }
        }
        Ok(Self {
            name: entry.name.clone(),
            op,
            scale,
            dtype,
            adapter_dtype: adapter,
            bias: entry.bias,
            x: matrix(n, s.d_in(), read.tensor("x", Some(dtype), &[&lead[..], &[s.d_in()]].concat())?),
            dy: matrix(n, s.d_out(), read.tensor("dy", Some(dtype), &[&lead[..], &[s.d_out()]].concat())?),
            w1,
            b,
            c,
            reference,
            frameworks,
        })
    }

    /// Returns the shape.
    pub fn shape(&self) -> &KronShape {
        &self.op.shape
    }

    /// Returns the number of tokens.
    pub fn rows(&self) -> usize {
        self.x.nrows()
    }

    /// Returns the sampled rows of the merged weight: the first four and the last.
    pub fn sampled_rows(&self) -> Vec<usize> {
        sampled_rows(self.op.shape.d_out())
    }
}

fn sampled_rows(d_out: usize) -> Vec<usize> {
    (0..SAMPLED.min(d_out)).chain([d_out - 1]).collect()
}

/// Returns a quantity's dimensions; empty when this kind of case has no such quantity.
fn dims(q: Quantity, s: &KronShape, lead: &[usize], w1: &W1) -> Vec<usize> {
    match (q, w1, s.rank()) {
        (Quantity::Y | Quantity::Delta, ..) => [lead, &[s.d_out()]].concat(),
        (Quantity::Dx | Quantity::DxDelta, ..) => [lead, &[s.d_in()]].concat(),
        (Quantity::A, ..) => vec![s.a_out(), s.a_in()],
        (Quantity::W1a, W1::Product(a, _), _) => a.shape().to_vec(),
        (Quantity::W1b, W1::Product(_, b), _) => b.shape().to_vec(),
        (Quantity::B, _, Some(r)) => vec![s.b_out(), r],
        (Quantity::C, _, Some(r)) => vec![r, s.c_in()],
        (Quantity::M, _, None) => vec![s.b_out(), s.c_in()],
        (Quantity::Merged, ..) => vec![sampled_rows(s.d_out()).len(), s.d_in()],
        _ => vec![],
    }
}

/// Returns true if a case must store a reference of this quantity. The others are compared where stored.
fn is_required(q: Quantity) -> bool {
    !matches!(q, Quantity::Delta | Quantity::DxDelta | Quantity::Merged)
}

/// Checks length and checksum, where the index has them.
fn check_identity(entry: &Entry, file: &Tensors) -> Result<()> {
    let bytes = file.bytes();
    if entry.bytes.is_some_and(|want| want != bytes.len() as u64) {
        return Err(entry.refuse(format!(
            "{} is {} bytes long, but the index says {}",
            file.path(),
            bytes.len(),
            entry.bytes.unwrap_or_default()
        )));
    }
    let Some(want) = &entry.sha256 else { return Ok(()) };
    let got: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    if !got.eq_ignore_ascii_case(want) {
        return Err(entry.refuse(format!(
            "{} has sha256 {got}, but the index says {want}: it was altered after it was listed",
            file.path()
        )));
    }
    Ok(())
}

/// Fails if a tensor that the index lists is missing or differs. A framework's results may be missing.
fn check_listing(entry: &Entry, file: &Tensors) -> Result<()> {
    for (name, (dtype, shape)) in &entry.tensors {
        let optional = name.split_once('.').is_some_and(|(prefix, _)| prefix != "ref");
        if optional && !file.has(name) {
            continue;
        }
        let info = file.info(name)?;
        if torch_name(info.dtype) != *dtype || info.shape != *shape {
            return Err(entry.refuse(format!(
                "{name} is {} {:?}, but the index lists {dtype} {shape:?}",
                torch_name(info.dtype),
                info.shape
            )));
        }
    }
    Ok(())
}

/// Returns the dimensions of x before its last; their product is the number of tokens.
fn lead(entry: &Entry, file: &Tensors, op: &KronOp) -> Result<Vec<usize>> {
    let shape = &file.info("x")?.shape;
    let lead = match shape.split_last() {
        Some((&last, lead)) if last == op.shape.d_in() => lead.to_vec(),
        _ => {
            return Err(entry.refuse(format!(
                "x is {shape:?}, but its last dimension is in_features = {}",
                op.shape.d_in()
            )));
        }
    };
    if entry.x_lead.as_ref().is_some_and(|want| *want != lead) {
        return Err(entry.refuse(format!(
            "x is {shape:?}, but x_lead is {:?}",
            entry.x_lead.as_deref().unwrap_or_default()
        )));
    }
    let n = lead.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    let widest = op.shape.a_in().max(op.shape.a_out());
    let largest = n.and_then(|n| n.checked_mul(widest)?.checked_mul(op.shape.width()));
    match (n, largest) {
        (Some(n), Some(largest)) if largest <= MAX_ELEMENTS => match entry.n_tokens {
            Some(want) if want != n => Err(entry.refuse(format!("x has {n} tokens, but n_tokens is {want}"))),
            _ => Ok(lead),
        },
        _ => Err(entry.refuse(format!(
            "x is {shape:?}, and tokens × {widest} × {} is beyond verify's limit of {MAX_ELEMENTS} elements",
            op.shape.width()
        ))),
    }
}

/// Reads tensors that must have a given dtype and shape.
struct Reader<'a> {
    entry: &'a Entry,
    file: &'a Tensors,
}

impl Reader<'_> {
    fn matrix(&self, name: &str, dtype: Dtype, rows: usize, cols: usize) -> Result<Array2<f64>> {
        Ok(matrix(rows, cols, self.tensor(name, Some(dtype), &[rows, cols])?))
    }

    fn tensor(&self, name: &str, dtype: Option<Dtype>, dims: &[usize]) -> Result<Vec<f64>> {
        let info = self.file.info(name)?;
        if info.shape != dims {
            return Err(self.entry.refuse(format!("{name} is {:?}, but has to be {dims:?}", info.shape)));
        }
        match dtype {
            Some(want) if file_dtype(want) != info.dtype => Err(self.entry.refuse(format!(
                "{name} is {}, but has to be {}",
                torch_name(info.dtype),
                torch_name(file_dtype(want))
            ))),
            _ => self.file.values_f64(name),
        }
    }
}

/// Makes a matrix of `values`, whose length rows·cols was checked with the file's header.
fn matrix(rows: usize, cols: usize, values: Vec<f64>) -> Array2<f64> {
    Array2::from_shape_vec((rows, cols), values).unwrap_or_default()
}

/// Returns PyTorch's name of a dtype, which the index uses.
fn torch_name(dtype: safetensors::Dtype) -> String {
    use safetensors::Dtype::*;
    match dtype {
        F16 => "float16".into(),
        BF16 => "bfloat16".into(),
        F32 => "float32".into(),
        F64 => "float64".into(),
        I64 => "int64".into(),
        I32 => "int32".into(),
        other => other.to_string().to_lowercase(),
    }
}
