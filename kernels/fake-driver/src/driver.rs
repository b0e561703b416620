//! The driver's state, and the order in which work runs.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use cudarc::driver::sys::CUresult;
use kron_kernels::Name;

use crate::Done;
use crate::captured::{Capture, Moment};
use crate::faults::Faults;
use crate::memory::Memory;
use crate::work::{StreamKey, Work};

/// A context; `broken` is the error that its work has ended with.
#[derive(Default)]
pub struct Context {
    pub users: u32,
    pub broken: Option<CUresult>,
}

/// A stream with its queue; every piece of work has a number, and those before it have smaller ones.
#[derive(Default)]
pub struct Stream {
    /// True if it waits for the legacy stream, and the legacy stream for it.
    pub blocking: bool,
    pub capture: Option<u64>,
    queue: VecDeque<(u64, Work)>,
}

#[derive(Default)]
pub struct Event {
    pub context: u64,
    pub timed: bool,
    /// The stream and the number of its last record.
    pub recorded: Option<(StreamKey, u64)>,
    pub captured: Option<Moment>,
    /// When the last record ran.
    pub at: Option<Instant>,
}

pub struct Function {
    pub module: u64,
    pub name: Name,
    /// Bytes of dynamic shared memory that a launch may have.
    pub shared_limit: u32,
}

#[derive(Default)]
pub struct Driver {
    pub started: bool,
    pub faults: Faults,
    pub contexts: BTreeMap<u64, Context>,
    pub memory: Memory,
    pub streams: BTreeMap<StreamKey, Stream>,
    pub events: BTreeMap<u64, Event>,
    pub captures: BTreeMap<u64, Capture>,
    pub graphs: BTreeMap<u64, Arc<[Work]>>,
    pub executables: BTreeMap<u64, Arc<[Work]>>,
    pub modules: BTreeMap<u64, BTreeSet<String>>,
    pub functions: BTreeMap<u64, Function>,
    handles: u64,
    numbers: u64,
}

/// The one primary context.
pub const PRIMARY: u64 = 0x1000;

static DRIVER: Mutex<Option<Driver>> = Mutex::new(None);

thread_local! {
    /// This thread's contexts; the last one is current.
    pub static CURRENT: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
}

/// Calls `f` with the driver, started or not.
pub fn with_any(f: impl FnOnce(&mut Driver) -> Done) -> CUresult {
    let mut driver = DRIVER.lock().unwrap_or_else(PoisonError::into_inner);
    match f(driver.get_or_insert_with(Driver::default)) {
        Ok(()) => CUresult::CUDA_SUCCESS,
        Err(error) => error,
    }
}

/// Calls `f` with the started driver.
pub fn with(f: impl FnOnce(&mut Driver) -> Done) -> CUresult {
    with_any(|driver| if driver.started { f(driver) } else { Err(CUresult::CUDA_ERROR_NOT_INITIALIZED) })
}

/// Calls `f` with the driver and the thread's current context, which has to be in order.
pub fn within(f: impl FnOnce(&mut Driver, u64) -> Done) -> CUresult {
    with(|driver| {
        let context = CURRENT.with_borrow(|stack| stack.last().copied());
        let context = context.ok_or(CUresult::CUDA_ERROR_INVALID_CONTEXT)?;
        let state = driver.contexts.get(&context).ok_or(CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED)?;
        match state.broken {
            None => f(driver, context),
            Some(error) => Err(error),
        }
    })
}

impl Stream {
    pub fn new(blocking: bool) -> Self {
        Self { blocking, ..Self::default() }
    }
}

impl Driver {
    /// Returns a new handle.
    pub fn handle(&mut self) -> u64 {
        self.handles += 16;
        0x10_0000 + self.handles
    }

    pub fn stream(&mut self, key: StreamKey) -> Done<&mut Stream> {
        self.streams.get_mut(&key).ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE)
    }

    /// Adds a context with its legacy stream.
    pub fn add_context(&mut self, context: u64) {
        self.contexts.insert(context, Context { users: 1, broken: None });
        self.streams.insert((context, 0), Stream::new(true));
    }

    /// Queues work on a stream, or adds it to the stream's capture. Returns its number.
    pub fn queue(&mut self, key: StreamKey, work: Work) -> Done<u64> {
        if let Some(capture) = self.stream(key)?.capture {
            return self.capture(key, capture, work).map(|()| 0);
        }
        if key.1 == 0 {
            self.may_use_legacy(key.0)?;
        }
        self.numbers += 1;
        let number = self.numbers;
        if let Work::Record(event) = work {
            let event = self.events.get_mut(&event).ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE)?;
            (event.recorded, event.captured, event.at) = (Some((key, number)), None, None);
        }
        self.stream(key)?.queue.push_back((number, work));
        Ok(number)
    }

    /// Runs all work of a stream.
    pub fn finish(&mut self, key: StreamKey) -> Done {
        self.stream(key)?;
        self.run_up_to(key, u64::MAX);
        self.memory_is_whole(key.0)
    }

    /// Runs a stream's work up to a number.
    pub fn finish_up_to(&mut self, key: StreamKey, number: u64) -> Done {
        self.run_up_to(key, number);
        self.memory_is_whole(key.0)
    }

    /// Runs all work of a context.
    pub fn finish_all(&mut self, context: u64) -> Done {
        let keys: Vec<StreamKey> = self.streams.keys().copied().filter(|key| key.0 == context).collect();
        keys.into_iter().for_each(|key| self.run_up_to(key, u64::MAX));
        self.memory_is_whole(context)
    }

    /// Returns the error that a context's work has ended with; one that wrote beside its memory ends so too.
    fn memory_is_whole(&mut self, context: u64) -> Done {
        let whole = self.memory.check();
        let Some(state) = self.contexts.get_mut(&context) else { return whole };
        state.broken = state.broken.or(whole.err());
        state.broken.map_or(Ok(()), Err)
    }

    /// Runs the work of a stream up to a number, and before each piece the work that it waits for.
    fn run_up_to(&mut self, key: StreamKey, last: u64) {
        while let Some((number, awaited)) = self.next(key, last) {
            for (other, up_to) in awaited {
                self.run_up_to(other, up_to);
            }
            let Some((_, work)) = self.streams.get_mut(&key).and_then(|stream| stream.queue.pop_front())
            else {
                return;
            };
            debug_assert!(number <= last);
            let Some(context) = self.contexts.get(&key.0) else { continue };
            if context.broken.is_none()
                && let Err(error) = self.run(&work)
                && let Some(context) = self.contexts.get_mut(&key.0)
            {
                context.broken = Some(error);
            }
        }
    }

    /// Returns the number of a stream's next work, if it is at most `last`, and what it waits for.
    fn next(&self, key: StreamKey, last: u64) -> Option<(u64, Vec<(StreamKey, u64)>)> {
        let stream = self.streams.get(&key)?;
        let (number, work) = stream.queue.front().filter(|(number, _)| *number <= last)?;
        let mut awaited = match work {
            Work::Wait(other, up_to) => vec![(*other, *up_to)],
            _ => Vec::new(),
        };
        let before = number - 1;
        if key.1 == 0 {
            let blocking = self
                .streams
                .iter()
                .filter(|(other, stream)| **other != key && other.0 == key.0 && stream.blocking);
            awaited.extend(blocking.map(|(other, _)| (*other, before)));
        } else if stream.blocking {
            awaited.push(((key.0, 0), before));
        }
        Some((*number, awaited))
    }

    fn run(&mut self, work: &Work) -> Done {
        match work {
            Work::Launch(launch) => {
                if self.faults.fails_launch() {
                    return Err(CUresult::CUDA_ERROR_LAUNCH_FAILED);
                }
                launch.run(&self.memory)
            }
            Work::Copy { to, from, bytes } => self.memory.copy(*to, *from, *bytes),
            Work::Write { to, data } => self.memory.write(*to, data),
            Work::Fill { to, byte, bytes } => self.memory.fill(*to, *byte, *bytes),
            Work::Product(product) => product.run(&self.memory),
            Work::Free(pointer) => self.memory.free(*pointer),
            Work::Wait(..) => Ok(()), // what it waits for has run
            Work::Record(event) => {
                if let Some(event) = self.events.get_mut(event) {
                    event.at = Some(Instant::now());
                }
                Ok(())
            }
            Work::Graph(nodes) => nodes.iter().try_for_each(|node| self.run(node)),
        }
    }
}
