//! Tokenizer of llama2.c: pieces with scores, joined greedily, with single bytes as a fallback.

use std::collections::HashMap;
use std::path::Path;

use crate::error::{Result, file, invalid};

/// Id of the beginning of a sequence.
const BOS: u32 = 1;
/// Id of the first of the 256 single bytes.
const FIRST_BYTE: u32 = 3;

/// Tokenizer of llama2.c: pieces by id, and ids by piece.
#[derive(Debug)]
pub struct Llama2c {
    pieces: Vec<(Vec<u8>, f32)>,
    ids: HashMap<Vec<u8>, u32>,
}

impl Llama2c {
    /// Reads a tokenizer file.
    ///
    /// The format is little-endian: the length of the longest piece (i32), then for each id its score (f32),
    /// length (i32) and bytes.
    ///
    /// # Errors
    /// The file cannot be read, or ends inside a piece.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|e| file(path, e))?;
        let short = || file(path, "ends inside a piece, but a tokenizer of llama2.c ends after one");
        let mut rest = bytes.get(4..).ok_or_else(short)?;
        let mut pieces = Vec::new();
        while !rest.is_empty() {
            let (head, tail) = rest.split_at_checked(8).ok_or_else(short)?;
            let score = f32::from_le_bytes([head[0], head[1], head[2], head[3]]);
            let len = u32::from_le_bytes([head[4], head[5], head[6], head[7]]) as usize;
            let (piece, tail) = tail.split_at_checked(len).ok_or_else(short)?;
            pieces.push((piece.to_vec(), score));
            rest = tail;
        }
        if pieces.len() < FIRST_BYTE as usize + 256 {
            return Err(file(path, format!("has {} pieces, but every byte has one", pieces.len())));
        }
        // The first of two equal pieces wins.
        let ids = pieces.iter().enumerate().rev().map(|(i, (piece, _))| (piece.clone(), i as u32)).collect();
        Ok(Self { pieces, ids })
    }

    /// Returns the number of token ids.
    pub fn vocabulary(&self) -> usize {
        self.pieces.len()
    }

    /// Encodes a text: the beginning of a sequence, then the pieces of a space and the text.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let space = if text.is_empty() { "" } else { " " };
        let mut ids = self.encode_more(&format!("{space}{text}"));
        ids.insert(0, BOS);
        ids
    }

    /// Encodes a text without the beginning of a sequence.
    pub fn encode_more(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        for c in text.chars() {
            let mut buffer = [0; 4];
            let bytes = c.encode_utf8(&mut buffer).as_bytes();
            match self.ids.get(bytes) {
                Some(&id) => ids.push(id),
                None => ids.extend(bytes.iter().map(|&b| FIRST_BYTE + u32::from(b))),
            }
        }
        while let Some((at, id)) = self.best_pair(&ids) {
            ids[at] = id;
            ids.remove(at + 1);
        }
        ids
    }

    /// Finds the first neighbouring pair that joins to the piece with the highest score.
    fn best_pair(&self, ids: &[u32]) -> Option<(usize, u32)> {
        let mut best: Option<(usize, u32, f32)> = None;
        for (at, pair) in ids.windows(2).enumerate() {
            let joined = [self.piece(pair[0]), self.piece(pair[1])].concat();
            let Some(&id) = self.ids.get(&joined) else { continue };
            let score = self.pieces[id as usize].1;
            if best.is_none_or(|(.., highest)| score > highest) {
                best = Some((at, id, score));
            }
        }
        best.map(|(at, id, _)| (at, id))
    }

    fn piece(&self, id: u32) -> &[u8] {
        &self.pieces[id as usize].0
    }

    /// Decodes ids, without the beginning of a sequence and the space that [`encode`](Self::encode) adds.
    ///
    /// # Errors
    /// An id exceeds the vocabulary.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        let mut text = Vec::new();
        for &id in ids.iter().filter(|&&id| id != BOS) {
            let known = (id as usize) < self.pieces.len();
            if !known {
                return Err(invalid(format!(
                    "id {id} exceeds the tokenizer's vocabulary of {}",
                    self.pieces.len()
                )));
            }
            match id.checked_sub(FIRST_BYTE).and_then(|b| u8::try_from(b).ok()) {
                Some(byte) => text.push(byte),
                None => text.extend_from_slice(self.piece(id)),
            }
        }
        let text = String::from_utf8_lossy(&text);
        Ok(text.strip_prefix(' ').unwrap_or(&text).to_owned())
    }
}
