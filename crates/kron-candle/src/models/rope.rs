//! Rotary position embedding (arXiv 2104.09864): pair i of a head is rotated by position · frequency(i).

use std::f64::consts::TAU;

use candle_core::{D, Error, Result, Tensor};
use serde::Deserialize;

use super::sizes::within;

/// Rotary settings of a `config.json`.
///
/// transformers 5 writes them as `rope_parameters`; earlier versions as `rope_scaling`, with the base beside it.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct RopeConfig {
    rope_type: Option<String>,
    /// Name of `rope_type` before transformers 4.43.
    r#type: Option<String>,
    /// Base of the frequencies.
    rope_theta: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
}

impl RopeConfig {
    /// Returns the base of the frequencies, if set.
    pub(super) const fn theta(&self) -> Option<f64> {
        self.rope_theta
    }

    /// Returns the frequencies of a head's `half` pairs, in radians per position.
    ///
    /// # Errors
    /// The rule is not supported, or lacks a parameter.
    pub(super) fn frequencies(&self, theta: f64, half: usize) -> Result<Vec<f64>> {
        let plain = (0..half).map(|i| theta.powf(-(i as f64) / half as f64));
        match self.rope_type.as_deref().or(self.r#type.as_deref()).unwrap_or("default") {
            "default" => Ok(plain.collect()),
            "linear" => {
                let factor = positive("factor", self.factor)?;
                Ok(plain.map(|f| f / factor).collect())
            }
            "llama3" => {
                let factor = positive("factor", self.factor)?;
                let low = positive("low_freq_factor", self.low_freq_factor)?;
                let high = positive("high_freq_factor", self.high_freq_factor)?;
                let trained =
                    positive("original_max_position_embeddings", self.original_max_position_embeddings)?;
                if high <= low {
                    return Err(Error::msg(format!(
                        "high_freq_factor of the rotations is {high:?}, but it is above low_freq_factor = {low:?}"
                    )));
                }
                // Pairs with few rotations over the original context are stretched, those with many are not, and
                // those between are interpolated.
                let fraction = |f: f64| ((trained * f / TAU - low) / (high - low)).clamp(0.0, 1.0);
                Ok(plain.map(|f| fraction(f) * f + (1.0 - fraction(f)) * f / factor).collect())
            }
            other => Err(Error::msg(format!(
                "rope_type is {other}, but default, linear and llama3 are the rotations that are known here"
            ))),
        }
    }
}

/// Returns a required parameter, which is above 0.
fn positive(name: &str, value: Option<f64>) -> Result<f64> {
    match value {
        Some(value) => within(&format!("{name} of the rotations"), value, 1e-6, 1e9),
        None => Err(Error::msg(format!("the rotations lack {name}, which their rope_type needs"))),
    }
}

/// Rotary position embedding of a model.
#[derive(Debug)]
pub(super) struct Rope {
    /// Radians per position of each pair.
    frequencies: Vec<f64>,
}

/// Cosines and sines of the positions of one batch, positions × head/2.
#[derive(Clone, Debug)]
pub(super) struct Rotation {
    cos: Tensor,
    sin: Tensor,
}

impl Rope {
    pub const fn new(frequencies: Vec<f64>) -> Self {
        Self { frequencies }
    }

    /// Computes the tables for texts of `len` tokens, for values of the type and on the device of `x`.
    ///
    /// They are as long as the batch in hand: a configuration may claim any number of positions.
    pub fn rotation(&self, len: usize, x: &Tensor) -> Result<Rotation> {
        let half = self.frequencies.len();
        let table = |f: fn(f64) -> f64| {
            let angles = (0..len * half).map(|i| (i / half) as f64 * self.frequencies[i % half]);
            Tensor::from_iter(angles.map(|angle| f(angle) as f32), x.device())?
                .reshape((len, half))?
                .to_dtype(x.dtype())
        };
        Ok(Rotation { cos: table(f64::cos)?, sin: table(f64::sin)? })
    }
}

impl Rotation {
    /// Returns the cosines and the sines.
    pub const fn tables(&self) -> [&Tensor; 2] {
        [&self.cos, &self.sin]
    }

    /// Rotates the pairs (i, i + head/2) of x, n × heads × len × head, by the positions of its tokens, n × len.
    pub fn apply(&self, x: &Tensor, positions: &Tensor) -> Result<Tensor> {
        let (n, _, len, width) = x.dims4()?;
        let positions = positions.flatten_all()?;
        let table = |table: &Tensor| table.index_select(&positions, 0)?.reshape((n, 1, len, width / 2));
        let (cos, sin) = (table(&self.cos)?, table(&self.sin)?);
        let (a, b) = (x.narrow(3, 0, width / 2)?, x.narrow(3, width / 2, width / 2)?);
        let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
        let second = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
        Tensor::cat(&[first, second], D::Minus1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frequencies(rule: &str) -> Result<Vec<f64>> {
        serde_json::from_str::<RopeConfig>(rule).expect("a rule").frequencies(10_000.0, 4)
    }

    #[test]
    fn rules_of_earlier_and_current_files() {
        let plain = [1.0, 0.1, 0.01, 0.001];
        let near = |got: Vec<f64>, want: [f64; 4]| {
            assert!(got.iter().zip(want).all(|(a, b)| (a / b - 1.0).abs() < 1e-12), "{got:?}, not {want:?}");
        };
        near(frequencies("{}").expect("plain"), plain);
        near(frequencies(r#"{ "type": "linear", "factor": 4.0 }"#).expect("old"), plain.map(|f| f / 4.0));
        let both = r#"{ "type": "linear", "rope_type": "linear", "factor": 4.0 }"#;
        near(frequencies(both).expect("both names"), plain.map(|f| f / 4.0));
        // 1000 positions are 159, 16, 1.6 and 0.16 rotations: the third is 30 % of the way from 1 to 3.
        let llama3 = r#"{ "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 3.0, "original_max_position_embeddings": 1000 }"#;
        let fraction = (1000.0 * 0.01 / TAU - 1.0) / 2.0;
        near(
            frequencies(llama3).expect("llama3"),
            [1.0, 0.1, 0.01 * (fraction + (1.0 - fraction) / 8.0), 0.001 / 8.0],
        );
    }

    #[test]
    fn unsupported_and_incomplete_rules_are_refused() {
        let refused = |rule| frequencies(rule).expect_err("no rule").to_string();
        assert!(refused(r#"{ "rope_type": "yarn", "factor": 4.0 }"#).contains("rope_type is yarn"));
        assert!(refused(r#"{ "rope_type": "linear" }"#).contains("lack factor"));
        assert!(
            refused(r#"{ "rope_type": "linear", "factor": 0.0 }"#).contains("factor of the rotations is 0")
        );
    }
}
