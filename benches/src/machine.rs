//! The machine that a run was made on.

use serde::{Deserialize, Serialize};
use sysinfo::System;

/// The machine and the program.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Architecture.
    pub machine: String,
    /// CPU model.
    pub cpu: String,
    /// Logical CPUs.
    pub cpus: usize,
    /// The instruction set extensions that matter here.
    pub features: Vec<String>,
    /// Bytes of the last cache level, if the system tells.
    pub cache_bytes: Option<usize>,
    /// Operating system.
    pub os: String,
    /// Compiler.
    pub rustc: String,
    /// Version of this workspace.
    pub version: String,
    /// Commit of the sources.
    pub commit: String,
}

impl Machine {
    /// Describes this machine.
    pub fn this() -> Self {
        let system = System::new().map(|mut system| {
            system.refresh_cpu_all();
            system
        });
        let brand = |s: System| s.cpus().first().map(|c| c.brand().trim().to_string());
        let cpu = system.ok().and_then(brand).filter(|b| !b.is_empty());
        Self {
            machine: std::env::consts::ARCH.into(),
            cpu: cpu.unwrap_or_else(|| "unknown".into()),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            features: features(),
            cache_bytes: last_cache(),
            os: System::long_os_version().unwrap_or_else(|_| std::env::consts::OS.into()),
            rustc: env!("KRON_BENCH_RUSTC").into(),
            version: env!("CARGO_PKG_VERSION").into(),
            commit: env!("KRON_BENCH_COMMIT").into(),
        }
    }
}

/// Returns the bytes that a program can still allocate; `None` if the system does not tell.
pub fn available_memory() -> Option<u64> {
    let mut system = System::new().ok()?;
    system.refresh_memory();
    Some(system.available_memory()).filter(|&b| b > 0)
}

#[cfg(target_arch = "x86_64")]
fn features() -> Vec<String> {
    macro_rules! detected {
        ($($name:tt),*) => {
            [$(($name, std::arch::is_x86_feature_detected!($name))),*]
        };
    }
    let all = detected!("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512bf16", "avx512fp16");
    all.into_iter().filter(|(_, has)| *has).map(|(name, _)| name.to_string()).collect()
}

#[cfg(not(target_arch = "x86_64"))]
fn features() -> Vec<String> {
    Vec::new()
}

/// Returns the bytes of the largest cache of the first CPU, as Linux describes it.
pub fn last_cache() -> Option<usize> {
    let caches = std::fs::read_dir("/sys/devices/system/cpu/cpu0/cache").ok()?;
    let sizes = caches.flatten().filter_map(|c| std::fs::read_to_string(c.path().join("size")).ok());
    sizes.filter_map(|s| parse_size(s.trim())).max()
}

/// Parses sizes such as `32768K` and `32M`.
fn parse_size(text: &str) -> Option<usize> {
    let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let times = match unit {
        "" => 1,
        "K" => 1 << 10,
        "M" => 1 << 20,
        "G" => 1 << 30,
        _ => return None,
    };
    digits.parse::<usize>().ok()?.checked_mul(times)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cache_sizes_are_read_as_linux_writes_them() {
        assert_eq!(parse_size("32768K"), Some(32 << 20));
        assert_eq!(parse_size("8M"), Some(8 << 20));
        assert_eq!(parse_size("512"), Some(512));
        assert_eq!(parse_size("many"), None);
    }

    #[test]
    fn a_machine_knows_its_compiler() {
        assert!(Machine::this().rustc.starts_with("rustc "));
    }
}
