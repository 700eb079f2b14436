//! The rig of paged-kv's benches, without the part that needs criterion.
#![allow(dead_code)] // a part is used here

#[path = "../../rig/control.rs"]
pub mod control;
#[path = "../../rig/pools.rs"]
pub mod pools;
#[path = "../../rig/prompts.rs"]
pub mod prompts;
#[path = "../../rig/requests.rs"]
pub mod requests;
#[path = "../../rig/rounds.rs"]
pub mod rounds;
#[path = "../../rig/tails.rs"]
pub mod tails;
#[path = "../../rig/team.rs"]
pub mod team;
