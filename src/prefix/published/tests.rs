//! What becomes of names that collide, of contents that come again and again, and of copies?

use super::*;
use crate::pool::{BlockPool, Keep, ReclaimPolicy};

/// The index cannot tell most of them apart, and the window overflows.
#[test]
fn hashes_that_collide_in_the_index_never_match() {
    let pool = BlockPool::build(2_000, 1, Keep::Contents(ReclaimPolicy::Lru), false, None).unwrap();
    let mut published = PublishedBlocks::new(2_000, None);
    published.index = PrefixIndex::of_3_bits(2_000);
    let generation = published.generation();
    let hash = |n: u128| BlockHash::from_u128(n * 0x1234_5678_9abc_def1_0fed_cba9);
    let table = pool.allocate(1_000).unwrap();
    for (n, &id) in table.as_slice().iter().enumerate() {
        let hash_of = |_| hash(1 + n as u128);
        let offer = Offer { ids: &[id], before: None, private_from: 0, generation };
        published.publish(pool.blocks(), &offer, hash_of, || unreachable!());
    }
    let mut found = 0;
    for n in 0..2_000 {
        let asked = [hash(1 + n as u128)];
        let mut ids = Vec::new();
        published.acquire(pool.blocks(), &asked, generation, &mut ids);
        found += ids.len();
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

/// As each of three publishers finds them, in every order in which they were noted.
#[test]
fn of_three_copies_noted_at_once_all_but_the_lowest_go() {
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        for keeper in 0..3 {
            let keep = Keep::Contents(ReclaimPolicy::Lru);
            let pool = BlockPool::build(3, 1, keep, false, None).unwrap();
            let published = PublishedBlocks::new(3, None);
            let (blocks, index, name) = (pool.blocks(), &published.index, Name::new(7 << 64));
            let (table, place) = (pool.allocate(3).unwrap(), index.place(name));
            let ids = table.as_slice();
            for at in order {
                assert!(blocks.give_name(ids[at], name, false, true, |_| {}));
                assert!(index.insert(place, ids[at]));
            }
            published.keep_one(blocks, ids[keeper], published.index.place(name), || name);
            let stays = |id: BlockId| index.find(place, |found| found == id).is_some();
            assert!(stays(ids[0]), "{order:?} {keeper}");
            let is_lowest = keeper == 0;
            assert_eq!(stays(ids[keeper]), is_lowest, "{order:?} {keeper}");
            assert!(!is_lowest || !(stays(ids[1]) || stays(ids[2])), "{order:?}");
        }
    }
}

#[test]
fn a_content_that_was_often_reclaimed_finds_room_again() {
    let pool = BlockPool::build(200, 1, Keep::Contents(ReclaimPolicy::Lru), false, None).unwrap();
    let published = PublishedBlocks::new(200, None);
    let (hash, generation) = (BlockHash::from_u128(7), published.generation());
    let mut held = pool.allocate(0).unwrap();
    for _ in 0..190 {
        let table = pool.allocate(1).unwrap();
        let offer = Offer { ids: table.as_slice(), before: None, private_from: 0, generation };
        published.publish(pool.blocks(), &offer, |_| hash, || unreachable!());
        assert_eq!(published.probe(pool.blocks(), &[hash]).cached, 1);
        drop(table);
        // The one that is reclaimed comes last, and is held without a new name.
        let mut all = pool.allocate(pool.free_block_count()).unwrap();
        held.grow_from(&mut all, 1);
        assert_eq!(published.probe(pool.blocks(), &[hash]).cached, 0);
    }
}

/// A thousand times more contents come than there are blocks, some of them again and again.
#[test]
fn entries_do_not_pile_up_however_often_blocks_are_named() {
    const BLOCKS: usize = 600;
    const THREADS: u64 = 4;
    const ROUNDS: u64 = if cfg!(miri) { 400 } else { 100_000 };
    let keep = Keep::Contents(ReclaimPolicy::Lru);
    let pool = BlockPool::build(BLOCKS, 4, keep, false, None).unwrap();
    let published = PublishedBlocks::new(BLOCKS, None);
    let generation = published.generation();
    let serve = |content: u128| {
        let hash = BlockHash::from_u128(content.wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C061));
        let mut ids = Vec::new();
        published.acquire(pool.blocks(), &[hash], generation, &mut ids);
        let hits = ids.len();
        let mut table = pool.table_of(ids);
        if hits == 0 && table.grow(1).is_ok() {
            let ids = table.as_slice();
            let offer = Offer { ids, before: None, private_from: 0, generation };
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
                    // Half of a thousand that come back, half of all that there are.
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
        let place = index.place(blocks.last_name(id).expect("it was noted under a name"));
        assert_eq!(place.tag, tag, "{id} is noted under its last name");
        beyond[place.home()] += u64::from(place.home() != at);
    }
    assert!(of_block.iter().all(|&entries| entries <= 1), "a block has one entry at most");
    let buckets = BLOCKS - BLOCKS / 25;
    assert!((0..buckets).all(|at| index.counted_beyond(at) == beyond[at]), "{beyond:?}");
}
