//! Several adapters on one X in one call: against single calls, in exact arithmetic and bit by bit, and
//! against the oracle.

use half::{bf16, f16};
use kron_core::{
    Accum, AdapterGroup, BackwardGroup, Cpu, Dropout, DropoutKey, Element, ForwardGroup, GroupTerm, KronOp,
    KronShape, LayerDims, Pass, Scale, Split, Theta,
};
use kron_tests::call::{self, Dx};
use kron_tests::compare::Measure;
use kron_tests::guard::{Guarded, Matrix};
use kron_tests::inputs::{Old, Problem, uniform};
use kron_tests::{backends, exact, oracle, same_dtype};
use ndarray::Array2;
use rayon::ThreadPoolBuilder;

const D_IN: usize = 94;

/// One term: its op, its output, and true with dropout.
type Term = (KronOp, usize, bool);

fn kron(d_out: usize, a_out: usize, a_in: usize, rank: usize) -> KronOp {
    let shape = KronShape::kron(LayerDims { d_out, d_in: D_IN }, Split { a_out, a_in }, rank).expect("legal");
    KronOp::new(shape, Scale::new(2.0).expect("finite"))
}

/// Groups, each with a name: outputs of their own, a sum, and both with kinds, splits and masks that differ.
fn groups() -> Vec<(&'static str, Vec<Term>)> {
    let half = Dropout::new(0.5).expect("legal");
    let layer = LayerDims { d_out: 208, d_in: D_IN };
    let scale = Scale::new(0.5).expect("finite");
    let lora = KronOp::new(KronShape::lora(layer, 5).expect("legal"), scale);
    let krona = KronShape::krona(layer, Split { a_out: 16, a_in: 2 }).expect("legal");
    let krona = KronOp::new(krona, scale);
    vec![
        ("one", vec![(kron(208, 16, 2, 8), 0, false)]),
        (
            "q, k and v",
            vec![
                (kron(208, 16, 2, 8), 0, false),
                (kron(64, 16, 2, 8), 1, false),
                (kron(64, 16, 2, 8), 2, false),
            ],
        ),
        ("gate and up", vec![(kron(208, 16, 2, 8), 1, false), (kron(208, 16, 2, 8), 0, false)]),
        ("a sum", [8, 1, 5, 2].map(|rank| (kron(208, 16, 2, rank), 0, false)).to_vec()),
        (
            "mixed",
            vec![
                (kron(208, 16, 2, 3), 0, false),
                (krona.with_dropout(half), 0, true),
                (lora, 0, false),
                (kron(52, 13, 1, 4), 1, false),
                (lora.with_dropout(half), 0, true),
                (kron(208, 13, 1, 7), 0, false),
            ],
        ),
    ]
}

/// The terms as problems over one X; terms of one output have its dY.
struct Group<E> {
    problems: Vec<Problem<E>>,
    outputs: Vec<usize>,
    old_ys: Vec<Array2<E>>,
    old_dx: Array2<E>,
    old_grads: Vec<Vec<f32>>,
}

/// Outputs of a group's calls.
#[derive(Debug, PartialEq)]
struct Outputs<E> {
    ys: Vec<Array2<E>>,
    dx: Array2<E>,
    grads: Vec<Vec<f32>>,
}

impl<E: Element> Group<E> {
    /// Small integers, whose sums are exact in any order.
    fn exact(terms: &[Term], rows: usize, seed: u64) -> Self {
        let theta = |op: &KronOp, k| exact::theta(op.shape, seed ^ k << 8);
        Self::new(terms, theta, |rows, cols, seed| exact::integers(rows, cols, seed), rows, seed)
    }

    /// Values in (−1, 1).
    fn random(terms: &[Term], rows: usize, seed: u64) -> Self {
        let theta = |op: &KronOp, k| Theta::random(op.shape, seed ^ k << 8);
        Self::new(terms, theta, |rows, cols, seed| uniform(rows, cols, 1.0, seed), rows, seed)
    }

    fn new(
        terms: &[Term],
        theta: impl Fn(&KronOp, u64) -> Theta,
        matrix: impl Fn(usize, usize, u64) -> Array2<E>,
        rows: usize,
        seed: u64,
    ) -> Self {
        let x = matrix(rows, D_IN, seed ^ 0x0a);
        let problem = |(k, &(op, output, drops)): (u64, &Term)| Problem {
            op,
            theta: theta(&op, k),
            key: drops.then_some(DropoutKey { seed: 3, offset: k }),
            x: x.clone(),
            dy: matrix(rows, op.shape.d_out(), seed ^ (output as u64 + 1) << 16),
            pad: 0,
        };
        let problems: Vec<_> = (0..).zip(terms).map(problem).collect();
        let outputs: Vec<usize> = terms.iter().map(|term| term.1).collect();
        let count = outputs.iter().max().map_or(0, |last| last + 1);
        let d_out =
            |output| terms.iter().find(|term| term.1 == output).map_or(0, |term| term.0.shape.d_out());
        Self {
            outputs,
            old_ys: (0..count).map(|o| matrix(rows, d_out(o), seed ^ 0x01d)).collect(),
            old_dx: matrix(rows, D_IN, seed ^ 0xd1d),
            old_grads: terms.iter().map(|term| vec![1.0; term.0.shape.params()]).collect(),
            problems,
        }
    }

    fn dy(&self, output: usize) -> &Array2<E> {
        let term = self.outputs.iter().position(|&o| o == output).expect("every output has a term");
        &self.problems[term].dy
    }

    /// Runs both passes in buffers of exactly the lengths that are asked for, between guards.
    fn run(&self, cpu: &Cpu, accum: Accum) -> Outputs<E> {
        let term = |(p, &output): (&'_ Problem<E>, &usize)| (p.op, output, p.key);
        let rows = self.problems[0].rows();
        let terms: Vec<GroupTerm<&[f32]>> = self
            .problems
            .iter()
            .zip(&self.outputs)
            .map(|pair| {
                let (op, output, dropout) = term(pair);
                GroupTerm { op, theta: pair.0.theta.as_slice(), output, dropout }
            })
            .collect();
        let group = AdapterGroup::new(&terms).unwrap_or_else(|e| panic!("the group: {e}"));
        let scratch = |pass| Guarded::<f32>::poisoned(cpu.group_workspace_len(&group, pass, rows));
        let start = |old: &Array2<E>| match accum {
            Accum::Replace => Matrix::poisoned(old.nrows(), old.ncols(), 3),
            Accum::Add => Matrix::output(old, 3),
        };
        let x = Matrix::input(&self.problems[0].x, 3);
        let dys: Vec<_> = (0..group.outputs()).map(|o| Matrix::input(self.dy(o), 3)).collect();
        let mut ys: Vec<_> = self.old_ys.iter().map(start).collect();
        let mut dx = start(&self.old_dx);
        let (mut t, mut workspace) = (Guarded::poisoned(group.t_len(rows)), scratch(Pass::Forward));
        let call = ForwardGroup {
            x: x.view(),
            ys: &mut ys.iter_mut().map(|y| (y.view_mut(), accum)).collect::<Vec<_>>(),
            t: t.body_mut(),
            workspace: workspace.body_mut(),
        };
        cpu.forward_group(&group, call).unwrap_or_else(|e| panic!("forward: {e}"));
        workspace.assert_intact("forward's workspace");
        let mut grads: Vec<_> = self.old_grads.iter().map(|grad| Guarded::of(grad)).collect();
        let mut workspace = scratch(Pass::Backward { dx: true });
        let call = BackwardGroup {
            x: x.view(),
            t: t.body(),
            dys: &dys.iter().map(Matrix::view).collect::<Vec<_>>(),
            dx: Some((dx.view_mut(), accum)),
            grads: &mut grads.iter_mut().map(Guarded::body_mut).collect::<Vec<_>>(),
            workspace: workspace.body_mut(),
        };
        cpu.backward_group(&group, call).unwrap_or_else(|e| panic!("backward: {e}"));
        workspace.assert_intact("backward's workspace");
        ys.iter().for_each(|y| y.assert_intact("y"));
        dx.assert_intact("dx");
        t.assert_intact("t");
        grads.iter().for_each(|grad| grad.assert_intact("grad"));
        let mut alone = self.old_grads.clone();
        let mut workspace = scratch(Pass::Backward { dx: false });
        let call = BackwardGroup {
            x: x.view(),
            t: t.body(),
            dys: &dys.iter().map(Matrix::view).collect::<Vec<_>>(),
            dx: None,
            grads: &mut alone.iter_mut().map(Vec::as_mut_slice).collect::<Vec<_>>(),
            workspace: workspace.body_mut(),
        };
        cpu.backward_group(&group, call).unwrap_or_else(|e| panic!("backward without dX: {e}"));
        let grads: Vec<_> = grads.iter().map(|grad| grad.body().to_vec()).collect();
        assert!(grads == alone, "gradients depend on dX");
        Outputs { ys: ys.iter().map(|y| y.view().to_owned()).collect(), dx: dx.view().to_owned(), grads }
    }

    /// The same outputs by one forward and one backward call per term, each of which adds to the one before.
    fn one_by_one(&self, cpu: &Cpu, accum: Accum) -> Outputs<E> {
        let mut out =
            Outputs { ys: self.old_ys.clone(), dx: self.old_dx.clone(), grads: self.old_grads.clone() };
        let mut written = vec![accum == Accum::Add; self.old_ys.len()];
        for (k, (p, &o)) in self.problems.iter().zip(&self.outputs).enumerate() {
            let (y, t) = call::forward(cpu, p, written[o].then_some(&out.ys[o]));
            (out.ys[o], written[o]) = (y, true);
            let dx = if accum == Accum::Add || k > 0 { Dx::Add(&out.dx) } else { Dx::Replace };
            let (dx, grad) = call::backward(cpu, p, &t, dx, &out.grads[k]);
            (out.dx, out.grads[k]) = (dx.expect("dX was asked for"), grad);
        }
        out
    }
}

/// Small integers have one sum in any order, so every group has the bits of its terms' calls.
#[test]
fn a_group_is_the_sum_of_its_terms() {
    for (name, terms) in groups() {
        for rows in [0, 1, 2, 37, 150] {
            let group = Group::<f32>::exact(&terms, rows, 5);
            for cpu in backends() {
                for accum in [Accum::Replace, Accum::Add] {
                    let (got, want) = (group.run(&cpu, accum), group.one_by_one(&cpu, accum));
                    let place = format!("{name}, {rows} rows, {accum:?}, {:?}", cpu.isa());
                    assert!(got.ys == want.ys, "{place}: Y");
                    assert!(got.dx == want.dx, "{place}: dX");
                    assert!(got.grads == want.grads, "{place}: gradients");
                    assert!(rows == 0 || got.ys.iter().all(|y| y.iter().any(|&y| y != 0.0)), "{place}");
                }
            }
        }
    }
}

#[test]
fn equal_orders_have_equal_bits() {
    equal_orders::<f32>();
    equal_orders::<f16>();
    equal_orders::<bf16>();
}

/// A Y of one term has the bits of a single call; so have gradients of terms of one shape, and dX of one term.
fn equal_orders<E: Element>() {
    for (name, terms) in groups().into_iter().take(3) {
        for rows in [1, 37, 700] {
            let group = Group::<E>::random(&terms, rows, 7);
            for cpu in backends() {
                let (got, want) = (group.run(&cpu, Accum::Add), group.one_by_one(&cpu, Accum::Add));
                let place = format!("{name}, {rows} rows, {}, {:?}", E::DTYPE, cpu.isa());
                let bits = |m: &Array2<E>| call::bits(m.as_slice().expect("whole")).to_vec();
                assert!(got.ys.iter().zip(&want.ys).all(|(y, want)| bits(y) == bits(want)), "{place}: Y");
                let one_shape = terms.iter().all(|term| term.0.shape == terms[0].0.shape);
                assert!(!one_shape || got.grads == want.grads, "{place}: gradients");
                assert!(terms.len() > 1 || bits(&got.dx) == bits(&want.dx), "{place}: dX");
            }
        }
    }
}

#[test]
fn f32_agrees_with_the_oracle() {
    agrees_with_the_oracle::<f32>();
}

#[test]
fn f16_agrees_with_the_oracle() {
    agrees_with_the_oracle::<f16>();
}

#[test]
fn bf16_agrees_with_the_oracle() {
    agrees_with_the_oracle::<bf16>();
}

/// Every output is as close to float64 as 2× (gradients 3×) the sum of the plain computations.
fn agrees_with_the_oracle<E: Element>() {
    for (name, terms) in groups() {
        let rows = 41;
        let group = Group::<E>::random(&terms, rows, 9);
        let old: Vec<Old<E>> = group.problems.iter().map(|p| Old::for_problem(p, 1)).collect();
        let answers: Vec<_> = group.problems.iter().map(oracle::solve).collect();
        let plain: Vec<_> =
            group.problems.iter().zip(&old).map(|(p, old)| same_dtype::results(p, old)).collect();
        let round = |v: f64| f64::from(E::from_f32(v as f32).to_f32());
        for cpu in backends() {
            let got = group.run(&cpu, Accum::Replace);
            let check = |what: String, got: Vec<f64>, want: Vec<f64>, plain: Vec<f64>| {
                let (mut ours, mut yardstick) = (Measure::default(), Measure::default());
                ours.add(&got, &want);
                yardstick.add(&plain, &want);
                let verdict = ours.within(&yardstick, 2.0, E::DTYPE);
                verdict.unwrap_or_else(|e| panic!("{name}, {}, {:?}: {what}: {e}", E::DTYPE, cpu.isa()));
            };
            let wide = |m: &Array2<E>| m.iter().map(|v| v.to_f32().into()).collect();
            let sum = |of: &dyn Fn(usize) -> Vec<f64>, among: &dyn Fn(usize) -> bool| {
                let mut sum = Vec::new();
                for k in (0..terms.len()).filter(|&k| among(k)) {
                    let values = of(k);
                    sum.resize(values.len(), 0.0);
                    sum.iter_mut().zip(values).for_each(|(sum, v)| *sum += v);
                }
                sum
            };
            for (o, y) in got.ys.iter().enumerate() {
                let of_output = |k: usize| group.outputs[k] == o;
                let want = sum(&|k| answers[k].y.iter().copied().collect(), &of_output);
                let plain = sum(&|k| plain[k].y.clone(), &of_output).into_iter().map(round).collect();
                check(format!("Y {o}"), wide(y), want, plain);
            }
            let want = sum(&|k| answers[k].dx.iter().copied().collect(), &|_| true);
            let plain_dx = sum(&|k| plain[k].dx.clone(), &|_| true).into_iter().map(round).collect();
            check("dX".into(), wide(&got.dx), want, plain_dx);
        }
    }
}

#[test]
fn bits_do_not_depend_on_the_threads() {
    for (name, terms) in groups() {
        let group = Group::<f32>::random(&terms, 2_000, 11);
        let run = |threads| {
            let pool = ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
            pool.install(|| group.run(&Cpu::new(), Accum::Add))
        };
        let want = run(1);
        for threads in [2, 3, 4] {
            assert!(run(threads) == want, "{name}: {threads} threads");
        }
    }
}

#[test]
fn groups_and_buffers_that_do_not_fit_are_refused() {
    let theta = vec![1.0; 4_000];
    let term =
        |op: KronOp, output| GroupTerm { op, theta: &theta[..op.shape.params()], output, dropout: None };
    let message = |terms: &[GroupTerm<&[f32]>]| AdapterGroup::new(terms).expect_err("an error").to_string();
    let op = kron(208, 16, 2, 8);
    assert_eq!(message(&[]), "the group has 0 terms, but it has 1 to 16");
    assert_eq!(message(&[term(op, 0); 17]), "the group has 17 terms, but it has 1 to 16");
    let gap = message(&[term(op, 0), term(op, 2)]);
    assert_eq!(gap, "output 1 has no term, but every output below 3 needs one");
    let huge = message(&[term(op, 0), term(op, usize::MAX)]);
    assert!(huge.starts_with("output 1 has no term"), "{huge}");
    let uneven = message(&[term(op, 0), term(kron(64, 16, 2, 8), 0)]);
    assert_eq!(uneven, "term 1 is 64×94 kron (A 16×2) r 8, but d_out of output 0 is 208");
    let short = message(&[GroupTerm { theta: &theta[..7], ..term(op, 0) }]);
    assert!(short.starts_with("theta has 7 elements"), "{short}");

    // Each argument in turn, one element short; nothing is written.
    let terms = [term(op, 0), term(kron(64, 16, 2, 8), 1)];
    let (group, cpu) = (AdapterGroup::new(&terms).expect("legal"), Cpu::new());
    let right = [94, 208, 64, group.t_len(4), 4, 512, 0];
    for (wrong, want) in [
        (0, "x has 4 × 93 elements, but every row is of d_in = 94"),
        (1, "y has 4 × 207 elements, but it is 4 rows (as x has) of d_out = 208"),
        (2, "y has 4 × 63 elements, but it is 4 rows (as x has) of d_out = 64"),
        (3, "t has 127 elements, but needs 128: n × a_in × r of all terms over 4 rows"),
        (4, "dx has 3 × 94 elements"),
        (5, "grad has 511 elements"),
        (6, "workspace has 9 elements"),
    ] {
        let mut size = right;
        size[wrong] = size[wrong].saturating_sub(1);
        let x = Array2::<f32>::ones((4, size[0]));
        let (mut y, mut z) = (Array2::<f32>::ones((4, size[1])), Array2::<f32>::ones((4, size[2])));
        let (mut t, mut dx) = (vec![1.0; size[3]], Array2::<f32>::ones((size[4], 94)));
        let mut grads = [vec![1.0; size[5]], vec![1.0; 32 + 8 * (4 + 47)]];
        let len = |pass| if wrong == 6 { 9 } else { cpu.group_workspace_len(&group, pass, 4) };
        let mut workspace = vec![0.0; len(Pass::Forward).max(len(Pass::Backward { dx: true }))];
        let ys = &mut [(y.view_mut(), Accum::Add), (z.view_mut(), Accum::Add)];
        let call = ForwardGroup { x: x.view(), ys, t: &mut t, workspace: &mut workspace };
        let forward = cpu.forward_group(&group, call);
        let (dy, dz) = (y.clone(), z.clone());
        let [first, second] = &mut grads;
        let call = BackwardGroup {
            x: x.view(),
            t: &t,
            dys: &[dy.view(), dz.view()],
            dx: Some((dx.view_mut(), Accum::Add)),
            grads: &mut [first, second],
            workspace: &mut workspace,
        };
        let backward = cpu.backward_group(&group, call).expect_err("an error").to_string();
        let want_backward = if want.starts_with('y') { format!("d{want}") } else { want.into() };
        assert!(backward.contains(&want_backward), "{backward}");
        assert!(dx.iter().chain(grads.iter().flatten()).all(|&v| v == 1.0), "{want}: backward wrote");
        if matches!(wrong, 4 | 5) {
            forward.expect("forward has no such argument");
        } else {
            assert!(forward.expect_err("an error").to_string().contains(want), "{want}");
            assert!(y.iter().chain(&z).chain(&t).all(|&v| v == 1.0), "{want}: forward wrote");
        }
    }
}
