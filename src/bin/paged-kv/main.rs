//! `paged-kv`: what does this cache do under a whole day's requests, or under everything at once?
//!
//! Every command leaves by one of three doors: 0, it did what was asked; 1, the cache failed a
//! check; 2, the input was bad (a missing file, a malformed line, a size of zero). This file
//! knows the doors and nothing of what a command does.

mod admission;
mod args;
mod meter;
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

use std::process::ExitCode;

use clap::Parser;

use args::{Arguments, Command};

/// How a command that read its input ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// Every check held.
    Sound,
    /// The cache broke one of its promises; the output says which.
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
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}
