//! Patterns that are names, found by hash instead of by an automaton.
//!
//! A dot that is not escaped matches any character, so the name `a.q` also matches `a_q`.
//! Such dots are a mask: under it the end of a module's name is compared with the pattern.

use std::collections::HashMap;

/// Largest number of different masks; patterns with others are left to the automaton.
const MAX_MASKS: usize = 256;

/// Names with the index of their pattern.
#[derive(Debug, Default)]
pub struct Plain {
    /// Masks of the patterns of one kind and length, by their index.
    masks: HashMap<(Place, usize), Vec<usize>>,
    /// Positions of dots that match anything.
    positions: Vec<Vec<usize>>,
    /// Index of the first pattern with this mask and text.
    patterns: HashMap<(Place, usize), HashMap<Vec<u8>, usize>>,
}

/// Part of a module's name that a pattern is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Place {
    Whole,
    End,
}

impl Plain {
    /// Adds a pattern, and returns true if it is a name.
    pub fn add(&mut self, key: &str, index: usize) -> bool {
        let Some((place, text, dots)) = parse(key) else { return false };
        let of_length = self.masks.entry((place, text.len())).or_default();
        let mask = match of_length.iter().find(|mask| self.positions[**mask] == dots) {
            Some(mask) => *mask,
            None if self.positions.len() == MAX_MASKS => return false,
            None => {
                of_length.push(self.positions.len());
                self.positions.push(dots);
                self.positions.len() - 1
            }
        };
        self.patterns.entry((place, mask)).or_default().entry(text).or_insert(index);
        true
    }

    /// Returns the index of the first pattern that matches a module's name.
    pub fn first(&self, module: &str) -> Option<usize> {
        let module = module.as_bytes();
        let dots = module.iter().enumerate().filter(|(_, byte)| **byte == b'.').map(|(at, _)| at + 1);
        let ends = std::iter::once(0).chain(dots).map(|start| (Place::End, &module[start..]));
        ends.chain([(Place::Whole, module)]).filter_map(|(place, text)| self.first_of(place, text)).min()
    }

    fn first_of(&self, place: Place, text: &[u8]) -> Option<usize> {
        let masks = self.masks.get(&(place, text.len()))?;
        let found = masks.iter().filter_map(|mask| {
            let mut text = text.to_vec();
            self.positions[*mask].iter().for_each(|at| text[*at] = b'.');
            self.patterns.get(&(place, *mask))?.get(&text).copied()
        });
        found.min()
    }
}

/// Takes a pattern apart that is a name: its place, its text, and the dots that match anything.
fn parse(key: &str) -> Option<(Place, Vec<u8>, Vec<usize>)> {
    let (place, rest) = key.strip_prefix('^').map_or((Place::End, key), |rest| (Place::Whole, rest));
    let (mut text, mut dots) = (Vec::new(), Vec::new());
    let mut bytes = rest.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'.' => dots.push(text.len()),
            b'\\' if bytes.next() != Some(b'.') => return None,
            b'\\' => {}
            _ if byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-' => {}
            _ => return None,
        }
        text.push(if byte == b'\\' { b'.' } else { byte });
    }
    Some((place, text, dots))
}
