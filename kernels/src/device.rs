//! Thin types over raw device pointers: unsafe to make, safe to use. A
//! trainer's own CUDA binding never has to match this crate's.

use std::marker::PhantomData;

/// Device memory to read: `len` elements of T.
#[derive(Clone, Copy, Debug)]
pub struct DeviceSlice<'a, T> {
    pointer: u64,
    len: usize,
    memory: PhantomData<&'a [T]>,
}

/// Device memory to write: `len` elements of T that nothing else uses.
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
            /// `pointer` is aligned for T and names `len` elements of memory of
            /// the launcher that it is given to (of its context, or host memory
            /// for the emulator). The memory lives, and obeys the type's rule of
            /// sharing, until the work queued on the stream of each call that
            /// gets it has run.
            pub const unsafe fn from_raw(pointer: u64, len: usize) -> Self {
                Self { pointer, len, memory: PhantomData }
            }
            /// The elements `range`, in place.
            ///
            /// # Errors
            /// A range that does not lie inside.
            pub fn part(self, range: std::ops::Range<usize>) -> kron_core::Result<Self> {
                if range.start > range.end || range.end > self.len {
                    let (got, rule) =
                        (format!("{} elements", self.len), format!("{range:?} is asked of them"));
                    return Err(kron_core::Error::Buffer { what: "a device slice", got, rule });
                }
                let pointer = self.pointer + (range.start * size_of::<T>()) as u64;
                Ok(Self { pointer, len: range.len(), memory: PhantomData })
            }
            /// The address.
            pub const fn pointer(&self) -> u64 {
                self.pointer
            }
            /// Number of elements.
            pub const fn len(&self) -> usize {
                self.len
            }
            /// Whether there is no element.
            pub const fn is_empty(&self) -> bool {
                self.len == 0
            }
        }
    };
}
slice!(DeviceSlice);
slice!(DeviceSliceMut);

impl<'a, T> DeviceSlice<'a, T> {
    /// Host memory, for the emulator; the GPU's launcher refuses nothing but
    /// its kernels fault on it.
    #[cfg(feature = "emulate")]
    pub fn host(data: &'a [T]) -> Self {
        Self { pointer: data.as_ptr() as u64, len: data.len(), memory: PhantomData }
    }
}

impl<'a, T> DeviceSliceMut<'a, T> {
    /// Host memory, for the emulator.
    #[cfg(feature = "emulate")]
    pub fn host(data: &'a mut [T]) -> Self {
        Self { pointer: data.as_mut_ptr() as u64, len: data.len(), memory: PhantomData }
    }
}

/// A matrix of activations to read: rows that start `stride` elements apart.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a, T> {
    /// The elements, from the first row's start.
    pub data: DeviceSlice<'a, T>,
    /// Number of rows.
    pub rows: usize,
    /// Elements from one row's start to the next one's.
    pub stride: usize,
}

/// A matrix of activations to write.
#[derive(Debug)]
pub struct RowsMut<'a, T> {
    /// The elements, from the first row's start.
    pub data: DeviceSliceMut<'a, T>,
    /// Number of rows.
    pub rows: usize,
    /// Elements from one row's start to the next one's.
    pub stride: usize,
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
    /// The default stream; the emulator, which runs each launch to its end, takes only this one.
    pub const DEFAULT: Self = Self(0);
    /// The handle.
    pub const fn raw(self) -> u64 {
        self.0
    }
}
