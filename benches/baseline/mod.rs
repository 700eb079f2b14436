//! What a good engineer would write in an afternoon: the designs that this crate has to beat.
//!
//! They are as fast as their idea allows: memory is reused, batches are taken in one go, nothing is
//! checked that the checks of safe Rust do not already cover. They ship with nothing.
#![allow(dead_code)] // each bench uses a part

pub mod one_lock_cache;
pub mod one_lock_pool;
pub mod one_lock_prefix;
pub mod queue_pool;
