//! Memory and processor time of the process, and memory of its GPU.
//!
//! Linux reports them in `/proc`; on other systems they are `None`, and the columns of the logs stay empty.

use candle_core::Device;

/// Restarts the measurement of [`peak_mib`], where the system allows it.
pub(crate) fn restart_peak() {
    process::restart_peak();
}

/// Returns the highest resident memory in MiB since the last restart.
pub(crate) fn peak_mib() -> Option<f64> {
    process::peak_mib()
}

/// Returns the processor seconds of all threads so far, in steps of 10 ms.
pub(crate) fn cpu_seconds() -> Option<f64> {
    process::cpu_seconds()
}

/// Returns the memory in use on a GPU, by all processes, in MiB; `None` for the CPU.
pub(crate) fn device_mib(device: &Device) -> Option<u64> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => {
            let (free, total) = device.cuda_stream().context().mem_get_info().ok()?;
            Some((total - free) as u64 >> 20)
        }
        _ => None,
    }
}

#[cfg(target_os = "linux")]
mod process {
    pub fn restart_peak() {
        // Without the right to write, the old peak stays: still an upper bound.
        let _denied = std::fs::write("/proc/self/clear_refs", "5");
    }

    pub fn peak_mib() -> Option<f64> {
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kib / 1024.0)
    }

    pub fn cpu_seconds() -> Option<f64> {
        let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
        // The program's name may contain anything, and ends with the last parenthesis.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let ticks = |i: usize| fields.get(i)?.parse::<f64>().ok();
        // A tick is a hundredth of a second on every architecture.
        Some((ticks(11)? + ticks(12)?) / 100.0)
    }
}

#[cfg(not(target_os = "linux"))]
mod process {
    pub const fn restart_peak() {}

    pub const fn peak_mib() -> Option<f64> {
        None
    }

    pub const fn cpu_seconds() -> Option<f64> {
        None
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn linux_reports_memory_and_processor_time() {
        restart_peak();
        let before = cpu_seconds().expect("a time");
        let mut sum = 0u64;
        while cpu_seconds().expect("a time") <= before {
            sum = (0..100_000u64).fold(sum, |sum, i| sum.wrapping_mul(31).wrapping_add(i));
        }
        assert!(peak_mib().expect("a peak") > 1.0, "{sum}");
        assert_eq!(device_mib(&Device::Cpu), None);
    }
}
