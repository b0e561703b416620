//! Training on real text with a real model: an adapter beats a new head alone.

mod common;

use std::path::{Path, PathBuf};

use candle_core::{DType, Tensor};
use kron_candle::{Accum, Inject, Operands};
use kron_core::matrix_unit_product;
use kron_train::compute::{Compute, Device, Precision};
use kron_train::config::Method;
use kron_train::data::Tokens;
use kron_train::model::{Files, Weights, build};
use kron_train::run::{Outcome, OutputFolder, StepRecord, Stop, run};
use kron_train::{Config, Progress};
use ndarray::Array2;

/// Lists both half precisions on the CPU and, with the feature `cuda`, every precision on the first GPU.
///
/// Without a GPU the reason is printed to stderr.
fn other_ways() -> Vec<Compute> {
    let mut ways = [Precision::F16, Precision::Bf16]
        .map(|precision| Compute { device: Device::Cpu, precision })
        .to_vec();
    if cfg!(feature = "cuda") {
        match Device::Cuda(0).open() {
            Ok(_) => ways.extend(
                [Precision::F32, Precision::Bf16, Precision::F16]
                    .map(|precision| Compute { device: Device::Cuda(0), precision }),
            ),
            Err(e) => eprintln!("skipped: {e}"),
        }
    }
    ways
}

fn short_run(compute: Compute) -> Outcome {
    let config = Config { compute, ..common::config(Method::Kron) };
    let (weights, data) = common::load(&config);
    run(&config, &weights, &data, None, &Stop::default(), &Progress::Hidden).expect("it runs")
}

/// Trained parameters stay float32 in every precision, and the losses stay near those of float32 on the CPU.
#[test]
fn other_devices_and_precisions_learn_the_same() {
    let want = short_run(Compute::default());
    let mean = |rows: &[StepRecord]| rows.iter().map(|row| row.loss).sum::<f32>() / rows.len() as f32;
    let half = want.steps.len() / 2;
    for compute in other_ways() {
        let got = short_run(compute);
        assert_eq!(got.steps.len(), want.steps.len());
        for (name, group) in got.learner.trained() {
            assert_eq!(group.var().dtype(), DType::F32, "{name}, {compute:?}");
        }
        assert_eq!(got.device_mib().is_some(), compute.device != Device::Cpu, "{compute:?}");
        let (first, wanted) = (got.steps[0].loss, want.steps[0].loss);
        assert!((first / wanted - 1.0).abs() < 0.02, "{compute:?}: first loss {first}, not {wanted}");
        let (first, wanted) = (got.steps[0].gradient, want.steps[0].gradient);
        assert!((first / wanted - 1.0).abs() < 0.03, "{compute:?}: first gradient {first}, not {wanted}");
        let (late, wanted) = (mean(&got.steps[half..]), mean(&want.steps[half..]));
        assert!((late / wanted - 1.0).abs() < 0.1, "{compute:?}: later losses {late}, not {wanted}");
        assert!(late < mean(&got.steps[..half]), "{compute:?} does not learn");
    }
}

/// Writes the small decoder with all its numbers rounded to bf16, so that both precisions have the same weights.
fn rounded_decoder(folder: &Path) -> PathBuf {
    let mut bytes = std::fs::read(common::data("stories260K.bin")).expect("a model");
    let (header, numbers) = bytes.split_at_mut(28);
    assert_eq!(header[..4], 64i32.to_le_bytes(), "the width");
    for number in numbers.chunks_exact_mut(4) {
        let value = f32::from_le_bytes(number.try_into().expect("four bytes"));
        number.copy_from_slice(&half::bf16::from_f32(value).to_f32().to_le_bytes());
    }
    std::fs::copy(common::data("tok512.bin"), folder.join("tok512.bin")).expect("copied");
    let path = folder.join("model.bin");
    std::fs::write(&path, bytes).expect("written");
    path
}

/// With equal weights, bf16 on the CPU differs from float32 by the rounding of activations alone, where a matrix unit
/// does it: in the blocks, and in the output matrix.
#[test]
fn bf16_on_the_cpu_rounds_the_activations_of_every_product() {
    let folder = tempfile::tempdir().expect("a folder");
    let files = Files::find(&rounded_decoder(folder.path())).expect("files");
    let [float, short] = [Precision::F32, Precision::Bf16].map(|precision| {
        let weights =
            Weights::read_for(&files, Compute { precision, ..Compute::default() }).expect("weights");
        build(&weights, &Inject::nothing()).expect("a body")
    });
    let ids: Vec<u32> = (0..64).map(|i| i * 7919 % 509).collect();
    let tokens = Tokens::new(&[&ids]);
    let hidden = [&float, &short].map(|body| body.hidden(&tokens, None).expect("states"));
    let logits = [&float, &short].map(|body| body.logits(&hidden[0]).expect("logits").expect("a decoder"));
    let has_unit = {
        let (x, mut y) = (Array2::<f32>::zeros((64, 64)), Array2::zeros((64, 64)));
        matrix_unit_product(y.view_mut(), Accum::Replace, x.view(), x.view(), Operands::Bf16, false)
    };
    let largest = |tensor: &Tensor| -> f32 {
        tensor.abs().and_then(|values| values.max_all()?.to_scalar()).expect("values")
    };
    // bf16 rounds by up to 2⁻⁹, float32 by 2⁻²⁴ for each of at most 172 terms; five blocks of seven products follow
    // each other.
    for (what, [want, got], products) in [("states", &hidden, 35.0), ("logits", &logits, 1.0)] {
        let error = largest(&(want - got).expect("a difference")) / largest(want);
        let float = products * 172.0 / (1 << 24) as f32;
        let range = if has_unit { float..products / 256.0 } else { 0.0..float };
        assert!(range.contains(&error), "{what}: {error:e} in {range:?}");
    }
}

fn accuracy(method: Method) -> (f64, usize) {
    let mut config = common::config(method);
    config.data.limit_train = 0;
    config.data.limit_eval = 140;
    config.train.epochs = 4;
    config.train.batch = 16;
    let (weights, data) = common::load(&config);
    let outcome = run(&config, &weights, &data, None, &Stop::default(), &Progress::Hidden).expect("it runs");
    let accuracy = outcome.validation.and_then(|score| score.accuracy).expect("an accuracy");
    (accuracy, outcome.learner.body_params())
}

#[test]
fn kron_lora_beats_a_new_head_on_real_text() {
    let (head, none) = accuracy(Method::Head);
    let (kron, params) = accuracy(Method::Kron);
    assert_eq!(none, 0);
    assert!(params > 1000 && params < 20_000, "{params} parameters");
    // Guessing gives one in seven.
    assert!(head > 0.3, "head alone: {head}");
    assert!(kron > head + 0.05, "Kron-LoRA {kron}, head alone {head}");
}

/// Random weights learn little, but the run covers every stage from a folder to its report.
#[test]
fn folders_of_transformers_are_trained_and_reported() {
    for name in ["bert", "llama"] {
        let folder = tempfile::tempdir().expect("a folder");
        let mut config = common::config(Method::Kron);
        config.model = common::data("models").join(name);
        (config.data.max_len, config.train.epochs) = (40, 4);
        let (weights, data) = common::load(&config);
        let output = OutputFolder { path: folder.path().into(), resume: false };
        let outcome =
            run(&config, &weights, &data, Some(&output), &Stop::default(), &Progress::Hidden).expect(name);
        let (first, last) = outcome.steps.split_at(outcome.steps.len() / 2);
        let mean = |rows: &[StepRecord]| rows.iter().map(|row| row.loss).sum::<f32>() / rows.len() as f32;
        assert!(mean(last) < mean(first), "{name}: from {} to {}", mean(first), mean(last));
        let page = std::fs::read_to_string(folder.path().join("report.html")).expect("a report");
        assert_eq!(page.matches("<svg").count(), 2, "{name}: loss and learning rate");
        for text in [
            "</b> training loss</li>",
            "</b> validation loss</li>",
            "</b> learning rate</li>",
            "method = &#34;kron&#34;",
        ] {
            assert!(page.contains(text), "{name}: {text}");
        }
        assert_eq!(outcome.evaluations.len(), 4, "{name}");
        for evaluation in &outcome.evaluations {
            assert!(
                page.contains(&format!("<td class=\"n\">{:.4}</td>", evaluation.loss)),
                "{name}: step {}",
                evaluation.step
            );
        }
    }
}
