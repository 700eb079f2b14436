//! Tests of counts: they are exact when sharers leave, shrink, trim and grow in any order. Every short
//! script over three owners is compared with plain lists: a block is used exactly if an owner lists it.

mod common;

use std::collections::BTreeSet;

use common::{assert_empties, permutations, s, shapes};
use paged_kv::{BlockId, BlockPool, BlockTable, PagedKvCache, PagedKvError, Sequence};

const BLOCKS: usize = 48;
const BLOCK_SIZE: usize = 2;

fn assert_used_exactly(pool: &BlockPool, listed: &BTreeSet<BlockId>, context: &str) {
    assert_eq!(pool.used_block_count(), listed.len(), "{context}");
    for id in (0..BLOCKS as u32).map(BlockId) {
        let owners = pool.owners(id).unwrap();
        assert_eq!(owners > 0, listed.contains(&id), "{context}: {id} has {owners} owners");
    }
}

/// Runs every script of three of `steps`, from each of `setups`.
fn for_every_script<S: Copy, T: Copy>(setups: &[S], steps: &[T], run: impl Fn(S, [T; 3])) {
    for &setup in setups {
        for &first in steps {
            for &second in steps {
                for &third in steps {
                    run(setup, [first, second, third]);
                }
            }
        }
    }
}

mod sequences {
    use super::*;

    /// A sequence, and its expected state: a block, or a gap, for each logical block.
    struct Owner {
        sequence: Sequence,
        blocks: Vec<Option<BlockId>>,
        num_tokens: usize,
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Free,
        Truncate(usize),
        Trim {
            sink: usize,
            window: usize,
        },
        Append(usize),
        /// Forks into the next owner's place if that is free.
        Fork,
    }

    use Step::*;

    const STEPS: [Step; 7] = [
        Free,
        Truncate(5),
        Truncate(7),
        Trim { sink: 3, window: 3 },
        Trim { sink: 0, window: 2 },
        Append(3),
        Fork,
    ];

    /// The three owners at the start.
    const SETUPS: [&[(usize, Step)]; 6] = [
        // Three owners of one run, with and without a partly filled tail.
        &[(0, Append(7)), (0, Fork), (1, Fork)],
        &[(0, Append(8)), (0, Fork), (1, Fork)],
        // A chain of two runs and further blocks after it.
        &[(0, Append(6)), (0, Fork), (1, Append(3)), (1, Fork), (1, Append(2))],
        // A run that grew at its first owner.
        &[(0, Append(4)), (0, Fork), (0, Append(4)), (0, Fork), (0, Append(1))],
        // A fork of a fork that was trimmed inside the run.
        &[(0, Append(9)), (0, Fork), (1, Trim { sink: 2, window: 3 }), (1, Fork)],
        // A fork of a fork that was cut inside a block of the run.
        &[(0, Append(8)), (0, Fork), (1, Truncate(5)), (1, Fork)],
    ];

    struct World {
        pool: BlockPool,
        owners: [Option<Owner>; 3],
    }

    impl World {
        fn new() -> Self {
            let pool = BlockPool::with_home_shards(BLOCKS, 1).unwrap();
            let sequence = pool.allocate_sequence(0, BLOCK_SIZE).unwrap();
            let first = Owner { sequence, blocks: Vec::new(), num_tokens: 0 };
            Self { pool, owners: [Some(first), None, None] }
        }

        fn listed(&self) -> BTreeSet<BlockId> {
            self.owners
                .iter()
                .flatten()
                .flat_map(|owner| owner.blocks.iter().flatten().copied())
                .collect()
        }

        fn step(&mut self, at: usize, step: Step) {
            let before = self.listed();
            let others: BTreeSet<BlockId> = self
                .owners
                .iter()
                .enumerate()
                .filter(|&(other, _)| other != at)
                .filter_map(|(_, owner)| owner.as_ref())
                .flat_map(|owner| owner.blocks.iter().flatten().copied())
                .collect();
            let next = (at + 1..3).find(|&next| self.owners[next].is_none());
            let Some(owner) = &mut self.owners[at] else {
                return;
            };
            match step {
                Free => self.owners[at] = None,
                Truncate(end) => owner.truncate(end.min(owner.num_tokens)),
                Trim { sink, window } => owner.trim(sink, window),
                Append(num_new_tokens) => owner.append(num_new_tokens, &others, &before),
                Fork => {
                    let fork = owner.fork();
                    if let Some(next) = next {
                        self.owners[next] = Some(fork);
                    }
                }
            }
            for owner in self.owners.iter().flatten() {
                let resident: Vec<_> = owner.blocks.iter().flatten().copied().collect();
                assert_eq!(owner.sequence.block_ids(), resident);
                assert_eq!(owner.sequence.num_tokens(), owner.num_tokens);
            }
        }
    }

    impl Owner {
        fn truncate(&mut self, end: usize) {
            let ends_inside = !end.is_multiple_of(BLOCK_SIZE);
            if ends_inside && self.blocks[end / BLOCK_SIZE].is_none() {
                let refused = PagedKvError::TokensTrimmed { position: end };
                assert_eq!(self.sequence.truncate(end), Err(refused));
                return;
            }
            self.sequence.truncate(end).unwrap();
            self.blocks.truncate(end.div_ceil(BLOCK_SIZE));
            self.num_tokens = end;
        }

        fn trim(&mut self, sink: usize, window: usize) {
            let mut given_up = 0;
            for (logical, block) in self.blocks.iter_mut().enumerate() {
                let (start, end) = (logical * BLOCK_SIZE, (logical + 1) * BLOCK_SIZE);
                let kept = start < sink || end + window > self.num_tokens;
                if !kept && block.take().is_some() {
                    given_up += BLOCK_SIZE;
                }
            }
            assert_eq!(self.sequence.apply_streaming_llm(sink, window).unwrap(), given_up);
        }

        fn append(
            &mut self,
            num_new_tokens: usize,
            others: &BTreeSet<BlockId>,
            used: &BTreeSet<BlockId>,
        ) {
            let append = self.sequence.append(num_new_tokens).unwrap();
            let partly_filled = !self.num_tokens.is_multiple_of(BLOCK_SIZE);
            let tail = self.blocks.last().copied().flatten();
            let tail = tail.filter(|tail| partly_filled && others.contains(tail));
            assert_eq!(append.copy.as_ref().map(|copy| copy.src), tail);
            if let Some(copy) = &append.copy {
                assert!(!used.contains(&copy.dst), "a copy goes to a block that nobody uses");
                *self.blocks.last_mut().unwrap() = Some(copy.dst);
            }
            for &id in &self.sequence.block_ids()[append.new_blocks.clone()] {
                assert!(!used.contains(&id), "a new block is one that nobody uses");
                self.blocks.push(Some(id));
            }
            self.num_tokens += num_new_tokens;
            assert_eq!(self.blocks.len(), self.num_tokens.div_ceil(BLOCK_SIZE));
        }

        fn fork(&mut self) -> Owner {
            let sequence = self.sequence.fork().unwrap();
            Owner { sequence, blocks: self.blocks.clone(), num_tokens: self.num_tokens }
        }
    }

    #[test]
    fn every_order_of_leaving_cutting_trimming_and_growing_keeps_counts_exact() {
        let steps: Vec<(usize, Step)> =
            (0..3).flat_map(|at| STEPS.map(|step| (at, step))).collect();
        for_every_script(&SETUPS, &steps, |setup, script| {
            let mut world = World::new();
            for &(at, step) in setup {
                world.step(at, step);
            }
            for (at, step) in script {
                world.step(at, step);
                assert_used_exactly(&world.pool, &world.listed(), "a step on");
            }
            world.pool.validate().unwrap();
            for at in [1, 0, 2] {
                world.owners[at] = None;
                assert_used_exactly(&world.pool, &world.listed(), "one owner fewer");
            }
            assert_eq!(world.pool.used_block_count(), 0);
            world.pool.validate().unwrap();
        });
    }
}

mod tables {
    use super::*;

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Drop,
        Truncate(usize),
        Remove(usize, usize),
        Grow(usize),
        /// Forks into the next owner's place if that is free; this many blocks become a run.
        Fork(usize),
    }

    use Step::*;

    const STEPS: [Step; 7] =
        [Drop, Truncate(2), Truncate(4), Remove(1, 3), Remove(0, 5), Grow(2), Fork(3)];

    const SETUPS: [&[(usize, Step)]; 4] = [
        &[(0, Grow(6)), (0, Fork(5)), (0, Fork(6))],
        &[(0, Grow(3)), (0, Fork(3)), (1, Grow(3)), (1, Fork(4))],
        &[(0, Grow(2)), (0, Fork(1)), (0, Grow(2)), (0, Fork(3)), (0, Grow(2))],
        &[(0, Grow(6)), (0, Fork(6)), (1, Remove(2, 4)), (1, Fork(3))],
    ];

    type Owner = (BlockTable, Vec<BlockId>);

    fn step(owners: &mut [Option<Owner>; 3], at: usize, step: Step) {
        let next = (at + 1..3).find(|&next| owners[next].is_none());
        let used: BTreeSet<BlockId> = listed(owners);
        let Some((table, ids)) = &mut owners[at] else {
            return;
        };
        let len = ids.len();
        match step {
            Drop => owners[at] = None,
            Truncate(end) => {
                table.truncate(end.min(len)).unwrap();
                ids.truncate(end);
            }
            Remove(start, end) => {
                let range = start.min(len)..end.min(len);
                table.remove(range.clone()).unwrap();
                ids.drain(range);
            }
            Grow(n) => {
                assert_eq!(table.grow(n).unwrap(), len..len + n);
                ids.extend_from_slice(&table.as_slice()[len..]);
                assert!(ids[len..].iter().all(|id| !used.contains(id)), "new to everybody");
            }
            Fork(full_blocks) => {
                let fork = (table.fork(full_blocks.min(len)).unwrap(), ids.clone());
                if let Some(next) = next {
                    owners[next] = Some(fork);
                }
            }
        }
        for (at, owner) in owners.iter().enumerate() {
            let Some((table, ids)) = owner else { continue };
            assert_eq!(table.as_slice(), ids);
            for (index, id) in ids.iter().enumerate() {
                let shared = owners.iter().enumerate().any(|(other, owner)| {
                    other != at && owner.as_ref().is_some_and(|(_, ids)| ids.contains(id))
                });
                assert!(!(shared && table.is_exclusive(index)), "{id} is shared");
            }
        }
    }

    fn listed(owners: &[Option<Owner>; 3]) -> BTreeSet<BlockId> {
        owners.iter().flatten().flat_map(|(_, ids)| ids.iter().copied()).collect()
    }

    #[test]
    fn every_order_of_dropping_cutting_removing_and_growing_keeps_counts_exact() {
        let steps: Vec<(usize, Step)> =
            (0..3).flat_map(|at| STEPS.map(|step| (at, step))).collect();
        for_every_script(&SETUPS, &steps, |setup, script| {
            let pool = BlockPool::with_home_shards(BLOCKS, 1).unwrap();
            let mut owners = [Some((pool.allocate(0).unwrap(), Vec::new())), None, None];
            for &(at, each) in setup {
                step(&mut owners, at, each);
            }
            for (at, each) in script {
                step(&mut owners, at, each);
                assert_used_exactly(&pool, &listed(&owners), "a step on");
            }
            pool.validate().unwrap();
            for at in [2, 0, 1] {
                owners[at] = None;
                assert_used_exactly(&pool, &listed(&owners), "one owner fewer");
            }
            assert_eq!(pool.used_block_count(), 0);
            pool.validate().unwrap();
        });
    }

    #[test]
    fn counts_by_id_and_tables_leave_in_any_order() {
        #[derive(Clone, Copy, Debug)]
        enum Leave {
            Table(usize),
            Id(usize),
        }
        use Leave::*;
        for order in permutations(&[Table(0), Table(1), Id(0), Id(1), Id(1), Id(3)]) {
            for home_shards in [1, 4] {
                let pool = BlockPool::with_home_shards(BLOCKS, home_shards).unwrap();
                let mut table = pool.allocate(4).unwrap();
                let ids = table.as_slice().to_vec();
                let mut tables = [Some(table.fork(3).unwrap()), Some(table)];
                let mut retained = [1, 2, 0, 1];
                for (index, &times) in retained.iter().enumerate() {
                    (0..times).for_each(|_| pool.retain(ids[index]).unwrap());
                }
                assert_eq!(
                    [0, 1, 2, 3].map(|index| pool.owners(ids[index]).unwrap()),
                    [2, 3, 1, 3]
                );
                for &leave in &order {
                    match leave {
                        Table(at) => tables[at] = None,
                        Id(index) => {
                            retained[index] -= 1;
                            pool.release(ids[index]).unwrap();
                        }
                    }
                    let held = tables.iter().any(Option::is_some);
                    let used =
                        (0..4).filter(|&index| held || retained[index] > 0).map(|index| ids[index]);
                    assert_used_exactly(&pool, &used.collect(), &format!("{order:?}"));
                }
                for &id in &ids {
                    assert_eq!(pool.release(id), Err(PagedKvError::BlockNotFound(id)));
                }
                pool.validate().unwrap();
            }
        }
    }
}

mod ids {
    use super::*;

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Free(u64),
        Truncate(u64, usize),
        Trim(u64, usize, usize),
        Append(u64, usize),
        Fork(u64, u64),
        Evict,
    }

    use Step::*;

    const SCRIPTS: [[Step; 6]; 4] = [
        [Truncate(1, 5), Trim(2, 2, 3), Free(3), Append(1, 1), Free(1), Append(2, 4)],
        [Trim(1, 0, 1), Trim(3, 4, 2), Truncate(2, 6), Free(2), Append(3, 3), Free(1)],
        [Fork(1, 4), Free(1), Trim(4, 1, 4), Truncate(3, 3), Free(2), Append(4, 2)],
        [Fork(2, 4), Evict, Truncate(4, 7), Append(2, 1), Evict, Trim(3, 2, 2)],
    ];

    fn apply(cache: &PagedKvCache, step: Step) -> Result<(), PagedKvError> {
        match step {
            Free(id) => cache.free(s(id)),
            Truncate(id, end) => cache.truncate(s(id), end),
            Trim(id, sink, window) => cache.apply_streaming_llm(s(id), sink, window).map(drop),
            Append(id, n) => cache.append(s(id), n).map(drop),
            Fork(src, dst) => cache.fork(s(src), s(dst)),
            Evict => cache.evict().map(drop),
        }
    }

    fn listed(cache: &PagedKvCache) -> BTreeSet<BlockId> {
        let ids = cache.sequence_ids().into_iter();
        ids.flat_map(|id| cache.get_sequence(id).unwrap().block_ids).collect()
    }

    /// Creates three forks, or three links of a chain.
    fn prepare(cache: &PagedKvCache, chained: bool) {
        cache.allocate(s(1), 9).unwrap();
        cache.fork(s(1), s(2)).unwrap();
        if chained {
            cache.append(s(2), 3).map(drop).unwrap();
        }
        cache.fork(s(2), s(3)).unwrap();
    }

    #[test]
    fn three_forks_leave_cut_trim_and_grow_in_every_order() {
        for script in SCRIPTS {
            for (number, order) in permutations(&script).iter().enumerate() {
                let cache = &shapes(BLOCKS - 1, BLOCK_SIZE)[number % 3];
                prepare(cache, number % 2 > 0);
                for &step in order {
                    match apply(cache, step) {
                        Ok(()) | Err(PagedKvError::SequenceNotFound(_)) => {}
                        Err(PagedKvError::TruncateBeyondEnd { .. }) => {}
                        Err(PagedKvError::TokensTrimmed { .. }) => {}
                        Err(refusal) => panic!("{order:?}: {step:?}: {refusal}"),
                    }
                    let listed = listed(cache);
                    assert_eq!(cache.used_block_count(), listed.len(), "{order:?}: {step:?}");
                    for id in listed {
                        assert!(cache.pool().owners(id).unwrap() > 0);
                    }
                }
                cache.validate().unwrap();
                assert_empties(cache);
            }
        }
    }

    #[test]
    fn a_long_chain_of_forks_lets_go_of_every_link() {
        for leave_first in [true, false] {
            let cache = &PagedKvCache::new(20_001, 1, 1, 1);
            cache.allocate(s(0), 1).unwrap();
            for link in 1..=20_000 {
                cache.fork(s(link - 1), s(link)).unwrap();
                cache.append(s(link), 1).map(drop).unwrap();
                // Tables grow by one block a link, so only the ends are kept.
                if link > 1 {
                    cache.free(s(link - 1)).unwrap();
                }
            }
            assert_eq!(cache.used_block_count(), 20_001);
            cache.free(s(if leave_first { 0 } else { 20_000 })).unwrap();
            assert_eq!(cache.used_block_count(), if leave_first { 20_001 } else { 1 });
            assert_empties(cache);
        }
    }
}
