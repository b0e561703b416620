//! [`Waiting`]: how a rank waits for what it can only ask about.

use std::thread::{sleep, yield_now};
use std::time::{Duration, Instant};

/// Time for which a receiver asks again at once.
const EAGER: Duration = Duration::from_micros(200);
/// Time between two questions after that.
const PATIENT: Duration = Duration::from_micros(50);

/// Time spent on an operation that is asked for again and again.
pub(super) struct Waiting {
    begin: Instant,
    timeout: Duration,
}

impl Waiting {
    /// Begins to wait.
    pub fn new(timeout: Duration) -> Self {
        Self { begin: Instant::now(), timeout }
    }

    /// Lets others work; returns false after the time-out.
    pub fn goes_on(&mut self) -> bool {
        match self.begin.elapsed() {
            waited if waited > self.timeout => return false,
            waited if waited > EAGER => sleep(PATIENT),
            _ => yield_now(),
        }
        true
    }
}
