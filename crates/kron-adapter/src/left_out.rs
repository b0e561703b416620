//! Trained tensors that a format cannot hold.

use crate::{Adapter, Error, Suggestion, TrainedTensor, text};

/// Trained tensors that a format cannot hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// Reason, the beginning of a sentence that ends with the names.
    pub why: &'static str,
    /// Names of the tensors.
    pub tensors: Vec<String>,
}

impl LeftOut {
    /// Takes the tensors of an adapter for which `is` is true; `None` without any.
    pub(crate) fn of(
        adapter: &Adapter,
        why: &'static str,
        is: impl Fn(&TrainedTensor) -> bool,
    ) -> Option<Self> {
        let tensors = adapter.trained_tensors().iter().filter(|tensor| is(tensor));
        let tensors: Vec<String> = tensors.map(|tensor| tensor.name().to_string()).collect();
        (!tensors.is_empty()).then_some(Self { why, tensors })
    }

    /// Returns the error of writing a file that lacks the tensors where nobody chose so.
    pub fn error(&self) -> Error {
        let names = text::first_and_more(&self.tensors).unwrap_or_default();
        Error::data(format!("{}, so these trained tensors would be lost: {names}", self.why))
            .with(Suggestion::FactorsOnly)
    }
}
