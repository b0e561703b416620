//! Architectures of GGUF files whose models have a LLaMA's modules.

/// An architecture, `general.architecture` of a GGUF.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::gguf) enum Architecture {
    /// LLaMA and Mistral.
    Llama,
    /// Qwen2 and Qwen2.5: q, k and v have biases.
    Qwen2,
    /// Qwen3: heads of q and k are normalised.
    Qwen3,
}

impl Architecture {
    pub const ALL: [Self; 3] = [Self::Llama, Self::Qwen2, Self::Qwen3];

    /// Returns the architecture of a name in a GGUF.
    pub fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.name() == name)
    }

    /// Returns the architecture of a `model_type` of Hugging Face.
    pub fn of_model_type(model_type: &str) -> Option<Self> {
        if model_type == "mistral" { Some(Self::Llama) } else { Self::of(model_type) }
    }

    /// Returns the name in a GGUF, with which the keys of its metadata begin; it is a `model_type`, too.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
        }
    }

    /// Returns the class of the model in transformers.
    pub const fn class(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
        }
    }

    /// Returns true if a GGUF has the rows of q and k in the order of interleaved rotations.
    ///
    /// llama.cpp rotates a Qwen's pairs half a head apart, as transformers does, and its converter leaves the rows.
    pub const fn permutes_rows(self) -> bool {
        matches!(self, Self::Llama)
    }

    /// Returns the width of a head that a configuration leaves out; `None` if it follows from other sizes.
    pub const fn default_head(self) -> Option<usize> {
        match self {
            Self::Qwen3 => Some(128),
            Self::Llama | Self::Qwen2 => None,
        }
    }

    /// Lists the names in a GGUF.
    pub fn known() -> String {
        Self::ALL.map(Self::name).join(", ")
    }
}
