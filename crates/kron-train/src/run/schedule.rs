//! The learning rate as a function of the step.

use crate::config::{Schedule, Train};

/// The rate of step `step` of `total`, from 0: a straight rise over the warm-up, then the schedule.
pub fn rate(train: &Train, step: u64, total: u64) -> f64 {
    let rise = (train.warmup * total as f64).round();
    let at = step as f64;
    if at < rise {
        return train.rate * (at + 1.0) / rise;
    }
    let done = (at - rise) / (total as f64 - rise).max(1.0);
    train.rate
        * match train.schedule {
            Schedule::Constant => 1.0,
            Schedule::Linear => 1.0 - done,
            Schedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * done).cos()),
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_rises_and_falls() {
        let train = |schedule| Train { rate: 2.0, warmup: 0.1, schedule, ..Train::default() };
        for schedule in [Schedule::Linear, Schedule::Cosine, Schedule::Constant] {
            let rates: Vec<f64> = (0..100).map(|step| rate(&train(schedule), step, 100)).collect();
            assert!((rates[0] - 0.2).abs() < 1e-12 && (rates[9] - 2.0).abs() < 1e-12);
            assert_eq!(rates[10], 2.0);
            assert!(rates[10..].windows(2).all(|w| w[1] <= w[0]), "{schedule:?}");
            let last = if schedule == Schedule::Constant { 2.0 } else { 0.03 };
            assert!(rates[99] <= last && rates[99] > 0.0, "{schedule:?} ends at {}", rates[99]);
        }
        let half = rate(&train(Schedule::Linear), 55, 100);
        assert!((half - 1.0).abs() < 1e-12, "{half}");
        assert_eq!(rate(&Train { warmup: 0.0, ..train(Schedule::Linear) }, 0, 1), 2.0);
    }
}
