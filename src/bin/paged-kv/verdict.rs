//! `Verdict`: how a command ended, as an exit code; and `complain`, which reports an error.

use std::io::{self, Write};
use std::process::ExitCode;

/// How a command that read its input ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Every check held.
    Sound,
    /// The cache broke one of its promises; the output names it.
    Broken,
}

impl From<Verdict> for ExitCode {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Sound => Self::SUCCESS,
            Verdict::Broken => Self::from(1),
        }
    }
}

/// Writes to standard error. A failure to write is ignored: the exit code reports the error too.
pub fn complain(error: &str) {
    let _ = writeln!(io::stderr(), "error: {error}");
}
