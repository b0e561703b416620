//! The process's peak resident memory and processor time, where the system tells them, and a GPU's memory.

use candle_core::Device;

/// Starts a new peak (Linux); elsewhere, and without the right, nothing happens.
pub fn restart_peak() {
    // A refusal leaves the old peak, which is still an upper bound.
    let _refused = std::fs::write("/proc/self/clear_refs", "5");
}

/// Highest resident memory in MiB since the last restart.
pub fn peak_mib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024.0)
}

/// MiB of a GPU's memory that are in use, by every process there is on it; `None` for the CPU.
pub fn device_mib(device: &Device) -> Option<u64> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => {
            let (free, total) = device.cuda_stream().context().mem_get_info().ok()?;
            Some((total - free) as u64 >> 20)
        }
        _ => None,
    }
}

/// Processor seconds of all threads so far, in steps of 10 ms; `None` where the system does not tell.
pub fn cpu_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The program's name, which may hold anything, ends with the last parenthesis.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |i: usize| fields.get(i)?.parse::<f64>().ok();
    // Linux counts in hundredths of a second on every architecture.
    Some((ticks(11)? + ticks(12)?) / 100.0)
}
