//! `index.json`: the list of cases and of their files.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use kron_adapter::{io, text};
use kron_core::{Dtype, KronShape, LayerDims, Outer, Split};
use serde::Deserialize;

use crate::{Error, Result};

/// Largest index that is read, in bytes; one of a thousand cases takes about 5 MB.
const MAX_BYTES: u64 = 64 << 20;

/// The list of cases. Unknown fields are ignored.
#[derive(Debug, Deserialize)]
pub struct Index {
    /// Cases, at least one.
    pub cases: Vec<Entry>,
}

/// Description of one case.
#[derive(Debug, Deserialize)]
pub struct Entry {
    /// Name of the case.
    pub name: String,
    /// File of the tensors; `name`.safetensors when absent.
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
    /// True if y has a bias.
    #[serde(default)]
    pub bias: bool,
    /// Dimensions of x before its last.
    pub x_lead: Option<Vec<usize>>,
    /// Product of those dimensions.
    pub n_tokens: Option<usize>,
    /// Requested rank. It determines the scale, also where w2 is full.
    pub r: usize,
    /// alpha in s = alpha / r.
    pub alpha: Option<f64>,
    /// Scale s.
    pub scale: Option<f64>,
    /// Storage of A.
    pub w1: Factor,
    /// Storage of the inner factor.
    pub w2: Factor,
    /// Dtype of x, dy and the layer's outputs.
    pub dtype: Float,
    /// Dtype of the factors.
    pub adapter_dtype: Float,
    /// Length of the file.
    pub bytes: Option<u64>,
    /// SHA-256 of the file, in hexadecimal.
    pub sha256: Option<String>,
    /// Dtypes and shapes of the file's tensors.
    #[serde(default)]
    pub tensors: BTreeMap<String, (String, Vec<usize>)>,
}

/// Storage of a factor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Factor {
    /// One matrix.
    Full,
    /// Two matrices whose product is the factor.
    Decomposed,
}

/// A float type, by its PyTorch name.
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
    /// Converts to the crates' own type.
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
    /// The folder or file does not exist, the JSON is not an index, or the index has no cases.
    pub fn read(dir: &Path) -> Result<Self> {
        if !dir.is_dir() {
            return Err(Error::usage(format!("{} is not a folder of golden cases", dir.display())));
        }
        let path = dir.join("index.json");
        if !path.exists() {
            return Err(Error::usage(format!(
                "{} has no index.json, which lists the golden cases to compare with; a model or an adapter has none",
                dir.display()
            )));
        }
        let index: Index = serde_json::from_slice(&io::read(&path, MAX_BYTES)?).map_err(|e| {
            Error::data(format!(
                "{} is not an index of golden cases, which is {{\"cases\": [...]}} with the shape and the file of each: {e}",
                path.display()
            ))
        })?;
        if index.cases.is_empty() {
            return Err(Error::data(format!("{} lists 0 cases, but needs at least 1", path.display())));
        }
        Ok(index)
    }
}

impl Entry {
    /// Returns the shape of the layer and its factors.
    ///
    /// # Errors
    /// The dimensions are not a legal shape, or contradict each other.
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

    /// Returns s = alpha / r, which the format may state twice.
    ///
    /// # Errors
    /// The rank is 0, both `scale` and `alpha` are missing, or they contradict each other.
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

    /// Returns the path of the tensors' file: `file` under `dir`, or without some of its leading folders,
    /// as `dir` may be one of them.
    ///
    /// # Errors
    /// The path leaves the folder, or the file does not exist.
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

    /// Returns an error about this case.
    pub fn refuse(&self, what: impl std::fmt::Display) -> Error {
        Error::data(format!("case {}: {what}", text::name(&self.name)))
    }
}
