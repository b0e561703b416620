//! `index.json`: the list of cases, and where each one's file is.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use kron_adapter::files;
use kron_core::{Dtype, KronShape, LayerDims, Outer, Split};
use serde::Deserialize;

use crate::{Error, Result};

/// Largest index that is read, in bytes; one of a thousand cases takes about 5 MB.
const MAX_BYTES: u64 = 64 << 20;

/// The list of cases. Fields that nothing here needs are passed over.
#[derive(Debug, Deserialize)]
pub struct Index {
    /// At least one.
    pub cases: Vec<Entry>,
}

/// One case, as the index describes it.
#[derive(Debug, Deserialize)]
pub struct Entry {
    /// Names the case.
    pub name: String,
    /// The tensors' file; `name`.safetensors when absent.
    pub file: Option<String>,
    /// d_in.
    pub in_features: usize,
    /// d_out.
    pub out_features: usize,
    /// Rows of A.
    pub a_out: usize,
    /// Columns of A.
    pub a_in: usize,
    /// b_out.
    pub m_out: Option<usize>,
    /// c_in.
    pub m_in: Option<usize>,
    /// Whether y has a bias.
    #[serde(default)]
    pub bias: bool,
    /// Dimensions of x before its last.
    pub x_lead: Option<Vec<usize>>,
    /// Their product.
    pub n_tokens: Option<usize>,
    /// The rank asked for: the scale's, also where w2 is full.
    pub r: usize,
    /// alpha of s = alpha / r.
    pub alpha: Option<f64>,
    /// s.
    pub scale: Option<f64>,
    /// How A is stored.
    pub w1: Factor,
    /// How the inner factor is stored.
    pub w2: Factor,
    /// Of x, dy and what the layer returns.
    pub dtype: Float,
    /// Of the factors.
    pub adapter_dtype: Float,
    /// The file's length.
    pub bytes: Option<u64>,
    /// The file's SHA-256, in hexadecimal.
    pub sha256: Option<String>,
    /// Dtype and shape of the file's tensors.
    #[serde(default)]
    pub tensors: BTreeMap<String, (String, Vec<usize>)>,
}

/// How a factor is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Factor {
    /// As one matrix.
    Full,
    /// As two whose product it is.
    Decomposed,
}

/// A number format, by its PyTorch name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Float {
    /// binary32.
    Float32,
    /// binary16.
    Float16,
    /// bfloat16.
    Bfloat16,
}

impl Float {
    /// The crate's name for it.
    pub const fn dtype(self) -> Dtype {
        match self {
            Float::Float32 => Dtype::F32,
            Float::Float16 => Dtype::F16,
            Float::Bfloat16 => Dtype::Bf16,
        }
    }
}

impl Index {
    /// Reads `dir/index.json`.
    ///
    /// # Errors
    /// No such folder or file, JSON that is no index, and an index without cases.
    pub fn read(dir: &Path) -> Result<Self> {
        if !dir.is_dir() {
            return Err(Error::usage(format!("{} is not a folder of golden cases", dir.display())));
        }
        let path = dir.join("index.json");
        let index: Index = serde_json::from_slice(&files::read(&path, MAX_BYTES)?)
            .map_err(|e| Error::data(format!("{} is not an index of golden cases: {e}", path.display())))?;
        if index.cases.is_empty() {
            return Err(Error::data(format!("{} lists 0 cases, but needs at least 1", path.display())));
        }
        Ok(index)
    }
}

impl Entry {
    /// The layer and its factors.
    ///
    /// # Errors
    /// Dimensions that make no legal shape or contradict each other.
    pub fn shape(&self) -> Result<KronShape> {
        let inner = match self.w2 {
            Factor::Decomposed => kron_core::Inner::LowRank(self.r),
            Factor::Full => kron_core::Inner::Full,
        };
        let (d_out, d_in) = (self.out_features, self.in_features);
        let shape = KronShape::new(
            LayerDims { d_out, d_in },
            Split { a_out: self.a_out, a_in: self.a_in },
            Outer::Trained,
            inner,
        )
        .map_err(|e| self.refuse(e))?;
        let blocks = [("m_out", self.m_out, shape.b_out()), ("m_in", self.m_in, shape.c_in())];
        for (name, got, want) in blocks {
            if got.is_some_and(|got| got != want) {
                return Err(self.refuse(format!(
                    "{name} is {}, but the features over the outer factor's make {want}",
                    got.unwrap_or_default()
                )));
            }
        }
        Ok(shape)
    }

    /// s = alpha / r, which the format states twice.
    ///
    /// # Errors
    /// A rank of 0, neither `scale` nor `alpha`, or both when they contradict each other.
    pub fn scale(&self) -> Result<f64> {
        if self.r == 0 {
            return Err(self.refuse("r is 0, but a rank is at least 1"));
        }
        let ratio = self.alpha.map(|alpha| alpha / self.r as f64);
        match (self.scale, ratio) {
            (Some(scale), Some(ratio)) if (scale - ratio).abs() > 1e-6 * ratio.abs() => {
                Err(self.refuse(format!("scale is {scale}, but alpha / r is {ratio}")))
            }
            (Some(scale), _) => Ok(scale),
            (None, Some(ratio)) => Ok(ratio),
            (None, None) => Err(self.refuse("neither scale nor alpha is given, but s is alpha / r")),
        }
    }

    /// The tensors' file: under `dir` as given, or without the folders in front
    /// that `dir` may itself be one of.
    ///
    /// # Errors
    /// A path that leaves the folder, and no such file.
    pub fn path(&self, dir: &Path) -> Result<PathBuf> {
        let file = self.file.clone().unwrap_or_else(|| format!("{}.safetensors", self.name));
        let parts: Vec<Component> = Path::new(&file).components().collect();
        let inside = |part: &Component| matches!(part, Component::Normal(_) | Component::CurDir);
        if !parts.iter().all(inside) {
            return Err(self.refuse(format!("file is {file:?}, but a case's file lies inside the folder")));
        }
        let candidates = (0..parts.len()).map(|skip| dir.join(parts[skip..].iter().collect::<PathBuf>()));
        candidates
            .into_iter()
            .find(|path| path.is_file())
            .ok_or_else(|| self.refuse(format!("file is {file:?}, but {} holds no such file", dir.display())))
    }

    /// An error about this case.
    pub fn refuse(&self, what: impl std::fmt::Display) -> Error {
        Error::data(format!("case {}: {what}", self.name))
    }
}
