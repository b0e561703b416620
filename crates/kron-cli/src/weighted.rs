//! An adapter on the command line with its weight, `lora:0.7`.

use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Path of an adapter, and the factor of its change.
#[derive(Clone, Debug, PartialEq)]
pub struct Weighted {
    /// Path of the file or folder.
    pub path: PathBuf,
    /// Factor, 1 unless one is given.
    pub weight: f64,
}

impl FromStr for Weighted {
    type Err = String;

    /// Parses a path, or a path and a weight after the last colon. What exists as a whole is a path.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let plain = Self { path: text.into(), weight: 1.0 };
        let Some((path, weight)) = text.rsplit_once(':').filter(|_| !Path::new(text).exists()) else {
            return Ok(plain);
        };
        match weight.parse::<f64>() {
            Ok(weight) if weight.is_finite() && weight.abs() <= 1e6 => Ok(Self { path: path.into(), weight }),
            Ok(weight) => Err(format!("the weight {weight} is not between -1e6 and 1e6")),
            Err(_) => Ok(plain),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_stands_after_the_last_colon() {
        let folder = tempfile::tempdir().expect("a folder");
        let existing = folder.path().join("a:0.5");
        std::fs::create_dir(&existing).expect("a folder");
        let existing = existing.to_str().expect("UTF-8");
        for (text, path, weight) in [
            ("a", "a", 1.0),
            ("a:0.7", "a", 0.7),
            ("a:-0.3", "a", -0.3),
            ("a:b:2", "a:b", 2.0),
            ("a:b", "a:b", 1.0),
            ("C:\\a", "C:\\a", 1.0),
            (existing, existing, 1.0),
        ] {
            assert_eq!(text.parse(), Ok(Weighted { path: path.into(), weight }), "{text}");
        }
        assert_eq!(format!("{existing}:2").parse(), Ok(Weighted { path: existing.into(), weight: 2.0 }));
        for text in ["a:inf", "a:nan", "a:1e7"] {
            assert!(text.parse::<Weighted>().unwrap_err().contains("is not between"), "{text}");
        }
    }
}
