//! Tokenizer of llama2.c: pieces with scores, joined greedily, with single bytes as a fallback.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::path::Path;

use kron_adapter::io;

use crate::error::{Result, file, invalid};
use crate::files;

/// Id of the beginning of a sequence.
const BOS: u32 = 1;
/// Ids that end a text: the beginning of the next one, and the end of a sequence.
pub(super) const ENDS: [u32; 2] = [BOS, 2];
/// Id of the first of the 256 single bytes.
const FIRST_BYTE: u32 = 3;
/// Longest piece, in bytes; every pair of neighbours in a text is joined once to look for its piece.
const MAX_PIECE: usize = 256;

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
    /// The file cannot be read, ends inside a piece, lacks the piece of a byte, or has a piece of more than 256 bytes.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = io::read(path, files::MAX_TOKENIZER)?;
        let short = || file(path, "ends inside a piece, but a tokenizer of llama2.c ends after one");
        let mut rest = bytes.get(4..).ok_or_else(short)?;
        let mut pieces = Vec::new();
        while !rest.is_empty() {
            let (head, tail) = rest.split_at_checked(8).ok_or_else(short)?;
            let score = f32::from_le_bytes([head[0], head[1], head[2], head[3]]);
            let len = u32::from_le_bytes([head[4], head[5], head[6], head[7]]) as usize;
            let (piece, tail) = tail.split_at_checked(len).ok_or_else(short)?;
            if len > MAX_PIECE {
                let id = pieces.len();
                return Err(file(path, format!("has a piece {id} of {len} bytes, but at most {MAX_PIECE}")));
            }
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
        self.joined(ids)
    }

    /// Joins neighbours until none has a piece: the pair of the highest score first, the leftmost of equals.
    fn joined(&self, ids: Vec<u32>) -> Vec<u32> {
        let mut ids: Vec<Option<u32>> = ids.into_iter().map(Some).collect();
        let mut next: Vec<usize> = (1..=ids.len()).collect();
        let mut before: Vec<Option<usize>> = (0..ids.len()).map(|at| at.checked_sub(1)).collect();
        let pair = |ids: &[Option<u32>], at: usize, to: usize| {
            let (left, right) = (ids[at]?, (*ids.get(to)?)?);
            let id = *self.ids.get(&[self.piece(left), self.piece(right)].concat())?;
            Some((rising(self.pieces[id as usize].1), Reverse(at), id, left, right))
        };
        let mut heap: BinaryHeap<_> = (0..ids.len()).filter_map(|at| pair(&ids, at, at + 1)).collect();
        while let Some((_, Reverse(at), id, left, right)) = heap.pop() {
            // A neighbour may have been joined since.
            let to = next[at];
            if ids[at] != Some(left) || ids.get(to) != Some(&Some(right)) {
                continue;
            }
            (ids[at], ids[to], next[at]) = (Some(id), None, next[to]);
            if let Some(after) = before.get_mut(next[at]) {
                *after = Some(at);
            }
            heap.extend(pair(&ids, at, next[at]));
            heap.extend(before[at].and_then(|left| pair(&ids, left, at)));
        }
        ids.into_iter().flatten().collect()
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

/// Returns an integer that rises with the score.
const fn rising(score: f32) -> i32 {
    // Adding 0 makes one zero of both.
    let bits = (score + 0.0).to_bits().cast_signed();
    bits ^ ((bits >> 31).cast_unsigned() >> 1).cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Joins as llama2.c does: all pairs are compared before each step.
    fn slowly(own: &Llama2c, mut ids: Vec<u32>) -> Vec<u32> {
        loop {
            let mut best: Option<(usize, u32, f32)> = None;
            for (at, pair) in ids.windows(2).enumerate() {
                let joined = [own.piece(pair[0]), own.piece(pair[1])].concat();
                let Some(&id) = own.ids.get(&joined) else { continue };
                let score = own.pieces[id as usize].1;
                if best.is_none_or(|(.., highest)| score > highest) {
                    best = Some((at, id, score));
                }
            }
            let Some((at, id, _)) = best else { return ids };
            ids[at] = id;
            ids.remove(at + 1);
        }
    }

    #[test]
    fn pieces_are_joined_in_the_order_of_llama2c() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tok512.bin");
        let mut own = Llama2c::read(&path).expect("a tokenizer");
        for equal_scores in [false, true] {
            if equal_scores {
                own.pieces.iter_mut().enumerate().for_each(|(i, (_, score))| *score = (i % 3) as f32 - 1.0);
            }
            for seed in 0..300 {
                let letter = |i: u32| {
                    let bits = kron_core::philox([i, 0, 0, 0], [seed, 1])[0];
                    own.ids[b" aeinotshrd".get(bits as usize % 11..).map_or(&b" "[..], |rest| &rest[..1])]
                };
                let ids: Vec<u32> = (0..seed % 90).map(letter).collect();
                assert_eq!(own.joined(ids.clone()), slowly(&own, ids));
            }
        }
    }
}
