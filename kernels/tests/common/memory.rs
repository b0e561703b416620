//! [`Memory`]: where the operands of a test lie, so that one suite runs on the emulator and on a device.

use kron_core::Result;
use kron_kernels::{DeviceSlice, DeviceSliceMut};

/// Memory of a launcher.
pub trait Memory {
    fn read<'a, T: Copy>(&'a self, data: &'a [T]) -> DeviceSlice<'a, T>;
    fn write<'a, T: Copy>(&'a self, data: &'a mut [T]) -> DeviceSliceMut<'a, T>;
    /// Waits for the calls, whose results are then in the slices that they wrote.
    fn settle(&self) -> Result<()>;
}

/// The emulator's: the host's.
pub struct Host;

impl Memory for Host {
    fn read<'a, T: Copy>(&'a self, data: &'a [T]) -> DeviceSlice<'a, T> {
        DeviceSlice::host(data)
    }
    fn write<'a, T: Copy>(&'a self, data: &'a mut [T]) -> DeviceSliceMut<'a, T> {
        DeviceSliceMut::host(data)
    }
    fn settle(&self) -> Result<()> {
        Ok(())
    }
}

#[cfg(feature = "cuda")]
pub mod device {
    use std::cell::RefCell;

    use super::{DeviceSlice, DeviceSliceMut, Memory, Result};
    use kron_kernels::{DeviceVec, Gpu};

    /// A copy on the device, and the bytes on the host that it returns to.
    struct Held(DeviceVec<f32>, Option<(*mut u8, usize)>);

    /// A device's memory, into which operands are copied, and from which they are copied back.
    pub struct Copies<'g> {
        gpu: &'g Gpu,
        held: RefCell<Vec<Held>>,
    }

    impl<'g> Copies<'g> {
        pub fn new(gpu: &'g Gpu) -> Self {
            Self { gpu, held: RefCell::default() }
        }

        /// Copies bytes in words, the last one filled up with zeros; returns the address.
        fn upload(&self, bytes: &[u8], back: Option<(*mut u8, usize)>) -> u64 {
            let word = |bytes: &[u8]| {
                let mut word = [0; 4];
                word[..bytes.len()].copy_from_slice(bytes);
                f32::from_bits(u32::from_ne_bytes(word))
            };
            let words: Vec<f32> = bytes.chunks(4).map(word).collect();
            let held = Held(self.gpu.upload(&words).expect("a little memory"), back);
            let pointer = held.0.slice().pointer();
            self.held.borrow_mut().push(held);
            pointer
        }
    }

    impl Memory for Copies<'_> {
        fn read<'a, T: Copy>(&'a self, data: &'a [T]) -> DeviceSlice<'a, T> {
            // SAFETY: the elements are numbers, without padding.
            let bytes = unsafe { std::slice::from_raw_parts(data.as_ptr().cast(), size_of_val(data)) };
            // SAFETY: the copy has the elements, and lives as long as `self`.
            unsafe { DeviceSlice::from_raw(self.upload(bytes, None), data.len()) }
        }

        fn write<'a, T: Copy>(&'a self, data: &'a mut [T]) -> DeviceSliceMut<'a, T> {
            let (pointer, len) = (data.as_mut_ptr().cast::<u8>(), size_of_val(data));
            // SAFETY: as above.
            let bytes = unsafe { std::slice::from_raw_parts(pointer, len) };
            // SAFETY: the copy has the elements, and lives until `settle` has waited for the calls.
            unsafe { DeviceSliceMut::from_raw(self.upload(bytes, Some((pointer, len))), data.len()) }
        }

        fn settle(&self) -> Result<()> {
            self.gpu.synchronize()?;
            let written = |held: &mut Held| held.1.is_some();
            for Held(memory, back) in self.held.borrow_mut().extract_if(.., written) {
                let Some((pointer, len)) = back else { continue };
                let mut words = vec![0f32; memory.slice().len()];
                memory.read(&mut words)?;
                let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_bits().to_ne_bytes()).collect();
                // SAFETY: the caller of `write` lent these bytes, and keeps them until `settle` returns.
                unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), pointer, len) };
            }
            Ok(())
        }
    }
}
