//! One adapted layer of Mistral in burn, forward and backward, against burn's own `Lora`, which makes W + ΔW, and a
//! hand-written x·A·B; time and peak memory.
//!
//! ```sh
//! cargo bench -p kron-burn --bench layer -- [ROWS]… [--rounds N]      # 16 128 512 2048 rows, 7 rounds
//! ```
//!
//! The engines take turns within a round, so that a slow moment of the machine meets all of them; a cell is the median
//! of the rounds. Memory is the peak of a step above what lived before it.

use std::time::Instant;

use burn::module::{Lora, Module, Param};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Distribution, Tensor};
use kron_burn::{Kron, KronAdapter, KronForward, KronShape, ScaleRule, Scaling, Split};
use peak_alloc::PeakAlloc;

#[global_allocator]
static PEAK: PeakAlloc = PeakAlloc;

/// Layers of Mistral 7B: name, d_in, d_out.
const LAYERS: [(&str, usize, usize); 4] =
    [("q_proj", 4096, 4096), ("k_proj", 4096, 1024), ("up_proj", 4096, 14336), ("down_proj", 14336, 4096)];
const RANK: usize = 8;
const ALPHA: f32 = 32.0;

/// A frozen layer and a LoRA by two products.
struct ByHand {
    base: Linear,
    a: Param<Tensor<2>>,
    b: Param<Tensor<2>>,
}

impl ByHand {
    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let low = x.clone().matmul(self.a.val()).matmul(self.b.val());
        self.base.forward(x) + low.mul_scalar(ALPHA / RANK as f32)
    }
}

type Step<'a> = Box<dyn Fn(Tensor<2>) -> Tensor<2> + 'a>;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (mut rows, mut rounds, mut arguments) = (Vec::new(), 7, std::env::args().skip(1));
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--bench" => {}
            "--rounds" => rounds = arguments.next().ok_or("--rounds needs a number")?.parse()?,
            number => rows.push(number.parse()?),
        }
    }
    if rows.is_empty() {
        rows = vec![16, 128, 512, 2048];
    }
    println!(
        "| layer | rows | frozen ms | Kron-LoRA ms | by hand ms | burn's Lora ms | Kron-LoRA MiB | by hand MiB | burn's Lora MiB |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for (name, d_in, d_out) in LAYERS {
        for &n in &rows {
            let cells = compare(d_in, d_out, n, rounds)?;
            let times = cells.iter().map(|(ms, _)| format!("{ms:.2}"));
            let memory = cells.iter().skip(1).map(|(_, mib)| format!("{mib:.1}"));
            println!("| {name} | {n} | {} |", times.chain(memory).collect::<Vec<_>>().join(" | "));
        }
    }
    Ok(())
}

/// Median milliseconds and peak MiB of a step of each engine.
fn compare(
    d_in: usize,
    d_out: usize,
    rows: usize,
    rounds: usize,
) -> Result<Vec<(f64, f64)>, Box<dyn std::error::Error>> {
    let device = Device::flex().autodiff();
    device.seed(1);
    let base = LinearConfig::new(d_in, d_out).with_bias(false).init(&device).no_grad();
    base.weight.val();
    let kron = Kron::new(&["0"], 1, |_, dims| {
        // The paper's split: A of 16 × 2 on a hidden size of 4096.
        let shape = KronShape::kron(dims, Split { a_out: 16, a_in: 2 }, RANK)?;
        Ok((shape, Scaling::new(ALPHA, RANK, ScaleRule::AlphaOverR)?))
    })?;
    let kron = kron.attach(vec![base.clone()])?.0.remove(0);
    let lora = base.clone().apply_lora(Lora::new(RANK, f64::from(ALPHA)));
    let adapter = lora.weight.adapter().ok_or("no LoRA")?;
    let by_hand = ByHand { base: base.clone(), a: adapter.a.clone(), b: adapter.b.clone() };
    let theta = |layer: &Linear| layer.weight.reparameterization::<KronAdapter>().map(|a| a.theta.val());
    let engines: [Step; 4] = [
        Box::new(|x| base.forward(x)),
        Box::new(|x| kron.forward_kron(x)),
        Box::new(|x| by_hand.forward(x)),
        Box::new(|x| lora.forward(x)),
    ];
    let x = Tensor::<2>::random([rows, d_in], Distribution::Default, &device).require_grad();
    let dy = Tensor::<2>::random([rows, d_out], Distribution::Default, &device);
    let step = |engine: &Step| {
        let gradients = (engine(x.clone()) * dy.clone()).sum().backward();
        assert!(x.grad(&gradients).is_some());
        gradients
    };
    let trained = theta(&kron).and_then(|theta| theta.grad(&step(&engines[1])));
    assert!(trained.is_some() && adapter.b.val().grad(&step(&engines[3])).is_some());
    let mut times = vec![Vec::new(); engines.len()];
    let mut peaks = vec![0.0f64; engines.len()];
    for _ in 0..rounds {
        for (i, engine) in engines.iter().enumerate() {
            let before = PEAK.current_usage_as_mb();
            PEAK.reset_peak_usage();
            let start = Instant::now();
            let gradients = step(engine);
            times[i].push(start.elapsed().as_secs_f64() * 1e3);
            peaks[i] = peaks[i].max(f64::from(PEAK.peak_usage_as_mb() - before));
            drop(gradients);
        }
    }
    let median = |times: &mut Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    Ok(times.iter_mut().map(median).zip(peaks).collect())
}
