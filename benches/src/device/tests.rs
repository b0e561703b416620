//! Interprets the program of every engine by the definition of a BLAS and compares it with the
//! oracle. Every fault in a program must be noticed.

use std::collections::{BTreeMap, BTreeSet};

use half::{bf16, f16};
use kron_core::{
    Accum, Backend, Backward, Cpu, Dtype, Element, Error, Forward, KronOp, KronShape, LayerDims, Merge, Pass,
    Result, Scale, Split, Theta,
};
use ndarray::Array2;

use super::buffer::Buffer;
use super::product::{Operand, Product};
use super::program::{Call, Program, Scratch, Step};
use crate::check::check;
use crate::data::{Set, flat, uniform};
use crate::engine::Engine;
use crate::engines::Kind;
use crate::oracle::Reference;
use crate::problem::LayerTask;

const GRADIENTS: [Buffer; 4] = [Buffer::Grad, Buffer::DA, Buffer::DB, Buffer::DC];

/// Runs a program on the host, with each buffer as float32 values that its own type can hold.
struct Interpreter<E> {
    op: Option<KronOp>,
    program: Program,
    memory: BTreeMap<Buffer, Vec<f32>>,
    grad: Vec<f32>,
    weight: Option<Array2<E>>,
}

fn rounded<E: Element>(buffer: Buffer, value: f32) -> f32 {
    if buffer.is_float() { value } else { E::from_f32(value).to_f32() }
}

impl<E: Element> Interpreter<E> {
    fn new(program: Program, problem: &LayerTask, theta: Option<&Theta>, weight: &Array2<E>) -> Self {
        let wide = |m: &[E]| m.iter().map(|v| v.to_f32()).collect();
        let one = |(&buffer, &len): (&Buffer, &usize)| {
            let values: Vec<f32> = match (buffer, theta) {
                (Buffer::A, Some(theta)) => theta.a().to_vec(),
                (Buffer::B, Some(theta)) => theta.b().to_vec(),
                (Buffer::C, Some(theta)) => theta.c().to_vec(),
                (Buffer::Theta, Some(theta)) => theta.as_slice().to_vec(),
                (Buffer::W, _) => wide(flat(weight)),
                (Buffer::Ones, _) => vec![1.0; len],
                _ => vec![0.0; len],
            };
            assert_eq!(values.len(), len, "{buffer:?}");
            (buffer, values.into_iter().map(|v| rounded::<E>(buffer, v)).collect())
        };
        let memory = program.lens.iter().map(one).collect();
        let merges = matches!(problem, LayerTask::Merge(_)).then(|| weight.clone());
        Self { op: problem.op(), program, memory, grad: vec![0.0; problem.params()], weight: merges }
    }

    fn matrix(&self, buffer: Buffer, cols: usize) -> Array2<E> {
        let values: Vec<E> = self.memory[&buffer].iter().map(|&v| E::from_f32(v)).collect();
        Array2::from_shape_vec((values.len() / cols, cols), values).unwrap()
    }

    fn store(&mut self, buffer: Buffer, values: &[E]) {
        self.memory.insert(buffer, values.iter().map(|v| v.to_f32()).collect());
    }

    fn run(&mut self, steps: &[Step]) -> Result<()> {
        steps.iter().try_for_each(|step| match step {
            Step::Product(product) => self.product(product),
            Step::Ours(call) => self.call(*call),
        })
    }

    /// C[i, j] = alpha·Σ op(A)[i, l]·op(B)[l, j] + beta·C[i, j], column-major, one product of the batch
    /// after the other.
    fn product(&mut self, product: &Product) -> Result<()> {
        product.check(|buffer| self.memory.get(&buffer).map_or(0, Vec::len))?;
        let gemm = product.column_major();
        let [a, b, c] = gemm.operands;
        let at = |o: &Operand, z: usize, row: usize, col: usize| {
            let (row, col) = if o.transposed { (col, row) } else { (row, col) };
            o.offset + z * o.step + row + col * o.width
        };
        let (mut sums, mut written) = (self.memory[&c.buffer].clone(), BTreeSet::new());
        for z in 0..gemm.batch {
            for (i, j) in (0..gemm.m).flat_map(|i| (0..gemm.n).map(move |j| (i, j))) {
                let term =
                    |l| self.memory[&a.buffer][at(&a, z, i, l)] * self.memory[&b.buffer][at(&b, z, l, j)];
                let sum: f32 = (0..gemm.k).map(term).sum();
                let old = if gemm.beta == 0.0 { 0.0 } else { gemm.beta * sums[at(&c, z, i, j)] };
                sums[at(&c, z, i, j)] = rounded::<E>(c.buffer, gemm.alpha * sum + old);
                if !written.insert(at(&c, z, i, j)) {
                    return Err(Error::Shape(format!("{product:?} writes an element twice")));
                }
            }
        }
        self.memory.insert(c.buffer, sums);
        Ok(())
    }

    fn call(&mut self, call: Call) -> Result<()> {
        let (cpu, op) = (Cpu::new(), self.op.unwrap());
        let s = op.shape;
        let (x, mut y) = (self.matrix(Buffer::X, s.d_in()), self.matrix(Buffer::Y, s.d_out()));
        let (dy, mut dx) = (self.matrix(Buffer::Dy, s.d_out()), self.matrix(Buffer::Dx, s.d_in()));
        let theta = self.memory[&Buffer::Theta].clone();
        let rows = x.nrows().max(s.d_out());
        let len = [Pass::Forward, Pass::Backward { dx: true }, Pass::Merge]
            .map(|p| cpu.workspace_len(&op, p, rows));
        let mut scratch = vec![0.0; len.into_iter().max().unwrap()];
        let (theta, workspace, dropout) = (theta.as_slice(), scratch.as_mut_slice(), None);
        if let Call::Merge(into, accum) = call {
            let mut w = self.matrix(into, s.d_in());
            cpu.merge(&op, Merge { theta, w: w.view_mut(), first_row: 0, accum, workspace })?;
            self.store(into, flat(&w));
            return Ok(());
        }
        let mut t = self.memory.remove(&Buffer::T).unwrap();
        let mut grad = self.memory.remove(&Buffer::Grad).unwrap();
        if let Call::Forward(accum) = call {
            let (x, y, t) = (x.view(), y.view_mut(), t.as_mut_slice());
            cpu.forward(&op, Forward { theta, x, y, accum, t, workspace, dropout })?;
        } else {
            let dx = match call {
                Call::Backward(accum) => Some((dx.view_mut(), accum)),
                _ => None,
            };
            let (x, dy, t, grad) = (x.view(), dy.view(), t.as_slice(), grad.as_mut_slice());
            cpu.backward(&op, Backward { theta, x, t, dy, dx, grad, workspace, dropout })?;
        }
        self.memory.extend([(Buffer::T, t), (Buffer::Grad, grad)]);
        self.store(Buffer::Y, flat(&y));
        self.store(Buffer::Dx, flat(&dx));
        Ok(())
    }

    fn copy_back(&self, buffer: Buffer, to: &mut [E]) {
        to.iter_mut().zip(&self.memory[&buffer]).for_each(|(to, &v)| *to = E::from_f32(v));
    }
}

impl<E: Element> Engine<E> for Interpreter<E> {
    fn scratch_bytes(&self, _: bool) -> usize {
        let bytes = |kept: Scratch| kept.len * if kept.float32 { 4 } else { size_of::<E>() };
        self.program.scratch().map(bytes).sum()
    }

    fn forward(&mut self, set: &mut Set<E>) -> Result<()> {
        self.store(Buffer::X, set.x.flat());
        self.store(Buffer::Y, set.y.flat());
        self.run(&self.program.forward.clone())?;
        self.copy_back(Buffer::Y, set.y.flat_mut());
        if let Some(weight) = self.weight.take() {
            self.weight = Some(self.matrix(Buffer::W, weight.ncols()));
        }
        Ok(())
    }

    fn backward(&mut self, set: &mut Set<E>) -> Result<()> {
        self.store(Buffer::Dy, set.dy.flat());
        self.store(Buffer::Dx, set.dx.flat());
        let mut first = 0;
        for buffer in GRADIENTS {
            if let Some(gradient) = self.memory.get_mut(&buffer) {
                let len = gradient.len();
                gradient.copy_from_slice(&self.grad[first..first + len]);
                first += len;
            }
        }
        self.run(&self.program.backward.clone())?;
        self.copy_back(Buffer::Dx, set.dx.flat_mut());
        self.grad = GRADIENTS.iter().filter_map(|b| self.memory.get(b)).flatten().copied().collect();
        Ok(())
    }

    fn grad(&mut self) -> &mut [f32] {
        &mut self.grad
    }

    fn weight(&self) -> Option<&Array2<E>> {
        self.weight.as_ref()
    }
}

/// One engine's problem, its data and its reference.
struct Case<E: Element> {
    kind: Kind,
    problem: LayerTask,
    theta: Option<Theta>,
    weight: Array2<E>,
    set: Set<E>,
    reference: Reference,
}

impl<E: Element> Case<E> {
    fn new(kind: Kind, sizes: Sizes, rows: usize) -> Self {
        let Sizes { a_out, a_in, b_out, c_in, r } = sizes;
        let dims = LayerDims { d_out: a_out * b_out, d_in: a_in * c_in };
        let op = |shape| KronOp::new(shape, Scale::new(1.5).unwrap());
        let kron = op(KronShape::kron(dims, Split { a_out, a_in }, r).unwrap());
        let lora = op(KronShape::lora(dims, r).unwrap());
        let problem = kind.problem(kron, lora);
        let theta = problem.shape().map(|s| Theta::random(s, 7));
        let weight = uniform::<E>(dims.d_out, dims.d_in, 0.5, 1);
        let set = Set::<E>::random(rows, dims, kron.t_len(rows), 3);
        let reference = Reference::new(&problem, theta.as_ref(), Some(&weight), &set);
        Self { kind, problem, theta, weight, set, reference }
    }

    fn program(&self) -> Program {
        Program::new(self.kind, &self.problem, self.set.rows()).unwrap()
    }

    /// Fails unless the program gives the oracle's results, twice in a row, and adds to the gradient.
    fn verify(&self, program: Program) -> Result<(), String> {
        let mut on = Interpreter::new(program, &self.problem, self.theta.as_ref(), &self.weight);
        let text = |e: Error| e.to_string();
        for _ in 0..2 {
            let theta = self.theta.as_ref();
            let (forward, both) =
                check(&mut on, &self.problem, theta, &self.set, &self.reference, true).map_err(text)?;
            if !(forward.ok && both.ok) {
                return Err(format!("{forward:?} {both:?}"));
            }
            if E::DTYPE != Dtype::F32 && both.rel_error == 0.0 {
                return Err("no rounding".into());
            }
        }
        let once = on.grad.clone();
        on.backward(&mut self.set.clone()).map_err(text)?;
        let norm = |v: &mut dyn Iterator<Item = f32>| v.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt();
        let off = norm(&mut on.grad.iter().zip(&once).map(|(twice, once)| twice - 2.0 * once));
        if off > 8.0 * E::DTYPE.unit_roundoff() * norm(&mut once.iter().copied()) {
            return Err(format!("a second backward is {off} off twice the gradient"));
        }
        Ok(())
    }
}

/// Sizes of Kron-LoRA's factors.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    a_out: usize,
    a_in: usize,
    b_out: usize,
    c_in: usize,
    r: usize,
}

/// Pairwise different sizes, partly prime; a factor of 1 on either side.
const SIZES: [Sizes; 5] = [
    Sizes { a_out: 16, a_in: 2, b_out: 11, c_in: 37, r: 8 },
    Sizes { a_out: 2, a_in: 3, b_out: 41, c_in: 29, r: 5 },
    Sizes { a_out: 3, a_in: 1, b_out: 37, c_in: 61, r: 4 },
    Sizes { a_out: 1, a_in: 5, b_out: 67, c_in: 17, r: 3 },
    Sizes { a_out: 7, a_in: 4, b_out: 19, c_in: 23, r: 16 },
];

fn every_program_is_right<E: Element>() {
    for sizes in SIZES {
        for rows in [1, 9, 34] {
            for kind in Kind::ALL {
                let case = Case::<E>::new(kind, sizes, rows);
                let verdict = case.verify(case.program());
                assert_eq!(verdict, Ok(()), "{} {sizes:?} {} n {rows}", kind.name(), E::DTYPE);
            }
        }
    }
}

#[test]
fn every_program_is_right_in_float32() {
    every_program_is_right::<f32>();
}

#[test]
fn every_program_is_right_in_float16() {
    every_program_is_right::<f16>();
}

#[test]
fn every_program_is_right_in_bfloat16() {
    every_program_is_right::<bf16>();
}

/// Returns the product with each possible fault, one at a time.
fn faults(p: &Product) -> Vec<(String, Product)> {
    let mut list = vec![
        ("alpha".into(), p.times(2.0 * p.alpha)),
        ("add".into(), Product { add: !p.add, ..*p }),
        ("operands swapped".into(), Product { a: p.b, b: p.a, ..*p }),
        ("m".into(), Product { m: p.m - 1, ..*p }),
        ("n".into(), Product { n: p.n - 1, ..*p }),
        ("k".into(), Product { k: p.k - 1, ..*p }),
        ("batch".into(), Product { batch: p.batch - 1, ..*p }),
    ];
    let gemm = p.column_major();
    for (i, name) in ["B", "A", "C"].into_iter().enumerate() {
        // Any of the ones is as good as another.
        if gemm.operands[i].buffer == Buffer::Ones {
            continue;
        }
        let mut with = |what: &str, operand: Operand| {
            let product = match i {
                0 => Product { b: operand, ..*p },
                1 => Product { a: operand, ..*p },
                _ => Product { c: operand, ..*p },
            };
            list.push((format!("{what} of {name}"), product));
        };
        let o = gemm.operands[i];
        with("offset", o.at(o.offset + 1));
        // A single stored row has no next one.
        if gemm.stored(i).1 > 1 {
            with("width", Operand { width: o.width + 1, ..o });
            with("width", Operand { width: o.width - 1, ..o });
        }
        if p.batch > 1 {
            with("step", o.step(o.step + 1));
        }
        if p.batch > 1 && o.step > 0 {
            with("step", o.step(0));
        }
        if i < 2 {
            with("transposition", o.t());
        }
    }
    list
}

/// Returns the step with an output that is added to in place of one that is replaced, or the reverse.
fn other_accum(step: &Step) -> Option<Step> {
    let other = |accum| if accum == Accum::Add { Accum::Replace } else { Accum::Add };
    match *step {
        Step::Ours(Call::Forward(accum)) => Some(Step::Ours(Call::Forward(other(accum)))),
        Step::Ours(Call::Backward(accum)) => Some(Step::Ours(Call::Backward(other(accum)))),
        _ => None,
    }
}

/// A wrong size, stride, transposition or factor anywhere, and a step left out, is refused or seen.
#[test]
fn every_fault_in_a_program_is_noticed() {
    for kind in Kind::ALL {
        let case = Case::<f32>::new(kind, Sizes { a_out: 3, a_in: 2, b_out: 7, c_in: 5, r: 4 }, 6);
        let right = case.program();
        assert_eq!(case.verify(right.clone()), Ok(()), "{}", kind.name());
        let count = right.forward.len() + right.backward.len();
        for at in 0..count {
            let change = |step: Option<Step>| {
                let mut program = right.clone();
                let forward = program.forward.len();
                let (list, at) = match at.checked_sub(forward) {
                    None => (&mut program.forward, at),
                    Some(at) => (&mut program.backward, at),
                };
                list.splice(at..=at, step);
                program
            };
            let name = |what: &str| format!("{}, step {at}: {what}", kind.name());
            assert!(case.verify(change(None)).is_err(), "{}", name("left out"));
            let step = right.forward.iter().chain(&right.backward).nth(at);
            if let Some(wrong) = step.and_then(other_accum) {
                assert!(case.verify(change(Some(wrong))).is_err(), "{}", name("accum"));
            }
            let Some(Step::Product(product)) = step else { continue };
            for (what, wrong) in faults(product) {
                assert!(case.verify(change(Some(Step::Product(wrong)))).is_err(), "{}", name(&what));
            }
        }
    }
}

/// A program of real size stays inside the buffers that its shape fixes, and inside a BLAS's indices.
#[test]
fn every_program_of_a_real_layer_fits_its_buffers() {
    let mut products = 0;
    for layer in crate::models::models().iter().flat_map(|m| &m.layers) {
        let op = |shape| KronOp::new(shape, Scale::new(1.5).unwrap());
        let kron = op(KronShape::kron(layer.dims(), Split { a_out: 4, a_in: 2 }, 8).unwrap());
        let lora = op(KronShape::lora(layer.dims(), 8).unwrap());
        for kind in Kind::ALL {
            let program = Program::new(kind, &kind.problem(kron, lora), 8192).unwrap();
            // What backward finds of forward's products, every set has its own.
            let mut kept = program.forward.iter().filter_map(|s| match s {
                Step::Product(p) => Some(p.c.buffer),
                Step::Ours(_) => None,
            });
            assert!(kept.all(Buffer::of_set), "{}", kind.name());
            for step in program.forward.iter().chain(&program.backward) {
                let Step::Product(product) = step else { continue };
                product.check(|buffer| program.len(buffer)).unwrap();
                products += 1;
            }
        }
    }
    assert!(products > 100, "{products}");
}
