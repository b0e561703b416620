//! Progress bar on stderr: loss, tokens per second, time left.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::records::StepRecord;

/// Visibility of progress bars.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Drawn on stderr if it is a terminal.
    Shown,
    /// Never drawn.
    Hidden,
}

/// Bar of one run.
#[derive(Debug)]
pub(super) struct Bar(ProgressBar);

impl Progress {
    /// Starts a bar over `total` steps of which `done` were taken before.
    pub(super) fn bar(self, total: u64, done: u64) -> Bar {
        let target = match self {
            Progress::Shown => ProgressDrawTarget::stderr(),
            Progress::Hidden => ProgressDrawTarget::hidden(),
        };
        let bar = ProgressBar::with_draw_target(Some(total), target).with_position(done);
        if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}, {eta} left") {
            bar.set_style(style);
        }
        Bar(bar)
    }
}

impl Bar {
    /// Advances by one step.
    pub(super) fn step(&self, step: &StepRecord) {
        let speed = step.tokens as f64 / step.seconds;
        self.0.set_message(format!("loss {:.4}, {speed:.0} tokens/s", step.loss));
        self.0.inc(1);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
