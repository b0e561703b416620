//! Choosing an adapter's shapes: a [`Model`]'s linear layers and a [`Method`] give a
//! [`AdapterPlan`]; [`search`] finds the methods nearest to a [`Budget`].
//!
//! Everything here is a pure function on small printable values. Every method has
//! the form ΔW = s·A ⊗ M with M full or of low rank, so that a planned layer is a
//! `KronShape` and all counts follow from it:
//!
//! | method | A | inner factor |
//! |---|---|---|
//! | Kron-LoRA | a_out × a_in, one split for the model | rank r |
//! | LoRA | \[1\] | rank r |
//! | KronA | a split, or near-square per layer | full |
//! | LoKr | PEFT's factorization of each side | rank r, or full where r is large |
//!
//! ```
//! use kron_adapter::plan::{Budget, Family, Method, AdapterPlan, preset, search};
//!
//! let model = preset("LLaMA-3-8B").expect("a preset");
//! let plan = AdapterPlan::new(&model, Method::paper(&model, 8))?;
//! assert!(plan.trained_params() < AdapterPlan::new(&model, Method::Lora { rank: 8 })?.trained_params());
//!
//! let best = &search(&model, Family::Kron, Budget::AtMost(6_000_000))?[0];
//! assert!(best.trained_params <= 6_000_000);
//! # Ok::<(), kron_adapter::Error>(())
//! ```

mod budget;
mod layers;
mod method;
mod model;
mod presets;
mod split;

pub use budget::{Budget, Choice, Family, search};
pub use layers::{AdapterPlan, Row, multiply_adds, saved_elements};
pub use method::Method;
pub use model::{Linear, MAX_DIM, Model};
pub use presets::{PRESETS, preset};
pub(crate) use split::peft_first;
pub use split::{
    DEFAULT_SPLIT, Fitted, LayerSide, Note, divisors, fit_split, legal_splits, paper_split,
    peft_factorization,
};
