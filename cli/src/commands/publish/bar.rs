//! The progress bar of `pub`.

use std::fs::File;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::report::Tally;
use crate::output::{bytes, thousands};

/// No bar for what is done sooner.
const BAR_AFTER: Duration = Duration::from_millis(500);

/// The bar on a terminal: bytes of a file, else a count.
pub(super) struct Bar {
    started: Instant,
    total: Option<u64>,
    bar: Option<ProgressBar>,
}

impl Bar {
    /// A bar that shows itself when the run turns out to be long.
    pub fn new() -> Self {
        let stdin = std::io::stdin().as_fd().try_clone_to_owned().map(File::from);
        let metadata = stdin.and_then(|file| file.metadata()).ok();
        let total = metadata.filter(|metadata| metadata.is_file()).map(|metadata| metadata.len());
        Self { started: Instant::now(), total, bar: None }
    }

    /// Shows how far it is.
    pub fn show(&mut self, tally: &Tally) {
        let elapsed = self.started.elapsed();
        if self.bar.is_none() && elapsed < BAR_AFTER {
            return;
        }
        let total = self.total;
        let bar = self.bar.get_or_insert_with(|| draw(total));
        bar.set_position(if total.is_some() { tally.bytes } else { tally.total() });
        bar.set_message(words(tally, total, elapsed));
    }
}

/// Rate and remaining time over the whole run: steadier than over the last moment, and true from the first
/// sight of the bar on.
fn words(tally: &Tally, total: Option<u64>, elapsed: Duration) -> String {
    let seconds = elapsed.as_secs_f64().max(0.001);
    let place = format!("fsynced up to sequence {}", tally.last);
    let Some(total) = total else {
        return format!("{}/s, {place}", thousands((tally.total() as f64 / seconds) as u64));
    };
    let rate = tally.bytes as f64 / seconds;
    let left = Duration::from_secs_f64((total.saturating_sub(tally.bytes) as f64 / rate.max(1.0)).round());
    format!("{}/s, {}s left, {place}", bytes(rate as u64), left.as_secs())
}

fn draw(total: Option<u64>) -> ProgressBar {
    let template = match total {
        Some(_) => "{bar:20} {binary_bytes}/{binary_total_bytes} {wide_msg}",
        None => "{spinner} {human_pos} messages {wide_msg}",
    };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr_with_hz(10)).with_style(style)
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_and_rest_are_of_the_whole_run() {
        let tally = Tally { bytes: 1 << 20, stored: 1_000, last: 1_000, ..Tally::default() };
        let elapsed = Duration::from_secs(2);
        let shown = words(&tally, Some(3 << 20), elapsed);
        assert_eq!(shown, "512.0 KiB/s, 4s left, fsynced up to sequence 1000");
        assert_eq!(words(&tally, None, elapsed), "500/s, fsynced up to sequence 1000");
    }
}
