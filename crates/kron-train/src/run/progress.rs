//! Progress of a run on stderr: a bar on a terminal, else a line now and then.

use std::io::{IsTerminal, Write, stderr};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::records::StepRecord;

/// Number of lines of a run without a terminal, besides that of the first step.
const LINES: u64 = 20;

/// Visibility of a run's progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// A bar if stderr is a terminal; else a line for the first step and for every twentieth part of the run.
    Shown,
    /// Nothing.
    Hidden,
}

/// Progress of one run.
#[derive(Debug)]
pub(super) struct Bar {
    bar: ProgressBar,
    /// First step of this process and steps between two lines, if lines are written.
    lines: Option<(u64, u64)>,
    total: u64,
}

impl Progress {
    /// Starts a bar over `total` steps of which `done` were taken before.
    pub(super) fn bar(self, total: u64, done: u64) -> Bar {
        let shown = self == Progress::Shown;
        let target = match shown {
            true => ProgressDrawTarget::stderr(),
            false => ProgressDrawTarget::hidden(),
        };
        let bar = ProgressBar::with_draw_target(Some(total), target).with_position(done);
        if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}, {eta} left") {
            bar.set_style(style);
        }
        let lines = (shown && !stderr().is_terminal()).then(|| (done + 1, total.div_ceil(LINES).max(1)));
        Bar { bar, lines, total }
    }
}

impl Bar {
    /// Writes a line above the bar.
    pub(super) fn say(&self, line: &str) {
        match self.lines {
            // Nobody reads a closed stderr.
            Some(_) => drop(writeln!(stderr(), "{line}")),
            None => self.bar.println(line),
        }
    }

    /// Advances by one step.
    pub(super) fn step(&self, step: &StepRecord) {
        let speed = step.tokens as f64 / step.seconds;
        let message = format!("loss {:.4}, {speed:.0} tokens/s", step.loss);
        if self.lines.is_some_and(|(first, every)| step.step == first || step.step.is_multiple_of(every)) {
            self.say(&format!("step {} of {}: {message}", step.step, self.total));
        }
        self.bar.set_message(message);
        self.bar.inc(1);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
