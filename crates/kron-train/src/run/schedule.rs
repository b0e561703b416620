//! Learning rate as a function of the step.

use crate::config::{Schedule, Train};

/// Returns the learning rate of step `step` of `total`, from 0: a linear rise over the warm-up, then the schedule.
pub fn learning_rate(train: &Train, step: u64, total: u64) -> f64 {
    let rise = (train.warmup * total as f64).round();
    let at = step as f64;
    if at < rise {
        return train.lr * (at + 1.0) / rise;
    }
    let done = (at - rise) / (total as f64 - rise).max(1.0);
    train.lr
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
    fn the_learning_rate_rises_and_falls() {
        let train = |schedule| Train { lr: 2.0, warmup: 0.1, schedule, ..Train::default() };
        for schedule in [Schedule::Linear, Schedule::Cosine, Schedule::Constant] {
            let lrs: Vec<f64> = (0..100).map(|step| learning_rate(&train(schedule), step, 100)).collect();
            assert!((lrs[0] - 0.2).abs() < 1e-12 && (lrs[9] - 2.0).abs() < 1e-12);
            assert_eq!(lrs[10], 2.0);
            assert!(lrs[10..].windows(2).all(|w| w[1] <= w[0]), "{schedule:?}");
            let last = if schedule == Schedule::Constant { 2.0 } else { 0.03 };
            assert!(lrs[99] <= last && lrs[99] > 0.0, "{schedule:?} ends at {}", lrs[99]);
        }
        let half = learning_rate(&train(Schedule::Linear), 55, 100);
        assert!((half - 1.0).abs() < 1e-12, "{half}");
        assert_eq!(learning_rate(&Train { warmup: 0.0, ..train(Schedule::Linear) }, 0, 1), 2.0);
    }
}
