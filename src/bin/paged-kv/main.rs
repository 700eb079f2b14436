//! `paged-kv`: runs the cache under a trace of requests, or under all its operations together.
//!
//! Every command exits with one of three codes, which `--help` also lists:
//!
//! - 0: the command succeeded.
//! - 1: the cache failed a check.
//! - 2: the command was refused: a missing file, a malformed line, a size of zero, or memory or threads
//!   that the machine does not have.

mod admission;
mod args;
mod contents;
mod crew;
mod machine;
mod meter;
mod outputs;
mod progress;
#[cfg(feature = "events")]
mod publish;
mod replay;
mod report;
mod request;
mod seniority;
mod serve;
mod soak;
mod sweep;
mod synthetic;
mod trace;
mod worker;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;

use args::{Arguments, Command};

/// How a command that read its input ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
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

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Replay(arguments) => replay::run(&arguments),
        Command::Sweep(arguments) => sweep::run(&arguments),
        Command::Soak(arguments) => soak::run(&arguments),
    };
    match result {
        Ok(verdict) => verdict.into(),
        Err(error) => {
            complain(&format!("{error:#}"));
            ExitCode::from(2)
        }
    }
}

/// Writes to standard error. A failure to write is ignored: the exit code reports the error too.
fn complain(error: &str) {
    let _ = writeln!(io::stderr(), "error: {error}");
}
