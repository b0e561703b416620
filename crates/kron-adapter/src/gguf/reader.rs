//! Reads the fields of a header, each checked against the bytes that are left.

use std::io::Read;

use super::value::{Array, Value};
use crate::{Error, Result};

/// Longest header that is read, in bytes; a large vocabulary takes ten million.
pub(super) const MAX_HEADER: u64 = 64 << 20;
/// Most values of all arrays; a large vocabulary has a million. Each takes up to 24 bytes of memory.
const MAX_VALUES: u64 = 4 << 20;

/// Number of an array's type.
const ARRAY: u32 = 9;

/// Header of a file, read from its start.
pub(super) struct Reader<R> {
    from: R,
    at: u64,
    end: u64,
    /// Values of all arrays that may still follow.
    values: u64,
}

impl<R: Read> Reader<R> {
    /// Starts at the first of `len` bytes.
    pub fn new(from: R, len: u64) -> Self {
        Self { from, at: 0, end: len.min(MAX_HEADER), values: MAX_VALUES }
    }

    /// Number of bytes read.
    pub const fn at(&self) -> u64 {
        self.at
    }

    /// Fails if fewer than `count` fields of `size` bytes can follow.
    pub fn check(&self, what: &str, count: u64, size: u64) -> Result<()> {
        let left = self.end - self.at;
        if count.checked_mul(size).is_none_or(|bytes| bytes > left) {
            return Err(Error::data(format!(
                "is damaged or cut short: {count} {what} follow in {left} bytes, and a header has at most {MAX_HEADER}"
            )));
        }
        Ok(())
    }

    /// Reads bytes of a fixed length.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.check("bytes", N as u64, 1)?;
        let mut bytes = [0; N];
        self.from.read_exact(&mut bytes).map_err(Error::reading)?;
        self.at += N as u64;
        Ok(bytes)
    }

    /// Reads an unsigned integer of 32 bits.
    pub fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    /// Reads an unsigned integer of 64 bits.
    pub fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// Reads a text: its length, then UTF-8.
    pub fn text(&mut self) -> Result<String> {
        let len = self.u64()?;
        self.check("bytes of a text", len, 1)?;
        let mut bytes = vec![0; len as usize];
        self.from.read_exact(&mut bytes).map_err(Error::reading)?;
        self.at += len;
        String::from_utf8(bytes).map_err(|_| Error::data("has a text that is not UTF-8"))
    }

    /// Reads a value: its type, then its bytes.
    pub fn value(&mut self) -> Result<Value> {
        let kind = self.u32()?;
        if kind == ARRAY { Ok(Value::Array(self.values()?)) } else { self.scalar(kind) }
    }

    fn scalar(&mut self, kind: u32) -> Result<Value> {
        Ok(match kind {
            0 => Value::Unsigned(self.array::<1>()?[0].into()),
            1 => Value::Signed(i8::from_le_bytes(self.array()?).into()),
            2 => Value::Unsigned(u16::from_le_bytes(self.array()?).into()),
            3 => Value::Signed(i16::from_le_bytes(self.array()?).into()),
            4 => Value::Unsigned(self.u32()?.into()),
            5 => Value::Signed(i32::from_le_bytes(self.array()?).into()),
            6 => Value::Float(f32::from_le_bytes(self.array()?).into()),
            7 => match self.array()? {
                [0] => Value::Bool(false),
                [1] => Value::Bool(true),
                [other] => {
                    return Err(Error::data(format!("has the truth value {other}, but one is 0 or 1")));
                }
            },
            8 => Value::Text(self.text()?),
            10 => Value::Unsigned(self.u64()?),
            11 => Value::Signed(i64::from_le_bytes(self.array()?)),
            12 => Value::Float(f64::from_le_bytes(self.array()?)),
            other => return Err(unknown(other)),
        })
    }

    fn values(&mut self) -> Result<Array> {
        let (kind, count) = (self.u32()?, self.u64()?);
        self.check("values", count, least_bytes(kind))?;
        let Some(values) = self.values.checked_sub(count) else {
            return Err(Error::data(format!("has arrays of more than {MAX_VALUES} values together")));
        };
        self.values = values;
        let mut all = match kind {
            0 | 2 | 4 | 10 => Array::Unsigned(Vec::new()),
            1 | 3 | 5 | 11 => Array::Signed(Vec::new()),
            6 | 12 => Array::Float(Vec::new()),
            7 => Array::Bool(Vec::new()),
            8 => Array::Text(Vec::new()),
            other => return Err(unknown(other)),
        };
        for _ in 0..count {
            match (&mut all, self.scalar(kind)?) {
                (Array::Unsigned(all), Value::Unsigned(v)) => all.push(v),
                (Array::Signed(all), Value::Signed(v)) => all.push(v),
                (Array::Float(all), Value::Float(v)) => all.push(v),
                (Array::Bool(all), Value::Bool(v)) => all.push(v),
                (Array::Text(all), Value::Text(v)) => all.push(v),
                _ => return Err(Error::data("has an array of several types")),
            }
        }
        Ok(all)
    }
}

/// Returns the least bytes of a value.
const fn least_bytes(kind: u32) -> u64 {
    match kind {
        0 | 1 | 7 => 1,
        2 | 3 => 2,
        4..=6 => 4,
        _ => 8,
    }
}

fn unknown(kind: u32) -> Error {
    match kind {
        ARRAY => Error::data("has an array of arrays, which no model needs"),
        _ => Error::data(format!("has a value of type {kind}, but types are 0 to 12")),
    }
}
