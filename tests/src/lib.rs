//! Shared parts of the tests: the case table, seeded data in guarded buffers,
//! the float64 oracle, a plain computation in the activations' own dtype, and
//! the comparison whose tolerance comes from the two.
#![forbid(unsafe_code)]

pub mod adapters;
pub mod answer;
pub mod batch;
pub mod call;
pub mod cases;
pub mod compare;
pub mod engine;
pub mod exact;
pub mod foreign;
pub mod fuzz;
pub mod gguf;
pub mod guard;
pub mod hostile;
pub mod inputs;
pub mod merging;
pub mod modules;
pub mod mutate;
pub mod notice;
pub mod oracle;
pub mod place;
pub mod repository;
pub mod same_dtype;
pub mod structured;
pub mod suite;

use kron_core::{Cpu, Isa};

/// One backend per instruction set that this machine has; the others are named on standard error.
pub fn backends() -> Vec<Cpu> {
    let (have, lack): (Vec<Isa>, Vec<Isa>) = Isa::ALL.into_iter().partition(|isa| isa.is_available());
    if !lack.is_empty() {
        notice::notice(format_args!("skipped, this machine lacks: {lack:?}"));
    }
    have.into_iter().filter_map(|isa| Cpu::with_isa(isa).ok()).collect()
}
