//! The rules of waiters, which hold while no operation runs and after all woken tasks have been polled:
//!
//! - No append waits whose sequence is gone, and none grows a later sequence of its id.
//! - Not all sequences that have blocks wait, if no block is held elsewhere.
//! - The first in turn, and those that may pass it, would be refused if they were polled.
//! - New requests pass a waiting new request at most as often as the fairness allows.

use std::collections::HashSet;

use paged_kv::PagedKvError::{
    DeadlinePassed, OutOfMemory, SequenceEvicted, SequenceExists, SequenceNotFound, Stalled,
};
use paged_kv::{Fairness, PagedKvCache, PagedKvError, SeqId};

use super::world::{Kind, Task, World};

impl World<'_> {
    /// Checks the result of a task that was at position `at`.
    pub fn check_result(
        &mut self,
        task: &Task<'_>,
        told: &Result<(), PagedKvError>,
        at: usize,
        is_first: bool,
        waited: bool,
    ) {
        if let Kind::Append { id, admission, .. } = task.kind {
            // Another thread may have evicted the sequence since it grew, but admits none under this id.
            self.note_gone();
            let now = self.admission(id);
            let is_there = now == Some(admission);
            match told {
                Ok(()) if self.is_alone || now.is_some() => {
                    assert!(is_there, "a later sequence of its id has grown");
                }
                Ok(()) => {}
                Err(SequenceNotFound(_) | SequenceEvicted(_)) => assert!(!is_there),
                Err(Stalled(of)) => {
                    assert_eq!(*of, SeqId(id));
                    let others_wait = !self.is_alone || self.all_others_wait(id);
                    assert!(others_wait, "others could release blocks");
                }
                // The append never fits, or does not fit since the sequence grew in another way.
                Err(OutOfMemory { .. } | DeadlinePassed) => {}
                Err(refusal) => panic!("{refusal}"),
            }
            return;
        }
        match told {
            Ok(()) if waited && self.is_alone => {
                let at_most = match self.shape.fairness {
                    Fairness::Fifo => 0,
                    Fairness::Bypass { at_most } => at_most,
                    other => panic!("{other:?} has no rule here"),
                };
                let is_new = |task: &&mut Task<'_>| !matches!(task.kind, Kind::Append { .. });
                for before in self.tasks[..at].iter_mut().filter(is_new) {
                    before.passed += 1;
                    assert!(before.passed <= at_most, "{:?} is passed too often", before.kind);
                }
            }
            Err(OutOfMemory { .. }) => assert!(is_first, "it never fits: told at once"),
            Ok(()) | Err(DeadlinePassed | SequenceExists(_)) => {}
            Err(refusal) => panic!("{refusal}"),
        }
    }

    /// Checks all that can be read without polling the waiters.
    pub fn check(&mut self) {
        assert_eq!(self.cache.waiting().len(), self.tasks.len());
        self.check_none_is_gone();
        assert!(!self.is_stalled(), "all sequences wait for each other, and none is told");
        self.check_fixed_needs();
    }

    pub fn check_none_is_gone(&self) {
        for task in &self.tasks {
            if let Kind::Append { id, admission, .. } = task.kind {
                assert_eq!(self.admission(id), Some(admission), "its sequence is gone");
            }
        }
    }

    /// True if an owner that is no sequence of the map may have or share blocks.
    pub fn holds_outside(&self) -> bool {
        let outside = self.handles.len() + self.named.len() + self.rooms.len() + self.steps.len();
        let copies = self.appends.iter().any(|append| append.copy.is_some());
        outside > 0 || copies || self.freed_leased
    }

    /// Checks requests of a fixed number of blocks: the first in turn, and the smallest that may pass it.
    fn check_fixed_needs(&self) {
        if self.tasks.iter().any(|task| matches!(task.kind, Kind::Append { .. })) {
            return;
        }
        let need = |task: &Task<'_>| {
            let blocks = match task.kind {
                Kind::Reserve { blocks } => blocks,
                Kind::Allocate { tokens, .. } => tokens.div_ceil(4),
                _ => return None,
            };
            Some(blocks + self.shape.watermark)
        };
        let room = self.cache.free_block_count();
        let Some(first) = self.tasks.first() else {
            return;
        };
        assert!(need(first).is_none_or(|need| need > room), "the first would be served");
        if let Fairness::Bypass { at_most } = self.shape.fairness
            && first.passed < at_most
        {
            let smallest = self.tasks[1..].iter().filter_map(need).min();
            assert!(smallest.is_none_or(|need| need > room), "one that may pass would be served");
        }
    }

    /// True if all sequences that have blocks wait to grow, and nothing else has or shares blocks.
    fn is_stalled(&self) -> bool {
        !self.holds_outside() && all_wait(self.cache, |id| self.waits(id.0))
    }

    fn all_others_wait(&self, told: u64) -> bool {
        let has_blocks = |id: &SeqId| !self.cache.get_sequence(*id).unwrap().block_ids.is_empty();
        let others = self.cache.sequence_ids().into_iter().filter(|id| id.0 != told);
        others.filter(has_blocks).all(|id| self.waits(id.0))
    }

    pub fn waits(&self, of: u64) -> bool {
        let is_of = |task: &Task<'_>| matches!(task.kind, Kind::Append { id, .. } if id == of);
        self.tasks.iter().any(is_of)
    }

    /// Polls the waiters though none was woken, and asserts that none is served or woken by an error.
    pub fn poll_all_unwoken(&mut self) {
        self.log.push("all are polled unwoken".to_owned());
        let mut at = 0;
        while at < self.tasks.len() {
            if self.poll_unwoken(at) {
                at += 1;
            } else {
                // The task has left, and the next ones may be due now.
                self.run_woken();
                at = 0;
            }
        }
    }

    /// Polls each waiter once though it was not woken. True if one has left.
    pub fn poll_once_unwoken(&mut self) -> bool {
        for at in 0..self.tasks.len() {
            if !self.poll_unwoken(at) {
                return true;
            }
        }
        false
    }

    /// Polls a waiter though it was not woken. True if it still waits. False if its id was taken, or its
    /// sequence is too long now, which it learns only in its turn.
    pub fn poll_unwoken(&mut self, at: usize) -> bool {
        let told = self.poll(at, false);
        let of_no_use = matches!(told, Some(Err(SequenceExists(_) | OutOfMemory { .. })));
        assert!(told.is_none() || of_no_use, "it slept though this was due: {told:?}");
        told.is_none()
    }
}

/// True if all sequences that have blocks wait to grow, and they have all blocks that are used.
pub fn all_wait(cache: &PagedKvCache, waits: impl Fn(SeqId) -> bool) -> bool {
    let mut blocks = HashSet::new();
    for id in cache.sequence_ids() {
        let info = cache.get_sequence(id).unwrap();
        if !info.block_ids.is_empty() && !waits(id) {
            return false;
        }
        blocks.extend(info.block_ids);
    }
    !blocks.is_empty() && cache.used_block_count() <= blocks.len()
}
