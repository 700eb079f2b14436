//! Model of a linearizable sequence: the operations on one id happen one after another, whichever threads
//! call them.
//!
//! A fork counts twice, as documented: for its source it happens when it reads the source, for its
//! destination when it inserts the fork there. Here the id is one or the other.
//!
//! A refusal for want of blocks depends on the pool, which calls also use while they are under way:
//!
//! - An allocation holds blocks before its sequence is in the map, and also when another call has taken
//!   its id first.
//! - A free gives its blocks back after its sequence has left the map.
//!
//! A refusal may report this many fewer available blocks, and no fewer. An allocation reads its id first.
//! If a concurrent call takes the id after that, it may be refused for want of blocks.

use std::collections::BTreeMap;
use std::ops::Range;

use paged_kv::PagedKvError::{OutOfMemory, SequenceExists, SequenceNotFound};
use paged_kv::{PagedKvCache, PagedKvError, SeqId};
use shuttle::rand::{Rng, thread_rng};
use shuttle::thread::scope;
use stateright::semantics::SequentialSpec;

use crate::explore::explore;
use crate::history::{Call, History, assert_linearizable};
use crate::{A, B, assert_all_free_at_end, cache};

/// Number of tokens of the sequence that is forked to the id.
const TOKENS_OF_SOURCE: usize = 3;

#[derive(Clone, Copy, Debug)]
enum Op {
    Allocate(usize),
    Append(usize),
    Truncate(usize),
    Free,
    ForkAway,
    ForkHere,
    Length,
}

#[derive(Clone, Debug, PartialEq)]
enum Ret {
    Done,
    Appended(Range<usize>),
    /// The number of tokens of the fork.
    Forked(usize),
    Length(Option<usize>),
    Exists,
    NotFound,
    TooShort(usize),
    OutOfMemory {
        requested: usize,
        available: usize,
    },
}

/// An operation, its number, and the calls that overlap it, which explain refusals.
#[derive(Clone, Debug)]
struct Numbered {
    op: Op,
    number: usize,
    beside: Vec<Beside>,
}

/// A call that was under way at the same time, and may hold blocks that no sequence has.
#[derive(Clone, Debug)]
enum Beside {
    /// Holds its blocks until it happens.
    Allocates { number: usize, blocks: usize },
    /// Holds its blocks for a while and gives them back.
    ComesTooLate { blocks: usize },
    /// After it has happened, holds the blocks that the sequence had.
    Frees { number: usize },
}

/// One sequence, or none, in a pool of its own.
#[derive(Clone, Debug)]
struct One {
    tokens: Option<usize>,
    /// The number of the allocation that inserted it.
    allocated_by: usize,
    total_blocks: usize,
    /// The blocks of the allocations and frees that have happened, by their numbers.
    happened: BTreeMap<usize, usize>,
}

fn blocks_of(tokens: usize) -> usize {
    tokens.div_ceil(2)
}

impl One {
    fn new(total_blocks: usize) -> Self {
        Self { tokens: None, allocated_by: 0, total_blocks, happened: BTreeMap::new() }
    }

    fn was_allocated_by_one_of(&self, beside: &[Beside]) -> bool {
        let by = self.allocated_by;
        beside.iter().any(|call| matches!(call, Beside::Allocates { number, .. } if *number == by))
    }

    /// True if such a refusal is possible. It reports fewer blocks than the call needs and at most the
    /// room there is. It reports at least the room that is left if every overlapping call holds as much
    /// as it can.
    fn refuses(
        &self,
        needed: usize,
        beside: &[Beside],
        requested: usize,
        available: usize,
    ) -> bool {
        let room = self.total_blocks - self.tokens.map_or(0, blocks_of);
        let held = beside.iter().map(|call| match *call {
            Beside::Allocates { number, .. } if self.happened.contains_key(&number) => 0,
            Beside::Allocates { blocks, .. } | Beside::ComesTooLate { blocks } => blocks,
            Beside::Frees { number } => self.happened.get(&number).copied().unwrap_or(0),
        });
        let room_at_least = room.saturating_sub(held.sum());
        requested == needed && available < needed && (room_at_least..=room).contains(&available)
    }
}

impl SequentialSpec for One {
    type Op = Numbered;
    type Ret = Ret;

    fn invoke(&mut self, _: &Numbered) -> Ret {
        unreachable!("every call has returned")
    }

    fn is_valid_step(&mut self, call: &Numbered, ret: &Ret) -> bool {
        let Numbered { op, number, beside } = call;
        match (*op, self.tokens, ret) {
            (Op::Allocate(tokens), None, Ret::Done) => {
                self.tokens = Some(tokens);
                self.allocated_by = *number;
                self.happened.insert(*number, blocks_of(tokens));
                true
            }
            (Op::Allocate(tokens), was, &Ret::OutOfMemory { requested, available }) => {
                (was.is_none() || self.was_allocated_by_one_of(beside))
                    && self.refuses(blocks_of(tokens), beside, requested, available)
            }
            (Op::ForkHere, None, Ret::Forked(tokens)) => {
                self.tokens = Some(*tokens);
                *tokens == TOKENS_OF_SOURCE
            }
            (Op::Allocate(_) | Op::ForkHere, Some(_), Ret::Exists) => true,
            (Op::Append(n), Some(tokens), Ret::Appended(blocks)) => {
                self.tokens = Some(tokens + n);
                *blocks == (blocks_of(tokens)..blocks_of(tokens + n))
            }
            (Op::Append(n), Some(tokens), &Ret::OutOfMemory { requested, available }) => {
                let needed = blocks_of(tokens + n) - blocks_of(tokens);
                self.refuses(needed, beside, requested, available)
            }
            (Op::Truncate(n), Some(tokens), Ret::Done) => {
                self.tokens = Some(n);
                n <= tokens
            }
            (Op::Truncate(n), Some(tokens), Ret::TooShort(seen)) => n > tokens && *seen == tokens,
            (Op::Free, Some(tokens), Ret::Done) => {
                self.happened.insert(*number, blocks_of(tokens));
                self.tokens = None;
                true
            }
            (Op::ForkAway, Some(tokens), Ret::Forked(seen)) => *seen == tokens,
            (Op::Append(_) | Op::Truncate(_) | Op::Free | Op::ForkAway, None, Ret::NotFound) => {
                true
            }
            (Op::Length, tokens, Ret::Length(seen)) => *seen == tokens,
            _ => false,
        }
    }
}

/// Makes a call on `A`; a fork of it goes to the thread's own id.
fn operate(cache: &PagedKvCache, history: &History<Op, Ret>, thread: usize, op: Op) {
    let own = SeqId(100 + thread as u64);
    let tokens = |id| cache.get_sequence(id).map(|sequence| sequence.num_tokens);
    let done = |result: &paged_kv::Result<()>| result.as_ref().map_or_else(refused, |()| Ret::Done);
    let forked = |result: &paged_kv::Result<()>| match result {
        Ok(()) => Ret::Forked(tokens(own).expect("the fork is this thread's own")),
        Err(refusal) => refused(refusal),
    };
    match op {
        Op::Allocate(tokens) => drop(history.call(thread, op, || cache.allocate(A, tokens), done)),
        Op::Truncate(tokens) => drop(history.call(thread, op, || cache.truncate(A, tokens), done)),
        Op::Free => drop(history.call(thread, op, || cache.free(A), done)),
        Op::Append(n) => {
            let call = || cache.append(A, n).map(|append| append.new_blocks);
            let appended = |result: &paged_kv::Result<Range<usize>>| match result {
                Ok(new_blocks) => Ret::Appended(new_blocks.clone()),
                Err(refusal) => refused(refusal),
            };
            drop(history.call(thread, op, call, appended));
        }
        Op::ForkAway => {
            if history.call(thread, op, || cache.fork(A, own), forked).is_ok() {
                cache.free(own).expect("it is this thread's own");
            }
        }
        Op::ForkHere => {
            let here = |result: &paged_kv::Result<()>| match result {
                Ok(()) => Ret::Forked(TOKENS_OF_SOURCE),
                Err(refusal) => refused(refusal),
            };
            drop(history.call(thread, op, || cache.fork(B, A), here));
        }
        Op::Length => drop(history.call(thread, op, || tokens(A), |&seen| Ret::Length(seen))),
    }
}

fn refused(refusal: &PagedKvError) -> Ret {
    match *refusal {
        SequenceExists(A) => Ret::Exists,
        SequenceNotFound(A) => Ret::NotFound,
        OutOfMemory { requested, available } => Ret::OutOfMemory { requested, available },
        PagedKvError::TruncateBeyondEnd { num_tokens, .. } => Ret::TooShort(num_tokens),
        ref other => panic!("refused with {other}"),
    }
}

/// Returns the calls with their numbers and the calls that overlap them.
fn numbered(calls: &[Call<Op, Ret>]) -> Vec<Call<Numbered, Ret>> {
    let number = |(number, call): (usize, &Call<Op, Ret>)| {
        let op = Numbered { op: call.op, number, beside: beside(calls, call) };
        let Call { thread, ref ret, begun, ended, .. } = *call;
        Call { thread, op, ret: ret.clone(), begun, ended }
    };
    calls.iter().enumerate().map(number).collect()
}

fn beside(calls: &[Call<Op, Ret>], call: &Call<Op, Ret>) -> Vec<Beside> {
    let others = calls.iter().enumerate();
    let others = others.filter(|(_, other)| other.thread != call.thread && other.overlaps(call));
    let holds = |(number, other): (usize, &Call<Op, Ret>)| match (other.op, &other.ret) {
        (Op::Allocate(tokens), Some(Ret::Done)) => {
            Some(Beside::Allocates { number, blocks: blocks_of(tokens) })
        }
        (Op::Allocate(tokens), Some(Ret::Exists)) => {
            Some(Beside::ComesTooLate { blocks: blocks_of(tokens) })
        }
        (Op::Free, Some(Ret::Done)) => Some(Beside::Frees { number }),
        _ => None,
    };
    others.filter_map(holds).collect()
}

/// Runs three threads of four calls each, which `draw` chooses.
fn call_at_random(cache: &PagedKvCache, one: One, draw: impl Fn() -> Op + Sync) {
    let history = History::new();
    scope(|scope| {
        let work = |thread| (0..4).for_each(|_| operate(cache, &history, thread, draw()));
        scope.spawn(move || work(1));
        scope.spawn(move || work(2));
        work(0);
    });
    assert_linearizable(one, &numbered(&history.calls()));
    assert_all_free_at_end(cache);
}

#[test]
fn operations_on_one_id_happen_one_after_another() {
    explore(|| {
        let cache = cache(40);
        cache.allocate(B, TOKENS_OF_SOURCE).expect("there is room");
        call_at_random(&cache, One::new(40), || match thread_rng().gen_range(0..12) {
            0..3 => Op::Allocate(thread_rng().gen_range(0..4)),
            3..6 => Op::Append(thread_rng().gen_range(0..3)),
            6..8 => Op::Free,
            8 => Op::Truncate(thread_rng().gen_range(0..3)),
            9 => Op::ForkAway,
            10 => Op::ForkHere,
            _ => Op::Length,
        });
    });
}

#[test]
fn refusals_on_one_id_are_for_want_of_room_that_others_hold() {
    explore(|| {
        let cache = cache(3);
        call_at_random(&cache, One::new(3), || match thread_rng().gen_range(0..8) {
            0..3 => Op::Allocate(thread_rng().gen_range(1..6)),
            3..5 => Op::Append(thread_rng().gen_range(1..4)),
            5 | 6 => Op::Free,
            _ => Op::Length,
        });
    });
}
