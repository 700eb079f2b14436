//! Tests of movers with real bytes: a device, an arena and a file. Contents leave the device, come back after a restart,
//! and are compared bit by bit; media and devices fail in each way that they can.
//!
//! `PAGED_KV_KILLS` (3) sets how often `killed` ends a process that writes a file, and `PAGED_KV_MOVER_SECONDS` (3) the
//! length of the soak, of which `PAGED_KV_MOVER_SEED` (0) is the seed.

#![cfg(unix)]

#[path = "../common/random.rs"]
mod random;

mod file;

mod media;

mod arenas;
mod devices;
mod full;
mod groups;
mod killed;
mod pressure;
mod resets;
mod restarts;
mod soak;
mod stores;
mod world;

use paged_kv::TierId;

const BLOCK_SIZE: usize = 4;

/// Bytes of a block: no multiple of a page.
const BLOCK_BYTES: usize = 3 * 1_024 + 8;

/// The tier of worlds with one tier.
const FIRST: TierId = TierId(0);

/// The tier on disk of worlds with a tier in host memory before it.
const SECOND: TierId = TierId(1);
