//! Limits on what an adapter file may cost: one budget for each file, spent by all its modules together.
//!
//! A small file must not ask for gigabytes or minutes, and a real adapter must never be refused:
//!
//! ```text
//! bytes of the file      at most MAX_FILE
//! bytes made of it       at most 64 for each byte of the file, or 32 MiB
//! multiply-adds on it    at most 768 for each byte of the file, or 2²⁹
//! ```
//!
//! Bytes are made where two factors are multiplied, and where a layer is written as a LoRA; memory that
//! an analysis of some layers takes for a while has to fit into what is left of them. Multiply-adds are
//! counted for products and decompositions. One in a product of matrices counts a quarter: see [`product`].
//!
//! A file's [`Limits`] go along with its adapter, so that reading and every later step spend from one budget.
//!
//! ```
//! use kron_adapter::limits::{Budget, made_bytes};
//!
//! assert_eq!(made_bytes(1 << 20), 64 << 20);
//! let mut budget = Budget::bytes(790_000); // a file of 790 kB
//! budget.spend("layer q", 40_000_000)?;
//! let error = budget.spend("layer k", 20_000_000).unwrap_err();
//! assert_eq!(
//!     error.to_string(),
//!     "layer k takes 20 MB, 60 MB together with those before it, but what is made of a file of 790 kB \
//!      may take 51 MB"
//! );
//! # Ok::<(), kron_adapter::Error>(())
//! ```

use std::fmt::Display;

use crate::{Error, Result};

/// Longest adapter file that is read, in bytes. A LoRA of rank 256 on all linear layers of a model of
/// 70 billion parameters takes 13 GB in float32.
pub const MAX_FILE: u64 = 1 << 36;

/// Returns the bytes that may be made of a file of this many bytes.
pub const fn made_bytes(file: u64) -> u64 {
    at_least(file.saturating_mul(64), 32 << 20)
}

/// Returns the multiply-adds that products and decompositions of a file of this many bytes may take.
pub const fn work(file: u64) -> u64 {
    at_least(file.saturating_mul(768), 1 << 29)
}

/// Returns what multiply-adds in a product of matrices count: a quarter, because they are at least four times as
/// fast as those of a decomposition.
pub const fn product(multiply_adds: u128) -> u128 {
    multiply_adds.div_ceil(4)
}

/// Shares what is left of a budget among parts with these largest costs. The cheapest parts get what suffices;
/// the others share the rest evenly.
///
/// ```
/// use kron_adapter::limits::shares;
///
/// assert_eq!(shares(100, &[70, 10, 80]), [45, 10, 45]);
/// ```
pub fn shares(left: u64, costs: &[u128]) -> Vec<u128> {
    let mut order: Vec<usize> = (0..costs.len()).collect();
    order.sort_by_key(|&i| costs[i]);
    let (mut shares, mut left) = (vec![0; costs.len()], u128::from(left));
    for (done, &i) in order.iter().enumerate() {
        shares[i] = costs[i].min(left / (costs.len() - done) as u128);
        left -= shares[i];
    }
    shares
}

const fn at_least(v: u64, floor: u64) -> u64 {
    if v < floor { floor } else { v }
}

/// Allowances that a file has left.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes that may be made of it.
    pub bytes: Budget,
    /// Multiply-adds that it may take.
    pub work: Budget,
}

impl Limits {
    /// Returns the limits of a file of `file` bytes.
    pub const fn new(file: u64) -> Self {
        Self { bytes: Budget::bytes(file), work: Budget::work(file) }
    }

    /// Returns the limits of what is made of two files together.
    pub const fn and(&self, other: &Self) -> Self {
        Self { bytes: self.bytes.and(&other.bytes), work: self.work.and(&other.work) }
    }
}

/// Memory and time that a computation takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Bytes that are held at one time.
    pub bytes: u128,
    /// Multiply-adds, as a [`Budget`] counts them.
    pub work: u128,
}

impl Cost {
    /// Returns the cost of two computations, one after the other.
    pub const fn then(self, next: Self) -> Self {
        let bytes = if self.bytes < next.bytes { next.bytes } else { self.bytes };
        Self { bytes, work: self.work.saturating_add(next.work) }
    }
}

/// A file's allowance of one kind, spent by its modules one after another.
#[derive(Clone, Debug)]
pub struct Budget {
    kind: Kind,
    /// Length of the file from which the limit follows; `None` if it was given.
    file: Option<u64>,
    limit: u64,
    spent: u64,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Bytes,
    Work,
}

impl Budget {
    /// Returns the bytes that may be made of a file of `file` bytes; see [`made_bytes`].
    pub const fn bytes(file: u64) -> Self {
        Self { kind: Kind::Bytes, file: Some(file), limit: made_bytes(file), spent: 0 }
    }

    /// Returns the multiply-adds that a file of `file` bytes may take; see [`work`].
    pub const fn work(file: u64) -> Self {
        Self { kind: Kind::Work, file: Some(file), limit: work(file), spent: 0 }
    }

    /// Returns the same budget with another limit.
    pub const fn with_limit(self, limit: u64) -> Self {
        Self { limit, file: None, ..self }
    }

    const fn and(&self, other: &Self) -> Self {
        let (limit, spent) = (self.limit.saturating_add(other.limit), self.spent.saturating_add(other.spent));
        Self { kind: self.kind, file: None, limit, spent }
    }

    /// Number that is left.
    pub const fn left(&self) -> u64 {
        self.limit - self.spent
    }

    /// Takes `amount` for `what`.
    ///
    /// # Errors
    /// Fails if less is left; the message has the amount, the sum and the limit.
    pub fn spend(&mut self, what: impl Display, amount: u128) -> Result<()> {
        let sum = amount.saturating_add(self.spent.into());
        match u64::try_from(sum).ok().filter(|sum| *sum <= self.limit) {
            Some(sum) => {
                self.spent = sum;
                Ok(())
            }
            None => Err(self.refused(what, amount, sum)),
        }
    }

    /// Fails as [`Budget::spend`] would, but takes nothing: for memory that is given back.
    ///
    /// # Errors
    /// Fails if less is left.
    pub fn check(&self, what: impl Display, amount: u128) -> Result<()> {
        self.clone().spend(what, amount)
    }

    fn refused(&self, what: impl Display, amount: u128, sum: u128) -> Error {
        let text = |amount| match self.kind {
            Kind::Bytes => size(amount),
            Kind::Work => format!("{:.1e} multiply-adds", amount as f64),
        };
        let (own, sum) = (text(amount), text(sum));
        let together =
            if own == sum { String::new() } else { format!(", {sum} together with those before it") };
        let limit = text(self.limit.into());
        let rule = match (self.kind, self.file) {
            (_, None) => format!("the limit is {limit}"),
            (Kind::Bytes, Some(file)) => {
                format!("what is made of a file of {} may take {limit}", size(file.into()))
            }
            (Kind::Work, Some(file)) => format!("a file of {} may take {limit}", size(file.into())),
        };
        Error::data(format!("{what} takes {own}{together}, but {rule}"))
    }
}

/// Fails if a file of `len` bytes is longer than [`MAX_FILE`].
pub(crate) fn check_file(path: &str, len: u64) -> Result<()> {
    match len > MAX_FILE {
        true => Err(Error::data(format!(
            "{path} takes {}, but an adapter file takes at most {}",
            size(len.into()),
            size(MAX_FILE.into())
        ))),
        false => Ok(()),
    }
}

/// Writes a number of bytes with two or three digits and a decimal unit: `6.2 GB`.
pub fn size(bytes: u128) -> String {
    const UNITS: [(u128, &str); 5] = [
        (10u128.pow(18), "EB"),
        (10u128.pow(12), "TB"),
        (10u128.pow(9), "GB"),
        (10u128.pow(6), "MB"),
        (1000, "kB"),
    ];
    let Some((unit, name)) = UNITS.into_iter().find(|(unit, _)| bytes >= *unit) else {
        return format!("{bytes} bytes");
    };
    let value = bytes as f64 / unit as f64;
    if value < 9.95 { format!("{value:.1} {name}") } else { format!("{value:.0} {name}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_spent_to_its_last_unit_and_a_refusal_takes_nothing() {
        let mut budget = Budget::work(0).with_limit(10);
        budget.spend("a", 4).expect("4 of 10");
        let message = budget.spend("b", 7).expect_err("11 of 10").to_string();
        assert!(
            message.starts_with("b takes 7.0e0 multiply-adds, 1.1e1 multiply-adds together"),
            "{message}"
        );
        assert_eq!(budget.left(), 6);
        budget.spend("c", 6).expect("10 of 10");
        for amount in [1, u128::from(u64::MAX), u128::MAX] {
            assert!(budget.spend("d", amount).is_err());
        }
        budget.spend("e", 0).expect("nothing");
    }

    #[test]
    fn sizes_have_their_unit() {
        let table = [
            (0, "0 bytes"),
            (999, "999 bytes"),
            (1000, "1.0 kB"),
            (16_700, "17 kB"),
            (6_200_000_000, "6.2 GB"),
        ];
        for (bytes, text) in table {
            assert_eq!(size(bytes), text);
        }
        assert!(size(u128::MAX).ends_with(" EB"));
    }

    /// Rank 256 on the seven linear layers of each of 80 blocks of a model of 70 billion parameters.
    #[test]
    fn the_largest_real_adapters_pass() {
        let (d, kv, ff, rank) = (8192u64, 1024, 28_672, 256);
        let sides = 2 * (d + d) + 2 * (d + kv) + 3 * (d + ff);
        let bytes = 4 * 80 * rank * sides;
        assert!((13_000_000_000..MAX_FILE).contains(&bytes), "{bytes}");
        // Singular values of the product of two thin factors: 2·rank² for each element of a side.
        let decomposed = 80 * 2 * rank * rank * sides + 80 * 7 * 40 * rank.pow(3);
        assert!(decomposed < work(bytes), "{decomposed}");
    }
}
