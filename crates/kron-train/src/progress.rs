//! The bar on standard error: loss, tokens a second, time left.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::run::Row;

/// Whether bars are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// On standard error, where that is a terminal.
    Shown,
    /// Nowhere.
    Hidden,
}

/// The bar of one run.
#[derive(Debug)]
pub struct Bar(ProgressBar);

impl Progress {
    /// A bar of `total` steps of which `done` were taken before.
    pub fn bar(self, total: u64, done: u64) -> Bar {
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
    /// One step more.
    pub fn step(&self, row: &Row) {
        self.0.set_message(format!("loss {:.4}, {:.0} tokens/s", row.loss, row.tokens as f64 / row.seconds));
        self.0.inc(1);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
