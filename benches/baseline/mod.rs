//! Baselines: the designs that a good engineer would write in an afternoon, and that this crate has to beat.
//!
//! Each is as fast as its design allows: it reuses memory, takes a batch in one operation, and adds no
//! checks to those of safe Rust. The baselines are not shipped.
#![allow(dead_code)] // each bench uses a part

pub mod one_lock_cache;
pub mod one_lock_pool;
pub mod one_lock_prefix;
pub mod one_lock_tier;
pub mod queue_pool;
