//! `paged-kv`: runs the cache under a trace of requests, or under all its operations together.
//!
//! Every command exits with one of three codes, which `--help` also lists:
//!
//! - 0: the command succeeded.
//! - 1: the cache failed a check.
//! - 2: the command was refused: a missing file, a malformed line, a size of zero, or memory or threads
//!   that the machine does not have.

mod args;
mod crew;
mod grouped;
mod layer_groups;
mod machine;
mod outputs;
mod progress;
mod replay;
mod serve;
mod soak;
mod sweep;
mod tiers;
mod trace;
mod verdict;

use std::process::ExitCode;

use clap::Parser;

use args::{Arguments, Command};
use verdict::complain;

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
