//! Does `paged-kv replay` serve every request it can, and refuse bad input?
//!
//! Each test runs the program that was built and looks at what it prints and how it exits. What
//! the cache does inside is for the library's own tests.

#![cfg(feature = "cli")]

mod contents;
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
