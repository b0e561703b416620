//! Allocations of an adapted layer's passes: one y, and of a quantised base no whole matrix.

use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, DType, Device, Layout, Result, Tensor};
use candle_nn::Linear;
use kron_adapter::gguf::{BlockType, Blocks};
use kron_candle::models::GroupTrace;
use kron_candle::{
    FrozenLinear, KronLinear, KronShape, LayerDims, QuantisedLinear, ScaleRule, Scaling, Split,
    TrainableDelta,
};

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

/// The allocator counts for the whole process, so the tests take turns.
static TURN: Mutex<()> = Mutex::new(());

#[test]
fn there_is_no_second_y() -> Result<()> {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let (rows, d_out, d_in) = (4096, 512, 64);
    let shape = KronShape::kron(LayerDims { d_out, d_in }, Split { a_out: 4, a_in: 2 }, 4).expect("legal");
    let scaling = Scaling::new(8.0, 4, ScaleRule::AlphaOverR).expect("legal");
    let base = Linear::new(Tensor::ones((d_out, d_in), DType::F32, &Device::Cpu)?, None);
    let layer = KronLinear::new(base, TrainableDelta::new("m", shape, scaling, 1, &Device::Cpu)?)?;
    let x = Tensor::ones((rows, d_in), DType::F32, &Device::Cpu)?;
    layer.forward_with(&x, None)?;

    let _profiler = dhat::Profiler::builder().testing().build();
    let y = layer.forward_with(&x, None)?;
    let bytes = dhat::HeapStats::get().total_bytes;
    let one = 4 * y.elem_count() as u64;
    assert!(bytes >= one && bytes < one + one / 2, "{bytes} bytes were allocated for a y of {one}");
    Ok(())
}

/// Both passes over a matrix of eight tiles hold one tile, the result, and what a product packs.
#[test]
fn a_quantised_base_is_never_whole() -> Result<()> {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let (rows, tile, columns, threads) = (40usize, 2048, 1024, 2);
    let d_out = 8 * tile;
    let blocks = BlockType::Q4_0;
    let bytes = vec![0x33; d_out * columns / blocks.values() * blocks.bytes()];
    let blocks = Blocks::new(blocks, d_out, columns, bytes).map_err(candle_core::Error::wrap)?;
    let layer = QuantisedLinear::new(blocks, None)?;
    // A packed number has up to three parts of two bytes; of w, 2048 columns by 640 are packed, and of x, each
    // thread's rows, filled up to panels of 32.
    let packed = 6 * 640 * (2048 + threads * rows.next_multiple_of(32));
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
    for (inner, outer, backward) in [(columns, d_out, false), (d_out, columns, true)] {
        let x = CpuStorage::F32(vec![1.0; rows * inner]);
        let layout = Layout::contiguous((rows, inner));
        let pass = || if backward { layer.cpu_backward(&x, &layout) } else { layer.cpu_forward(&x, &layout) };
        // The first pass starts threads and makes tables.
        pool.install(pass)?;
        let profiler = dhat::Profiler::builder().testing().build();
        let y = pool.install(pass)?;
        let peak = dhat::HeapStats::get().max_bytes;
        drop((profiler, y));
        let most = 4 * tile * columns + 4 * rows * outer + packed + (64 << 10);
        // The thread may have kept its tile from the first pass.
        assert!(peak >= 4 * rows * outer && peak <= most, "{peak} bytes at once, backward: {backward}");
        assert!(2 * most < 4 * d_out * columns);
    }
    Ok(())
}

/// Layers on one x take less at once as a group than one by one, for they add to one dX.
#[test]
fn a_group_takes_no_more_than_its_layers() -> Result<()> {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let (rows, d_in) = (2048, 256);
    let layer = |d_out, seed| {
        let shape =
            KronShape::kron(LayerDims { d_out, d_in }, Split { a_out: 8, a_in: 2 }, 8).expect("legal");
        let scaling = Scaling::new(8.0, 8, ScaleRule::AlphaOverR).expect("legal");
        let base = Linear::new(Tensor::ones((d_out, d_in), DType::F32, &Device::Cpu)?, None);
        KronLinear::new(base, TrainableDelta::new("m", shape, scaling, seed, &Device::Cpu)?)
    };
    let (q, k, v) = (layer(256, 1)?, layer(64, 2)?, layer(64, 3)?);
    let x = Tensor::ones((rows, d_in), DType::F32, &Device::Cpu)?;
    let dys = [256, 64, 64].map(|d_out| Tensor::ones((rows, d_out), DType::F32, &Device::Cpu));
    let dys = dys.into_iter().collect::<Result<Vec<_>>>()?;
    let peak = |run: &dyn Fn() -> Result<Tensor>| {
        run()?;
        let profiler = dhat::Profiler::builder().testing().build();
        let dx = run()?;
        let peak = dhat::HeapStats::get().max_bytes;
        drop((profiler, dx));
        Ok::<_, candle_core::Error>(peak)
    };
    let group = peak(&|| {
        let (_, trace) = GroupTrace::new(&[&q, &k, &v], &x, None)?;
        Ok(trace.backward(&dys, true)?.0.expect("asked for"))
    })?;
    let each = peak(&|| {
        let traces = [&q, &k, &v].map(|layer| layer.trace(&x, None).map(|(_, trace)| trace));
        let traces = traces.into_iter().collect::<Result<Vec<_>>>()?;
        let dxs = traces.iter().zip(&dys).map(|(trace, dy)| trace.backward(dy, true));
        let dxs = dxs.map(|backward| Ok(backward?.0.expect("asked for"))).collect::<Result<Vec<_>>>()?;
        &(&dxs[0] + &dxs[1])? + &dxs[2]
    })?;
    let one = 4 * rows * d_in;
    assert!(group >= one && group + one <= each, "{group} bytes at once as a group, {each} one by one");
    Ok(())
}
