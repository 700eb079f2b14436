//! Models of counts by id: they are exact, and a second release is refused.

mod common;

use std::sync::Arc;

use common::{assert_all_free, assert_used, explore, pool_and_kv, race};
use paged_kv::PagedKvError;

#[test]
fn of_two_releases_of_one_owner_one_is_refused() {
    explore(|| {
        let (pool, _) = pool_and_kv(3, 2);
        let table = pool.allocate(1).unwrap();
        let id = table.as_slice()[0];
        pool.retain(id).unwrap();
        drop(table);
        let their_pool = Arc::clone(&pool);
        let results = race(|| pool.release(id), move || their_pool.release(id));
        match results {
            (Ok(()), Err(refusal)) | (Err(refusal), Ok(())) => {
                assert_eq!(refusal, PagedKvError::BlockNotFound(id));
            }
            _ => panic!("one owner was released by both or by neither: {results:?}"),
        }
        assert_all_free(&pool);
    });
}

/// The owner count of a table is not a count by id, also while the table is being dropped.
#[test]
fn a_release_by_id_of_a_tables_block_is_refused() {
    explore(|| {
        let (pool, _) = pool_and_kv(3, 2);
        let table = pool.allocate(1).unwrap();
        let id = table.as_slice()[0];
        let their_pool = Arc::clone(&pool);
        let ((), refusal) = race(
            || {
                drop(table);
                drop(pool.allocate(2).unwrap());
            },
            move || {
                drop(their_pool.allocate(1).unwrap());
                their_pool.release(id)
            },
        );
        assert_eq!(refusal, Err(PagedKvError::BlockNotFound(id)));
        assert_all_free(&pool);
    });
}

#[test]
fn a_release_by_id_beside_the_tables_own_frees_once() {
    explore(|| {
        let (pool, kv) = pool_and_kv(3, 2);
        let table = pool.allocate(3).unwrap();
        let id = table.as_slice()[1];
        table.as_slice().iter().for_each(|&id| kv.write(id, 7));
        pool.retain(id).unwrap();
        let (their_pool, their_kv) = (Arc::clone(&pool), Arc::clone(&kv));
        race(
            || {
                drop(table);
                if let Ok(reused) = pool.allocate(1) {
                    kv.use_alone(reused.as_slice(), 1);
                }
            },
            move || {
                assert_eq!(their_kv.read(id), 7);
                their_pool.release(id).unwrap();
                if let Ok(reused) = their_pool.allocate(1) {
                    their_kv.use_alone(reused.as_slice(), 2);
                }
            },
        );
        assert_all_free(&pool);
    });
}

#[test]
fn owners_by_id_and_by_fork_add_up() {
    explore(|| {
        let (pool, _) = pool_and_kv(3, 2);
        let mut table = pool.allocate(2).unwrap();
        let id = table.as_slice()[1];
        let mut fork = table.fork(1).unwrap();
        let their_pool = Arc::clone(&pool);
        let (again, fork) = race(
            || table.fork(1).unwrap(),
            move || {
                their_pool.retain(id).unwrap();
                fork.truncate(1).unwrap();
                fork
            },
        );
        assert_eq!(pool.owners(id), Ok(3));
        assert_used(&pool, 2);
        drop((table, again, fork));
        assert_eq!(pool.owners(id), Ok(1));
        pool.release(id).unwrap();
        assert_all_free(&pool);
    });
}
