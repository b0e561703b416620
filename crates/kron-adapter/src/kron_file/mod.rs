//! The project's own file: an [`Adapter`] in one safetensors file, described in `docs/FORMAT.md`.
//!
//! The bytes of a layer on disk are its θ, \[A | B | C\] in little-endian float32,
//! so that reading is one copy. The three factors are tensors of their own, so
//! that any program that reads safetensors sees their names and shapes.
//!
//! ```
//! # use kron_adapter::{Adapter, IfExists, Layer, Scaling};
//! # use kron_core::{KronShape, LayerDims, Split, Theta};
//! # let shape = KronShape::kron(LayerDims { d_out: 6, d_in: 4 }, Split { a_out: 3, a_in: 2 }, 1)?;
//! # let layer = Layer::new("model.q_proj", Scaling::plain(0.5)?, Theta::random(shape, 1))?;
//! let adapter = Adapter::new(vec![layer])?;
//! let bytes = adapter.to_bytes()?;
//! assert_eq!(Adapter::from_bytes(&bytes)?, adapter);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod manifest;
mod table;

use std::io::{Read, Write};
use std::path::Path;

use kron_core::Theta;

use crate::elements::first_not_finite;
use crate::io::{IfExists, Input, Layout, write_atomic};
use crate::{Adapter, Error, Layer, Result, TrainedTensor};

pub use manifest::VERSION;
pub use table::MAX_HEADER;
use table::TrainedEntry;

impl Adapter {
    /// Reads an adapter file of this project.
    ///
    /// # Errors
    /// Fails if the system refuses, if the path names anything but a regular file,
    /// and if the file breaks a rule of `docs/FORMAT.md`; NaN or infinity in a
    /// factor or a trained tensor breaks one.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let mut input = Input::open(path.as_ref())?;
        let (_, layout) = input.layout_within(MAX_HEADER)?;
        let name = input.path().to_string();
        decode(layout, input.into_file()).map_err(|e| e.about(name))
    }

    /// Reads an adapter from the bytes of a file.
    ///
    /// # Errors
    /// Fails as [`Adapter::read`] does; the path in the message is `bytes`.
    pub fn from_bytes(mut bytes: &[u8]) -> Result<Self> {
        let len = bytes.len() as u64;
        let layout = Layout::read(&mut bytes, len, MAX_HEADER);
        layout.and_then(|(_, layout)| decode(layout, bytes)).map_err(|e| e.about("bytes"))
    }

    /// Writes an adapter file by [`write_atomic`]. Equal adapters give equal bytes.
    ///
    /// # Errors
    /// Fails if a factor or a trained tensor holds NaN or infinity, if names make the header
    /// longer than [`MAX_HEADER`], if the file exists under [`IfExists::Refuse`], and if the
    /// system refuses. A file that was there before is then still there.
    pub fn write(&self, path: impl AsRef<Path>, if_exists: IfExists) -> Result<()> {
        let header = self.checked_header()?;
        write_atomic(path.as_ref(), if_exists, |out| self.encode(&header, out))
    }

    /// Returns the bytes of the file.
    ///
    /// # Errors
    /// Fails if a factor or a trained tensor holds NaN or infinity, or the header is longer than [`MAX_HEADER`].
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let header = self.checked_header()?;
        let mut bytes = Vec::with_capacity(header.len() + 4 * (self.params() + self.trained_values()));
        self.encode(&header, &mut bytes).map_err(|source| Error::io("bytes", source))?;
        Ok(bytes)
    }

    /// Checks that every value of every factor and of every trained tensor is finite.
    ///
    /// # Errors
    /// Fails on the first value that is NaN or infinite, with its layer or tensor and its index.
    pub fn check_finite(&self) -> Result<()> {
        self.layers().iter().try_for_each(|layer| check_finite(layer.module(), layer.theta()))?;
        self.trained_tensors().iter().try_for_each(TrainedTensor::check_finite)
    }

    fn checked_header(&self) -> Result<Vec<u8>> {
        self.check_finite()?;
        table::encode(self)
    }

    fn encode(&self, header: &[u8], out: &mut dyn Write) -> std::io::Result<()> {
        out.write_all(header)?;
        self.layers().iter().try_for_each(|layer| write_values(layer.theta().as_slice(), out))?;
        self.trained_tensors().iter().try_for_each(|tensor| write_values(tensor.values(), out))
    }
}

/// Fails if a header of this many bytes, length included, is above the limit of the format.
pub(crate) fn check_header(header: &[u8]) -> Result<()> {
    let len = header.len() as u64 - 8;
    match len > MAX_HEADER {
        true => Err(Error::data(format!("has a header of {len} bytes, but the limit is {MAX_HEADER}"))),
        false => Ok(()),
    }
}

/// Reads the layers of a file whose header was read; `from` stands behind the header.
pub(crate) fn decode(layout: Layout, mut from: impl Read) -> Result<Adapter> {
    let table = table::decode(layout)?;
    let (entries, trained) = table.entries()?;

    // The file's order need not be the layers' order; trained tensors have the indices after theirs.
    let starts = entries.iter().map(|entry| entry.start).chain(trained.iter().map(|entry| entry.start));
    let mut order: Vec<(usize, usize)> = starts.enumerate().map(|(i, start)| (start, i)).collect();
    order.sort_unstable();
    let mut thetas: Vec<Option<Theta>> = vec![None; entries.len()];
    let mut tensors = Vec::with_capacity(trained.len());
    for (_, i) in order {
        let Some(entry) = entries.get(i) else {
            let TrainedEntry { name, shape, rows, len, .. } = trained[i - entries.len()];
            let values = read_values(&mut from, len)?;
            let tensor = match rows {
                Some(rows) => TrainedTensor::of_rows(name, rows.to_vec(), shape[1], values)?,
                None => TrainedTensor::new(name, shape, values)?,
            };
            tensor.check_finite()?;
            tensors.push(tensor);
            continue;
        };
        let theta = Theta::from_vec(entry.shape, read_values(&mut from, entry.shape.params())?)?;
        check_finite(&entry.module, &theta)?;
        thetas[i] = Some(theta);
    }

    let layers = entries.into_iter().zip(thetas.into_iter().flatten());
    let layers = layers
        .map(|(entry, theta)| Ok(Layer::new(entry.module, entry.scaling, theta)?.with_term(entry.term)));
    Adapter::new(layers.collect::<Result<_>>()?)?
        .with_target_modules(table.target_modules)?
        .with_metadata(table.metadata)?
        .with_trained_tensors(tensors)
}

/// Reads the next values. The header has shown that the file holds as many.
fn read_values(from: &mut impl Read, len: usize) -> Result<Vec<f32>> {
    let mut data = Vec::new();
    data.try_reserve_exact(len).map_err(|_| {
        Error::data(format!("holds a layer or tensor of {len} values, which do not fit in memory"))
    })?;
    data.resize(len, 0.0f32);
    from.read_exact(bytemuck::cast_slice_mut(&mut data)).map_err(Error::reading)?;
    for v in &mut data {
        *v = f32::from_bits(u32::from_le(v.to_bits()));
    }
    Ok(data)
}

fn write_values(values: &[f32], out: &mut dyn Write) -> std::io::Result<()> {
    if cfg!(target_endian = "little") {
        return out.write_all(bytemuck::cast_slice(values));
    }
    values.iter().try_for_each(|v| out.write_all(&v.to_le_bytes()))
}

/// A factor with NaN or infinity makes every output NaN, so it is neither written nor read.
fn check_finite(module: &str, theta: &Theta) -> Result<()> {
    match first_not_finite(theta.as_slice()) {
        None => Ok(()),
        Some(at) => Err(Error::data(format!(
            "value {at} of θ of {module} is {}, but every value of a factor is finite",
            theta.as_slice()[at]
        ))),
    }
}
