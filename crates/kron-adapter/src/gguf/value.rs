//! Values of a file's metadata.

/// A value; integers and floats have their widest form.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Unsigned integer of 8 to 64 bits.
    Unsigned(u64),
    /// Signed integer of 8 to 64 bits.
    Signed(i64),
    /// float32 or float64.
    Float(f64),
    /// Truth value.
    Bool(bool),
    /// UTF-8 text.
    Text(String),
    /// Values of one type.
    Array(Array),
}

/// Values of one type.
#[derive(Clone, Debug, PartialEq)]
pub enum Array {
    /// Unsigned integers.
    Unsigned(Vec<u64>),
    /// Signed integers.
    Signed(Vec<i64>),
    /// Floats.
    Float(Vec<f64>),
    /// Truth values.
    Bool(Vec<bool>),
    /// Texts.
    Text(Vec<String>),
}

impl Value {
    /// Returns the value as a size, if it is an integer that fits.
    pub fn as_usize(&self) -> Option<usize> {
        match *self {
            Value::Unsigned(v) => v.try_into().ok(),
            Value::Signed(v) => v.try_into().ok(),
            _ => None,
        }
    }

    /// Returns the value as a float, if it is one.
    pub const fn as_f64(&self) -> Option<f64> {
        match self {
            Value::Float(v) => Some(*v),
            _ => None,
        }
    }

    /// Returns the text, if it is one.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Returns the texts, if it is an array of them.
    pub fn as_texts(&self) -> Option<&[String]> {
        match self {
            Value::Array(Array::Text(texts)) => Some(texts),
            _ => None,
        }
    }
}
