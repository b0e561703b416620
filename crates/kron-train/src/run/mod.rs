//! One training run: settings, data and weights in, a trained model out.
//!
//! Every step is a function of the settings and the step's number alone, so a run resumed from any checkpoint
//! continues bit for bit.

mod adapter_rule;
mod bench;
mod checkpoint;
mod fingerprint;
mod folder;
mod gradients;
mod head;
mod learner;
mod log;
mod loss_scale;
mod page;
mod progress;
mod read_adapter;
mod records;
pub(crate) mod resources;
mod schedule;
mod scoring;
mod stop;
mod trainer;

pub(crate) use adapter_rule::AdapterRule;
pub use bench::{PartTimes, StepTimes, bench};
pub use folder::OutputFolder;
pub use head::{LabelledHead, of_adapter as head_of_adapter, read as read_head};
pub use learner::{Learner, NamedGroup};
pub use log::{Log, read_log};
pub use progress::Progress;
pub use read_adapter::{ReadAdapter, read_adapter};
pub use records::{Answers, Evaluation, Score, StepRecord};
pub use schedule::learning_rate;
pub use stop::Stop;
pub use trainer::{Outcome, run, run_from, run_over};
