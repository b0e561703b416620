//! Errors and the bound on them.
//!
//! Two norms of the error against the float64 oracle, each relative to the
//! oracle: Frobenius, which a systematic error moves, and the largest element,
//! which one wrong element in a large output moves. A bound is 2× (θ's
//! gradients 3×) the error that the plain computation makes on the same
//! numbers, or, where that is smaller, the rounding of the output's dtype.

use kron_core::{Dtype, KronShape};

/// Factor on the plain computation's error, for outputs.
const OUTPUT: f64 = 2.0;
/// The same for gradients, which pass through twice as many roundings.
const GRADIENT: f64 = 3.0;

/// Every output of one problem, in float64, old contents included.
#[derive(Clone, Debug, PartialEq)]
pub struct Results {
    /// T.
    pub t: Vec<f64>,
    /// Y, replaced.
    pub y: Vec<f64>,
    /// Y, added to.
    pub y_added: Vec<f64>,
    /// dX, replaced.
    pub dx: Vec<f64>,
    /// dX, added to.
    pub dx_added: Vec<f64>,
    /// \[dA | dB | dC\], added to.
    pub grad: Vec<f64>,
}

/// One output of [`Results`].
struct Output<'a> {
    name: &'static str,
    values: &'a [f64],
    factor: f64,
    /// Float32 for every dtype of the activations.
    float: bool,
}

impl Results {
    fn outputs(&self, shape: &KronShape) -> [Output<'_>; 8] {
        let (da, rest) = self.grad.split_at(shape.a_len());
        let (db, dc) = rest.split_at(shape.b_len());
        let activation = |name, values| Output { name, values, factor: OUTPUT, float: false };
        let gradient = |name, values| Output { name, values, factor: GRADIENT, float: true };
        [
            Output { name: "T", values: &self.t, factor: OUTPUT, float: true },
            activation("Y", &self.y),
            activation("Y added", &self.y_added),
            activation("dX", &self.dx),
            activation("dX added", &self.dx_added),
            gradient("dA", da),
            gradient("dB", db),
            gradient("dC", dc),
        ]
    }

    /// The length of the shortest output that is not empty.
    pub fn shortest(&self, shape: &KronShape) -> Option<usize> {
        self.outputs(shape).iter().map(|o| o.values.len()).filter(|&len| len > 0).min()
    }
}

/// The errors of one output, pooled over draws.
#[derive(Clone, Copy, Debug, Default)]
pub struct Measure {
    error: f64,
    got: f64,
    want: f64,
    error_max: f64,
    want_max: f64,
}

impl Measure {
    /// Adds one draw.
    ///
    /// # Panics
    /// Different lengths.
    pub fn add(&mut self, got: &[f64], want: &[f64]) {
        assert_eq!(got.len(), want.len(), "outputs of different lengths");
        for (got, want) in got.iter().zip(want) {
            let error = (got - want).abs();
            self.error += error * error;
            self.got += got * got;
            self.want += want * want;
            // `max` loses a NaN; the sum keeps it.
            self.error_max = self.error_max.max(error);
            self.want_max = self.want_max.max(want.abs());
        }
    }

    /// ‖got − want‖ / ‖want‖.
    pub fn frobenius(&self) -> f64 {
        (self.error / self.want).sqrt()
    }

    /// max |got − want| / max |want|.
    pub fn largest(&self) -> f64 {
        self.error_max / self.want_max
    }

    /// Fails if the error exceeds `factor` times the plain computation's and the dtype's rounding.
    ///
    /// # Errors
    /// One that is not, an oracle that is ~0, or an output that is.
    pub fn within(&self, plain: &Measure, factor: f64, dtype: Dtype) -> Result<(), String> {
        if self.want.is_nan() || self.want <= 0.0 {
            return Err("the oracle is 0: the case tests nothing".into());
        }
        if self.got.is_nan() || self.got < 0.25 * self.want {
            return Err(format!("‖output‖² is {:.2e}, the oracle's {:.2e}", self.got, self.want));
        }
        let norms = [
            ("Frobenius", self.frobenius(), plain.frobenius()),
            ("largest", self.largest(), plain.largest()),
        ];
        for (norm, error, plain) in norms {
            let bound = factor * plain.max(dtype.unit_roundoff());
            if error.is_nan() || error > bound {
                return Err(format!("{norm} error {error:.2e} > {factor} × {:.2e}", bound / factor));
            }
        }
        Ok(())
    }
}

/// The errors of all outputs, pooled over draws.
#[derive(Clone, Debug, Default)]
pub struct Measures([Measure; 8]);

impl Measures {
    /// Adds one draw.
    pub fn add(&mut self, shape: &KronShape, got: &Results, want: &Results) {
        let pairs = got.outputs(shape).into_iter().zip(want.outputs(shape));
        for (measure, (got, want)) in self.0.iter_mut().zip(pairs) {
            measure.add(got.values, want.values);
        }
    }

    /// Every output that breaks its bound, one sentence each. `like` is any
    /// draw's results: an output that is empty there is not looked at.
    pub fn failures(&self, plain: &Measures, shape: &KronShape, like: &Results, dtype: Dtype) -> Vec<String> {
        let outputs = like.outputs(shape).into_iter().zip(self.0.iter().zip(&plain.0));
        let checked = outputs.filter(|(output, _)| !output.values.is_empty()).map(|(o, (ours, plain))| {
            let dtype = if o.float { Dtype::F32 } else { dtype };
            ours.within(plain, o.factor, dtype).map_err(|e| format!("{}: {e}", o.name))
        });
        checked.filter_map(Result::err).collect()
    }
}

/// A suite that cannot fail proves nothing: every mutation of correct results must be reported.
#[cfg(test)]
mod tests {
    use kron_core::{LayerDims, Split};

    use super::*;
    use crate::inputs::{Old, Problem};
    use crate::{oracle, same_dtype};
    use half::bf16;
    use kron_core::{Element, KronOp, Scale};

    struct Fixture {
        shape: KronShape,
        dtype: Dtype,
        want: Results,
        plain: Results,
        /// The old contents of Y, dX and the gradient, laid out as in [`Results`].
        old: Results,
    }

    fn fixture<E: Element>() -> Fixture {
        let shape =
            KronShape::kron(LayerDims { d_out: 15 * 7, d_in: 4 * 23 }, Split { a_out: 15, a_in: 4 }, 5)
                .unwrap();
        let problem = Problem::<E>::random(KronOp::new(shape, Scale::new(1.5).unwrap()), 37, 11);
        let answer = oracle::solve(&problem);
        let old = Old::like(&answer, 3);
        let zero = |len: usize| vec![0.0; len];
        let wide = |m: &ndarray::Array2<E>| m.iter().map(|v| v.to_f32().into()).collect();
        let old_results = Results {
            t: zero(answer.t.len()),
            y: zero(answer.y.len()),
            y_added: wide(&old.y),
            dx: zero(answer.dx.len()),
            dx_added: wide(&old.dx),
            grad: old.grad.iter().map(|&v| v.into()).collect(),
        };
        let (want, plain) = (answer.results(&old), same_dtype::results(&problem, &old));
        Fixture { shape, dtype: E::DTYPE, want, plain, old: old_results }
    }

    impl Fixture {
        /// Result of comparing `ours`.
        fn failures(&self, ours: &Results) -> Vec<String> {
            let (mut measured, mut plain) = (Measures::default(), Measures::default());
            measured.add(&self.shape, ours, &self.want);
            plain.add(&self.shape, &self.plain, &self.want);
            measured.failures(&plain, &self.shape, ours, self.dtype)
        }

        /// Applies `mutate(computed, old)` to each output and expects a failure of that output.
        fn each_output_fails(&self, what: &str, mutate: impl Fn(&mut [f64], &[f64])) {
            let mut ours = self.plain.clone();
            let s = &self.shape;
            let (a, b) = (s.a_len(), s.a_len() + s.b_len());
            let old = &self.old;
            mutate(&mut ours.t, &old.t);
            mutate(&mut ours.y, &old.y);
            mutate(&mut ours.y_added, &old.y_added);
            mutate(&mut ours.dx, &old.dx);
            mutate(&mut ours.dx_added, &old.dx_added);
            for part in [0..a, a..b, b..s.params()] {
                mutate(&mut ours.grad[part.clone()], &old.grad[part]);
            }
            let failures = self.failures(&ours);
            for name in ["T", "Y", "Y added", "dX", "dX added", "dA", "dB", "dC"] {
                let named = failures.iter().any(|f| f.starts_with(&format!("{name}: ")));
                assert!(named, "{}: {what} passes in {name}: {failures:?}", self.dtype);
            }
        }
    }

    fn fixtures() -> [Fixture; 3] {
        [fixture::<f32>(), fixture::<half::f16>(), fixture::<bf16>()]
    }

    #[test]
    fn the_plain_computation_and_the_oracle_pass() {
        for f in fixtures() {
            assert_eq!(f.failures(&f.plain), [""; 0]);
            assert_eq!(f.failures(&f.want), [""; 0]);
        }
    }

    #[test]
    fn a_kernel_that_writes_nothing_fails() {
        for f in fixtures() {
            f.each_output_fails("zeros", |out, old| out.copy_from_slice(old));
        }
    }

    #[test]
    fn a_scale_applied_twice_fails() {
        for f in fixtures() {
            f.each_output_fails("1.5 × the result", |out, old| {
                out.iter_mut().zip(old).for_each(|(v, old)| *v += 0.5 * (*v - old));
            });
        }
    }

    #[test]
    fn replacing_where_adding_was_asked_fails() {
        for f in fixtures() {
            let mut ours = f.plain.clone();
            ours.y_added.clone_from(&f.plain.y);
            ours.dx_added.clone_from(&f.plain.dx);
            ours.grad.iter_mut().zip(&f.old.grad).for_each(|(v, old)| *v -= old);
            let failures = f.failures(&ours);
            for name in ["Y added", "dX added", "dA", "dB", "dC"] {
                assert!(failures.iter().any(|f| f.starts_with(name)), "{name}: {failures:?}");
            }
        }
    }

    #[test]
    fn one_wrong_element_fails() {
        for f in fixtures() {
            f.each_output_fails("one element of the wrong sign", |out, _| {
                let rms = (out.iter().map(|v| v * v).sum::<f64>() / out.len() as f64).sqrt();
                let typical = out.iter_mut().find(|v| v.abs() >= 0.5 * rms).unwrap();
                *typical = -*typical;
            });
            f.each_output_fails("one NaN", |out, _| out[out.len() / 2] = f64::NAN);
        }
    }

    #[test]
    fn swapped_rows_fail() {
        for f in fixtures() {
            f.each_output_fails("two rows swapped", |out, _| {
                let half = out.len() / 2;
                let (a, b) = out.split_at_mut(half);
                a[..5].swap_with_slice(&mut b[..5]);
            });
        }
    }

    #[test]
    fn an_oracle_of_zeros_is_refused() {
        let mut zero = Measure::default();
        zero.add(&[0.0; 4], &[0.0; 4]);
        assert!(zero.within(&zero, OUTPUT, Dtype::F32).unwrap_err().contains("oracle is 0"));
    }
}
