//! An [`Adapter`] in one safetensors file, and files that appear whole or not at all.
//!
//! `docs/FORMAT.md` is the description of the file. The bytes of a layer on
//! disk are its θ, \[A | B | C\] in little-endian float32, so that reading is one
//! copy; the three factors are tensors of their own, so that any program that
//! reads safetensors sees them with their names and shapes.
//!
//! Reading trusts nothing: every length is checked against the size of the file
//! before anything is allocated for it.

mod atomic;
mod header;
mod layout;
mod manifest;
mod stream;

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

pub use atomic::{Flush, IfExists, remove_leftovers, write_atomic, write_whole};
pub use header::MAX_HEADER;
pub use layout::Layout;
pub use manifest::VERSION;

use crate::{Adapter, Error, Layer, Result};
use kron_core::{KronShape, Theta};

impl Adapter {
    /// Reads an adapter file.
    ///
    /// # Errors
    /// A file that the system does not give, that is not a regular file, or
    /// that breaks any rule of `docs/FORMAT.md`; NaN and infinity in a factor
    /// are among them.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let io = |source| Error::io(path.display(), source);
        // Asked before opening: opening a pipe would wait for a writer.
        if !path.metadata().map_err(io)?.is_file() {
            return Err(format_error(path, "is not a regular file".into()));
        }
        let file = File::open(path).map_err(io)?;
        let len = file.metadata().map_err(io)?.len();
        decode(file, len).map_err(|refused| refused.named(path))
    }

    /// Reads an adapter from the bytes of a file.
    ///
    /// # Errors
    /// As [`Adapter::read`]; the path in the message is `bytes`.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        decode(bytes, bytes.len() as u64).map_err(|refused| refused.named(Path::new("bytes")))
    }

    /// Writes an adapter file by [`write_atomic`]. Equal adapters, equal bytes.
    ///
    /// # Errors
    /// NaN or infinity in a factor, names that make the header longer than
    /// [`MAX_HEADER`], a file that exists under [`IfExists::Refuse`], and what
    /// the system refuses; what was there before is then still there.
    pub fn write(&self, path: impl AsRef<Path>, existing: IfExists) -> Result<()> {
        let header = self.checked_header()?;
        write_atomic(path.as_ref(), existing, |out| self.encode(&header, out))
    }

    /// The bytes of the file.
    ///
    /// # Errors
    /// NaN or infinity in a factor, or a header longer than [`MAX_HEADER`].
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let header = self.checked_header()?;
        let mut bytes = Vec::with_capacity(header.len() + 4 * self.params());
        self.encode(&header, &mut bytes).map_err(|source| Error::io("bytes", source))?;
        Ok(bytes)
    }

    /// That an adapter can be written, in whatever format.
    ///
    /// # Errors
    /// NaN or infinity in a factor.
    pub fn check_finite(&self) -> Result<()> {
        let mut layers = self.layers().iter();
        layers.try_for_each(|l| check_finite(l.module(), l.theta())).map_err(Error::data)
    }

    fn checked_header(&self) -> Result<Vec<u8>> {
        self.check_finite()?;
        header::encode(self).map_err(Error::data)
    }

    fn encode(&self, header: &[u8], out: &mut dyn Write) -> std::io::Result<()> {
        out.write_all(header)?;
        for layer in self.layers() {
            write_numbers(layer.theta().as_slice(), out)?;
        }
        Ok(())
    }
}

/// Why a file is not an adapter; the caller knows its name.
enum Refused {
    Format(String),
    Io(std::io::Error),
}

impl Refused {
    fn named(self, path: &Path) -> Error {
        match self {
            Refused::Format(message) => format_error(path, message),
            Refused::Io(source) => Error::io(path.display(), source),
        }
    }
}

impl From<String> for Refused {
    fn from(message: String) -> Self {
        Refused::Format(message)
    }
}

impl From<std::io::Error> for Refused {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::UnexpectedEof => Refused::Format("became shorter while it was read".into()),
            _ => Refused::Io(error),
        }
    }
}

impl From<kron_core::Error> for Refused {
    fn from(error: kron_core::Error) -> Self {
        Refused::Format(error.to_string())
    }
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Refused::Format(error.to_string())
    }
}

fn format_error(path: &Path, message: String) -> Error {
    Error::data(format!("{}: {message}", path.display()))
}

/// Reads a file of `len` bytes front to back.
fn decode(mut from: impl Read, len: u64) -> Result<Adapter, Refused> {
    let (_, layout) = Layout::decode(&mut from, len, MAX_HEADER)?;
    let header = header::decode(layout)?;
    let slots = header.slots()?;

    // In the order of the file, which need not be that of the layers.
    let mut order: Vec<usize> = (0..slots.len()).collect();
    order.sort_by_key(|&i| slots[i].start);
    let mut thetas: Vec<Option<Theta>> = vec![None; slots.len()];
    for i in order {
        let theta = read_theta(&mut from, slots[i].shape)?;
        check_finite(&slots[i].module, &theta)?;
        thetas[i] = Some(theta);
    }

    let layers = slots.into_iter().zip(thetas.into_iter().flatten());
    let layers: Result<Vec<_>> =
        layers.map(|(slot, theta)| Layer::new(slot.module, slot.scaling, theta)).collect();
    Ok(Adapter::new(layers?)?.with_target_modules(header.target_modules)?.with_metadata(header.metadata)?)
}

/// The next layer's θ; the header has shown that the file holds this many bytes.
fn read_theta(from: &mut impl Read, shape: KronShape) -> Result<Theta, Refused> {
    let mut data = Vec::new();
    data.try_reserve_exact(shape.params())
        .map_err(|_| format!("holds a layer of {} numbers, which do not fit in memory", shape.params()))?;
    data.resize(shape.params(), 0.0f32);
    from.read_exact(bytemuck::cast_slice_mut(&mut data))?;
    for v in &mut data {
        *v = f32::from_bits(u32::from_le(v.to_bits()));
    }
    Ok(Theta::from_vec(shape, data)?)
}

fn write_numbers(numbers: &[f32], out: &mut dyn Write) -> std::io::Result<()> {
    if cfg!(target_endian = "little") {
        return out.write_all(bytemuck::cast_slice(numbers));
    }
    numbers.iter().try_for_each(|v| out.write_all(&v.to_le_bytes()))
}

/// A factor with NaN or infinity makes every output NaN: neither written nor read.
fn check_finite(module: &str, theta: &Theta) -> Result<(), String> {
    match theta.as_slice().iter().position(|v| !v.is_finite()) {
        None => Ok(()),
        Some(at) => Err(format!(
            "number {at} of θ of {module} is {}, but every number of a factor is finite",
            theta.as_slice()[at]
        )),
    }
}
