//! The device's memory: allocations between zones that nothing may write.

use std::alloc::{Layout, alloc, dealloc};
use std::collections::{BTreeMap, VecDeque};

use cudarc::driver::sys::CUresult;

use crate::Done;

/// Bytes of the whole device.
pub const TOTAL: usize = 4 << 30;
/// Bytes of each zone, and the alignment of every allocation.
const ZONE: usize = 256;
const ZONE_BYTE: u8 = 0xa5;
/// Fill of memory that nobody has written, and of memory that was freed: NaN in every float.
const UNWRITTEN: u8 = 0xff;
/// Freed allocations that stay out of use for a while, so that a late write hits no other allocation.
const QUARANTINE: usize = 32;

/// An allocation with its zones.
struct Block {
    start: u64,
    len: usize,
}

/// All allocations.
#[derive(Default)]
pub struct Memory {
    live: BTreeMap<u64, Block>,
    bytes: usize,
    freed: VecDeque<Block>,
}

impl Block {
    fn layout(len: usize) -> Option<Layout> {
        let padded = len.checked_next_multiple_of(ZONE)?.checked_add(2 * ZONE)?;
        Layout::from_size_align(padded, ZONE).ok()
    }

    fn new(len: usize) -> Option<Self> {
        let layout = Self::layout(len)?;
        // SAFETY: the layout has at least the bytes of two zones.
        let base = unsafe { alloc(layout) };
        if base.is_null() {
            return None;
        }
        // SAFETY: zone, elements and zone lie inside the allocation.
        unsafe {
            base.write_bytes(ZONE_BYTE, layout.size());
            base.add(ZONE).write_bytes(UNWRITTEN, len);
        }
        Some(Self { start: base as u64 + ZONE as u64, len })
    }

    /// Returns true if the bytes around the elements are as they were made.
    fn is_whole(&self) -> bool {
        let end = Self::layout(self.len).map_or(0, |layout| layout.size() - ZONE);
        let zone = |from: usize, to: usize| {
            let start = (self.start as usize - ZONE + from) as *const u8;
            // SAFETY: both ranges lie inside the allocation, and no kernel runs during a check.
            let bytes = unsafe { std::slice::from_raw_parts(start, to - from) };
            *bytes == [ZONE_BYTE; 2 * ZONE][..bytes.len()]
        };
        zone(0, ZONE) && zone(ZONE + self.len, end + ZONE)
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let layout = Self::layout(self.len).expect("it was allocated with this layout");
        // SAFETY: `new` allocated it with this layout.
        unsafe { dealloc((self.start as usize - ZONE) as *mut u8, layout) };
    }
}

impl Memory {
    /// Returns the bytes that are not allocated.
    pub fn free_bytes(&self) -> usize {
        TOTAL - self.bytes
    }

    pub fn allocate(&mut self, bytes: usize) -> Done<u64> {
        match bytes {
            0 => return Err(CUresult::CUDA_ERROR_INVALID_VALUE),
            bytes if bytes > self.free_bytes() => return Err(CUresult::CUDA_ERROR_OUT_OF_MEMORY),
            _ => {}
        }
        let block = Block::new(bytes).ok_or(CUresult::CUDA_ERROR_OUT_OF_MEMORY)?;
        let start = block.start;
        self.bytes += bytes;
        self.live.insert(start, block);
        Ok(start)
    }

    /// Frees an allocation by its start.
    pub fn free(&mut self, start: u64) -> Done {
        let block = self.live.remove(&start).ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)?;
        self.bytes -= block.len;
        let whole = block.is_whole();
        if !whole {
            complain(&block);
        }
        // SAFETY: the elements are the block's own, and nothing queued uses them any more.
        unsafe { (block.start as *mut u8).write_bytes(UNWRITTEN, block.len) };
        self.freed.push_back(block);
        if self.freed.len() > QUARANTINE {
            self.freed.pop_front();
        }
        if whole { Ok(()) } else { Err(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS) }
    }

    /// Fails if a zone of a live or of a freed allocation was written.
    pub fn check(&self) -> Done {
        match self.live.values().chain(&self.freed).find(|block| !block.is_whole()) {
            None => Ok(()),
            Some(block) => {
                complain(block);
                Err(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS)
            }
        }
    }

    /// Fails unless `bytes` from `start` on lie in one live allocation; with 0 bytes its end will do.
    pub fn holds(&self, start: u64, bytes: usize) -> Done {
        let block = self.live.range(..=start).next_back().map(|(_, block)| block);
        let inside = |block: &Block| (start - block.start) as u128 + bytes as u128 <= block.len as u128;
        if block.is_some_and(inside) { Ok(()) } else { Err(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS) }
    }

    /// Copies inside the device.
    pub fn copy(&self, to: u64, from: u64, bytes: usize) -> Done {
        self.holds(to, bytes)?;
        self.holds(from, bytes)?;
        // SAFETY: both ranges lie in live allocations.
        unsafe { std::ptr::copy(from as *const u8, to as *mut u8, bytes) };
        Ok(())
    }

    pub fn write(&self, to: u64, data: &[u8]) -> Done {
        self.holds(to, data.len())?;
        // SAFETY: the range lies in a live allocation, which no Rust value overlaps.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), to as *mut u8, data.len()) };
        Ok(())
    }

    pub fn fill(&self, to: u64, byte: u8, bytes: usize) -> Done {
        self.holds(to, bytes)?;
        // SAFETY: the range lies in a live allocation.
        unsafe { (to as *mut u8).write_bytes(byte, bytes) };
        Ok(())
    }

    pub fn read(&self, from: u64, bytes: usize) -> Done<&[u8]> {
        self.holds(from, bytes)?;
        // SAFETY: the range lies in a live allocation, and nothing runs while the driver is borrowed.
        Ok(unsafe { std::slice::from_raw_parts(from as *const u8, bytes) })
    }
}

fn complain(block: &Block) {
    eprintln!("fake driver: something wrote beside the {} bytes at {:#x}", block.len, block.start);
}
