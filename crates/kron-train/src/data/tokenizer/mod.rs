//! Tokenizers: text to token ids and back.

mod limits;
mod llama2c;
mod stream;

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::path::{Path, PathBuf};
use std::sync::Once;

use kron_adapter::gguf::Gguf;
use kron_adapter::io;
use tokenizers::{Encoding, PostProcessor, TruncationDirection};

use super::conventions::Conventions;
use crate::error::{Result, file, invalid};
use crate::files;
use limits::Limits;
pub use limits::MAX_TEXT;
pub use llama2c::Llama2c;
pub use stream::TextStream;

/// Largest number of special tokens that a text gets.
const MAX_SPECIAL: usize = 256;

/// Tokenizer of one of two kinds.
#[derive(Debug)]
pub enum Tokenizer {
    /// Hugging Face's `tokenizer.json`.
    Hf(Box<HfTokenizer>),
    /// Binary file of llama2.c.
    Llama2c(Llama2c),
}

impl Tokenizer {
    /// Reads a `tokenizer.json`, a llama2.c file with the extension `.bin`, or that of a `.gguf` model.
    ///
    /// # Errors
    /// The file cannot be read or has another format.
    pub fn read(path: &Path) -> Result<Self> {
        if path.extension().is_some_and(|e| e == "bin") {
            return Ok(Tokenizer::Llama2c(Llama2c::read(path)?));
        }
        HfTokenizer::read(path).map(|hf| Tokenizer::Hf(Box::new(hf)))
    }

    /// Returns the number of token ids.
    pub fn vocabulary(&self) -> usize {
        match self {
            Tokenizer::Hf(hf) => hf.tokenizer.get_vocab_size(true),
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
    /// The tokenizer rejects the text, or the text is longer than [`MAX_TEXT`] or may become too long.
    pub fn encode(&self, text: &str, max_len: usize) -> Result<Vec<u32>> {
        check_len(text)?;
        let mut ids = match self {
            Tokenizer::Hf(hf) => hf.encode(text, Some(max_len))?,
            Tokenizer::Llama2c(own) => own.encode(text),
        };
        ids.truncate(max_len);
        Ok(ids)
    }

    /// Encodes a text that follows another, without special tokens.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_more(&self, text: &str) -> Result<Vec<u32>> {
        check_len(text)?;
        match self {
            Tokenizer::Hf(hf) => hf.encode(text, None),
            Tokenizer::Llama2c(own) => Ok(own.encode_more(text)),
        }
    }

    /// Encodes a text without special tokens, each id with the end of its part of the text in bytes.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`], or the tokenizer is of llama2.c, which tells no places.
    pub fn encode_with_ends(&self, text: &str) -> Result<Vec<(u32, usize)>> {
        check_len(text)?;
        match self {
            Tokenizer::Hf(hf) => {
                let encoded = hf.encoding(text, None)?;
                let ends = encoded.get_offsets().iter().map(|(_, end)| *end);
                Ok(encoded.get_ids().iter().copied().zip(ends).collect())
            }
            Tokenizer::Llama2c(_) => Err(invalid("a tokenizer of llama2.c does not tell where a token ends")),
        }
    }

    /// Returns the special tokens of the model that the tokenizer belongs to.
    ///
    /// # Errors
    /// A file beside the tokenizer is malformed.
    pub fn conventions(&self) -> Result<Conventions> {
        match self {
            Tokenizer::Hf(hf) => Conventions::read(&hf.path, |token| hf.tokenizer.token_to_id(token)),
            Tokenizer::Llama2c(_) => Ok(Conventions { ends: llama2c::ENDS.into(), ..Conventions::default() }),
        }
    }

    /// Decodes ids to text.
    ///
    /// # Errors
    /// An id exceeds the vocabulary.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        match self {
            Tokenizer::Hf(hf) => hf
                .tokenizer
                .decode(ids, true)
                .map_err(|e| invalid(format!("ids that decode to nothing: {e}"))),
            Tokenizer::Llama2c(own) => own.decode(ids),
        }
    }
}

/// Tokenizer of Hugging Face's library, with bounds on what it makes of a text.
#[derive(Debug)]
pub struct HfTokenizer {
    /// Path of the file, beside which the model's other files lie.
    path: PathBuf,
    tokenizer: tokenizers::Tokenizer,
    limits: Limits,
}

impl HfTokenizer {
    fn read(path: &Path) -> Result<Self> {
        let bytes = match files::is_gguf(path) {
            true => Gguf::open(path)?.hugging_face()?.tokenizer.to_string().into_bytes(),
            false => io::read(path, files::MAX_TOKENIZER)?,
        };
        let limits = Limits::read(&bytes).map_err(|e| file(path, e))?;
        let mut tokenizer = whole(|| tokenizers::Tokenizer::from_bytes(&bytes)).map_err(|e| file(path, e))?;
        // `encode` truncates, and batches pad.
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|e| file(path, e))?;
        match tokenizer.get_post_processor().map_or(0, |last| last.added_tokens(false)) {
            0..=MAX_SPECIAL => Ok(Self { path: path.into(), tokenizer, limits }),
            n => Err(file(path, format!("adds {n} special tokens to a text, but at most {MAX_SPECIAL}"))),
        }
    }

    /// Encodes a text, with special tokens and at most `max_len` ids, or without special tokens.
    fn encode(&self, text: &str, max_len: Option<usize>) -> Result<Vec<u32>> {
        Ok(self.encoding(text, max_len)?.get_ids().to_vec())
    }

    fn encoding(&self, text: &str, max_len: Option<usize>) -> Result<Encoding> {
        let Self { tokenizer, limits, .. } = self;
        let encoded = whole(|| {
            limits.check(text, tokenizer.get_normalizer())?;
            let mut encoded = tokenizer.encode(text, false)?;
            let Some(max_len) = max_len else { return Ok(encoded) };
            let special = tokenizer.get_post_processor().map_or(0, |last| last.added_tokens(false));
            encoded.truncate(max_len.saturating_sub(special), 0, TruncationDirection::Right);
            tokenizer.post_process(encoded, None, true)
        });
        encoded.map_err(|e| invalid(format!("the tokenizer refused a text: {e}")))
    }
}

/// Fails if a text is longer than [`MAX_TEXT`].
fn check_len(text: &str) -> Result<()> {
    match text.len() {
        0..=MAX_TEXT => Ok(()),
        len => Err(invalid(format!("a text has {len} bytes, but a text may have {MAX_TEXT}"))),
    }
}

/// Calls the library, some of whose parts panic on a file that contradicts itself; the message of such a panic is not
/// printed.
fn whole<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    thread_local! {
        static CAUGHT: Cell<bool> = const { Cell::new(false) };
    }
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = take_hook();
        set_hook(Box::new(move |panic| {
            if !CAUGHT.get() {
                usual(panic)
            }
        }));
    });
    CAUGHT.set(true);
    let done = catch_unwind(AssertUnwindSafe(call));
    CAUGHT.set(false);
    match done {
        Ok(done) => done.map_err(|e| e.to_string()),
        Err(_) => Err("the tokenizer contradicts itself".into()),
    }
}
