//! `scripts/gpu_bytes.py`, which compares ncu's bytes with a plan's, on synthetic output of ncu.

#[path = "../../tests/src/notice.rs"]
mod notice;

use std::process::Command;

use kron_core::{Dtype, KronShape, LayerDims, Pass, Split};
use kron_kernels::{ARCHS, LaunchPlan, Problem};

/// Runs the script on kernels that together move `share` of the plan's bytes; returns its exit code and output.
fn verdict(plan: &LaunchPlan, share: f64, kernels: usize) -> Option<(i32, String)> {
    let folder = tempfile::tempdir().expect("a folder");
    let [csv, printed] = ["ncu.csv", "plan.txt"].map(|name| folder.path().join(name));
    let mut text = String::from(
        "==PROF== Profiling\n\"ID\",\"Kernel Name\",\"Metric Name\",\"Metric Unit\",\"Metric Value\"\n",
    );
    let bytes = plan.bytes as f64 * share / plan.steps.len() as f64 / 2.0;
    for (i, step) in plan.steps.iter().take(kernels).enumerate() {
        for (metric, unit, value) in [
            ("gpu__time_duration.sum", "ns", 5.0),
            ("dram__bytes_read.sum", "byte", bytes),
            ("dram__bytes_write.sum", "byte", bytes),
        ] {
            let name = format!("{}(KronParams)", step.kernel);
            text += &format!("\"{i}\",\"{name}\",\"{metric}\",\"{unit}\",\"{value:.0}\"\n");
        }
    }
    let h200 = ARCHS.iter().find(|a| a.name == "H200").expect("listed");
    std::fs::write(&csv, text).expect("a file");
    std::fs::write(&printed, format!("forward, 4096 rows\n{}\n", plan.display(h200))).expect("a file");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/gpu_bytes.py");
    let output =
        Command::new("python3").args([script.as_ref(), csv.as_os_str(), printed.as_os_str()]).output();
    let output =
        output.inspect_err(|e| notice::notice(format_args!("skipped: python3 does not run: {e}"))).ok()?;
    let printed =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    Some((output.status.code()?, printed))
}

#[test]
fn more_than_five_per_cent_above_the_plan_fails() {
    let shape = KronShape::kron(LayerDims { d_out: 4096, d_in: 4096 }, Split { a_out: 16, a_in: 2 }, 8)
        .expect("legal");
    let (dtype, pass, rows) = (Dtype::Bf16, Pass::Forward, 4096);
    let problem = Problem { shape, dtype, pass, rows, accumulate: true, aligned: true };
    let plan = LaunchPlan::new(&problem).expect("legal");
    for (share, kernels, code, word) in
        [(1.04, 2, 0, "passed, 1.040"), (1.06, 2, 1, "FAILED, 1.060"), (1.0, 1, 1, "has not seen")]
    {
        let Some((got, printed)) = verdict(&plan, share, kernels) else { return };
        assert!(got == code && printed.contains(word), "{share}, {kernels} kernels: {got}, {printed}");
    }
}
