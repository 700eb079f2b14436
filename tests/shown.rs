//! Tests of displayed values: each text names its value, and the small getters return the right value.

mod common;

use common::s;
use paged_kv::{AdmitOptions, BlockPool, PagedKvCache, ReclaimPolicy};

#[test]
fn debug_output_names_the_type_and_its_numbers() {
    let pool = BlockPool::new(4);
    let table = pool.allocate(2).unwrap();
    assert_eq!(format!("{pool:?}"), "BlockPool { total_blocks: 4, used_blocks: 2, .. }");
    assert!(format!("{table:?}").starts_with("BlockTable { ids: ["));
    let mut sequence = pool.allocate_sequence(1, 4).unwrap();
    let fork = sequence.fork().unwrap();
    let copy = sequence.append(1).unwrap().copy.expect("the last block is shared");
    assert!(format!("{copy:?}").contains("BlockCopy"));
    drop(fork);

    let cache = PagedKvCache::new(8, 4, 1, 1);
    assert!(format!("{cache:?}").contains("PagedKvCache"));
    let prompt = cache.prompt(&[1, 2, 3, 4, 5]);
    let (owned, _) = cache.admit_sequence(&prompt, &AdmitOptions::default()).unwrap();
    assert!(format!("{owned:?}").contains("CachedSequence"));
    assert!(format!("{prompt:?}").contains("Prompt"));
    cache.allocate(s(1), 4).unwrap();
    assert!(format!("{:?}", cache.lease(&[s(1)]).unwrap()).contains('1'));
    assert_eq!(ReclaimPolicy::Lru.to_string(), "lru");
    assert_eq!(ReclaimPolicy::TwoQueue.to_string(), "two-queue");
}

#[test]
fn lengths_count_the_sequences_or_blocks_held() {
    let cache = PagedKvCache::new(8, 4, 1, 1);
    for id in [s(1), s(2)] {
        cache.allocate(id, 4).unwrap();
    }
    let none = cache.lease(&[]).unwrap();
    assert_eq!((none.len(), none.is_empty()), (0, true));
    let two = cache.lease(&[s(1), s(2)]).unwrap();
    assert_eq!((two.len(), two.is_empty()), (2, false));
    let pool = BlockPool::new(2);
    assert!(!pool.allocate(1).unwrap().is_empty());
    assert!(pool.allocate(0).unwrap().is_empty());
}
