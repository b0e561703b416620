//! Text to token ids.

mod llama2c;

use std::path::Path;

use crate::error::{Result, file, invalid};
pub use llama2c::Llama2c;

/// A tokenizer of either kind.
#[derive(Debug)]
pub enum Tokenizer {
    /// A `tokenizer.json` of Hugging Face.
    Hf(Box<tokenizers::Tokenizer>),
    /// The binary file of llama2.c.
    Llama2c(Llama2c),
}

impl Tokenizer {
    /// `tokenizer.json`, or a llama2.c file that ends in `.bin`.
    ///
    /// # Errors
    /// A file that is not there or is neither.
    pub fn read(path: &Path) -> Result<Self> {
        if path.extension().is_some_and(|e| e == "bin") {
            return Ok(Tokenizer::Llama2c(Llama2c::read(path)?));
        }
        let mut hf = tokenizers::Tokenizer::from_file(path).map_err(|e| file(path, e))?;
        // Length and padding are the batch's affair.
        hf.with_padding(None);
        hf.with_truncation(None).map_err(|e| file(path, e))?;
        Ok(Tokenizer::Hf(Box::new(hf)))
    }

    /// Number of ids.
    pub fn vocabulary(&self) -> usize {
        match self {
            Tokenizer::Hf(hf) => hf.get_vocab_size(true),
            Tokenizer::Llama2c(own) => own.vocabulary(),
        }
    }

    /// That a model which embeds `embedded` ids can take every id.
    ///
    /// # Errors
    /// A larger vocabulary, which is that of another model.
    pub fn check_fits(&self, embedded: usize) -> Result<()> {
        if self.vocabulary() <= embedded {
            return Ok(());
        }
        Err(invalid(format!(
            "the tokenizer has {} tokens, but the model embeds {embedded}: it belongs to another model",
            self.vocabulary()
        )))
    }

    /// The ids of a text with its special tokens, at most `max_len`: what is cut
    /// away stands before the last one.
    ///
    /// # Errors
    /// A text that the tokenizer refuses.
    pub fn encode(&self, text: &str, max_len: usize) -> Result<Vec<u32>> {
        let mut ids = match self {
            Tokenizer::Hf(hf) => {
                let encoded = hf
                    .encode(text, true)
                    .map_err(|e| invalid(format!("the tokenizer refused a text: {e}")))?;
                encoded.get_ids().to_vec()
            }
            Tokenizer::Llama2c(own) => own.encode(text),
        };
        if ids.len() > max_len {
            let last = ids[ids.len() - 1];
            ids.truncate(max_len);
            if let (Tokenizer::Hf(_), Some(end)) = (self, ids.last_mut()) {
                *end = last;
            }
        }
        Ok(ids)
    }

    /// The text of some ids.
    ///
    /// # Errors
    /// Ids that the tokenizer does not have.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        match self {
            Tokenizer::Hf(hf) => {
                hf.decode(ids, true).map_err(|e| invalid(format!("ids that decode to nothing: {e}")))
            }
            Tokenizer::Llama2c(own) => own.decode(ids),
        }
    }
}
