//! The command `bench`: the times of a training step as a table or as JSON.

use crate::Result;
use crate::model::{Files, Weights};
use crate::run::{StepTimes, bench};

use super::cli::Bench;
use super::print::print;

/// Times the steps, and prints the result.
pub fn run(command: Bench) -> Result<()> {
    let (steps, json) = (command.steps, command.json);
    let config = command.config()?;
    let weights = Weights::read_for(&Files::find(&config.model)?, config.compute)?;
    let times = bench(&config, &weights, steps as usize)?;
    print(&if json { times.json()? } else { table(&times) });
    Ok(())
}

/// Renders the times for a reader.
fn table(times: &StepTimes) -> String {
    let row = |name: &str, ms: f64| format!("{name:<32}{ms:>10.1} ms {:>6.1} %", 100.0 * ms / times.step_ms);
    let StepTimes { method, params, batch, max_len, steps, threads, .. } = times;
    let mut lines = vec![
        format!("{method}, {params} trained parameters"),
        format!(
            "{batch} texts of {max_len} tokens, {threads} threads, the step of median time among {steps}"
        ),
    ];
    lines.extend(times.parts_ms.named().map(|(name, ms)| row(name, ms)));
    lines.push(row("sum of the parts", times.sum_of_parts_ms));
    lines.push(row("step", times.step_ms));
    lines.extend(times.products_ms.map(|ms| row("products with frozen matrices", ms)));
    lines.push(format!("{:.1} tokens/s", times.tokens_per_second));
    lines.extend(times.peak_mib.map(|mib| format!("peak memory of the process: {mib:.0} MiB")));
    lines.extend(times.device_mib.map(|mib| format!("memory in use on the GPU: {mib} MiB")));
    lines.join("\n")
}
