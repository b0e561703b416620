//! The table of docs/SCALING.md about frozen weights that do not fit one device, from a model of memory, traffic and
//! time.

use std::path::Path;

const GB: f64 = 1e9;

/// Eight H200 SXM with NVLink: datasheet values, and the share of the peak that a trainer's products reach.
struct Machine {
    devices: f64,
    memory: f64,
    /// Bytes per second that a device receives while it sends as many.
    link: f64,
    /// Floating-point operations per second in bf16.
    peak: f64,
    reached: f64,
}

const H200: Machine =
    Machine { devices: 8.0, memory: 141.0 * GB, link: 450.0 * GB, peak: 989e12, reached: 0.5 };

struct Model {
    name: &'static str,
    hidden: f64,
    layers: f64,
    intermediate: f64,
    kv: f64,
    vocabulary: f64,
    /// Matrices of the vocabulary: embedding and head.
    words: f64,
}

const MODELS: [Model; 2] = [
    Model {
        name: "7 B (Mistral)",
        hidden: 4096.0,
        layers: 32.0,
        intermediate: 14336.0,
        kv: 1024.0,
        vocabulary: 32000.0,
        words: 2.0,
    },
    Model {
        name: "70 B (Llama 3)",
        hidden: 8192.0,
        layers: 80.0,
        intermediate: 28672.0,
        kv: 1024.0,
        vocabulary: 128_256.0,
        words: 2.0,
    },
];

/// Tokens of a sequence, and micro-batches of one sequence for each device in a step.
const TOKENS: f64 = 4096.0;
const MICRO: f64 = 4.0;
const BF16: f64 = 2.0;
/// Kron-LoRA (4, 4) of rank 8 on q, k, v, o, gate, up and down: value, gradient and two moments in float32.
const STATE: f64 = 16.0;

impl Model {
    fn block(&self) -> f64 {
        2.0 * self.hidden * (self.hidden + self.kv) + 3.0 * self.hidden * self.intermediate
    }

    fn params(&self) -> f64 {
        self.layers * self.block() + self.words * self.vocabulary * self.hidden
    }

    fn theta(&self) -> f64 {
        let (a, rank) = (4.0, 8.0);
        let layer = |d_out: f64, d_in: f64| a * a + rank * (d_out + d_in) / a;
        let (h, i) = (self.hidden, self.intermediate);
        self.layers * (2.0 * layer(h, h) + 2.0 * layer(self.kv, h) + 2.0 * layer(i, h) + layer(h, i))
    }

    /// Operations of a sequence: forward, the gradient of x, and forward again, because blocks are recomputed.
    fn operations(&self) -> f64 {
        // Half of the scores are masked; both operands of these products have gradients.
        let attention = self.layers * 2.0 * TOKENS * self.hidden;
        let weights = 2.0 * (self.params() - self.vocabulary * self.hidden);
        TOKENS * (3.0 * weights + 4.0 * attention)
    }

    /// Bytes of activations: the inputs of so many blocks, all of one block of one sequence, and its logits with their
    /// gradient in float32.
    fn activations(&self, blocks: f64) -> f64 {
        let logits = 2.0 * 4.0 * self.vocabulary;
        TOKENS * (BF16 * (blocks * self.hidden + 8.0 * self.hidden + 4.0 * self.intermediate) + logits)
    }
}

struct Way {
    name: &'static str,
    memory: f64,
    /// Bytes that a device sends in a step.
    sent: f64,
    seconds: f64,
}

fn ways(model: &Model, machine: &Machine) -> [Way; 3] {
    let n = machine.devices;
    let state = STATE * model.theta();
    let compute = MICRO * model.operations() / (machine.peak * machine.reached);
    let gradients = 2.0 * (n - 1.0) / n * 4.0 * model.theta();
    let weights = BF16 * model.params();
    // Weights arrive for forward and once more for backward, where a block is recomputed too.
    let gathered = MICRO * 2.0 * (n - 1.0) / n * weights + gradients;
    let boundary = n * MICRO * 2.0 * BF16 * TOKENS * model.hidden;
    let micro_batches = n * MICRO;
    // The largest parts that are whole at a time: a block and the next one, or the head.
    let whole = (2.0 * model.block()).max(model.vocabulary * model.hidden);
    [
        Way {
            name: "data parallel",
            memory: weights + state + model.activations(model.layers),
            sent: gradients,
            seconds: compute.max(gradients / machine.link),
        },
        Way {
            name: "ZeRO-3",
            memory: weights / n + BF16 * whole + state + model.activations(model.layers),
            sent: gathered,
            seconds: compute.max(gathered / machine.link),
        },
        Way {
            name: "pipeline",
            // The first stage keeps the inputs of its blocks for as many sequences as there are stages.
            memory: (weights + state) / n + model.activations(n * model.layers / n),
            sent: boundary,
            seconds: compute * (micro_batches + n - 1.0) / micro_batches + boundary / machine.link,
        },
    ]
}

fn table() -> String {
    let mut text = String::from(
        "| model | way | memory of a device, GB | fits 141 GB | sent by a device in a step, GB | step, s |\n\
         |---|---|---:|---|---:|---:|\n",
    );
    for model in &MODELS {
        for way in ways(model, &H200) {
            let fits = if way.memory < 0.95 * H200.memory { "yes" } else { "no" };
            text += &format!(
                "| {} | {} | {:.1} | {fits} | {:.2} | {:.2} |\n",
                model.name,
                way.name,
                way.memory / GB,
                way.sent / GB,
                way.seconds
            );
        }
    }
    text
}

#[test]
fn the_page_has_the_model_s_table() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/SCALING.md");
    let page = std::fs::read_to_string(page).expect("the page");
    assert!(page.contains(&table()), "docs/SCALING.md lacks\n{}", table());
}

#[test]
fn the_models_have_their_published_sizes() {
    let sizes: Vec<f64> = MODELS.iter().map(|model| (model.params() / 1e8).round() / 10.0).collect();
    assert_eq!(sizes, [7.2, 70.6]);
}
