//! Tokenizers: text to token ids and back.

mod llama2c;

use std::path::Path;

use tokenizers::{PostProcessor, TruncationDirection};

use crate::error::{Error, Result, file, invalid};
pub use llama2c::Llama2c;

/// Tokenizer of one of two kinds.
#[derive(Debug)]
pub enum Tokenizer {
    /// Hugging Face's `tokenizer.json`.
    Hf(Box<tokenizers::Tokenizer>),
    /// Binary file of llama2.c.
    Llama2c(Llama2c),
}

impl Tokenizer {
    /// Reads a `tokenizer.json`, or a llama2.c file with the extension `.bin`.
    ///
    /// # Errors
    /// The file cannot be read or has another format.
    pub fn read(path: &Path) -> Result<Self> {
        if path.extension().is_some_and(|e| e == "bin") {
            return Ok(Tokenizer::Llama2c(Llama2c::read(path)?));
        }
        let mut hf = tokenizers::Tokenizer::from_file(path).map_err(|e| file(path, e))?;
        // `encode` truncates, and batches pad.
        hf.with_padding(None);
        hf.with_truncation(None).map_err(|e| file(path, e))?;
        Ok(Tokenizer::Hf(Box::new(hf)))
    }

    /// Returns the number of token ids.
    pub fn vocabulary(&self) -> usize {
        match self {
            Tokenizer::Hf(hf) => hf.get_vocab_size(true),
            Tokenizer::Llama2c(own) => own.vocabulary(),
        }
    }

    /// Fails if a model that embeds `embedded` ids needs another tokenizer.
    ///
    /// # Errors
    /// The tokenizer's vocabulary is larger than the model's, or much smaller.
    pub fn check_fits(&self, embedded: usize) -> Result<()> {
        // Models pad their embeddings by at most a thousand rows.
        if (self.vocabulary()..=self.vocabulary() + 1024).contains(&embedded) {
            return Ok(());
        }
        Err(invalid(format!(
            "the tokenizer has {} tokens, but the model embeds {embedded}: it belongs to another model",
            self.vocabulary()
        )))
    }

    /// Encodes a text with its special tokens into at most `max_len` ids.
    ///
    /// A longer text loses its end; the special tokens stay.
    ///
    /// # Errors
    /// The tokenizer rejects the text.
    pub fn encode(&self, text: &str, max_len: usize) -> Result<Vec<u32>> {
        let mut ids = match self {
            Tokenizer::Hf(hf) => {
                let mut encoded = hf.encode(text, false).map_err(refused)?;
                let special = hf.get_post_processor().map_or(0, |last| last.added_tokens(false));
                encoded.truncate(max_len.saturating_sub(special), 0, TruncationDirection::Right);
                hf.post_process(encoded, None, true).map_err(refused)?.get_ids().to_vec()
            }
            Tokenizer::Llama2c(own) => own.encode(text),
        };
        ids.truncate(max_len);
        Ok(ids)
    }

    /// Encodes a text that follows another, without special tokens.
    ///
    /// # Errors
    /// The tokenizer rejects the text.
    pub fn encode_more(&self, text: &str) -> Result<Vec<u32>> {
        Ok(match self {
            Tokenizer::Hf(hf) => hf.encode(text, false).map_err(refused)?.get_ids().to_vec(),
            Tokenizer::Llama2c(own) => own.encode_more(text),
        })
    }

    /// Decodes ids to text.
    ///
    /// # Errors
    /// An id exceeds the vocabulary.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        match self {
            Tokenizer::Hf(hf) => {
                hf.decode(ids, true).map_err(|e| invalid(format!("ids that decode to nothing: {e}")))
            }
            Tokenizer::Llama2c(own) => own.decode(ids),
        }
    }
}

fn refused(error: tokenizers::Error) -> Error {
    invalid(format!("the tokenizer refused a text: {error}"))
}
