//! Token sequences of one batch, packed into rows of one length.

use std::cmp::Reverse;
use std::ops::Range;

use candle_core::{Device, Result, Tensor, bail};

/// Largest number of tokens after a prefix in one row, unless the prefix is longer: an attention out of candle's ops
/// computes every pair of a row's tokens.
const MAX_OWN: usize = 512;

/// Run of tokens of a row, which attend to a prefix and to each other, and to no other token of the row.
///
/// The positions of its own tokens follow those of the prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Index of the row.
    pub row: usize,
    /// Columns of the prefix, which other segments share; empty if the segment stands alone.
    pub prefix: Range<usize>,
    /// Columns of the segment's own tokens.
    pub own: Range<usize>,
}

impl Segment {
    /// Makes a segment of the first `len` tokens of a row.
    pub const fn whole(row: usize, len: usize) -> Self {
        Self { row, prefix: 0..0, own: 0..len }
    }

    /// Returns the number of tokens, those of the prefix among them.
    pub fn count(&self) -> usize {
        self.prefix.len() + self.own.len()
    }

    /// Returns the column of the token at a position.
    pub fn column(&self, position: usize) -> usize {
        match position.checked_sub(self.prefix.len()) {
            Some(own) => self.own.start + own,
            None => self.prefix.start + position,
        }
    }
}

/// Token ids, n × len.
#[derive(Clone, Debug)]
pub struct Tokens {
    /// Ids row by row; padding is 0.
    pub ids: Vec<u32>,
    /// Number of tokens of each row.
    pub lens: Vec<usize>,
    /// Length of the longest row.
    pub len: usize,
    /// Texts in the order in which they were given: one in each row, or several that share prefixes.
    pub texts: Vec<Segment>,
}

impl Tokens {
    /// Pads texts to the longest of them, each in a row of its own.
    pub fn new<R: AsRef<[u32]>>(rows: &[R]) -> Self {
        let lens: Vec<usize> = rows.iter().map(|row| row.as_ref().len()).collect();
        let len = lens.iter().copied().max().unwrap_or(0);
        let mut ids = vec![0; rows.len() * len];
        for (padded, row) in ids.chunks_mut(len.max(1)).zip(rows) {
            padded[..row.as_ref().len()].copy_from_slice(row.as_ref());
        }
        let texts = lens.iter().enumerate().map(|(row, &len)| Segment::whole(row, len)).collect();
        Self { ids, lens, len, texts }
    }

    /// Packs groups of texts: the ids with which all texts of a group begin are there once.
    ///
    /// Every text keeps at least its last token. Causal attention gives each token the hidden state that it has in a
    /// row of its own.
    pub fn sharing<R: AsRef<[u32]>>(groups: &[Vec<R>]) -> Self {
        let trees: Vec<Tree> = groups.iter().flat_map(|group| Tree::of(group)).collect();
        let len = trees.iter().map(Tree::count).max().unwrap_or(0);
        let mut packed = Self { ids: Vec::new(), lens: Vec::new(), len, texts: Vec::new() };
        // The longest come first, each into the first row with room.
        let mut order: Vec<usize> = (0..trees.len()).collect();
        order.sort_by_key(|&i| Reverse(trees[i].count()));
        let mut texts = vec![Vec::new(); trees.len()];
        for i in order {
            let tree = &trees[i];
            let row = packed.row_with_room(tree.count());
            let prefix = packed.add(row, tree.prefix);
            let text = |own: &&[u32]| Segment { row, prefix: prefix.clone(), own: packed.add(row, own) };
            texts[i] = tree.owns.iter().map(text).collect();
        }
        packed.texts = texts.concat();
        packed
    }

    /// Returns the first row with room for `count` tokens, which may be a new one.
    fn row_with_room(&mut self, count: usize) -> usize {
        let found = self.lens.iter().position(|used| used + count <= self.len);
        found.unwrap_or_else(|| {
            self.lens.push(0);
            self.ids.resize(self.rows() * self.len, 0);
            self.rows() - 1
        })
    }

    /// Adds tokens to a row; returns their columns.
    fn add(&mut self, row: usize, ids: &[u32]) -> Range<usize> {
        let columns = self.lens[row]..self.lens[row] + ids.len();
        self.ids[row * self.len..][columns.clone()].copy_from_slice(ids);
        self.lens[row] = columns.end;
        columns
    }

    /// Returns the number of rows.
    pub fn rows(&self) -> usize {
        self.lens.len()
    }

    /// Returns the number of tokens, without padding; a shared prefix counts once.
    pub fn count(&self) -> usize {
        self.lens.iter().sum()
    }

    /// Returns the number of tokens of the longest text.
    pub fn positions(&self) -> usize {
        self.texts.iter().map(Segment::count).max().unwrap_or(0)
    }

    /// Returns the index in n × len of the token at a position of a text.
    pub fn index(&self, text: &Segment, position: usize) -> usize {
        text.row * self.len + text.column(position)
    }

    /// Returns the segments of each row in the order of its columns, all of which they cover: shared prefixes and
    /// texts.
    pub fn segments(&self) -> Vec<Vec<Segment>> {
        let mut rows = vec![Vec::new(); self.rows()];
        for text in &self.texts {
            let (row, prefix) = (&mut rows[text.row], &text.prefix);
            if !prefix.is_empty() && row.last().is_none_or(|last: &Segment| last.prefix != *prefix) {
                row.push(Segment { prefix: 0..0, own: prefix.clone(), ..*text });
            }
            row.push(text.clone());
        }
        rows.iter_mut().for_each(|row| row.sort_by_key(|segment| segment.own.start));
        rows
    }

    /// Fails if a text is longer than `positions`, or shares its row: an encoder reads each text alone.
    pub(super) fn check_alone(&self, positions: usize) -> Result<()> {
        if self.len > positions {
            bail!("a text has {} tokens, but the model has {positions} positions", self.len);
        }
        if self.texts.len() != self.rows() {
            bail!("texts share a prefix or a row, but the model is an encoder, which reads each text alone");
        }
        Ok(())
    }

    /// Returns the ids as a tensor, n × len.
    ///
    /// # Errors
    /// candle fails.
    pub fn tensor(&self, device: &Device) -> Result<Tensor> {
        Tensor::from_slice(&self.ids, (self.rows(), self.len), device)
    }
}

/// Prefix, and the rest of each text that begins with it.
struct Tree<'a> {
    prefix: &'a [u32],
    owns: Vec<&'a [u32]>,
}

impl<'a> Tree<'a> {
    /// Splits texts into what they have in common and what they have not.
    fn of<R: AsRef<[u32]>>(texts: &'a [R]) -> Vec<Self> {
        let shared = common(texts);
        let mut trees: Vec<Self> = Vec::new();
        for text in texts {
            let (prefix, own) = text.as_ref().split_at(shared);
            let room = MAX_OWN.max(shared).saturating_sub(own.len());
            match trees.last_mut() {
                Some(tree) if shared > 0 && tree.count() - shared <= room => tree.owns.push(own),
                _ => trees.push(Self { prefix, owns: vec![own] }),
            }
        }
        trees
    }

    fn count(&self) -> usize {
        self.prefix.len() + self.owns.iter().map(|own| own.len()).sum::<usize>()
    }
}

/// Returns the number of ids with which all texts begin, short of the last id of any.
fn common<R: AsRef<[u32]>>(texts: &[R]) -> usize {
    let Some((first, others)) = texts.split_first() else { return 0 };
    let first = first.as_ref();
    let most = texts.iter().map(|text| text.as_ref().len().saturating_sub(1)).min().unwrap_or(0);
    others.iter().fold(most, |most, text| {
        let pairs = first.iter().zip(text.as_ref()).take(most);
        pairs.take_while(|(a, b)| a == b).count()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(tokens: &Tokens, text: &Segment) -> Vec<u32> {
        (0..text.count()).map(|position| tokens.ids[tokens.index(text, position)]).collect()
    }

    /// Reads every text out of the rows again, and checks that the segments of a row are its columns in order.
    fn check(groups: &[Vec<Vec<u32>>]) -> Tokens {
        let tokens = Tokens::sharing(groups);
        assert_eq!(tokens.texts.iter().map(|t| text(&tokens, t)).collect::<Vec<_>>(), groups.concat());
        assert_eq!(tokens.ids.len(), tokens.rows() * tokens.len);
        assert_eq!(tokens.positions(), groups.iter().flatten().map(Vec::len).max().unwrap_or(0));
        for (row, segments) in tokens.segments().iter().enumerate() {
            let mut end = 0;
            for segment in segments {
                assert!(segment.row == row && segment.own.start == end && segment.prefix.end <= end);
                end = segment.own.end;
            }
            assert_eq!(end, tokens.lens[row]);
        }
        tokens
    }

    #[test]
    fn a_common_prefix_is_there_once() {
        let tokens = check(&[vec![vec![5, 6, 7], vec![5, 6, 8, 9]]]);
        assert_eq!((tokens.ids, tokens.lens), (vec![5, 6, 7, 8, 9], vec![5]));
        assert_eq!(tokens.texts[1], Segment { row: 0, prefix: 0..2, own: 3..5 });
        // One text begins with the other, and both are equal: each keeps a token.
        assert_eq!(check(&[vec![vec![5, 6], vec![5, 6, 7]]]).ids, [5, 6, 6, 7]);
        assert_eq!(check(&[vec![vec![5, 6], vec![5, 6]]]).ids, [5, 6, 6]);
        assert_eq!(check(&[vec![vec![5, 6, 7]]]).ids, [5, 6, 7]);
        assert_eq!(check(&[]).rows(), 0);
    }

    #[test]
    fn short_groups_share_a_row_and_texts_without_a_prefix_stand_alone() {
        let group = |first: u32, n: u32| (0..n).map(|i| vec![first, first, i]).collect::<Vec<_>>();
        // 6, 4, 5, 1 and 2 tokens in rows of 6.
        let tokens = check(&[group(1, 4), group(2, 2), group(3, 3), vec![vec![9], vec![8, 7]]]);
        assert_eq!(tokens.lens, [6, 6, 6]);
        let tokens = check(&[vec![vec![1, 2, 3], vec![2, 2, 3], vec![1, 2, 4]]]);
        assert_eq!(tokens.segments().concat(), tokens.texts);
        assert_eq!(tokens.lens, [3, 3, 3]);
    }

    #[test]
    fn a_row_has_a_bounded_number_of_tokens_after_a_prefix() {
        let long = |n: u32| (0..5).map(|i| (0..n).chain([i; 300]).collect()).collect::<Vec<Vec<u32>>>();
        assert_eq!(check(&[long(2)]).lens, [302; 5]);
        // A longer prefix has more after it.
        assert_eq!(check(&[long(700)]).lens, [1300, 1300, 1000]);
    }
}
