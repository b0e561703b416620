//! Seeded damage to a file: what a fuzzer does, without one.

use rand::{Rng, RngExt};

/// Whole numbers at which a reader's arithmetic breaks, as they stand in JSON.
const NUMBERS: [&str; 12] = [
    "0",
    "1",
    "-1",
    "7",
    "1.5",
    "1e9",
    "4294967296",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "1e999",
];

/// A file damaged in one to three places, `other` lending bytes.
pub fn mutate(file: &[u8], other: &[u8], rng: &mut impl Rng) -> Vec<u8> {
    let mut bytes = file.to_vec();
    for _ in 0..rng.random_range(1..=3) {
        match rng.random_range(0..8) {
            0 => flip_bit(&mut bytes, rng),
            1 => bytes.truncate(place(&bytes, rng)),
            2 => header_length(&mut bytes, rng),
            3 => number(&mut bytes, rng),
            4 => remove(&mut bytes, rng),
            5 => repeat(&mut bytes, rng),
            6 => lend(&mut bytes, other, rng),
            _ => swap_quoted(&mut bytes, rng),
        }
    }
    bytes
}

fn place(bytes: &[u8], rng: &mut impl Rng) -> usize {
    rng.random_range(0..=bytes.len())
}

/// A piece of at most 64 bytes.
fn piece(bytes: &[u8], rng: &mut impl Rng) -> std::ops::Range<usize> {
    let start = place(bytes, rng);
    start..bytes.len().min(start + rng.random_range(0..=64))
}

fn flip_bit(bytes: &mut [u8], rng: &mut impl Rng) {
    if !bytes.is_empty() {
        let at = rng.random_range(0..bytes.len());
        bytes[at] ^= 1 << rng.random_range(0..8);
    }
}

/// The length in front: nearly right, or as large as can be.
fn header_length(bytes: &mut [u8], rng: &mut impl Rng) {
    if let Some(prefix) = bytes.first_chunk_mut::<8>() {
        let len = u64::from_le_bytes(*prefix);
        let new = match rng.random_range(0..3) {
            0 => len.wrapping_add(rng.random_range(-8i64..=8) as u64),
            1 => 1u64.rotate_left(rng.random_range(0..64)).wrapping_sub(rng.random_range(0..2)),
            _ => rng.random(),
        };
        *prefix = new.to_le_bytes();
    }
}

/// A run of digits becomes another number, and the header's length follows.
fn number(bytes: &mut Vec<u8>, rng: &mut impl Rng) {
    let from = place(bytes, rng);
    let Some(start) = (from..bytes.len()).find(|&i| i >= 8 && bytes[i].is_ascii_digit()) else { return };
    let end = (start..bytes.len()).find(|&i| !bytes[i].is_ascii_digit()).unwrap_or(bytes.len());
    splice(bytes, start..end, NUMBERS[rng.random_range(0..NUMBERS.len())].as_bytes());
}

fn remove(bytes: &mut Vec<u8>, rng: &mut impl Rng) {
    let piece = piece(bytes, rng);
    splice(bytes, piece, &[]);
}

fn repeat(bytes: &mut Vec<u8>, rng: &mut impl Rng) {
    let piece = piece(bytes, rng);
    let twice = bytes[piece.clone()].repeat(2);
    splice(bytes, piece, &twice);
}

fn lend(bytes: &mut Vec<u8>, other: &[u8], rng: &mut impl Rng) {
    let (to, from) = (piece(bytes, rng), piece(other, rng));
    splice(bytes, to, &other[from]);
}

/// A quoted text takes the place of another.
fn swap_quoted(bytes: &mut Vec<u8>, rng: &mut impl Rng) {
    let quotes: Vec<usize> = (8..bytes.len()).filter(|&i| bytes[i] == b'"').collect();
    if quotes.len() < 4 {
        return;
    }
    let mut text = || {
        let i = rng.random_range(0..quotes.len() - 1);
        quotes[i]..quotes[i + 1]
    };
    let (to, from) = (text(), text());
    let from = bytes[from].to_vec();
    splice(bytes, to, &from);
}

/// Replaces a piece; where it lies in the header, the length in front follows
/// so that the damage is met behind that first check.
fn splice(bytes: &mut Vec<u8>, piece: std::ops::Range<usize>, by: &[u8]) {
    let grown = by.len() as u64;
    let shrunk = piece.len() as u64;
    let in_header = |len: u64| piece.start >= 8 && (piece.end as u64) <= len.saturating_add(8);
    let len = bytes.first_chunk::<8>().map(|p| u64::from_le_bytes(*p)).filter(|&len| in_header(len));
    bytes.splice(piece, by.iter().copied());
    if let (Some(len), Some(prefix)) = (len, bytes.first_chunk_mut::<8>()) {
        *prefix = len.wrapping_add(grown).wrapping_sub(shrunk).to_le_bytes();
    }
}
