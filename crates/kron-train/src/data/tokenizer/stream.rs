//! [`TextStream`]: the text of token ids that arrive one by one.

use super::Tokenizer;
use crate::error::Result;

/// Largest number of tokens that may wait for the rest of a character; four bytes are enough for any.
const WAITING: usize = 16;

/// Text of token ids that arrive one by one, in whole characters.
///
/// A token may end inside a character, and its text may depend on the token before it. So a few tokens are decoded
/// together, of which the text of the earlier ones is known.
#[derive(Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    /// Ids from the last text on: `shown` of them are in a text that was returned, the others wait.
    ids: Vec<u32>,
    shown: usize,
}

impl<'a> TextStream<'a> {
    /// Starts after some ids, whose text is not returned.
    pub fn new(tokenizer: &'a Tokenizer, after: &[u32]) -> Self {
        let ids = after[after.len().saturating_sub(WAITING)..].to_vec();
        Self { tokenizer, shown: ids.len(), ids }
    }

    /// Adds an id, and returns the text that is complete with it.
    ///
    /// # Errors
    /// The id exceeds the vocabulary.
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        let text = self.waiting()?;
        // An incomplete character is decoded to this one, a special token to nothing.
        let is_partial = text.is_empty() || text.ends_with(char::REPLACEMENT_CHARACTER);
        if is_partial && self.ids.len() - self.shown < WAITING {
            return Ok(String::new());
        }
        self.ids.drain(..self.shown);
        self.shown = self.ids.len();
        Ok(text)
    }

    /// Returns the text of the ids that wait, with a replacement for an incomplete character.
    ///
    /// # Errors
    /// As [`TextStream::push`].
    pub fn rest(&mut self) -> Result<String> {
        let text = self.waiting()?;
        self.shown = self.ids.len();
        Ok(text)
    }

    fn waiting(&self) -> Result<String> {
        if self.shown == self.ids.len() {
            return Ok(String::new());
        }
        let (shown, all) =
            (self.tokenizer.decode(&self.ids[..self.shown])?, self.tokenizer.decode(&self.ids)?);
        match all.strip_prefix(&shown) {
            Some(text) => Ok(text.to_owned()),
            // Bytes that are no character change the text of those before them.
            None => self.tokenizer.decode(&self.ids[self.shown..]),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn llama2c() -> Tokenizer {
        Tokenizer::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tok512.bin"))
            .expect("a tokenizer")
    }

    /// Ids of single bytes.
    fn bytes(text: &[u8]) -> Vec<u32> {
        text.iter().map(|&byte| u32::from(byte) + 3).collect()
    }

    fn pieces(tokenizer: &Tokenizer, after: &[u32], ids: &[u32]) -> Vec<String> {
        let mut stream = TextStream::new(tokenizer, after);
        let mut pieces: Vec<String> = ids.iter().map(|&id| stream.push(id).expect("a known id")).collect();
        pieces.push(stream.rest().expect("known ids"));
        pieces
    }

    #[test]
    fn a_character_appears_with_its_last_byte() {
        let tokenizer = llama2c();
        let got = pieces(&tokenizer, &[1], &bytes("aß€😀b".as_bytes()));
        assert_eq!(got, ["a", "", "ß", "", "", "€", "", "", "", "😀", "b", ""]);
    }

    #[test]
    fn an_incomplete_character_is_replaced_at_the_end_and_holds_nothing_up_for_long() {
        let tokenizer = llama2c();
        assert_eq!(pieces(&tokenizer, &[1], &bytes(b"a\xe2\x82")), ["a", "", "", "\u{fffd}"]);
        assert_eq!(pieces(&tokenizer, &[1], &bytes(b"\xe2b")), ["", "\u{fffd}b", ""]);
        let got = pieces(&tokenizer, &[1], &bytes(&[0xff; 40]));
        assert_eq!(got.concat(), "\u{fffd}".repeat(40));
        assert!(got.iter().take(20).any(|piece| !piece.is_empty()), "{got:?}");
    }

    /// The pieces of a text are the text, after any part of it; a first space stays where the text before it has ended.
    #[test]
    fn the_pieces_are_the_text() {
        let hugging_face =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models/llama/tokenizer.json");
        for tokenizer in [llama2c(), Tokenizer::read(&hugging_face).expect("a tokenizer")] {
            let ids = tokenizer.encode("the dog, the cat and Tom; ä 12", 100).expect("a text");
            let whole = tokenizer.decode(&ids).expect("ids");
            for cut in 1..ids.len() {
                let before = tokenizer.decode(&ids[..cut]).expect("ids");
                if before.ends_with(char::REPLACEMENT_CHARACTER) {
                    continue;
                }
                let after = pieces(&tokenizer, &ids[..cut], &ids[cut..]).concat();
                assert_eq!(before + &after, whole, "cut at {cut}");
            }
        }
    }
}
