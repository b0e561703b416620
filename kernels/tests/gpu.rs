//! The driver's side: a missing device on any machine; graphs and primitives on a machine with a GPU.
#![cfg(feature = "cuda")]

mod common;
#[path = "common/layer.rs"]
mod layer;
#[path = "../../tests/src/notice.rs"]
mod notice;

use common::Float;
use common::group::{self, GROUPS, GroupCase};
use common::memory::device::Copies;
use common::primitives::{PRIMITIVES, input, same_as, step};
use common::segments::{self, Batch, BatchCase};
use cudarc::driver::sys;
use half::bf16;
use kron_core::{Dropout, DropoutKey, Error, KronShape, LayerDims, Split};
use kron_kernels::params::KronParams;
use kron_kernels::{Cuda, Emulated, Gpu, KeyHandle, Launcher, StreamHandle};
use layer::{Layer, aligned, device};
use notice::notice;

#[test]
fn a_missing_device_is_an_error_and_never_a_panic() {
    let error = Gpu::new(1 << 20).expect_err("no machine has that many devices");
    assert!(matches!(error, Error::Unsupported(_)), "{error}");
    match Gpu::count() {
        Ok(count) => notice(format_args!("{count} CUDA devices")),
        Err(Error::Unsupported(message)) => notice(format_args!("skipped: {message}")),
        Err(other) => panic!("{other}"),
    }
}

/// Even the first launches of a process can be captured, and a replay gives the same bits as the calls.
#[test]
fn calls_are_captured_in_a_graph() {
    let Some((_alone, gpu)) = device() else { return };
    let kron = |layer, split, rank| KronShape::kron(layer, split, rank).expect("legal");
    let odd = kron(LayerDims { d_out: 69, d_in: 155 }, Split { a_out: 3, a_in: 5 }, 6);
    let both = || (Layer::<bf16>::new(&gpu, aligned(), 130), Layer::<f32>::new(&gpu, odd, 19));
    let (mut captured, mut called) = (both(), both());
    let before = [captured.0.bits(), captured.1.bits()];
    let stream = gpu.context().new_stream().expect("a stream");
    // SAFETY: the stream is of the device's context and outlives what is queued on it.
    let handle = unsafe { StreamHandle::from_raw(stream.cu_stream() as u64) };
    gpu.synchronize().expect("the uploads end before another stream begins");

    let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    stream.begin_capture(mode).expect("a capture begins");
    let on = Cuda::with(&gpu).on(handle);
    let queued = captured.0.queue(&on, None).and_then(|()| captured.1.queue(&on, None));
    let flags = sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = stream.end_capture(flags).expect("a capture ends");
    queued.expect("a launch allocates nothing and waits for nothing");
    let graph = graph.expect("launches were captured");
    let bits = |(a, b): &(Layer<bf16>, Layer<f32>)| [a.bits(), b.bits()];
    assert!(bits(&captured) == before, "a capture computes nothing");

    for replay in 1..=2 {
        graph.launch().expect("a replay");
        called.0.queue(&on, None).expect("a call");
        called.1.queue(&on, None).expect("a call");
        assert!(bits(&captured) != before && bits(&captured) == bits(&called), "replay {replay}");
    }
}

/// Rows of many adapters in a device's memory, against the oracle and the emulator's single calls.
#[test]
fn rows_of_many_adapters_agree_with_the_oracle() {
    fn test<E: Float>(case: &BatchCase, gpu: &Gpu) {
        let run = |batch: Batch<E>| {
            let op = batch.of.case.op();
            batch.run_in(&op, &Cuda::with(gpu), &Copies::new(gpu))
        };
        segments::check_run::<E>(case.clone(), run, &Emulated::new());
    }
    let Some((_alone, gpu)) = device() else { return };
    for case in segments::batches().into_iter().step_by(stride()) {
        test::<f32>(&case, &gpu);
        test::<bf16>(&case, &gpu);
    }
}

/// Several adapters on one X in a device's memory, joined and one by one, against the oracle.
#[test]
fn groups_agree_with_the_oracle() {
    fn test<E: Float>(case: GroupCase, gpu: &Gpu) {
        group::check_run::<E>(case, |group| group.run_in(&Cuda::with(gpu), &Copies::new(gpu)));
    }
    let Some((_alone, gpu)) = device() else { return };
    let both = |gpu: &Gpu| {
        for case in GROUPS.into_iter().step_by(stride()) {
            test::<f32>(case, gpu);
            test::<bf16>(case, gpu);
        }
    };
    both(&gpu);
    // A GPU of one multiprocessor joins small groups too.
    both(&gpu.aimed_at(1));
}

/// Steps through cases: within a rehearsal of the script for a GPU, on a driver that emulates it, every fourth is run.
fn stride() -> usize {
    if std::env::var_os("KRON_REHEARSAL").is_some() { 4 } else { 1 }
}

/// Each replay of a graph has the mask of the numbers that then lie in the device's memory.
#[test]
fn replays_have_masks_of_their_own() {
    let Some((_alone, gpu)) = device() else { return };
    let layer = || {
        let mut layer = Layer::<bf16>::new(&gpu, aligned(), 130);
        layer.op = layer.op.with_dropout(Dropout::new(0.25).expect("a probability"));
        layer
    };
    let (mut captured, mut called) = (layer(), layer());
    // Two u64 as four words.
    let words = |seed: u32, offset: u32| [seed, 0, offset, 0].map(f32::from_bits);
    let mut memory = gpu.upload(&words(0, 0)).expect("a little memory");
    let stream = gpu.context().new_stream().expect("a stream");
    // SAFETY: the stream is of the device's context and outlives what is queued on it.
    let handle = unsafe { StreamHandle::from_raw(stream.cu_stream() as u64) };
    let on = Cuda::with(&gpu).on(handle);
    // SAFETY: the memory holds two u64 on a 256-byte boundary; `write` waits for the work that reads them.
    let key = unsafe { KeyHandle::from_raw(memory.slice().pointer()) };
    gpu.synchronize().expect("the uploads end before another stream begins");

    let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    stream.begin_capture(mode).expect("a capture begins");
    let queued = captured.queue(&on.with_key(key), Some(DropoutKey { seed: 1, offset: 2 }));
    let flags = sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = stream.end_capture(flags).expect("a capture ends").expect("launches were captured");
    queued.expect("a launch allocates nothing and waits for nothing");
    for step in 0..3 {
        memory.write(&words(40, step)).expect("a copy");
        graph.launch().expect("a replay");
        let key = DropoutKey { seed: 41, offset: 2 + u64::from(step) };
        called.queue(&on, Some(key)).expect("a call");
        assert!(captured.bits() == called.bits(), "replay {step}");
    }
}

/// Compares this GPU's primitives with the emulator's, and writes them to the file in `KRON_WRITE_PRIMITIVES`.
#[test]
fn bits_of_this_gpu() {
    let Some((_alone, gpu)) = device() else { return };
    let on_gpu = |index: usize| {
        let (name, words_in, words_out, kind) = PRIMITIVES[index];
        let floats: Vec<f32> = input(index as u32, words_in, kind).into_iter().map(f32::from_bits).collect();
        let x = gpu.upload(&floats).expect("a little memory");
        let mut y = gpu.upload(&vec![0f32; 32 * words_out]).expect("a little memory");
        let params = KronParams {
            x: x.slice().pointer() as _,
            y: y.slice_mut().pointer() as _,
            ..KronParams::default()
        };
        // SAFETY: a primitive reads its words of x and writes its words of y, and no more.
        unsafe { gpu.launch(&step(index), &params, StreamHandle::DEFAULT) }
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        let mut out = vec![0f32; 32 * words_out];
        y.read(&mut out).unwrap_or_else(|e| panic!("{name}: {e}"));
        out.into_iter().map(f32::to_bits)
    };
    let words: Vec<u32> = (0..PRIMITIVES.len()).flat_map(on_gpu).collect();
    if let Some(path) = std::env::var_os("KRON_WRITE_PRIMITIVES") {
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        std::fs::write(&path, bytes).expect("the golden file can be written");
    }
    same_as(words.into_iter());
}
