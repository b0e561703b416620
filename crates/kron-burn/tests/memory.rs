//! Allocations of an adapted layer's passes: no copy of x, y or θ, and one of a transposed x.

use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Tensor};
use kron_burn::{Kron, KronForward, KronShape, ScaleRule, Scaling, Split};

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

const ROWS: usize = 2048;
const D_IN: usize = 192;
const D_OUT: usize = 256;

fn layer(device: &Device) -> Linear {
    let kron = Kron::new(&["0"], 1, |_, dims| {
        let shape = KronShape::kron(dims, Split { a_out: 4, a_in: 2 }, 4)?;
        Ok((shape, Scaling::new(8.0, 4, ScaleRule::AlphaOverR)?))
    });
    let layers = vec![LinearConfig::new(D_IN, D_OUT).init(device)];
    kron.and_then(|kron| kron.attach(layers)).expect("it fits").0.remove(0)
}

/// Bytes that a function allocates in all, beside what it allocated when it ran before.
fn bytes<T>(f: impl Fn() -> T) -> usize {
    f();
    let profiler = dhat::Profiler::builder().testing().build();
    let result = f();
    let bytes = dhat::HeapStats::get().total_bytes;
    drop((profiler, result));
    bytes as usize
}

/// One test, because the allocator counts for the whole process.
#[test]
fn nothing_is_copied() {
    let device = Device::flex().autodiff();
    let layer = layer(&device);
    let x = Tensor::<2>::ones([ROWS, D_IN], &device);
    let (in_x, in_y, t) = (4 * ROWS * D_IN, 4 * ROWS * D_OUT, 4 * ROWS * 2 * 4);
    // What the products pack, workspaces and graphs; far less than any operand.
    let small = 4 * D_IN * D_OUT + (192 << 10);
    assert!(small < in_x / 3);
    let plain = |x: Tensor<2>| layer.forward(x);
    let fused = |x: Tensor<2>| layer.forward_kron(x);

    let forward = bytes(|| fused(x.clone()));
    assert!((in_y + t..in_y + t + small).contains(&forward), "{forward} bytes for a y of {in_y}");
    let wide = Tensor::<2>::ones([ROWS, D_IN + 64], &device);
    let narrow = bytes(|| fused(wide.clone().narrow(1, 32, D_IN)));
    assert!(narrow < in_y + t + small, "{narrow} bytes for rows of a wider matrix");
    let cube = bytes(|| fused(x.clone()).reshape([2, ROWS / 2, D_OUT]));
    assert!(cube < in_y + t + small, "{cube} bytes with a reshape");
    let columns = Tensor::<2>::ones([D_IN, ROWS], &device);
    let copied = bytes(|| fused(columns.clone().transpose()));
    assert!(
        (in_x + in_y + t..in_x + in_y + t + small).contains(&copied),
        "{copied} bytes for a transposed x"
    );
    assert!(bytes(|| plain(x.clone())) > in_y + 4 * D_IN * D_OUT, "burn's own forward makes W + ΔW");

    // Backward of both, given dY of one matrix: dX of the size of x, once.
    let tracked = x.clone().require_grad();
    let both = bytes(|| fused(tracked.clone()).sum().backward());
    // y, the gradient of a sum (dY), and dX.
    let most = 2 * in_y + in_x + t + 3 * small;
    assert!((2 * in_y + in_x..most).contains(&both), "{both} bytes for forward and backward, at most {most}");
}
