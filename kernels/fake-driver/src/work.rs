//! Queued work: what a stream runs, or a graph repeats.

use std::sync::Arc;

use cudarc::driver::sys::CUresult;
use kron_kernels::params::KronParams;
use kron_kernels::{Emulated, Launcher, Name, Step, StreamHandle};

use crate::Done;
use crate::memory::Memory;
use crate::product::Product;

/// A stream by its context and its handle; handle 0 is the context's legacy stream.
pub type StreamKey = (u64, u64);

/// One piece of work.
#[derive(Clone)]
pub enum Work {
    Launch(Box<Launch>),
    Copy {
        to: u64,
        from: u64,
        bytes: usize,
    },
    Write {
        to: u64,
        data: Arc<[u8]>,
    },
    Fill {
        to: u64,
        byte: u8,
        bytes: usize,
    },
    Product(Box<Product>),
    Free(u64),
    /// Takes the time for an event.
    Record(u64),
    /// Waits until a stream has run its work up to a number.
    Wait(StreamKey, u64),
    Graph(Arc<[Work]>),
}

/// A kernel's launch: its name, its sizes, and its only argument as bytes.
#[derive(Clone)]
pub struct Launch {
    pub kernel: Name,
    pub grid: u32,
    pub block: u32,
    pub shared: u32,
    pub params: [u8; size_of::<KronParams>()],
}

impl Launch {
    /// Runs the kernel in the emulation.
    pub fn run(&self, memory: &Memory) -> Done {
        // SAFETY: the bytes are a KronParams that the launch copied, and every bit pattern is one.
        let params = unsafe { self.params.as_ptr().cast::<KronParams>().read_unaligned() };
        for pointer in operands(&params) {
            // An operand of no rows may be the end of its allocation.
            if pointer != 0 && memory.holds(pointer, 0).is_err() {
                eprintln!("fake driver: {} was given {pointer:#x}, which is not the device's", self.kernel);
                return Err(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
            }
        }
        let step = Step {
            kernel: self.kernel,
            grid: self.grid,
            block: self.block,
            shared: self.shared,
            col_tiles: 1,
            cols: 0,
            row_chunks: 1,
            chunk_rows: 1,
            tiles: 0,
            resident: 1,
            early: false,
        };
        // SAFETY: the operands start in live allocations, and the kernels under test are those of the emulated suites,
        // which stay inside them; the zones find a write shortly behind one.
        unsafe { Emulated::new().launch(&step, &params, StreamHandle::DEFAULT) }.map_err(|error| {
            eprintln!("fake driver: {error}");
            CUresult::CUDA_ERROR_LAUNCH_FAILED
        })
    }
}

/// The addresses of whole buffers among a launch's arguments; those of a workspace's parts follow from it.
fn operands(p: &KronParams) -> [u64; 11] {
    let read = [p.a as u64, p.b as u64, p.c as u64, p.x as u64, p.dy as u64, p.key as u64];
    let written = [p.y as u64, p.dx as u64, p.w as u64, p.t as u64, p.grad as u64];
    let mut all = [0; 11];
    all[..6].copy_from_slice(&read);
    all[6..].copy_from_slice(&written);
    all
}
