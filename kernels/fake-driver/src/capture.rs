//! Captures of streams, and the calls that they forbid.

use std::collections::BTreeMap;
use std::thread;

use cudarc::driver::sys::CUresult;

use crate::Done;
use crate::captured::{Capture, MODE, Mode, Moment};
use crate::driver::{Driver, Stream};
use crate::work::{StreamKey, Work};

impl Driver {
    pub fn begin_capture(&mut self, key: StreamKey, mode: Mode) -> Done {
        if key.1 == 0 {
            return Err(CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
        }
        let id = self.handle();
        let stream = self.stream(key)?;
        if stream.capture.is_some() {
            return Err(CUresult::CUDA_ERROR_ILLEGAL_STATE);
        }
        stream.capture = Some(id);
        let capture = Capture {
            origin: key,
            mode,
            thread: thread::current().id(),
            invalid: false,
            nodes: Vec::new(),
            moment: 0,
            members: BTreeMap::from([(key, (0, 0))]),
        };
        self.captures.insert(id, capture);
        Ok(())
    }

    /// Ends a capture; its work is the new graph.
    pub fn end_capture(&mut self, key: StreamKey) -> Done<u64> {
        let id = self.stream(key)?.capture.ok_or(CUresult::CUDA_ERROR_ILLEGAL_STATE)?;
        let capture = self.captures.get_mut(&id).ok_or(CUresult::CUDA_ERROR_ILLEGAL_STATE)?;
        if capture.mode != Mode::Relaxed && capture.thread != thread::current().id() {
            return Err(CUresult::CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD);
        }
        if capture.origin != key {
            capture.invalid = true;
            return Err(CUresult::CUDA_ERROR_STREAM_CAPTURE_UNMATCHED);
        }
        let Some(capture) = self.captures.remove(&id) else { return Err(CUresult::CUDA_ERROR_ILLEGAL_STATE) };
        for member in capture.members.keys() {
            self.stream(*member)?.capture = None;
        }
        let open = |(stream, (last, joined)): (&StreamKey, &(usize, usize))| *stream != key && last > joined;
        if capture.invalid {
            return Err(CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
        }
        if capture.members.iter().any(open) {
            return Err(CUresult::CUDA_ERROR_STREAM_CAPTURE_UNJOINED);
        }
        let graph = self.handle();
        self.graphs.insert(graph, capture.nodes.into());
        Ok(graph)
    }

    /// Returns the capture of a stream, and whether it is still valid.
    pub fn capturing(&mut self, key: StreamKey) -> Done<Option<bool>> {
        let Some(id) = self.stream(key)?.capture else { return Ok(None) };
        Ok(self.captures.get(&id).map(|capture| !capture.invalid))
    }

    /// Adds work to a stream's capture.
    pub fn capture(&mut self, key: StreamKey, id: u64, work: Work) -> Done {
        let capture = self.captures.get_mut(&id).ok_or(CUresult::CUDA_ERROR_ILLEGAL_STATE)?;
        if capture.invalid {
            return Err(CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
        }
        if matches!(work, Work::Write { .. } | Work::Free(_)) {
            capture.invalid = true;
            return Err(CUresult::CUDA_ERROR_NOT_SUPPORTED);
        }
        capture.moment += 1;
        let moment = capture.moment;
        capture.members.entry(key).or_default().0 = moment;
        match work {
            Work::Record(event) => {
                let mark = Moment { capture: id, stream: key, moment };
                let event = self.events.get_mut(&event).ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE)?;
                (event.captured, event.recorded) = (Some(mark), None);
            }
            work => capture.nodes.push(work),
        }
        Ok(())
    }

    /// Makes a stream wait for a moment of a capture, which it joins.
    pub fn join_capture(&mut self, key: StreamKey, mark: Moment) -> Done {
        if key.1 == 0 {
            self.may_use_legacy(key.0)?;
            return self.invalidate_one(mark.capture, CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
        }
        let own = self.stream(key)?.capture;
        let Some(capture) =
            self.captures.get_mut(&mark.capture).filter(|_| own.is_none_or(|id| id == mark.capture))
        else {
            return Err(CUresult::CUDA_ERROR_STREAM_CAPTURE_UNMATCHED);
        };
        let waited = capture.members.entry(mark.stream).or_default();
        waited.1 = waited.1.max(mark.moment);
        capture.moment += 1;
        let moment = capture.moment;
        capture.members.entry(key).or_default().0 = moment;
        self.stream(key)?.capture = Some(mark.capture);
        Ok(())
    }

    /// Fails, and invalidates the captures in the way, if a capture forbids this thread's unsafe calls.
    pub fn may_be_unsafe(&mut self) -> Done {
        let (thread, mode) = (thread::current().id(), MODE.get());
        let in_the_way = |capture: &Capture| match (capture.thread == thread, capture.mode) {
            (_, Mode::Relaxed) => false,
            (true, _) => mode != Mode::Relaxed,
            (false, of_capture) => mode == Mode::Global && of_capture == Mode::Global,
        };
        self.invalidate(in_the_way, CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED)
    }

    /// Fails, and invalidates its captures, if a stream of the context is captured.
    pub fn is_not_captured(&mut self, context: u64) -> Done {
        let of_context = |capture: &Capture| capture.origin.0 == context;
        self.invalidate(of_context, CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED)
    }

    /// Fails, and invalidates its capture, if the stream is captured; for the legacy stream any stream
    /// counts that it synchronises with.
    pub fn may_wait_for(&mut self, key: StreamKey) -> Done {
        if key.1 == 0 {
            return self.may_use_legacy(key.0);
        }
        self.no_node_for(key, CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED)
    }

    /// Fails, and invalidates its capture, if the stream is captured: the call would be a node of no kind known here.
    pub fn no_node_for(&mut self, key: StreamKey, error: CUresult) -> Done {
        match self.stream(key)?.capture {
            Some(id) => self.invalidate_one(id, error),
            None => Ok(()),
        }
    }

    fn invalidate_one(&mut self, id: u64, error: CUresult) -> Done {
        self.captures.get_mut(&id).ok_or(CUresult::CUDA_ERROR_STREAM_CAPTURE_UNMATCHED)?.invalid = true;
        Err(error)
    }

    /// Fails, and invalidates its capture, if a stream is captured that the legacy stream synchronises with.
    pub fn may_use_legacy(&mut self, context: u64) -> Done {
        let blocking = |(key, stream): (&StreamKey, &Stream)| {
            stream.capture.filter(|_| key.0 == context && stream.blocking)
        };
        let ids: Vec<u64> = self.streams.iter().filter_map(blocking).collect();
        for id in &ids {
            self.captures.get_mut(id).ok_or(CUresult::CUDA_ERROR_ILLEGAL_STATE)?.invalid = true;
        }
        if ids.is_empty() { Ok(()) } else { Err(CUresult::CUDA_ERROR_STREAM_CAPTURE_IMPLICIT) }
    }

    fn invalidate(&mut self, which: impl Fn(&Capture) -> bool, error: CUresult) -> Done {
        let mut found = self.captures.values_mut().filter(|capture| which(capture)).peekable();
        if found.peek().is_none() {
            return Ok(());
        }
        found.for_each(|capture| capture.invalid = true);
        Err(error)
    }
}
