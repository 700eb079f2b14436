//! Tests of publishing: keys that collide, contents that return again and again, and copies.

use super::*;
use crate::pool::{BlockPool, Observers, ReclaimPolicy, Retention};
use crate::table::BlockTable;

/// The index cannot distinguish most of them, and the window overflows.
#[test]
fn hashes_that_collide_in_the_index_never_match() {
    let pool = BlockPool::build(
        2_000,
        1,
        Retention::Contents(ReclaimPolicy::Lru),
        false,
        Observers::default(),
        None,
    )
    .unwrap();
    let mut published = PublishedBlocks::new(2_000, None, None).unwrap();
    published.index = PrefixIndex::of_3_bits(2_000);
    let generation = published.generation();
    let hash = |n: u128| BlockHash::from_u128(n * 0x1234_5678_9abc_def1_0fed_cba9);
    let table = pool.allocate(1_000).unwrap();
    for (n, &id) in table.as_slice().iter().enumerate() {
        let hash_of = |_| hash(1 + n as u128);
        let offer = PublishRequest { ids: &[id], before: None, private_from: 0, generation };
        published.publish(pool.blocks(), &offer, hash_of, || unreachable!());
    }
    let mut found = 0;
    for n in 0..2_000 {
        let asked = [hash(1 + n as u128)];
        let mut ids = Vec::new();
        published.acquire(pool.blocks(), &asked, generation, &mut ids);
        found += ids.len();
        let keyed = table.as_slice().get(n).is_some_and(|&id| pool.blocks().is_cached(id));
        assert_eq!(ids.len(), usize::from(keyed), "what has a key is found, hash {n}");
        if let Some(id) = ids.first() {
            assert_eq!(Some(id), table.as_slice().get(n), "hash {n}");
        }
        assert_eq!(published.probe(pool.blocks(), &asked).cached, ids.len());
        drop(pool.table_of(ids));
    }
    assert!((20..1_000).contains(&found), "{found}: some are found, many forgotten");
    drop(table);
    assert_eq!(pool.used_block_count(), 0);
    pool.validate().unwrap();
}

fn pool_and_published(blocks: usize) -> (BlockPool, PublishedBlocks) {
    let keep = Retention::Contents(ReclaimPolicy::Lru);
    (
        BlockPool::build(blocks, 1, keep, false, Observers::default(), None).unwrap(),
        PublishedBlocks::new(blocks, None, None).unwrap(),
    )
}

/// Publishes the blocks of a table under one hash each, from `first` on. Returns how many became matchable.
fn publish(
    pool: &BlockPool,
    published: &PublishedBlocks,
    table: &BlockTable,
    first: u128,
) -> usize {
    let generation = published.generation();
    let offer = PublishRequest { ids: table.as_slice(), before: None, private_from: 0, generation };
    let hash_of = |at| BlockHash::from_u128(first + at as u128);
    published.publish(pool.blocks(), &offer, hash_of, || unreachable!())
}

fn copies(pool: &BlockPool, published: &PublishedBlocks, hash: u128) -> usize {
    let key = published.generation().key_of(BlockHash::from_u128(hash));
    published.count_copies(pool.blocks(), published.index.place(key), key, usize::MAX)
}

#[test]
fn of_five_copies_four_are_noted_and_each_is_found_when_the_others_are_gone() {
    let (pool, published) = pool_and_published(5);
    let mut tables: Vec<_> = (0..5).map(|_| pool.allocate(1).unwrap()).collect();
    let new: Vec<_> = tables.iter().map(|table| publish(&pool, &published, table, 7)).collect();
    assert_eq!((new, copies(&pool, &published, 7)), (vec![1, 0, 0, 0, 0], MOST_COPIES));
    let fifth = tables.pop().unwrap();
    let mut others = Vec::new();
    for left in (0..4).rev() {
        drop(tables.remove(0));
        assert_eq!(copies(&pool, &published, 7), left + 1, "the last that left is idle");
        others.push(pool.allocate(1).unwrap());
        assert_eq!(copies(&pool, &published, 7), left);
        let probed = published.probe(pool.blocks(), &[BlockHash::from_u128(7)]);
        assert_eq!((probed.cached, probed.idle), (usize::from(left > 0), 0));
    }
    assert_eq!(publish(&pool, &published, &fifth, 7), 1, "offered once more");
    assert_eq!(published.probe(pool.blocks(), &[BlockHash::from_u128(7)]).cached, 1);
    drop((fifth, others));
    pool.validate().unwrap();
}

/// Contents 10 to 13 are older than the copy, and contents 20 to 23 are newer.
#[test]
fn a_spare_copy_is_reclaimed_before_all_else_and_as_others_once_it_was_asked_for() {
    for asked_for in [false, true] {
        let (pool, published) = pool_and_published(10);
        let cache = |first, blocks| {
            let table = pool.allocate(blocks).unwrap();
            publish(&pool, &published, &table, first);
            table
        };
        let (first, copy) = (cache(7, 1), cache(7, 1));
        let spare = copy.as_slice()[0];
        drop(first);
        drop(pool.allocate(9).unwrap());
        drop(cache(10, 4));
        if asked_for {
            let (hash, mut ids) = ([BlockHash::from_u128(7)], Vec::new());
            published.acquire(pool.blocks(), &hash, published.generation(), &mut ids);
            assert_eq!(ids, [spare], "the other copy is gone");
            drop(pool.table_of(ids));
        }
        drop(copy);
        drop(cache(20, 4));
        let free = pool.free_block_count() - pool.idle_totals().idle;
        let taken = pool.allocate(free + 1).unwrap();
        assert_eq!(taken.as_slice().contains(&spare), !asked_for);
        pool.validate().unwrap();
    }
}

/// The content stays cached throughout: a commit of it would not be its return.
#[test]
fn a_spare_copy_that_is_reclaimed_is_not_remembered_as_gone() {
    let keep = Retention::Contents(ReclaimPolicy::TwoQueue);
    let (pool, published) = (
        BlockPool::build(3, 1, keep, false, Observers::default(), None).unwrap(),
        PublishedBlocks::new(3, None, None).unwrap(),
    );
    let key = published.generation().key_of(BlockHash::from_u128(7));
    let [first, copy] = [(); 2].map(|()| pool.allocate(1).unwrap());
    for table in [&first, &copy] {
        publish(&pool, &published, table, 7);
    }
    drop(copy);
    drop(pool.allocate(2).unwrap());
    assert_eq!(copies(&pool, &published, 7), 1);
    assert!(!pool.blocks().was_recently_reclaimed(key));
    drop(first);
    drop(pool.allocate(3).unwrap());
    assert!(pool.blocks().was_recently_reclaimed(key), "with the last copy it is");
}

/// Both forks of a sequence commit the block that they share.
#[test]
fn a_block_is_no_copy_of_itself() {
    let (pool, published) = pool_and_published(4);
    let table = pool.allocate(1).unwrap();
    assert_eq!(publish(&pool, &published, &table, 7), 1);
    assert_eq!(publish(&pool, &published, &table, 7), 0);
    assert_eq!((published.index.entries().len(), copies(&pool, &published, 7)), (1, 1));
    assert!(!pool.blocks().keyed().words().state(table.as_slice()[0]).is_spare());
}

#[test]
fn a_content_that_was_often_reclaimed_finds_room_again() {
    let pool = BlockPool::build(
        200,
        1,
        Retention::Contents(ReclaimPolicy::Lru),
        false,
        Observers::default(),
        None,
    )
    .unwrap();
    let published = PublishedBlocks::new(200, None, None).unwrap();
    let (hash, generation) = (BlockHash::from_u128(7), published.generation());
    let mut held = pool.allocate(0).unwrap();
    for _ in 0..190 {
        let table = pool.allocate(1).unwrap();
        let offer =
            PublishRequest { ids: table.as_slice(), before: None, private_from: 0, generation };
        published.publish(pool.blocks(), &offer, |_| hash, || unreachable!());
        assert_eq!(published.probe(pool.blocks(), &[hash]).cached, 1);
        drop(table);
        // The reclaimed block comes last, and is held without a new key.
        let mut all = pool.allocate(pool.free_block_count()).unwrap();
        held.grow_from(&mut all, 1);
        assert_eq!(published.probe(pool.blocks(), &[hash]).cached, 0);
    }
}

/// A thousand times more contents are served than there are blocks, some of them again and again.
#[test]
fn entries_do_not_pile_up_however_often_blocks_get_keys() {
    const BLOCKS: usize = 600;
    const THREADS: u64 = 4;
    const ROUNDS: u64 = if cfg!(miri) { 400 } else { 100_000 };
    let keep = Retention::Contents(ReclaimPolicy::Lru);
    let pool = BlockPool::build(BLOCKS, 4, keep, false, Observers::default(), None).unwrap();
    let published = PublishedBlocks::new(BLOCKS, None, None).unwrap();
    let generation = published.generation();
    let serve = |content: u128| {
        let hash = BlockHash::from_u128(content.wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C061));
        let mut ids = Vec::new();
        published.acquire(pool.blocks(), &[hash], generation, &mut ids);
        let hits = ids.len();
        let mut table = pool.table_of(ids);
        if hits == 0 && table.grow(1).is_ok() {
            let ids = table.as_slice();
            let offer = PublishRequest { ids, before: None, private_from: 0, generation };
            published.publish(pool.blocks(), &offer, |_| hash, || unreachable!());
        }
        table
    };
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let serve = &serve;
            scope.spawn(move || {
                let mut held = Vec::new();
                for round in 0..ROUNDS {
                    let seed = (thread * ROUNDS + round).wrapping_mul(0xD6E8_FEB8_6659_FD93);
                    let random = seed ^ seed >> 32;
                    // Half of the contents come from a thousand that return, half from all contents.
                    let most = if random & 1 == 0 { 1_000 } else { 1 << 40 };
                    held.push(serve(1 + u128::from(random >> 1) % most));
                    if held.len() > 20 {
                        held.swap_remove(random as usize % 20);
                    }
                }
            });
        }
    });
    assert_eq!(pool.used_block_count(), 0);
    pool.validate().unwrap();
    let (blocks, index) = (pool.blocks(), &published.index);
    let (mut of_block, mut beyond) = (vec![0; BLOCKS], vec![0; BLOCKS]);
    for (at, tag, id) in index.entries() {
        of_block[id.index()] += 1;
        let place = index.place(blocks.keyed().last_key(id).expect("it was noted under a key"));
        assert_eq!(place.tag, tag, "{id} is noted under its last key");
        beyond[place.home()] += u64::from(place.home() != at);
    }
    assert!(of_block.iter().all(|&entries| entries <= 1), "a block has one entry at most");
    let buckets = BLOCKS - BLOCKS / 25;
    assert!((0..buckets).all(|at| index.counted_beyond(at) == beyond[at]), "{beyond:?}");
}
