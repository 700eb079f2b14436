//! Models of refusals: each is true, and none is partial.

mod common;

use std::sync::Arc;

use common::{assert_all_free, explore, pool_and_kv, race, spawn_at};
use paged_kv::PagedKvError;

/// Two threads request 2 of 3 blocks and keep them: exactly one gets them.
fn two_ask_for_two_of_three(shards: usize) {
    explore(move || {
        let (pool, kv) = pool_and_kv(3, shards);
        let (their_pool, their_kv) = (Arc::clone(&pool), Arc::clone(&kv));
        let (here, there) = race(
            || pool.allocate(2).inspect(|table| kv.use_alone(table.as_slice(), 1)),
            move || their_pool.allocate(2).inspect(|table| their_kv.use_alone(table.as_slice(), 2)),
        );
        let refusal = match (&here, &there) {
            (Ok(_), Err(refusal)) | (Err(refusal), Ok(_)) => refusal,
            (Ok(_), Ok(_)) => panic!("two tables of 2 blocks from a pool of 3"),
            (Err(_), Err(_)) => panic!("both were refused, though there was room for one"),
        };
        assert_eq!(*refusal, PagedKvError::OutOfMemory { requested: 2, available: 1 });
        drop((here, there));
        assert_all_free(&pool);
    });
}

#[test]
fn of_two_that_ask_for_more_than_half_one_is_served_in_a_lone_shard() {
    two_ask_for_two_of_three(1);
}

#[test]
fn of_two_that_ask_for_more_than_half_one_is_served_between_shards() {
    two_ask_for_two_of_three(2);
}

/// Allocates from two threads while blocks move. Three blocks start in shard 0; five start in shard 0 and
/// in the depot. One thread requests all blocks but `there`, while the other takes `there` blocks twice and
/// gives them back elsewhere.
fn no_caller_is_refused_while_blocks_suffice(num_blocks: usize, there: usize) {
    explore(move || {
        let (pool, kv) = pool_and_kv(num_blocks, 2);
        let (their_pool, their_kv) = (Arc::clone(&pool), Arc::clone(&kv));
        race(
            || {
                let table = pool.allocate(num_blocks - there);
                let table = table.expect("all but what the other may hold is free throughout");
                kv.use_alone(table.as_slice(), 1);
            },
            move || {
                for _ in 0..2 {
                    let table = their_pool.allocate(there);
                    let table = table.expect("all but what the other may hold is free throughout");
                    their_kv.use_alone(table.as_slice(), 2);
                }
            },
        );
        assert_all_free(&pool);
    });
}

#[test]
fn no_caller_is_refused_while_blocks_move_between_shards() {
    no_caller_is_refused_while_blocks_suffice(3, 1);
}

#[test]
fn no_caller_is_refused_while_blocks_move_through_the_depot() {
    no_caller_is_refused_while_blocks_suffice(5, 2);
}

/// Three threads request 2 of 5 blocks each and keep them: two are served, never fewer.
#[test]
fn of_three_that_ask_two_are_served() {
    explore(|| {
        let (pool, kv) = pool_and_kv(5, 2);
        let ask = |home| {
            let (pool, kv) = (Arc::clone(&pool), Arc::clone(&kv));
            spawn_at(home, move || {
                pool.allocate(2).inspect(|table| kv.use_alone(table.as_slice(), home as u64)).ok()
            })
        };
        let threads = [ask(0), ask(1)];
        let here = pool.allocate(2).inspect(|table| kv.use_alone(table.as_slice(), 3)).ok();
        let tables: Vec<_> = threads
            .map(|thread| thread.join().unwrap())
            .into_iter()
            .chain([here])
            .flatten()
            .collect();
        assert_eq!(tables.len(), 2, "there is room for two of the three");
        drop(tables);
        assert_all_free(&pool);
    });
}

/// Blocks that were given back before the call are counted, in whichever shard they are.
#[test]
fn room_given_back_elsewhere_is_found() {
    explore(|| {
        let (pool, _) = pool_and_kv(4, 2);
        let mut all = pool.allocate(4).unwrap();
        let rest = all.fork(0).unwrap();
        all.truncate(2).unwrap();
        let their_pool = Arc::clone(&pool);
        race(
            || drop(rest),
            move || {
                let more = their_pool.allocate(2);
                if let Err(refusal) = &more {
                    let PagedKvError::OutOfMemory { requested: 2, available } = refusal else {
                        panic!("{refusal}");
                    };
                    assert!(*available < 2, "a refusal with room for what was asked");
                }
            },
        );
        assert_eq!(pool.allocate(2).expect("the sharer has left").len(), 2);
        drop(all);
        assert_all_free(&pool);
    });
}
