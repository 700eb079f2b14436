//! How far has the serving, or the soaking, come?
//!
//! Shown on standard error, and only if that is a terminal: what a pipe or a log sees is the
//! report alone.

use indicatif::{ProgressBar, ProgressStyle};

const REQUESTS: &str = "{bar:40} {human_pos}/{human_len} requests, {per_sec}, {eta} left";
const TIME: &str = "{bar:40} {elapsed} gone, {eta} left";

/// A bar of completed requests, or of the time that a run is given.
pub struct Progress(ProgressBar);

impl Progress {
    /// Advances by requests.
    pub fn new() -> Self {
        Self::with_layout(REQUESTS)
    }

    /// Advances by milliseconds.
    pub fn of_time() -> Self {
        Self::with_layout(TIME)
    }

    fn with_layout(layout: &str) -> Self {
        let style = ProgressStyle::with_template(layout).expect("the layout is a valid template");
        Self(ProgressBar::no_length().with_style(style))
    }

    /// So many requests, or milliseconds, are to come from now on.
    pub fn begin(&self, length: usize) {
        self.0.set_length(length as u64);
        self.0.reset();
    }

    /// So many more requests are complete, or refused.
    pub fn advance(&self, requests: usize) {
        self.0.inc(requests as u64);
    }

    /// So many of them are behind us.
    pub fn reach(&self, position: u64) {
        self.0.set_position(position);
    }

    /// Takes the bar away, so that the report starts on a clean line.
    pub fn finish(&self) {
        self.0.finish_and_clear();
    }
}
