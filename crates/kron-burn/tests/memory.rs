//! Allocations of an adapted layer's passes beside those of burn's own frozen layer: no copy of x, y or θ; a transposed x
//! is copied once, as burn's own product copies it.

use burn::module::{Module, Param};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Gradients, Tensor};
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

/// Bytes that a function allocates in all, beside what it allocated when it ran before: the least of several runs,
/// because a thread that first takes part in burn's own product allocates a buffer for it.
fn bytes<T>(f: impl Fn() -> T) -> usize {
    f();
    let run = |_| {
        let profiler = dhat::Profiler::builder().testing().build();
        let result = f();
        let bytes = dhat::HeapStats::get().total_bytes;
        drop((profiler, result));
        bytes as usize
    };
    (0..5).map(run).min().unwrap_or_default()
}

/// One test, because the allocator counts for the whole process.
#[test]
fn nothing_is_copied() {
    let device = Device::flex().autodiff();
    let adapted = layer(&device);
    let frozen =
        Linear { weight: Param::from_tensor(adapted.weight.base()), bias: adapted.bias.clone() }.no_grad();
    let x = Tensor::<2>::ones([ROWS, D_IN], &device).require_grad();
    let (in_x, in_y, t) = (4 * ROWS * D_IN, 4 * ROWS * D_OUT, 4 * ROWS * 2 * 4);
    // Workspaces, factors and the graph: less than a third of any operand.
    let small = t + (400 << 10);
    assert!(small < in_x / 3 && in_x < in_y);
    // Bytes of an adapted layer above those of the frozen one.
    let above = |step: &dyn Fn(&Linear) -> Gradients| {
        bytes(|| step(&adapted)) as isize - bytes(|| step(&frozen)) as isize
    };
    let forward = |layer: &Linear, x: Tensor<2>| layer.forward_kron(x);
    let backward = |y: Tensor<2>| y.sum().backward();

    let plain = above(&|layer| backward(forward(layer, x.clone())));
    assert!((t as isize..small as isize).contains(&plain), "{plain} bytes for the adapter");
    let wide = Tensor::<2>::ones([ROWS, D_IN + 64], &device).require_grad();
    let narrow = above(&|layer| backward(forward(layer, wide.clone().narrow(1, 32, D_IN))));
    assert!(narrow < small as isize, "{narrow} bytes for rows of a wider matrix");
    let cube = above(&|layer| {
        let x = x.clone().reshape([2, ROWS / 2, D_IN]);
        layer.forward_kron(x).sum().backward()
    });
    assert!(cube < small as isize, "{cube} bytes for three axes");
    let columns = Tensor::<2>::ones([D_IN, ROWS], &device).require_grad();
    let transposed = |layer: &Linear| backward(forward(layer, columns.clone().transpose()));
    let (all, usual) = (bytes(|| transposed(&adapted)), bytes(|| backward(forward(&adapted, x.clone()))));
    let copied = all as isize - usual as isize;
    let one = in_x as isize..(in_x + small) as isize;
    assert!(one.contains(&copied), "{copied} bytes for a transposed x of {in_x}");
    let copied = above(&transposed);
    assert!(copied < small as isize, "{copied} bytes for a transposed x, which burn's product copies, too");

    // What the test would see: burn's own forward makes W + ΔW.
    let dense = above(&|layer| backward(layer.forward(x.clone())));
    assert!(dense > 4 * (D_IN * D_OUT) as isize, "{dense} bytes");
}
