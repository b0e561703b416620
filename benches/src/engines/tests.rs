//! Every engine, with every choice it has, against the oracle.

use std::sync::Arc;

use half::{bf16, f16};
use kron_core::{Cpu, KronShape, LayerDims, Scale, Split};

use super::*;
use crate::check::check;
use crate::data::uniform;
use crate::oracle::Reference;

const RANK: usize = 5;

fn choices<E: Element>(kind: Kind) -> Vec<Choice> {
    match kind {
        Kind::LoraFused | Kind::KronFused | Kind::MergePerStep => vec![Choice::None],
        Kind::LoraGemm => Strategy::all(E::DTYPE).into_iter().map(|s| Choice::Strategies(s, s)).collect(),
        _ => GemmCrate::ALL.map(Choice::Crate).to_vec(),
    }
}

fn every_engine_is_right<E: Element>() {
    // Wider than a panel and taller than a band, and a multiple of neither.
    for (d_out, d_in) in [(2 * 1033, 3 * 89), (2 * 67, 3 * 701)] {
        let scale = Scale::alpha_over_r(32.0, RANK).unwrap();
        let kron = KronOp::new(
            KronShape::kron(LayerDims { d_out, d_in }, Split { a_out: 2, a_in: 3 }, RANK).unwrap(),
            scale,
        );
        let lora = KronOp::new(KronShape::lora(LayerDims { d_out, d_in }, RANK).unwrap(), scale);
        let weight = Arc::new(uniform::<E>(d_out, d_in, 0.05, 1));
        for rows in [1, 35, 97] {
            let set = Set::<E>::random(rows, LayerDims { d_out, d_in }, kron.t_len(rows), 3);
            for kind in Kind::ALL {
                let problem = kind.problem(kron, lora);
                let theta = problem.shape().map(|s| Theta::random(s, 7));
                let reference = Reference::new(&problem, theta.as_ref(), Some(&weight), &set);
                for choice in choices::<E>(kind) {
                    for threads in [1, 3] {
                        let config =
                            EngineConfig { rows, threads, cpu: Cpu::new(), weight: Some(weight.clone()) };
                        let mut engine = build(kind, choice, &problem, theta.as_ref(), &config);
                        let what = format!("{} {choice:?} {} {d_out}×{d_in} n {rows}", kind.name(), E::DTYPE);
                        // Twice, so that what the first call left behind shows.
                        for _ in 0..2 {
                            let verdicts =
                                check(engine.as_mut(), &problem, theta.as_ref(), &set, &reference, true)
                                    .unwrap();
                            assert!(verdicts.0.ok && verdicts.1.ok, "{what}: {verdicts:?}");
                            assert!(
                                E::DTYPE == kron_core::Dtype::F32 || verdicts.1.rel_error > 0.0,
                                "{what}"
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn every_engine_is_right_in_float32() {
    every_engine_is_right::<f32>();
}

#[test]
fn every_engine_is_right_in_float16() {
    every_engine_is_right::<f16>();
}

#[test]
fn every_engine_is_right_in_bfloat16() {
    every_engine_is_right::<bf16>();
}

#[test]
fn the_table_has_every_engine_once_in_order() {
    let names: Vec<Kind> = table().iter().map(|i| i.name).collect();
    assert_eq!(names, Kind::ALL);
    for kind in Kind::ALL {
        assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
    }
}
