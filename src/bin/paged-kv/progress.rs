//! How far has the serving come?
//!
//! Shown on standard error, and only if that is a terminal: what a pipe or a log sees is the
//! report alone.

use indicatif::{ProgressBar, ProgressStyle};

const LAYOUT: &str = "{bar:40} {human_pos}/{human_len} requests, {per_sec}, {eta} left";

/// A bar of completed requests.
pub struct Progress(ProgressBar);

impl Progress {
    pub fn new() -> Self {
        let style = ProgressStyle::with_template(LAYOUT).expect("the layout is a valid template");
        Self(ProgressBar::no_length().with_style(style))
    }

    /// So many requests are to be served from now on.
    pub fn begin(&self, requests: usize) {
        self.0.set_length(requests as u64);
        self.0.reset();
    }

    /// One more request is complete.
    pub fn advance(&self) {
        self.0.inc(1);
    }

    /// Takes the bar away, so that the report starts on a clean line.
    pub fn finish(&self) {
        self.0.finish_and_clear();
    }
}
