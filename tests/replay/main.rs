//! Tests of `paged-kv replay`: it serves every request it can, and refuses bad input.
//!
//! Each test runs the program that was built and checks its output and exit code. The library's own tests
//! check the cache inside.

#![cfg(feature = "cli")]

mod contents;
mod groups;
mod ids;
mod input;
mod limits;
mod outputs;
mod program;
#[cfg(feature = "events")]
mod publish;
mod reuse;
mod serving;
mod sources;
mod sweep;
mod tiers;
mod two_levels;
