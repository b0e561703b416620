//! [`Config`]: the configuration of a model of any kind, and the body that it describes.

use candle_core::{Error, Result};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::bert::{Bert, BertConfig};
use super::body::Body;
use super::decoder::Decoder;
use super::decoder_config::DecoderConfig;
use super::layers::Layers;
use super::modern_bert::ModernBert;
use super::modern_bert_config::ModernBertConfig;

/// Configuration of a model.
#[derive(Clone, Debug)]
pub enum Config {
    /// BERT or DistilBERT.
    Bert(BertConfig),
    /// ModernBERT.
    ModernBert(ModernBertConfig),
    /// LLaMA, Mistral, Qwen2 or Qwen3.
    Decoder(DecoderConfig),
}

impl Config {
    /// Parses the text of a `config.json`, and checks its numbers.
    ///
    /// ```
    /// # fn main() -> candle_core::Result<()> {
    /// let text = r#"{ "model_type": "qwen2", "vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 1,
    ///     "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 40,
    ///     "max_position_embeddings": 64, "rms_norm_eps": 1e-6 }"#;
    /// assert_eq!(kron_candle::models::Config::parse(text)?.hidden(), 32);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// The text is not JSON, the kind of model is unknown, a field is missing or out of range, or a feature is not
    /// supported.
    pub fn parse(json: &str) -> Result<Self> {
        #[derive(Deserialize)]
        struct Kind {
            model_type: String,
        }
        fn of<T: DeserializeOwned>(json: &str) -> Result<T> {
            serde_json::from_str(json).map_err(Error::msg)
        }
        let config = match of::<Kind>(json)?.model_type.as_str() {
            "bert" | "distilbert" => Self::Bert(of(json)?),
            "modernbert" => Self::ModernBert(of(json)?),
            "llama" | "mistral" | "qwen2" | "qwen3" => Self::Decoder(of(json)?),
            other => {
                let known = "bert, distilbert, modernbert, llama, mistral, qwen2 and qwen3 are known";
                return Err(Error::msg(format!("is of model type {other:?}, but {known}")));
            }
        };
        config.check().map(|()| config)
    }

    /// Fails if a number is out of range, or a feature is not supported.
    ///
    /// # Errors
    /// As the configuration of the kind.
    pub fn check(&self) -> Result<()> {
        match self {
            Self::Bert(config) => config.check(),
            Self::ModernBert(config) => config.check(),
            Self::Decoder(config) => config.check(),
        }
    }

    /// Returns `true` for a decoder, which predicts the next token.
    pub const fn is_decoder(&self) -> bool {
        matches!(self, Self::Decoder(_))
    }

    /// Returns the number of token ids.
    pub const fn vocabulary(&self) -> usize {
        match self {
            Self::Bert(config) => config.vocab_size,
            Self::ModernBert(config) => config.vocab_size,
            Self::Decoder(config) => config.vocab_size,
        }
    }

    /// Returns the width of a hidden state.
    pub const fn hidden(&self) -> usize {
        match self {
            Self::Bert(config) => config.hidden_size,
            Self::ModernBert(config) => config.hidden_size,
            Self::Decoder(config) => config.hidden_size,
        }
    }

    /// Returns the longest text in tokens.
    pub fn positions(&self) -> usize {
        match self {
            Self::Bert(config) => config.max_position_embeddings,
            Self::ModernBert(config) => config.max_position_embeddings,
            Self::Decoder(config) => config.positions(),
        }
    }

    /// Builds the model from its layers; BERT and DistilBERT take no blocks.
    ///
    /// # Errors
    /// A tensor is missing or has another shape, or an adapter does not fit.
    pub fn build(&self, layers: &Layers) -> Result<Box<dyn Body>> {
        Ok(match self {
            Self::Bert(config) => Box::new(Bert::new(config, layers.inject(), layers.builder())?),
            Self::ModernBert(config) => Box::new(ModernBert::new(config, layers)?),
            Self::Decoder(config) => Box::new(Decoder::new(config, layers)?),
        })
    }
}
