//! Failures on demand, from `KRON_FAKE_CUDA` or from a test: words with commas between them.
//!
//! * `no-device`: `cuInit` finds none.
//! * `old-driver`: a driver for CUDA 12.4, which does not load modules made for 13.0.
//! * `out-of-memory=N`: the N-th allocation from now on fails, and those after it.
//! * `launch-failure=N`: the N-th launch that runs from now on fails.

/// The failures to come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    pub no_device: bool,
    pub old_driver: bool,
    /// Allocations until memory is out.
    allocations: Option<u64>,
    /// Launches until one fails.
    launches: Option<u64>,
}

impl Faults {
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut faults = Self::default();
        for word in text.split(',').filter(|word| !word.is_empty()) {
            let (name, number) = match word.split_once('=') {
                Some((name, number)) => (name, number.parse().ok().filter(|&n: &u64| n > 0)),
                None => (word, None),
            };
            match (name, number) {
                ("no-device", None) => faults.no_device = true,
                ("old-driver", None) => faults.old_driver = true,
                ("out-of-memory", Some(_)) => faults.allocations = number,
                ("launch-failure", Some(_)) => faults.launches = number,
                _ => return Err(format!("fake driver: {word:?} is not a failure")),
            }
        }
        Ok(faults)
    }

    /// Counts an allocation; returns true if it has to fail.
    pub fn fails_allocation(&mut self) -> bool {
        // Memory that is out stays out.
        self.allocations = self.allocations.map(|left| left.saturating_sub(1));
        self.allocations == Some(0)
    }

    /// Counts a launch; returns true if it has to fail.
    pub fn fails_launch(&mut self) -> bool {
        self.launches = self.launches.map(|left| left.wrapping_sub(1));
        self.launches == Some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_come_when_they_are_due() {
        let mut faults = Faults::parse("out-of-memory=2,launch-failure=2").expect("legal");
        assert_eq!([(); 4].map(|()| faults.fails_allocation()), [false, true, true, true]);
        assert_eq!([(); 4].map(|()| faults.fails_launch()), [false, true, false, false]);
        let mut none = Faults::parse("").expect("legal");
        assert!(none == Faults::default() && !none.fails_allocation() && !none.fails_launch());
        assert!(Faults::parse("no-device").expect("legal").no_device);
        assert!(Faults::parse("old-driver").expect("legal").old_driver);
        for wrong in ["no-driver", "out-of-memory", "launch-failure=0", "no-device=1"] {
            assert!(Faults::parse(wrong).is_err(), "{wrong}");
        }
    }
}
