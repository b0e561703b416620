//! Text to token ids.

mod llama2c;

use std::path::Path;

use tokenizers::{PostProcessor, TruncationDirection};

use crate::error::{Error, Result, file, invalid};
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

    /// That a model which embeds `embedded` ids is the one that this tokenizer was made for.
    ///
    /// # Errors
    /// A larger vocabulary or a much smaller one, which is that of another model.
    pub fn check_fits(&self, embedded: usize) -> Result<()> {
        // Embeddings are padded to round numbers, by a thousand at most.
        if (self.vocabulary()..=self.vocabulary() + 1024).contains(&embedded) {
            return Ok(());
        }
        Err(invalid(format!(
            "the tokenizer has {} tokens, but the model embeds {embedded}: it belongs to another model",
            self.vocabulary()
        )))
    }

    /// The ids of a text with its special tokens, at most `max_len`: what is cut away is
    /// the end of the text, not a special token.
    ///
    /// # Errors
    /// A text that the tokenizer refuses.
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

    /// The ids of a text that follows another: no special token stands before it.
    ///
    /// # Errors
    /// A text that the tokenizer refuses.
    pub fn encode_more(&self, text: &str) -> Result<Vec<u32>> {
        Ok(match self {
            Tokenizer::Hf(hf) => hf.encode(text, false).map_err(refused)?.get_ids().to_vec(),
            Tokenizer::Llama2c(own) => own.encode_more(text),
        })
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

fn refused(error: tokenizers::Error) -> Error {
    invalid(format!("the tokenizer refused a text: {error}"))
}
