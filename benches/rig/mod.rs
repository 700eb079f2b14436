//! The rig of all benches: the work, the threads that do it, and a control that shows how parallel the
//! machine was during the measurement.
#![allow(dead_code)] // each bench uses a part

pub mod control;
pub mod pools;
pub mod prompts;
pub mod requests;
pub mod retention;
pub mod rounds;
pub mod tails;
pub mod team;
pub mod timing;
