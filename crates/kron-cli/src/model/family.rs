//! Model families: architectures whose blocks have the same linear layers.

/// A family of architectures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
    Gemma,
    Bert,
    DistilBert,
    ModernBert,
    Gpt2,
}

/// Values of `model_type` with their families.
const TYPES: [(&str, Family); 15] = [
    ("llama", Family::Llama),
    ("mistral", Family::Mistral),
    ("qwen2", Family::Qwen2),
    ("qwen3", Family::Qwen3),
    ("gemma", Family::Gemma),
    ("gemma2", Family::Gemma),
    ("gemma3", Family::Gemma),
    ("gemma3_text", Family::Gemma),
    ("bert", Family::Bert),
    ("roberta", Family::Bert),
    ("xlm-roberta", Family::Bert),
    ("camembert", Family::Bert),
    ("distilbert", Family::DistilBert),
    ("modernbert", Family::ModernBert),
    ("gpt2", Family::Gpt2),
];

impl Family {
    /// Returns the family of a `model_type`.
    pub fn of(model_type: &str) -> Option<Self> {
        TYPES.iter().find(|(name, _)| *name == model_type).map(|&(_, family)| family)
    }

    /// Lists the known values of `model_type`.
    pub fn known() -> String {
        TYPES.map(|(name, _)| name).join(", ")
    }

    /// Returns true if a configuration without `tie_word_embeddings` ties the output head.
    pub fn tied_by_default(self) -> bool {
        matches!(self, Family::Gemma | Family::Bert | Family::DistilBert | Family::ModernBert | Family::Gpt2)
    }
}
