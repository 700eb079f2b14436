//! Tests of owners by id: a refused count names the fault, in each state that a block can be in.

use super::*;
use crate::common::{assert_empties, s};
use paged_kv::{BlockId, PagedKvError};

#[test]
fn a_block_without_an_owner_is_not_found_whether_free_idle_or_of_old_weights() {
    for (cache, _) in caches(6) {
        let tokens = prompt(5, 2);
        (1..=2).for_each(|id| _ = cache.admit(s(id), &tokens).unwrap());
        (1..=2).for_each(|id| _ = cache.commit(s(id), 9).unwrap());
        let owned = cache.get_sequence(s(1)).unwrap().block_ids;
        let pool = cache.pool();
        for &id in &owned {
            assert_eq!(pool.retain(id), Ok(()));
            assert_eq!(pool.release(id), Ok(()));
        }
        (1..=2).for_each(|id| cache.free(s(id)).unwrap());
        assert!(cache.stats().blocks_idle >= 2);
        let assert_not_found = || {
            for id in (0..8).map(BlockId) {
                assert_eq!(pool.retain(id), Err(PagedKvError::BlockNotFound(id)), "{id}");
                assert_eq!(pool.release(id), Err(PagedKvError::BlockNotFound(id)), "{id}");
            }
        };
        assert_not_found();
        assert_eq!(cache.prefix().probe(&cache.prompt(&tokens)), 8, "nothing has changed");
        cache.prefix().reset();
        assert_not_found();
        assert_empties(&cache);
    }
}

#[test]
fn a_full_count_is_too_many_owners_also_of_a_cached_block() {
    let cache = PagedKvCache::new(2, BLOCK_SIZE, 1, 1);
    cache.admit(s(1), &prompt(5, 1)).unwrap();
    let id = cache.get_sequence(s(1)).unwrap().block_ids[0];
    for is_cached in [false, true] {
        if is_cached {
            cache.commit(s(1), BLOCK_SIZE).unwrap();
        }
        let most = (1 << 20) - 1;
        (1..most).for_each(|_| cache.pool().retain(id).unwrap());
        assert_eq!(cache.pool().retain(id), Err(PagedKvError::TooManyOwners(id)));
        (1..most).for_each(|_| cache.pool().release(id).unwrap());
    }
    assert_empties(&cache);
}
