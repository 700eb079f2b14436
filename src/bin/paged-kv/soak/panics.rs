//! `panic_with_hands_full`: a panic of a thread that holds every kind of handle.
//!
//! Such a panic may leave nothing behind but the sequences in the map. It is raised without a message. Its
//! payload distinguishes it from a panic that is a finding.

use std::panic::resume_unwind;

use paged_kv::SeqId;

use super::fork_group::Family;
use super::random::Random;
use super::request::Request;
use super::shared::{Ground, OnPurpose};

/// Takes one of each kind of handle, as far as there is room, and panics.
pub fn panic_with_hands_full(ground: &Ground, own: SeqId, random: &mut Random) -> ! {
    let cache = &ground.cache;
    let size = cache.block_size();
    let _table = ground.fair(cache.pool().allocate(3));
    let mut family = Family::new(ground, 2 * size);
    family.iter_mut().for_each(|family| family.step(random));
    let mut request = Request::new(ground, random);
    let _fork = request.as_mut().and_then(|request| request.step(random));
    let _allocated = ground.fair(cache.allocate(own, 2 * size - 1));
    let _lease = ground.fair(cache.lease(&[own]));
    let _append = ground.fair(cache.append(own, 2));
    if random.one_in(2) {
        cache.with_sequence(own, |_| resume_unwind(Box::new(OnPurpose)));
    }
    resume_unwind(Box::new(OnPurpose))
}
