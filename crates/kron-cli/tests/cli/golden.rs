//! Copies of the golden folder that a test may damage.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

/// Returns the golden folder of the repository.
pub fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden")
}

/// Returns a command that runs the program.
pub fn kron() -> Command {
    Command::new(assert_cmd::cargo::cargo_bin!("kron"))
}

/// A tensor that owns its bytes.
#[derive(Clone, Debug)]
pub struct Tensor {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

pub type File = BTreeMap<String, Tensor>;

impl Tensor {
    pub fn f32(shape: &[usize], values: impl IntoIterator<Item = f32>) -> Self {
        let bytes = values.into_iter().flat_map(f32::to_le_bytes).collect();
        Self { dtype: Dtype::F32, shape: shape.to_vec(), bytes }
    }

    /// Changes element `i` of a float32 tensor.
    pub fn set(&mut self, i: usize, change: impl Fn(f32) -> f32) {
        assert_eq!(self.dtype, Dtype::F32);
        let at = &mut self.bytes[4 * i..4 * i + 4];
        let old = f32::from_le_bytes(at.try_into().expect("four bytes"));
        at.copy_from_slice(&change(old).to_le_bytes());
    }

    /// Returns the index of the largest element in magnitude.
    pub fn peak(&self) -> usize {
        let values = self.bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b).abs());
        values.enumerate().max_by(|a, b| a.1.total_cmp(&b.1)).map_or(0, |(i, _)| i)
    }
}

/// A temporary folder with one golden case in it.
pub struct Folder {
    pub dir: TempDir,
    pub index: Value,
}

impl Folder {
    /// Copies the golden case whose name starts with `name`; its file lies at the top.
    pub fn of(name: &str) -> Self {
        let golden = golden();
        let text = std::fs::read(golden.join("index.json")).expect("the golden index");
        let mut index: Value = serde_json::from_slice(&text).expect("the golden index");
        let cases = index["cases"].as_array_mut().expect("cases");
        cases.retain(|case| case["name"].as_str().is_some_and(|n| n.starts_with(name)));
        assert_eq!(cases.len(), 1, "{name}");
        let folder = Self { dir: TempDir::new().expect("a temporary folder"), index };
        let file = format!("{}.safetensors", folder.index["cases"][0]["name"].as_str().expect("a name"));
        std::fs::copy(golden.join(&file), folder.dir.path().join(&file)).expect("the golden case");
        folder.save_index();
        folder
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Returns the only case's entry.
    pub fn case(&mut self) -> &mut Value {
        &mut self.index["cases"][0]
    }

    /// Returns the path of the only case's file.
    pub fn file(&self) -> PathBuf {
        self.path().join(format!("{}.safetensors", self.index["cases"][0]["name"].as_str().expect("a name")))
    }

    /// Changes the only case's entry.
    pub fn edit_index(mut self, edit: impl FnOnce(&mut Value)) -> Self {
        edit(self.case());
        self.save_index();
        self
    }

    /// Changes the only case's bytes; the index stays.
    pub fn edit_bytes(self, edit: impl FnOnce(&mut Vec<u8>)) -> Self {
        let mut bytes = std::fs::read(self.file()).expect("the case");
        edit(&mut bytes);
        std::fs::write(self.file(), bytes).expect("the case");
        self
    }

    /// Changes the only case's tensors and updates length and checksum in the index.
    pub fn edit_tensors(mut self, edit: impl FnOnce(&mut File)) -> Self {
        let bytes = std::fs::read(self.file()).expect("the case");
        let mut tensors = File::new();
        for (name, t) in SafeTensors::deserialize(&bytes).expect("the case").tensors() {
            let tensor = Tensor { dtype: t.dtype(), shape: t.shape().to_vec(), bytes: t.data().to_vec() };
            tensors.insert(name, tensor);
        }
        edit(&mut tensors);
        let bytes = serialize(&tensors);
        std::fs::write(self.file(), &bytes).expect("the case");
        self.case()["bytes"] = bytes.len().into();
        let sha256: String = Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
        self.case()["sha256"] = sha256.into();
        self.save_index();
        self
    }

    /// Removes length, checksum and tensors from the index.
    pub fn unlisted(self) -> Self {
        self.edit_index(|case| {
            for key in ["bytes", "sha256", "tensors"] {
                case.as_object_mut().expect("an entry").remove(key);
            }
        })
    }

    fn save_index(&self) {
        let text = serde_json::to_vec(&self.index).expect("JSON");
        std::fs::write(self.path().join("index.json"), text).expect("the index");
    }
}

/// Returns the bytes of a safetensors file.
pub fn serialize(tensors: &File) -> Vec<u8> {
    let views = tensors.iter().map(|(name, t)| {
        (name, TensorView::new(t.dtype, t.shape.clone(), &t.bytes).expect("bytes that fit the shape"))
    });
    safetensors::serialize(views, None).expect("a file")
}

/// Runs `kron verify` and returns its exit code, standard output and standard error.
pub fn verify(dir: &Path, args: &[&str]) -> (i32, String, String) {
    let run = kron().arg("verify").arg(dir).args(args).output().expect("the program runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    (run.status.code().unwrap_or(-1), text(run.stdout), text(run.stderr))
}

/// Asserts that a folder is refused with one sentence that contains every part of `says`.
pub fn assert_refused(dir: &Path, says: &[&str]) {
    let (code, out, err) = verify(dir, &["--isa", "portable", "--threads", "1"]);
    assert_eq!((code, out.as_str()), (2, ""), "{err}");
    assert_eq!(err.lines().count(), 1, "{err}");
    assert!(err.starts_with("error: ") && !err.contains("panicked"), "{err}");
    for part in says {
        assert!(err.contains(part), "{part:?} is not in {err}");
    }
}
