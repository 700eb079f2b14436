//! Tests of [`InFlightSteps`]: each slot holds its references until the last step ends that may read their
//! blocks.

use std::collections::HashSet;

use super::coming::Coming;
use super::slots::FIRST;
use super::*;
use crate::pool::BlockPool;

/// Makes the step, or an older open one, hold a block. Returns false if none is open.
fn hold(in_flight: &InFlightSteps, step: InFlightStep, id: u32) -> bool {
    in_flight.hold(step, |held| held.ids.push(BlockId(id)))
}

/// Ends a step. Returns the blocks that it gave back.
fn close(in_flight: &InFlightSteps, step: InFlightStep) -> Vec<BlockId> {
    let mut given = Vec::new();
    in_flight.close(step, |held| given.append(&mut held.ids));
    given
}

#[test]
fn a_step_returns_its_blocks_at_its_end_and_none_later() {
    let in_flight = InFlightSteps::new();
    for id in 0..3 {
        let step = in_flight.open();
        assert!(hold(&in_flight, step, id) && hold(&in_flight, step, 7));
        assert_eq!(close(&in_flight, step), [BlockId(id), BlockId(7)]);
        assert!(!hold(&in_flight, step, id), "it is over");
    }
    let idle = in_flight.open();
    assert_eq!(close(&in_flight, idle), []);
}

#[test]
fn a_block_an_older_step_may_read_waits_for_it() {
    let in_flight = InFlightSteps::new();
    let [first, second, third] = std::array::from_fn(|_| in_flight.open());
    assert!(hold(&in_flight, second, 2));
    assert_eq!(close(&in_flight, second), [], "the first is open");
    assert!(hold(&in_flight, second, 3), "by the first");
    assert_eq!(close(&in_flight, first), [BlockId(2), BlockId(3)]);
    assert!(!hold(&in_flight, second, 4), "a newer one holds nothing of an older one");
    assert_eq!(close(&in_flight, third), []);
}

#[test]
#[cfg_attr(miri, ignore = "each opening reads every slot: minutes under an interpreter")]
fn more_steps_are_open_than_the_first_slots_each_of_them_newer() {
    const STEPS: usize = 1_000;
    let in_flight = InFlightSteps::new();
    let mut steps: Vec<InFlightStep> = (0..STEPS).map(|_| in_flight.open()).collect();
    assert!(steps.windows(2).all(|pair| pair[0].number < pair[1].number));
    let slots: HashSet<u32> = steps.iter().map(|step| step.slot).collect();
    assert_eq!(slots.len(), STEPS, "each has a slot of its own");
    assert_eq!(in_flight.slots.len(), STEPS.next_power_of_two());
    assert_eq!(close(&in_flight, steps.remove(STEPS - 1)), []);
    assert_eq!(close(&in_flight, steps.remove(7)), []);
    let next = in_flight.open();
    assert_eq!(next.number, STEPS as u64 + 1, "above all there ever were");
    assert!(next.slot() < FIRST, "the first slots are used first");
    assert_eq!(next.max(steps[0]), next);
    assert_eq!(steps[0].max(next), next);
    steps.push(next);
    // Every third, then the others from the end: each block comes back with the oldest step.
    let (mut thirds, mut others): (Vec<_>, Vec<_>) =
        steps[1..].iter().enumerate().partition(|(index, _)| index % 3 == 0);
    others.reverse();
    thirds.append(&mut others);
    for (index, step) in &thirds {
        assert!(hold(&in_flight, **step, *index as u32));
        assert_eq!(close(&in_flight, **step), [], "the oldest is open");
    }
    assert_eq!(close(&in_flight, steps[0]).len(), thirds.len());
    assert_eq!(in_flight.slots.len(), STEPS.next_power_of_two(), "no more than there were");
}

/// Opens a step with this number in the slot, as another thread may do at the same time.
fn open_at_once(in_flight: &InFlightSteps, slot: u32, number: u64) -> InFlightStep {
    let word = in_flight.slots.word(slot as usize);
    assert_eq!(word.load(Ordering::Relaxed) & (OPEN | HOLDS), 0);
    word.store(number << NUMBER | OPEN, Ordering::Relaxed);
    InFlightStep { number, slot }
}

/// A table may have joined both steps, and knows one of them.
#[test]
fn a_block_waits_for_every_open_step_of_its_steps_number() {
    for [first, second] in [[0, 1], [1, 0]] {
        for known in [0, 1] {
            let in_flight = InFlightSteps::new();
            let steps = [3, 40].map(|slot| open_at_once(&in_flight, slot, 5));
            let newer = open_at_once(&in_flight, 9, 6);
            assert!(hold(&in_flight, steps[known], 7));
            assert_eq!(close(&in_flight, steps[first]), [], "the other one is open");
            assert!(hold(&in_flight, steps[known], 8), "by the other one, if need be");
            assert_eq!(close(&in_flight, steps[second]), [BlockId(7), BlockId(8)]);
            assert!(!hold(&in_flight, steps[known], 9), "a newer one is not waited for");
            assert_eq!(close(&in_flight, newer), []);
        }
    }
}

#[test]
fn of_two_steps_of_one_number_a_table_keeps_the_one_it_knows() {
    let [known, other] = [1, 2].map(|slot| InFlightStep { number: 5, slot });
    assert_eq!(known.max(other), known);
    let newer = InFlightStep { number: 6, slot: 3 };
    assert_eq!((known.max(newer), newer.max(known)), (newer, newer));
    assert_eq!(InFlightStep::default().max(known), known);
    assert!(InFlightStep::default().is_none() && !known.is_none());
}

/// Giving blocks back may run a waker of the caller, which may open steps and end them.
#[test]
fn a_slot_that_gives_back_opens_no_step_before_it_is_through() {
    let in_flight = InFlightSteps::new();
    let first = in_flight.open();
    assert!(in_flight.hold(first, |held| held.ids.extend([BlockId(1); 64])));
    let mut next = None;
    in_flight.close(first, |given| {
        given.ids.clear();
        assert!(!hold(&in_flight, first, 3), "its step is over");
        let step = in_flight.open();
        assert_ne!(step.slot, first.slot);
        assert!(step.number > first.number);
        assert!(hold(&in_flight, step, 2));
        next = Some(step);
    });
    assert_eq!(close(&in_flight, next.unwrap()), [BlockId(2)]);
    let again = in_flight.open();
    assert_eq!(again.slot, first.slot, "it is over by now");
    assert!(in_flight.slots.held(again.slot()).lock().ids.capacity() >= 64, "its memory is kept");
}

#[test]
fn a_slot_is_free_after_its_closer_panics() {
    let in_flight = InFlightSteps::new();
    let step = in_flight.open();
    assert!(hold(&in_flight, step, 1));
    let end = std::panic::AssertUnwindSafe(|| in_flight.close(step, |_| panic!("of a waker")));
    assert!(std::panic::catch_unwind(end).is_err());
    assert!(in_flight.holdings(&mut 0).is_none());
    assert_eq!(in_flight.open().slot, step.slot);
}

#[test]
fn holdings_are_the_blocks_that_open_steps_hold() {
    let in_flight = InFlightSteps::new();
    let ids_of = |in_flight: &InFlightSteps| {
        let mut patience = 3;
        let holdings = in_flight.holdings(&mut patience);
        let ids = holdings.map(|holdings| holdings.ids().map(|id| id.0).collect::<Vec<_>>());
        (ids, patience)
    };
    assert_eq!(ids_of(&in_flight), (None, 3));
    let steps: Vec<InFlightStep> = (0..FIRST + 1).map(|_| in_flight.open()).collect();
    assert_eq!(ids_of(&in_flight), (None, 3), "nothing is held");
    let last = steps[FIRST];
    assert!(hold(&in_flight, last, 4) && hold(&in_flight, last, 5));
    assert_eq!(ids_of(&in_flight), (Some(vec![4, 5]), 3));
    assert_eq!(close(&in_flight, last), [], "handed to an older one");
    assert_eq!(ids_of(&in_flight), (Some(vec![4, 5]), 3));
    steps[..FIRST].iter().rev().for_each(|&step| {
        in_flight.close(step, |given| {
            assert_eq!(ids_of(&in_flight), (None, 0), "it waits for what is given back, a while");
            given.ids.clear();
        });
    });
    assert_eq!(ids_of(&in_flight), (None, 3));
}

/// Another thread may match the block, or count it by id, while a thread evicts.
#[test]
fn a_block_that_has_another_owner_since_it_was_read_is_found_by_a_closer_look() {
    let pool = BlockPool::new(4);
    let (blocks, mut coming) = (pool.blocks(), Coming::new());
    let step = blocks.open_step();
    let mut table = pool.allocate(2).unwrap();
    let id = table.as_slice()[0];
    table.join_step(step);
    assert_eq!((coming.in_use(blocks), coming.reread_in_use(blocks)), (2, None), "nothing is held");
    drop(table);
    assert_eq!((coming.in_use(blocks), coming.reread_in_use(blocks)), (0, None), "it was all read");
    pool.retain(id).unwrap();
    assert_eq!(coming.in_use(blocks), 0, "what was read is not read again");
    assert_eq!(coming.reread_in_use(blocks), Some(1));
    blocks.close_step(step);
    assert_eq!((coming.in_use(blocks), pool.used_block_count()), (1, 1));
    let next = blocks.open_step();
    blocks.retain_in_step(next, &[id]).unwrap();
    pool.release(id).unwrap();
    assert_eq!((coming.in_use(blocks), pool.used_block_count()), (0, 1), "it is the step's alone");
    assert!(blocks.retain_in_step(next, &[id, BlockId(3)]).is_err(), "no one owns the other");
    blocks.release_in_step(next, 0);
    blocks.close_step(next);
    assert_eq!(pool.used_block_count(), 0);
}
