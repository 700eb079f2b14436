//! Tests of [`BlockState`] and [`BlockWords`]: the transitions are those of the table, and each word is
//! beside its key.

use super::*;
use crate::sync::Ordering;

#[test]
fn a_free_block_can_be_neither_retained_nor_released() {
    assert_eq!(BlockState::FREE.retain(), None);
    assert_eq!(BlockState::FREE.release(), None);
}

#[test]
fn a_full_count_is_refused() {
    let full = BlockState(MAX_OWNERS);
    assert_eq!(full.retain(), None);
    assert_eq!(BlockState(MAX_OWNERS - 1).retain(), Some(full));
}

/// Tries every kind of word that can occur: an idle block is not full, and a full one is not idle.
#[test]
fn a_retain_is_refused_with_the_state_that_refused_it() {
    let words = BlockWords::with_keys(1).unwrap();
    let (word, id) = (&words.keyed[0].word, BlockId(0));
    for flags in [0, CACHED, CACHED | HOT, KEY_BUSY] {
        for owners in [0, 1, MAX_OWNERS - 1, MAX_OWNERS] {
            word.store(owners | flags, Ordering::Relaxed);
            let refused = [0, MAX_OWNERS].contains(&owners).then_some(owners);
            let retained = words.retain(id);
            assert_eq!(retained.err().map(BlockState::owners), refused, "{owners}, {flags:x}");
            let added = u32::from(retained.is_ok());
            assert_eq!(word.load(Ordering::Relaxed), (owners | flags) + added);
        }
    }
}

#[test]
fn retain_and_release_are_inverse() {
    for owners in 1..MAX_OWNERS {
        assert_eq!(BlockState(owners).retain().and_then(BlockState::release).unwrap().0, owners);
    }
}

fn word(owners: u32, flags: u32, epoch: u8) -> BlockState {
    BlockState(owners | flags | u32::from(epoch) << EPOCH)
}

#[test]
fn a_word_is_read_as_it_is_written() {
    let state = word(3, CACHED | HOT, 200);
    assert_eq!((state.owners(), state.epoch()), (3, 200));
    assert!(state.is_cached() && state.is_hot() && !state.is_idle());
    assert!(!word(3, HOT, 0).is_cached() && !word(3, HOT, 0).is_hot());
    assert!(!word(3, CACHED, 0).is_hot());
    assert!(word(0, CACHED, 0).is_idle() && !word(0, KEY_BUSY, 0).is_idle());
    assert_eq!(word(3, CACHED | HOT, 200).with_epoch(9), word(3, CACHED | HOT, 9));
}

#[test]
fn a_cached_block_becomes_idle_in_the_next_epoch() {
    assert_eq!(word(2, CACHED, 7).release(), Some(word(1, CACHED, 7)));
    assert_eq!(word(1, CACHED, 7).release(), Some(word(0, CACHED, 8)));
    assert_eq!(word(1, CACHED | HOT, 255).release(), Some(word(0, CACHED | HOT, 0)));
    assert_eq!(word(0, CACHED, 7).release(), None);
}

#[test]
fn only_a_cached_block_is_acquired() {
    for owners in [0, 1, MAX_OWNERS - 1] {
        let (cold, hot) = (word(owners, CACHED, 7), word(owners, CACHED | HOT, 7));
        assert_eq!(cold.acquire(false), Some(word(owners + 1, CACHED, 7)));
        for state in [cold.acquire(true), hot.acquire(false), hot.acquire(true)] {
            assert_eq!(state, Some(word(owners + 1, CACHED | HOT, 7)));
        }
        assert_eq!(word(owners, 0, 7).acquire(true), None);
    }
    assert_eq!(word(MAX_OWNERS, CACHED, 7).acquire(true), None);
}

#[test]
fn only_an_idle_block_begins_its_next_epoch_without_an_owner() {
    assert_eq!(word(0, CACHED, 7).renew_idle(), Some(word(0, CACHED, 8)));
    assert_eq!(word(0, CACHED | HOT, 255).renew_idle(), Some(word(0, CACHED | HOT, 0)));
    assert_eq!(word(1, CACHED, 7).renew_idle(), None);
    assert_eq!(BlockState::FREE.renew_idle(), None);
}

#[test]
fn only_a_block_idle_in_that_epoch_is_reclaimed() {
    assert_eq!(word(0, CACHED, 7).reclaim(7), Some(BlockState::SOLE));
    assert_eq!(word(0, CACHED | HOT, 7).reclaim(7), Some(word(1, HOT, 0)));
    assert_eq!(word(0, CACHED, 7).reclaim(6), None);
    assert_eq!(word(1, CACHED, 7).reclaim(7), None);
    assert_eq!(BlockState::FREE.reclaim(0), None);
}

#[test]
fn a_reclaim_is_finished_or_undone() {
    assert_eq!(BlockState::SOLE.undo_reclaim(), word(0, CACHED, 0));
    assert_eq!(word(1, HOT, 0).undo_reclaim(), word(0, CACHED | HOT, 0));
    for hot in [false, true] {
        let words = BlockWords::with_keys(2).unwrap();
        let (view, id) = (words.view(), BlockId(1));
        view.occupy(id);
        assert!(view.begin_key_change(id));
        view.end_key_change(id, hot, false);
        let Released::Idle(left) = view.release_shared(id) else { panic!("it is cached") };
        assert!(view.reclaim(left.block) && !words.state(id).is_cached());
        let back = view.undo_reclaim(id);
        assert_eq!((back.hot, view.is_idle_since(back.block)), (hot, true));
        assert!(view.reclaim(back.block));
        view.finish_reclaim(id);
        assert_eq!(words.state(id), BlockState::SOLE);
    }
}

#[test]
fn a_block_gets_a_key_from_one_owner_and_once() {
    for owners in [1, 2] {
        let busy = word(owners, KEY_BUSY, 0);
        assert_eq!(word(owners, 0, 0).begin_key_change(), Some(busy));
        assert_eq!(busy.begin_key_change(), None);
        assert_eq!(word(owners, CACHED, 0).begin_key_change(), None);
        assert_eq!(busy.end_key_change(false, false), Some(word(owners, CACHED, 0)));
        assert_eq!(busy.end_key_change(true, false), Some(word(owners, CACHED | HOT, 0)));
        assert_eq!(busy.end_key_change(false, true), Some(word(owners, CACHED | SPARE, 0)));
        assert_eq!(word(owners, CACHED, 0).end_key_change(false, false), None);
        let all = word(owners, CACHED | HOT | SPARE, 9);
        assert_eq!(all.end_caching(), Some(word(owners, 0, 0)));
        assert_eq!(word(owners, KEY_BUSY, 0).end_caching(), None);
    }
}

#[test]
fn a_block_is_spare_until_it_is_asked_for_and_after_a_reclaim_that_is_undone() {
    let spare = word(1, CACHED | SPARE, 7);
    assert!(spare.is_spare() && !word(1, SPARE, 0).is_spare() && !word(1, CACHED, 0).is_spare());
    assert_eq!(spare.retain().and_then(BlockState::release), Some(spare));
    for hot in [0, HOT] {
        let idle = word(0, CACHED | SPARE | hot, 8);
        assert_eq!(word(1, CACHED | SPARE | hot, 7).release(), Some(idle));
        assert_eq!(idle.acquire(false), Some(word(1, CACHED | hot, 8)));
        assert_eq!(idle.renew_idle(), Some(word(0, CACHED | hot, 9)));
        let reclaimed = idle.reclaim(8).unwrap();
        assert!(!reclaimed.is_cached() && reclaimed.retain().is_some());
        assert_eq!(reclaimed.undo_reclaim(), word(0, CACHED | SPARE | hot, 0));
    }
    for spare in [false, true] {
        let words = BlockWords::with_keys(1).unwrap();
        let (view, id) = (words.view(), BlockId(0));
        view.occupy(id);
        view.end_key_change(id, false, spare);
        let Released::Idle(left) = view.release_shared(id) else { panic!("it is cached") };
        assert_eq!(left.spare, spare);
        assert!(view.reclaim(left.block));
        assert_eq!(view.finish_reclaim(id), spare);
        assert_eq!(words.state(id), BlockState::SOLE);
    }
}

#[test]
fn a_block_says_whether_it_was_idle_and_since_when() {
    let words = BlockWords::with_keys(2).unwrap();
    let (view, id) = (words.view(), BlockId(1));
    view.occupy(id);
    assert!(view.begin_key_change(id) && !view.begin_key_change(id));
    view.end_key_change(id, false, false);
    let block = IdleBlock { id, epoch: 1 };
    let left = |hot| Released::Idle(ReleasedIdle { block, hot, spare: false });
    assert_eq!(view.release_shared(id), left(false));
    let (idle, later) = (IdleBlock { id, epoch: 1 }, IdleBlock { id, epoch: 2 });
    assert!(view.is_idle_since(idle) && !view.is_idle_since(later));
    assert_eq!(view.acquire(id, true), Some(WasIdle(true)));
    assert!(!view.is_idle_since(idle));
    assert_eq!(view.acquire(id, false), Some(WasIdle(false)));
    assert_eq!(view.release_shared(id), Released::Owned);
    assert!(!view.reclaim(idle), "somebody has used it since");
    assert_eq!(
        view.release_shared(id),
        Released::Idle(ReleasedIdle { block: later, hot: true, spare: false })
    );
    assert!(!view.reclaim(idle) && view.reclaim(later));
    view.finish_reclaim(id);
    assert_eq!(view.release_shared(id), Released::Free);
    assert_eq!(view.acquire(id, true), None);
}

#[test]
fn a_held_block_keeps_its_epoch_until_it_is_used_or_passed() {
    for hot in [0, HOT] {
        let (idle, held) = (word(0, CACHED | hot, 7), word(1, CACHED | HELD | hot, 7));
        assert_eq!(idle.hold(), Some(held));
        assert_eq!(held.release_held(), Some(idle));
        assert!(held.keeps_entry(7) && !held.keeps_entry(6) && !held.is_spare());
        assert_eq!((held.reclaim(7), held.pass(6), idle.pass(7)), (None, None, None));
        let passed = held.pass(7).unwrap();
        assert!(!passed.keeps_entry(7) && !passed.is_spare() && !passed.is_idle());
        assert_eq!(passed.release_held(), Some(word(0, CACHED | hot, 8)));
        for before in [held, passed] {
            // Used, or retained by its id.
            assert_eq!(before.acquire(true), Some(word(2, CACHED | HOT, 7)));
            assert_eq!(before.hold(), Some(word(2, CACHED | hot, 7)));
            let retained = before.retain().unwrap();
            assert_eq!(retained.release_held(), Some(word(1, CACHED | hot, 7)));
            assert_eq!(retained.release(), Some(before));
            assert_eq!(before.end_caching(), Some(BlockState::SOLE));
        }
    }
    // No other block is held.
    assert_eq!(word(0, CACHED | SPARE, 7).hold(), Some(word(1, CACHED, 7)));
    assert_eq!(word(2, CACHED, 7).hold(), Some(word(3, CACHED, 7)));
    assert_eq!((BlockState::FREE.hold(), word(1, KEY_BUSY, 0).hold()), (None, None));
    for other in [word(1, CACHED, 7), word(1, CACHED | SPARE, 7), word(1, KEY_BUSY, 0)] {
        assert_eq!((other.release_held(), other.pass(7)), (None, None));
    }
}

#[test]
fn the_release_of_a_held_block_says_what_came_of_it() {
    let words = BlockWords::with_keys(1).unwrap();
    let (view, id) = (words.view(), BlockId(0));
    view.occupy(id);
    view.end_key_change(id, false, false);
    let Released::Idle(left) = view.release_shared(id) else { panic!("it is cached") };
    assert_eq!(view.hold(id), Some(WasIdle(true)));
    assert_eq!(view.release_held(id), Unheld::InPlace);
    assert!(view.is_idle_since(left.block));
    assert_eq!(view.hold(id), Some(WasIdle(true)));
    assert!(!view.reclaim(left.block), "it has an owner");
    let Unheld::Passed(passed) = view.release_held(id) else { panic!("its entry is gone") };
    assert!(!view.is_idle_since(left.block) && view.is_idle_since(passed.block));
    assert_eq!(view.hold(id), Some(WasIdle(true)));
    assert_eq!(view.acquire(id, true), Some(WasIdle(false)));
    assert_eq!(view.release_held(id), Unheld::Used(Released::Owned));
    assert!(matches!(view.release_held(id), Unheld::Used(Released::Idle(_))), "used since");
    assert_eq!(view.hold(id), Some(WasIdle(true)));
    assert!(view.try_end_caching(id));
    assert_eq!(view.release_held(id), Unheld::Used(Released::Free));
}

#[test]
fn a_block_with_its_key_is_half_a_cache_line() {
    for num_blocks in [1, 2, 3, 200] {
        let words = BlockWords::with_keys(num_blocks).unwrap();
        assert_eq!(size_of_val(&words.keyed[0]), 32);
        for id in [0, num_blocks as u32 / 2, num_blocks as u32 - 1].map(BlockId) {
            let address = std::ptr::from_ref(&words.keyed[id.index()]).addr();
            assert_eq!(address % 32, 0, "{id} of {num_blocks}");
        }
    }
}

#[test]
#[should_panic(expected = "released once by each of its owners")]
fn a_second_release_is_an_assert() {
    let words = BlockWords::new(1).unwrap();
    words.view().occupy(BlockId(0));
    assert!(words.view().release_sole(BlockId(0)));
    assert!(!words.view().release_sole(BlockId(0)));
    words.view().release_shared(BlockId(0));
}

#[test]
#[should_panic(expected = "in the free list has no owner")]
fn occupying_an_owned_block_is_an_assert() {
    let words = BlockWords::new(1).unwrap();
    words.view().occupy(BlockId(0));
    words.view().occupy(BlockId(0));
}
