//! The process's peak resident memory, where the system tells it.

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
