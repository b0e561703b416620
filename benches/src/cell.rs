//! One cell: a layer, a dtype and a number of rows. Check, then time in turn.

use std::time::Instant;

use kron_core::{Dtype, Element, Result, Theta};
use ndarray::Array2;

use crate::check::{Answer, Verdict, check};
use crate::contest::{DENSE_TRIAL_ROWS, TRIAL_ROWS};
use crate::data::{Set, sets_for};
use crate::engines::{self, Choice, Engine, Ingredients, Kind};
use crate::oracle;
use crate::plan::{Entry, Group};
use crate::problem::{Pass, Problem};
use crate::record::GemmChoice;
use crate::runner::{Progress, Run};
use crate::stats::median;
use crate::timing::{Ring, rounds, takes_part};

/// Seconds of both passes above which an engine with a whole weight counts as slow.
const SLOW: f64 = 0.2;

/// Rows on which a slow engine is checked.
const SLOW_ROWS: usize = 64;

/// Part of the run's time that may be overdrawn before slow engines are left untimed.
const OVERDRAW: f64 = 1.15;

/// What became of one engine in a cell.
pub(crate) struct Outcome {
    forward: PassOutcome,
    both: PassOutcome,
    pub rows_checked: usize,
}

struct PassOutcome {
    samples: Vec<f64>,
    verdict: Verdict,
    extra_bytes: usize,
}

/// One pass of an [`Outcome`].
pub(crate) struct Part<'a> {
    pub samples: &'a [f64],
    pub verdict: Verdict,
    pub extra_bytes: usize,
}

impl Outcome {
    pub fn pass(&self, pass: Pass) -> Part<'_> {
        let p = match pass {
            Pass::Forward => &self.forward,
            Pass::Both => &self.both,
        };
        Part { samples: &p.samples, verdict: p.verdict, extra_bytes: p.extra_bytes }
    }
}

/// An engine that is right, and its seconds for both passes.
struct Contender<E> {
    engine: Box<dyn Engine<E>>,
    seconds: f64,
}

/// The truths of a cell so far, each for a number of rows: engines of one problem share one.
pub(crate) type Truths = Vec<(Problem, usize, Answer)>;

/// Checks and times every engine of a group for `from.rows` rows in about `seconds`.
pub(crate) fn run<E: Element>(
    run: &mut Run,
    group: &Group,
    thetas: &[Option<Theta>],
    from: &Ingredients<E>,
    seconds: f64,
    progress: &mut dyn Progress,
) -> Result<Vec<Outcome>> {
    let begun = Instant::now();
    let name = format!("{} {} {} × {}", group.model.name, group.layer.name, group.dtype, from.rows);
    let mut ring = ring(run.rotated, group, from.rows);
    // Engines add into the ring's sets as they warm up; the truth is about what stood there before.
    let fresh = ring.sets[0].clone();
    let (mut truths, mut contenders, mut outcomes) = (Truths::new(), Vec::new(), Vec::new());
    for (entry, theta) in group.entries.iter().zip(thetas) {
        progress.step(format!("{name}: checking {}", entry.label()));
        let (contender, outcome) =
            prepare(run, group.dtype, entry, theta.as_ref(), from, &fresh, &mut ring, &mut truths)?;
        contenders.push(contender);
        outcomes.push(outcome);
    }
    let left = (seconds - begun.elapsed().as_secs_f64()).max(0.0);
    let mut watch = |entry: &Entry| progress.step(format!("{name}: timed {}", entry.label()));
    time(run, group, left, &mut ring, &mut contenders, &mut outcomes, &mut watch)?;
    Ok(outcomes)
}

fn ring<E: Element>(rotated: usize, group: &Group, rows: usize) -> Ring<E> {
    let (d_out, d_in) = (group.layer.d_out, group.layer.d_in);
    let count = sets_for(rotated, rows, d_out, d_in, size_of::<E>());
    let t_len = group.t_len(rows);
    Ring::new((1..=count as u64).map(|seed| Set::random(rows, d_out, d_in, t_len, seed)).collect())
}

/// Chooses an engine's products, checks its answer on `fresh`, and warms it up when it is right.
#[allow(clippy::too_many_arguments)]
fn prepare<E: Element>(
    run: &mut Run,
    dtype: Dtype,
    entry: &Entry,
    theta: Option<&Theta>,
    from: &Ingredients<E>,
    fresh: &Set<E>,
    ring: &mut Ring<E>,
    truths: &mut Truths,
) -> Result<(Option<Contender<E>>, Outcome)> {
    let (rows, backward) = (from.rows, run.plan.passes.contains(&Pass::Both));
    let slow = entry.kind.is_dense() && dense_seconds(run, &entry.problem, rows, dtype) > SLOW;
    let rows_checked = if slow { SLOW_ROWS.min(rows) } else { rows };
    let choice = choice(run, dtype, entry, theta, from, fresh)?;
    let build = |rows| {
        let from = Ingredients { rows, ..from.clone() };
        engines::build(entry.kind, choice, &entry.problem, theta, &from)
    };

    let head = (rows_checked < rows).then(|| fresh.head(rows_checked));
    let set = head.as_ref().unwrap_or(fresh);
    let mut engine = build(rows_checked);
    let answer = answer(truths, &entry.problem, theta, from.weight.as_deref(), set);
    let (forward, both) = check(engine.as_mut(), &entry.problem, theta, set, answer, backward)?;
    if rows_checked < rows {
        engine = build(rows);
    }
    let pass = |verdict: Verdict, with_backward| PassOutcome {
        samples: Vec::new(),
        verdict,
        extra_bytes: engine.scratch_bytes(with_backward) + verdict.peak_bytes,
    };
    let outcome = Outcome { forward: pass(forward, false), both: pass(both, true), rows_checked };
    // An engine that is wrong in either pass is not timed in any.
    if !(forward.ok && both.ok) {
        return Ok((None, outcome));
    }
    let seconds = if slow {
        both.seconds * rows as f64 / rows_checked as f64
    } else {
        ring.sample(engine.as_mut(), 1, backward)?.1
    };
    Ok((Some(Contender { engine, seconds }), outcome))
}

/// Seconds that both passes of an engine with a whole d_out × d_in matrix take at least:
/// two products for the base layer, three for a materialised ΔW.
fn dense_seconds(run: &Run, problem: &Problem, rows: usize, dtype: Dtype) -> f64 {
    let (d_out, d_in) = problem.layer();
    let products = if problem.op().is_some() { 3.0 } else { 2.0 };
    products * 2.0 * rows as f64 * d_out as f64 * d_in as f64 / run.roof.flops(dtype.name())
}

/// The outcome of the engine's contest, held once per layer and number of rows.
fn choice<E: Element>(
    run: &mut Run,
    dtype: Dtype,
    entry: &Entry,
    theta: Option<&Theta>,
    from: &Ingredients<E>,
    set: &Set<E>,
) -> Result<Choice> {
    let most = if entry.kind.is_dense() { DENSE_TRIAL_ROWS } else { TRIAL_ROWS };
    let rows = most.min(set.rows());
    let (d_out, d_in) = entry.problem.layer();
    let mut name = GemmChoice {
        engine: entry.kind,
        d_out,
        d_in,
        dtype: dtype.to_string(),
        rank: entry.factors().0,
        rows,
        forward: String::new(),
        backward: String::new(),
    };
    let held = |name: &GemmChoice| run.choices.iter().find(|(held, _)| held.same_contest(name)).map(|c| c.1);
    // A materialised ΔW meets the same products as the layer's own weight.
    let of_linear = GemmChoice { engine: Kind::Linear, rank: 0, ..name.clone() };
    let known = held(&name).or_else(|| (entry.kind == Kind::KronDense).then(|| held(&of_linear)).flatten());
    if let Some(choice) = known {
        return Ok(choice);
    }
    let choice = engines::choose(entry.kind, &entry.problem, theta, from, &mut set.head(rows))?;
    if let Some([forward, backward]) = choice.names() {
        (name.forward, name.backward) = (forward, backward);
        run.choices.push((name, choice));
    }
    Ok(choice)
}

pub(crate) fn answer<'a, E: Element>(
    truths: &'a mut Truths,
    problem: &Problem,
    theta: Option<&Theta>,
    weight: Option<&Array2<E>>,
    set: &Set<E>,
) -> &'a Answer {
    // Merging changes W, which the check looks at itself; its gradient is the adapter's.
    let problem = problem.op().map_or(*problem, Problem::Adapter);
    let found = truths.iter().position(|(p, rows, _)| *p == problem && *rows == set.rows());
    let at = found.unwrap_or_else(|| {
        let answer = match (problem, theta, weight) {
            (Problem::Adapter(op), Some(theta), _) => Answer::Adapter(oracle::adapter(&op, theta, set)),
            (_, _, Some(weight)) => {
                let (y, dx) = oracle::linear(weight, set);
                Answer::Linear(y, dx)
            }
            _ => unreachable!("an adapter has a θ and a base layer a weight"),
        };
        truths.push((problem, set.rows(), answer));
        truths.len() - 1
    });
    &truths[at].2
}

/// Interleaved rounds over all contenders.
fn time<E: Element>(
    run: &mut Run,
    group: &Group,
    seconds: f64,
    ring: &mut Ring<E>,
    contenders: &mut [Option<Contender<E>>],
    outcomes: &mut [Outcome],
    watch: &mut dyn FnMut(&Entry),
) -> Result<()> {
    let backward = run.plan.passes.contains(&Pass::Both);
    let share = seconds / contenders.len() as f64;
    let own: Vec<usize> = (contenders.iter().zip(&group.entries))
        .map(|(contender, entry)| {
            let Some(c) = contender else { return 0 };
            let overdrawn = run.started.elapsed().as_secs_f64() + c.seconds > OVERDRAW * run.plan.seconds;
            if entry.kind.is_dense() && c.seconds > SLOW && overdrawn {
                return 0;
            }
            rounds(entry.kind, ring.sweep(c.seconds, share) as f64 * c.seconds, share)
        })
        .collect();
    let all = own.iter().copied().max().unwrap_or(0);
    let mut again = Vec::new();
    for round in 0..all {
        for i in 0..own.len() {
            // A different engine goes first each time: nobody always runs in the same one's wake.
            let i = (i + round) % own.len();
            let Some(c) = contenders[i].as_mut().filter(|_| takes_part(own[i], round, all)) else { continue };
            let sweep = ring.sweep(c.seconds, share);
            let mut sample = || ring.sample(c.engine.as_mut(), sweep, backward);
            let (forward, both) = sample()?;
            outcomes[i].forward.samples.push(forward);
            outcomes[i].both.samples.push(both);
            if group.entries[i].kind == Kind::Linear && c.seconds <= SLOW {
                again.push(sample()?.0);
            }
        }
    }
    group.entries.iter().for_each(watch);
    let linear = group.entries.iter().position(|e| e.kind == Kind::Linear);
    if let Some(i) = linear.filter(|_| !again.is_empty()) {
        run.noise.push((median(&outcomes[i].forward.samples) / median(&again) - 1.0).abs());
    }
    Ok(())
}
