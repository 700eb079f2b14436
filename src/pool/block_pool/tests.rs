//! Tests of [`BlockPool`]: a pool has the requested shape, or is refused.

use super::*;

#[test]
fn a_pool_has_as_many_shards_as_it_can_fill_and_its_cores_can_use() {
    let shards = |blocks: &[usize]| blocks.iter().map(|&n| default_shards(n)).collect::<Vec<_>>();
    assert_eq!(shards(&[1, 512, 1023, 1024, 2047, 2048, 4096]), [1, 1, 1, 2, 2, 4, 8]);
    assert_eq!(shards(&[32_767, 32_768]), [32, 64]);
    let most = default_shards(MOST_BLOCKS);
    assert!((64..=256).contains(&most) && most.is_power_of_two(), "{most}");
}

#[test]
fn a_large_cache_has_a_shard_for_256_blocks() {
    let shards = |blocks: &[usize]| {
        blocks.iter().map(|&n| default_shards_of_cache(n, ReclaimPolicy::Lru)).collect::<Vec<_>>()
    };
    assert_eq!(shards(&[1, 1024, 2047, 2048, 3072, 4096]), [1, 1, 1, 8, 8, 16]);
    assert_eq!(shards(&[16_383, 16_384]), [32, 64]);
    assert_eq!(
        default_shards_of_cache(MOST_BLOCKS, ReclaimPolicy::Lru),
        default_shards(MOST_BLOCKS)
    );
}

#[test]
fn a_number_of_shards_that_is_none_of_two_is_the_next_one() {
    let shards = |asked| BlockPool::with_home_shards(8, asked).unwrap().stripes.len();
    assert_eq!([1, 2, 3, 4, 5].map(shards), [1, 2, 4, 4, 8]);
    // This number of shards takes minutes under an interpreter.
    if cfg!(not(miri)) {
        assert_eq!(shards(MOST_SHARDS), MOST_SHARDS);
    }
}

#[test]
fn an_impossible_pool_is_refused_with_the_number() {
    let refusal = |num_blocks, shards, null_block| {
        let built = BlockPool::build(
            num_blocks,
            shards,
            Retention::Nothing,
            null_block,
            Observers::default(),
            None,
        );
        built.expect_err("a refusal").to_string()
    };
    let most = MOST_BLOCKS + 1;
    for (refused, reason) in [
        (refusal(0, 1, true), "0, at least 2 needed".to_owned()),
        (refusal(1, 1, true), "1, at least 2 needed".to_owned()),
        (refusal(most, 1, false), format!("{most}, at most {MOST_BLOCKS} have ids")),
        (refusal(8, MOST_SHARDS + 1, false), "1025, at most 1024 are of use".to_owned()),
    ] {
        assert!(refused.ends_with(&reason), "{refused}");
    }
    let smallest =
        BlockPool::build(2, 1, Retention::Nothing, true, Observers::default(), None).unwrap();
    assert_eq!((smallest.total_blocks(), smallest.blocks().largest_id()), (1, 1));
}

#[test]
fn a_pool_without_blocks_refuses_every_block_and_no_more() {
    for shards in [1, 4, MOST_SHARDS] {
        let pool = BlockPool::with_home_shards(0, shards).unwrap();
        assert_eq!((pool.total_blocks(), pool.free_block_count(), pool.peak()), (0, 0, 0));
        for requested in [1, 2, MAGAZINE, MAGAZINE + 1, 1 << 40] {
            let refused = PagedKvError::OutOfMemory { requested, available: 0 };
            assert_eq!(pool.allocate(requested).unwrap_err(), refused);
            assert_eq!(pool.allocate_sequence(requested, 1).unwrap_err(), refused);
        }
        for id in [BlockId(0), BlockId(u32::MAX)] {
            let missing = Err(PagedKvError::BlockNotFound(id));
            assert_eq!((pool.retain(id), pool.release(id)), (missing.clone(), missing.clone()));
            assert_eq!(pool.owners(id), missing.map(|()| 0));
        }
        let mut table = pool.allocate(0).unwrap();
        assert!(table.grow(0).is_ok() && table.grow(1).is_err());
        let mut sequence = pool.allocate_sequence(0, 16).unwrap();
        assert!(sequence.append(0).is_ok() && sequence.append(1).is_err());
        assert_eq!((sequence.fork().unwrap().num_tokens(), sequence.largest_id_of_pool()), (0, 0));
        pool.validate().unwrap();
    }
}

#[test]
fn the_largest_id_is_that_of_the_last_block() {
    for (null_block, largest) in [(false, 3), (true, 3)] {
        let pool =
            BlockPool::build(4, 1, Retention::Nothing, null_block, Observers::default(), None)
                .unwrap();
        let table = pool.allocate(pool.total_blocks()).unwrap();
        assert_eq!(table.as_slice().iter().max(), Some(&BlockId(largest)));
        assert_eq!(pool.blocks().largest_id(), largest);
        drop(table);
        let sequence = pool.allocate_sequence(1, 4).unwrap();
        assert_eq!(sequence.largest_id_of_pool(), largest);
    }
}

#[test]
fn an_inconsistent_pool_names_the_fault() {
    let pool = BlockPool::new(4);
    assert_eq!(pool.validate(), Ok(()));
    pool.blocks.words.view().occupy(BlockId(2));
    let fault = "B2 is in the free list and has an owner".to_owned();
    assert_eq!(pool.validate(), Err(PagedKvError::Inconsistent(fault)));
}

#[test]
fn blocks_taken_out_of_a_table_are_released_by_id_once_each() {
    let pool = BlockPool::new(4);
    let mut table = pool.allocate(3).unwrap();
    let fork = table.fork(2).unwrap();
    let ids = table.take_ids().unwrap();
    assert_eq!(pool.owners(ids[0]), Ok(2), "the fork's run, and the caller");
    for &id in &ids {
        assert_eq!(pool.release(id), Ok(()));
        assert_eq!(pool.release(id), Err(PagedKvError::BlockNotFound(id)));
    }
    assert_eq!(pool.used_block_count(), 3, "the fork's");
    drop(fork);
    assert_eq!(pool.used_block_count(), 0);
    pool.validate().unwrap();
}

#[test]
fn ids_beside_those_of_the_pool_are_not_found() {
    for (null_block, ids) in [(false, 0..4), (true, 1..4)] {
        let pool =
            BlockPool::build(4, 1, Retention::Nothing, null_block, Observers::default(), None)
                .unwrap();
        let found = (0..6).filter(|&id| pool.owners(BlockId(id)).is_ok()).collect::<Vec<_>>();
        assert_eq!(found, ids.collect::<Vec<_>>());
        let beside = BlockId(4);
        assert_eq!(pool.owners(beside), Err(PagedKvError::BlockNotFound(beside)));
    }
}

/// In a pool of one block the end of the last slot must fit into 64 bits, too.
#[test]
fn blocks_whose_slots_overflow_are_refused() {
    let refused = BlockPool::new(1).allocate_sequence(0, 1 << 63).unwrap_err();
    let reason = "9223372036854775808: slots overflow 64 bits".to_owned();
    assert_eq!(refused, PagedKvError::InvalidConfig { parameter: "block_size", reason });
    assert!(BlockPool::new(1).allocate_sequence(1 << 62, 1 << 62).is_ok());
}
