//! Training on real text with a real model: an adapter beats a new head alone.

mod common;

use candle_core::DType;
use kron_train::compute::{Compute, Device, Precision};
use kron_train::config::Method;
use kron_train::run::{Outcome, OutputFolder, StepRecord, Stop, run};
use kron_train::{Config, Progress};

/// Lists half precision on the CPU and, with the feature `cuda`, every precision on the first GPU.
///
/// Without a GPU the reason is printed to stderr.
fn other_ways() -> Vec<Compute> {
    let mut ways = vec![Compute { device: Device::Cpu, precision: Precision::F16 }];
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
                page.contains(&format!("<td>{:.4}</td>", evaluation.loss)),
                "{name}: step {}",
                evaluation.step
            );
        }
    }
}
