//! Model of a linearizable pool: each block has one owner, and an allocation gets all of its blocks or is
//! refused.
//!
//! The model does not say which ids an allocation gets, only that no other allocation owns them. A
//! refusal must meet a moment of its call at which exactly the reported number of blocks was available,
//! fewer than requested.

use std::collections::BTreeSet;

use paged_kv::PagedKvError::OutOfMemory;
use paged_kv::{AdmitOptions, BlockId, BlockTable, CachedSequence, PagedKvCache, Result, Sequence};
use shuttle::rand::{Rng, thread_rng};
use shuttle::thread::scope;
use stateright::semantics::SequentialSpec;

use crate::explore::explore;
use crate::history::{History, assert_linearizable};
use crate::{assert_all_free_at_end, cache};

const BLOCKS: usize = 4;

/// A pool in which calls happen one after another.
#[derive(Clone, Debug)]
struct Pool {
    total: usize,
    owned: BTreeSet<BlockId>,
}

#[derive(Clone, Debug)]
enum Op {
    Allocate(usize),
    /// One batch at most: a larger release returns its blocks batch by batch.
    Release(Vec<BlockId>),
}

#[derive(Clone, Debug, PartialEq)]
enum Ret {
    Allocated(Vec<BlockId>),
    Refused { requested: usize, available: usize },
    Released,
}

impl SequentialSpec for Pool {
    type Op = Op;
    type Ret = Ret;

    fn invoke(&mut self, _: &Op) -> Ret {
        unreachable!("every call has returned, and which ids it returned is its own choice")
    }

    fn is_valid_step(&mut self, op: &Op, ret: &Ret) -> bool {
        let room = self.total - self.owned.len();
        match (op, ret) {
            (&Op::Allocate(n), Ret::Allocated(ids)) => {
                ids.len() == n && ids.iter().all(|&id| self.owned.insert(id))
            }
            (&Op::Allocate(n), &Ret::Refused { requested, available }) => {
                requested == n && available < n && room == available
            }
            (Op::Release(ids), Ret::Released) => ids.iter().all(|id| self.owned.remove(id)),
            _ => false,
        }
    }
}

/// The owner that an allocation made; it holds the blocks until it is dropped.
enum Held {
    Table(BlockTable),
    Sequence(Sequence),
    Cached(CachedSequence),
}

impl Held {
    fn ids(&self) -> Vec<BlockId> {
        match self {
            Self::Table(table) => table.as_slice().to_vec(),
            Self::Sequence(sequence) => sequence.block_ids().to_vec(),
            Self::Cached(sequence) => sequence.block_ids().to_vec(),
        }
    }
}

fn told(allocated: &Result<Held>) -> Ret {
    match allocated {
        Ok(held) => Ret::Allocated(held.ids()),
        &Err(OutOfMemory { requested, available }) => Ret::Refused { requested, available },
        Err(refusal) => panic!("refused with {refusal}"),
    }
}

/// Runs three threads that allocate and release one or two blocks at a time.
fn allocate_and_release(allocate: impl Fn(&PagedKvCache, usize, u32) -> Result<Held> + Sync) {
    let (cache, history) = (cache(BLOCKS), History::new());
    let work = |thread: usize| {
        let mut held: Vec<Held> = Vec::new();
        for round in 0..4 {
            let release = held.len() == 2 || !held.is_empty() && thread_rng().gen_bool(0.4);
            if release {
                let end = held.swap_remove(0);
                history.call(thread, Op::Release(end.ids()), || drop(end), |()| Ret::Released);
            } else {
                let (n, name) = (thread_rng().gen_range(1..=2), (10 * thread + round) as u32);
                let call = || allocate(&cache, n, name);
                held.extend(history.call(thread, Op::Allocate(n), call, told).ok());
            }
        }
        // The blocks still held are released after the history ends.
        held
    };
    scope(|scope| {
        let others = [scope.spawn(|| work(1)), scope.spawn(|| work(2))];
        let here = work(0);
        let there = others.map(|other| other.join().expect("it ended"));
        drop((here, there));
    });
    assert_linearizable(Pool { total: BLOCKS, owned: BTreeSet::new() }, &history.calls());
    assert_all_free_at_end(&cache);
}

#[test]
fn allocations_of_tables_and_sequences_happen_one_after_another() {
    explore(|| {
        allocate_and_release(|cache, n, name| {
            if name % 2 == 0 {
                cache.pool().allocate(n).map(Held::Table)
            } else {
                cache.allocate_sequence(2 * n).map(Held::Sequence)
            }
        });
    });
}

/// Released blocks stay cached, so allocations reclaim them. No prompt is like another.
#[test]
fn allocations_that_reclaim_happen_one_after_another() {
    explore(|| {
        allocate_and_release(|cache, n, name| {
            let prompt = cache.prompt(&vec![name; 2 * n]);
            let (mut sequence, admission) =
                cache.admit_sequence(&prompt, &AdmitOptions::default())?;
            assert_eq!(admission.cached_tokens, 0, "nobody computed it");
            sequence.commit(2 * n).expect("so many tokens have slots");
            Ok(Held::Cached(sequence))
        });
    });
}
