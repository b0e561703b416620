//! Thin types over raw device pointers and streams: unsafe to make, safe to use.
//! A trainer's CUDA binding does not have to match this crate's.

use std::marker::PhantomData;

/// Device memory to read: `len` elements of T.
#[derive(Clone, Copy, Debug)]
pub struct DeviceSlice<'a, T> {
    pointer: u64,
    len: usize,
    memory: PhantomData<&'a [T]>,
}

/// Device memory to write: `len` elements of T with no other user.
#[derive(Debug)]
pub struct DeviceSliceMut<'a, T> {
    pointer: u64,
    len: usize,
    memory: PhantomData<&'a mut [T]>,
}

macro_rules! slice {
    ($name:ident) => {
        impl<T> $name<'_, T> {
            /// Wraps a device pointer.
            ///
            /// # Safety
            /// `pointer` is aligned for T and points to `len` elements of memory of
            /// the launcher that receives it: of its context, or host memory for the
            /// emulator. The memory stays valid, and obeys the type's rule of sharing,
            /// until the work has run that each call with it has queued on its stream.
            pub const unsafe fn from_raw(pointer: u64, len: usize) -> Self {
                Self { pointer, len, memory: PhantomData }
            }
            /// Returns the elements `range`, in place.
            ///
            /// # Errors
            /// Fails if the range exceeds the slice.
            pub fn part(self, range: std::ops::Range<usize>) -> kron_core::Result<Self> {
                if range.start > range.end || range.end > self.len {
                    let (got, rule) = (format!("{} elements", self.len), format!("{range:?} was requested"));
                    return Err(kron_core::Error::Buffer { what: "a device slice", got, rule });
                }
                let pointer = self.pointer + (range.start * size_of::<T>()) as u64;
                Ok(Self { pointer, len: range.len(), memory: PhantomData })
            }
            /// Returns the address.
            pub const fn pointer(&self) -> u64 {
                self.pointer
            }
            /// Returns the number of elements.
            pub const fn len(&self) -> usize {
                self.len
            }
            /// True if the length is 0.
            pub const fn is_empty(&self) -> bool {
                self.len == 0
            }
        }
    };
}
slice!(DeviceSlice);
slice!(DeviceSliceMut);

impl<'a, T> DeviceSlice<'a, T> {
    /// Wraps host memory, for the emulator only; a GPU's kernels fault on it.
    #[cfg(feature = "emulate")]
    pub fn host(data: &'a [T]) -> Self {
        Self { pointer: data.as_ptr() as u64, len: data.len(), memory: PhantomData }
    }
}

impl<'a, T> DeviceSliceMut<'a, T> {
    /// Wraps host memory, for the emulator only.
    #[cfg(feature = "emulate")]
    pub fn host(data: &'a mut [T]) -> Self {
        Self { pointer: data.as_mut_ptr() as u64, len: data.len(), memory: PhantomData }
    }
}

impl<'a, T> DeviceSliceMut<'a, T> {
    /// Returns the first `len` elements, and the others.
    ///
    /// # Errors
    /// Fails if there are fewer elements.
    pub fn split(self, len: usize) -> kron_core::Result<(Self, Self)> {
        let (pointer, total) = (self.pointer, self.len);
        let first = self.part(0..len)?;
        let rest = pointer + (len * size_of::<T>()) as u64;
        Ok((first, DeviceSliceMut { pointer: rest, len: total - len, memory: PhantomData }))
    }
    /// Returns the same memory for a shorter time.
    pub(crate) fn reborrow(&mut self) -> DeviceSliceMut<'_, T> {
        DeviceSliceMut { pointer: self.pointer, len: self.len, memory: PhantomData }
    }
}

/// A matrix of activations to read; its rows start `stride` elements apart.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a, T> {
    /// The elements, from the first row's start.
    pub data: DeviceSlice<'a, T>,
    /// Number of rows.
    pub rows: usize,
    /// Elements between the starts of neighbouring rows.
    pub stride: usize,
}

/// A matrix of activations to write.
#[derive(Debug)]
pub struct RowsMut<'a, T> {
    /// The elements, from the first row's start.
    pub data: DeviceSliceMut<'a, T>,
    /// Number of rows.
    pub rows: usize,
    /// Elements between the starts of neighbouring rows.
    pub stride: usize,
}

impl<T> RowsMut<'_, T> {
    /// Returns the same matrix for a shorter time.
    pub(crate) fn reborrow(&mut self) -> RowsMut<'_, T> {
        RowsMut { data: self.data.reborrow(), rows: self.rows, stride: self.stride }
    }
}

/// Two numbers in device memory, by their address: they are added to the seed and to the offset of a
/// [`DropoutKey`](kron_core::DropoutKey), modulo 2⁶⁴, when the kernels of a call run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyHandle(u64);

impl KeyHandle {
    /// Wraps the address of two u64.
    ///
    /// # Safety
    /// `pointer` is aligned for u64 and points to two of them in memory of the launcher that receives the
    /// handle: of its context, or host memory for the emulator. The memory stays valid, and nothing writes it,
    /// while work runs that calls with the handle have queued, replays of a graph included.
    pub const unsafe fn from_raw(pointer: u64) -> Self {
        Self(pointer)
    }
    /// Returns the address.
    pub const fn raw(self) -> u64 {
        self.0
    }
}

/// A stream by its raw handle (`CUstream`); 0 is the legacy default stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamHandle(u64);

impl StreamHandle {
    /// Wraps a stream.
    ///
    /// # Safety
    /// `stream` is a live stream of the launcher's context, or 0.
    pub const unsafe fn from_raw(stream: u64) -> Self {
        Self(stream)
    }
    /// The default stream, the only one of the emulator.
    pub const DEFAULT: Self = Self(0);
    /// Returns the handle.
    pub const fn raw(self) -> u64 {
        self.0
    }
}
