//! `Progress`: a bar that shows how far a run has come.
//!
//! It is drawn on standard error, and only if that is a terminal: a pipe or a log gets the report alone.

use indicatif::{ProgressBar, ProgressStyle};

const REQUESTS: &str = "{bar:40} {human_pos}/{human_len} requests, {per_sec}, {eta} left";
const TIME: &str = "{bar:40} {elapsed} gone, {eta} left";

/// A bar of completed requests, or of the time that a run is given.
pub struct Progress(ProgressBar);

impl Progress {
    /// Creates a bar that advances by requests.
    pub fn new() -> Self {
        Self::with_layout(REQUESTS)
    }

    /// Creates a bar that advances by milliseconds.
    pub fn of_time() -> Self {
        Self::with_layout(TIME)
    }

    fn with_layout(layout: &str) -> Self {
        let style = ProgressStyle::with_template(layout).expect("the layout is a valid template");
        Self(ProgressBar::no_length().with_style(style))
    }

    /// Resets the bar to `length` requests, or milliseconds, to come.
    pub fn begin(&self, length: usize) {
        self.0.set_length(length as u64);
        self.0.reset();
    }

    /// Notes that `requests` more are complete, or rejected.
    pub fn advance(&self, requests: usize) {
        self.0.inc(requests as u64);
    }

    /// Notes that `position` of them are done.
    pub fn reach(&self, position: u64) {
        self.0.set_position(position);
    }

    /// Clears the bar, so that the report starts on a clean line.
    pub fn finish(&self) {
        self.0.finish_and_clear();
    }
}
