//! Compares an engine's results with the oracle's, within a tolerance derived from the shape and the dtype.
//!
//! Rounding errors of a sum of K terms are taken as independent: they grow as
//! √K·u₃₂ (Higham and Mary, SIAM J. Sci. Comput. 41, 2019), and an engine may
//! round each operand to the activations' dtype once (u). So Y and dX may be
//! off by 2·(u + √K·u₃₂) of their norm, gradients by 3·(u + √K·u₃₂).

use std::time::Instant;

use kron_core::{Dtype, Element, LayerDims, Result, Theta};

use crate::data::{Set, flat};
use crate::engine::Engine;
use crate::memory::peak_during;
use crate::oracle::{self, Expected, Reference};
use crate::problem::LayerTask;

/// One pass compared with the oracle.
#[derive(Clone, Copy, Debug, Default)]
pub struct Verdict {
    /// ‖got − expected‖ / ‖expected‖, the largest over the results of the pass.
    pub rel_error: f64,
    /// True if every result is within its tolerance.
    pub ok: bool,
    /// Bytes allocated during the pass beyond those before it.
    pub peak_bytes: usize,
    /// Seconds of this first run.
    pub seconds: f64,
}

impl Verdict {
    const PERFECT: Verdict = Verdict { rel_error: 0.0, ok: true, peak_bytes: 0, seconds: 0.0 };

    fn judge(&mut self, got: impl Iterator<Item = f64>, expected: &[f64], tolerance: f64) {
        let (error, norm) =
            got.zip(expected).fold((0.0, 0.0), |(e, n), (g, x)| (e + (g - x) * (g - x), n + x * x));
        let rel = (error / norm).sqrt();
        // A comparison that NaN fails.
        self.ok &= rel <= tolerance;
        self.rel_error = if rel.is_nan() { f64::NAN } else { self.rel_error.max(rel) };
    }
}

/// Runs forward, and with `backward` backward, once on a copy of `set`, and compares the
/// results with `reference`: returns the verdicts on forward alone and on both passes.
///
/// # Errors
/// Fails if the engine does.
pub fn check<E: Element>(
    engine: &mut dyn Engine<E>,
    problem: &LayerTask,
    theta: Option<&Theta>,
    set: &Set<E>,
    reference: &Reference,
    backward: bool,
) -> Result<(Verdict, Verdict)> {
    let mut work = set.clone();
    let merged = match (problem, theta, engine.weight()) {
        (LayerTask::Merge(op), Some(theta), Some(w)) => Some(oracle::merged(op, theta, w)),
        _ => None,
    };
    let bounds = Bounds::new(problem, set.rows(), E::DTYPE);
    let mut forward = Verdict::PERFECT;
    let start = Instant::now();
    let (result, peak) = peak_during(|| engine.forward(&mut work));
    result?;
    (forward.seconds, forward.peak_bytes) = (start.elapsed().as_secs_f64(), peak);
    match &merged {
        Some(w) => forward.judge(pick(engine.weight().map(flat), w), &w.values, bounds.y),
        None => forward.judge(pick(Some(work.y.flat()), &reference.y), &reference.y.values, bounds.y),
    }
    if !backward {
        return Ok((forward, forward));
    }
    let mut both = forward;
    engine.grad().fill(0.0);
    let start = Instant::now();
    let (result, peak) = peak_during(|| engine.backward(&mut work));
    result?;
    both.seconds += start.elapsed().as_secs_f64();
    both.peak_bytes = both.peak_bytes.max(peak);
    if merged.is_none() {
        both.judge(pick(Some(work.dx.flat()), &reference.dx), &reference.dx.values, bounds.dx);
    }
    let lens = problem.shape().map_or([0; 3], |s| [s.a_len(), s.b_len(), s.c_len()]);
    let (grad, mut first) = (engine.grad(), 0);
    for len in lens.into_iter().filter(|&len| len > 0) {
        let range = first..first + len;
        let got = grad[range.clone()].iter().map(|&v| f64::from(v));
        both.judge(got, &reference.grad[range], bounds.grad);
        first += len;
    }
    Ok((forward, both))
}

/// Returns the engine's values at the positions of `expected`; NaN without data.
fn pick<'a, E: Element>(data: Option<&'a [E]>, expected: &'a Expected) -> impl Iterator<Item = f64> + 'a {
    expected.at.iter().map(move |&i| data.map_or(f64::NAN, |d| f64::from(d[i].to_f32())))
}

/// The relative errors that rounding can cause.
struct Bounds {
    y: f64,
    dx: f64,
    grad: f64,
}

impl Bounds {
    fn new(problem: &LayerTask, rows: usize, dtype: Dtype) -> Self {
        let LayerDims { d_out, d_in } = problem.layer();
        let tokens = rows * problem.shape().map_or(1, |s| s.a_out().max(s.a_in()));
        let error = |terms: usize| dtype.unit_roundoff() + (terms as f64).sqrt() * Dtype::F32.unit_roundoff();
        Self { y: 2.0 * error(d_in), dx: 2.0 * error(d_out), grad: 3.0 * error(tokens + d_in.max(d_out)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;
    use kron_core::{KronOp, KronShape, Scale, Split};

    /// An adapter that does nothing, as a kernel full of zeros would.
    struct Nothing(Vec<f32>);

    impl<E: Element> Engine<E> for Nothing {
        fn scratch_bytes(&self, _: bool) -> usize {
            0
        }
        fn forward(&mut self, _: &mut Set<E>) -> Result<()> {
            Ok(())
        }
        fn backward(&mut self, _: &mut Set<E>) -> Result<()> {
            Ok(())
        }
        fn grad(&mut self) -> &mut [f32] {
            &mut self.0
        }
    }

    #[test]
    fn an_engine_that_computes_nothing_is_caught() {
        let shape =
            KronShape::kron(LayerDims { d_out: 192, d_in: 160 }, Split { a_out: 4, a_in: 2 }, 8).unwrap();
        let op = KronOp::new(shape, Scale::alpha_over_r(32.0, 8).unwrap());
        let (theta, problem) = (Theta::random(shape, 1), LayerTask::Adapter(op));
        let set = Set::<bf16>::random(33, problem.layer(), op.t_len(33), 2);
        let reference = Reference::new(&problem, Some(&theta), None, &set);
        let mut nothing = Nothing(vec![0.0; shape.params()]);
        let (forward, both) = check(&mut nothing, &problem, Some(&theta), &set, &reference, true).unwrap();
        assert!(!forward.ok && !both.ok);
        assert!(forward.rel_error > 0.1 && both.rel_error > 0.9, "{forward:?} {both:?}");
    }
}
