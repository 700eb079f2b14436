//! Random histories, made once with failing steps and once without these steps: both end in the same
//! state.

use paged_kv::{AdmitOptions, LeaseRow, PagedKvCache, Result, SeqId, SequenceInfo, StepBuffers};
use proptest::collection::vec;
use proptest::prelude::*;

const IDS: u64 = 4;
const BLOCK_SIZE: usize = 4;

/// How a failing step ends.
#[derive(Clone, Copy, Debug)]
enum Failure {
    Abort,
    /// An abort, followed by a step in the same memory.
    AbortAndGoOn,
    /// A drop, only of a step in which no row grew.
    Drop,
}

#[derive(Clone, Debug)]
enum Op {
    Admit {
        id: u64,
        family: u32,
        len: usize,
        first_chunk: usize,
    },
    Append {
        id: u64,
        n: usize,
    },
    AppendTokens {
        id: u64,
        n: usize,
    },
    CommitTokens {
        id: u64,
        n: usize,
    },
    Commit {
        id: u64,
    },
    Truncate {
        id: u64,
        drop: usize,
    },
    Fork {
        src: u64,
        dst: u64,
    },
    Free {
        id: u64,
    },
    Reset,
    /// Each row grows, and then this many of its tokens are accepted.
    Step {
        rows: Vec<(u64, usize, usize)>,
        commits: Vec<u64>,
        fails: Option<Failure>,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let id = || 0..IDS;
    let failure =
        prop_oneof![Just(Failure::Abort), Just(Failure::AbortAndGoOn), Just(Failure::Drop)];
    let step = (vec((id(), 0..7_usize, 0..7_usize), 0..3), vec(id(), 0..3))
        .prop_flat_map(move |(rows, commits)| {
            let fails = prop::option::weighted(0.7, failure.clone());
            (Just(rows), Just(commits), fails)
        })
        .prop_map(|(rows, commits, fails)| Op::Step { rows, commits, fails });
    prop_oneof![
        3 => (id(), 0..2_u32, 0..24_usize, 0..24_usize)
            .prop_map(|(id, family, len, first_chunk)| Op::Admit { id, family, len, first_chunk }),
        1 => (id(), 0..6_usize).prop_map(|(id, n)| Op::Append { id, n }),
        2 => (id(), 0..6_usize).prop_map(|(id, n)| Op::AppendTokens { id, n }),
        1 => (id(), 0..4_usize).prop_map(|(id, n)| Op::CommitTokens { id, n }),
        2 => id().prop_map(|id| Op::Commit { id }),
        2 => (id(), 0..6_usize).prop_map(|(id, drop)| Op::Truncate { id, drop }),
        1 => (id(), id()).prop_map(|(src, dst)| Op::Fork { src, dst }),
        1 => id().prop_map(|id| Op::Free { id }),
        1 => Just(Op::Reset),
        6 => step,
    ]
}

/// Returns a token of a family: prompts of one family share their beginning.
fn token(family: u32, at: usize) -> u32 {
    family * 1_000 + at as u32
}

struct Side {
    cache: PagedKvCache,
    buffers: StepBuffers,
}

/// The visible result of an operation: all answers, as text. The number of blocks that wait for a step is
/// left out. After a failure a content that another block holds may be offered again, and it is published
/// once.
type Seen = String;

impl Side {
    fn new() -> Self {
        Self { cache: PagedKvCache::new(512, BLOCK_SIZE, 1, 1), buffers: StepBuffers::default() }
    }

    fn make(&mut self, op: &Op) -> Seen {
        let cache = &self.cache;
        match *op {
            Op::Admit { id, family, len, first_chunk } => {
                let tokens: Vec<u32> = (0..len).map(|at| token(family, at)).collect();
                let options = AdmitOptions::default().first_chunk(first_chunk);
                let admitted = cache.admit_with(SeqId(id), &cache.prompt(&tokens), &options);
                format!("{:?}", admitted.map(|found| (found.cached_tokens, found.num_tokens)))
            }
            Op::Append { id, n } => {
                format!("{:?}", cache.append(SeqId(id), n).map(|append| append.new_blocks))
            }
            Op::AppendTokens { id, n } => {
                let appended = cache.append_tokens(SeqId(id), &vec![77; n]);
                format!("{:?}", appended.map(|append| append.new_blocks))
            }
            Op::CommitTokens { id, n } => {
                format!("{:?}", cache.commit(SeqId(id), &vec![77; n]))
            }
            Op::Commit { id } => {
                let len = self.len(id);
                format!("{:?}", cache.commit(SeqId(id), len))
            }
            Op::Truncate { id, drop } => {
                let len = self.len(id);
                format!("{:?}", cache.truncate(SeqId(id), len.saturating_sub(drop)))
            }
            Op::Fork { src, dst } => format!("{:?}", cache.fork(SeqId(src), SeqId(dst))),
            Op::Free { id } => format!("{:?}", cache.free(SeqId(id))),
            Op::Reset => format!("{:?}", cache.prefix().reset()),
            Op::Step { ref rows, ref commits, fails } => self.step(rows, commits, fails),
        }
    }

    fn len(&self, id: u64) -> usize {
        self.cache.get_sequence(SeqId(id)).map_or(0, |info| info.num_tokens)
    }

    fn row(&self, id: u64) -> Result<LeaseRow> {
        Ok(self.cache.lease(&[SeqId(id)])?.rows().next().expect("one is leased"))
    }

    fn step(
        &mut self,
        rows: &[(u64, usize, usize)],
        commits: &[u64],
        fails: Option<Failure>,
    ) -> Seen {
        let mut seen = String::new();
        let lengths = [0, 1, 2, 3].map(|id| self.len(id));
        let mut step = self.cache.step(std::mem::take(&mut self.buffers));
        let mut grown_rows: Vec<(LeaseRow, usize)> = Vec::new();
        for &(id, n, accepted) in rows {
            let mut row = self.row(id).map(|row| [(row, n)]);
            let grown = match (fails, &mut row) {
                (Some(Failure::Drop), _) | (_, Err(_)) => None,
                (_, Ok(row)) => step.grow(row).ok(),
            };
            seen += &format!("{grown:?} ");
            if let Ok([mut row]) = row
                && grown.is_some_and(|grown| grown.grown_rows == 1)
            {
                let waiting = step.accept(grown_rows.len(), &mut row.0, &vec![55; accepted]);
                seen += &format!("{:?} ", waiting.map(drop));
                grown_rows.push(row);
            }
        }
        for &id in commits {
            let len = match fails {
                Some(_) => lengths[id as usize],
                None => self.len(id),
            };
            let committed = self.row(id).and_then(|mut row| step.commit(&mut row, len));
            seen += &format!("{:?} ", committed.map(drop));
        }
        match fails {
            None => {
                let completed = step.complete();
                seen += &format!("{}", completed.published);
                self.buffers = completed.buffers;
            }
            Some(Failure::Drop) => drop(step),
            Some(Failure::Abort) => drop(step.abort(&mut grown_rows).unwrap()),
            Some(Failure::AbortAndGoOn) => {
                let aborted = step.abort(&mut grown_rows).unwrap();
                let completed = self.cache.step(aborted.buffers).complete();
                assert_eq!(completed.published, 0);
                self.buffers = completed.buffers;
            }
        }
        seen
    }

    /// Returns all visible state but the block ids.
    fn state(&self) -> (Vec<Option<[usize; 3]>>, usize, Vec<usize>) {
        let lengths =
            |info: SequenceInfo| [info.num_tokens, info.num_named_tokens, info.num_blocks()];
        let infos = (0..IDS).map(|id| self.cache.get_sequence(SeqId(id)).map(lengths)).collect();
        let prompt = |family| (0..25).map(|at| token(family, at)).collect::<Vec<u32>>();
        let probes = (0..2)
            .map(|family| self.cache.prefix().probe(&self.cache.prompt(&prompt(family))))
            .collect();
        (infos, self.cache.used_block_count(), probes)
    }
}

/// True for a step that fails.
fn fails(op: &Op) -> bool {
    matches!(op, Op::Step { fails: Some(_), .. })
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 4 } else { 400 },
        failure_persistence: None,
        max_shrink_iters: 50_000,
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_history_with_failed_steps_is_as_if_they_had_not_been(ops in vec(op(), 0..30)) {
        let (mut with, mut without) = (Side::new(), Side::new());
        for op in &ops {
            let seen = with.make(op);
            if !fails(op) {
                prop_assert_eq!(seen, without.make(op), "{:?}", op);
            }
            prop_assert_eq!(with.state(), without.state(), "{:?}", op);
        }
        with.cache.validate().unwrap();
    }

    #[test]
    fn a_call_that_changes_no_token_changes_nothing(ops in vec(op(), 0..30)) {
        let (mut with, mut without) = (Side::new(), Side::new());
        for op in &ops {
            prop_assert_eq!(with.make(op), without.make(op), "{:?}", op);
            for id in 0..IDS {
                let len = with.len(id);
                _ = with.cache.truncate(SeqId(id), len);
                _ = with.cache.append(SeqId(id), 0);
                _ = with.cache.append_tokens(SeqId(id), &[]);
                _ = with.cache.commit(SeqId(id), &[]);
                let mut step = with.cache.step(Default::default());
                if let Ok(row) = with.row(id) {
                    let mut rows = [(row, 0)];
                    prop_assert_eq!(step.grow(&mut rows).unwrap().grown_rows, 1);
                    _ = step.accept(0, &mut rows[0].0, &[]);
                }
                step.complete();
            }
            prop_assert_eq!(with.state(), without.state(), "{:?}", op);
        }
    }
}
