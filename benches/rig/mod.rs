//! What all benches measure with: the work, the threads that do it, and the proof of how parallel
//! the machine was meanwhile.
#![allow(dead_code)] // each bench uses a part

pub mod control;
pub mod pools;
pub mod prompts;
pub mod requests;
pub mod team;
pub mod timing;
