//! `Family`: an owned sequence and its forks, to check that owned handles keep their blocks.
//!
//! Each block of the family bears its tag, from its allocation until the last member releases it. A family
//! that is dropped, also by a panic, clears its tags before its blocks are free.

use std::collections::BTreeMap;

use paged_kv::{BlockId, Sequence};

use super::random::Random;
use super::shared::Ground;

/// The most members of a family.
const MEMBERS_MOST: usize = 4;

pub struct Family<'a> {
    ground: &'a Ground,
    tag: u64,
    members: Vec<Sequence>,
}

impl<'a> Family<'a> {
    /// Creates a family of one sequence with `num_tokens` tokens, or returns `None` if there is no room.
    pub fn new(ground: &'a Ground, num_tokens: usize) -> Option<Self> {
        let sequence = ground.fair(ground.cache.allocate_sequence(num_tokens))?;
        let family = Self { ground, tag: ground.cells.tag(), members: vec![sequence] };
        family.members[0].block_ids().iter().for_each(|&id| family.enter(id));
        Some(family)
    }

    /// Performs one random operation, and checks all blocks.
    pub fn step(&mut self, random: &mut Random) {
        let at = random.below(self.members.len());
        let size = self.ground.cache.block_size();
        match random.below(6) {
            0 if self.members.len() < MEMBERS_MOST => {
                let fork = self.members[at].fork();
                self.members.extend(self.ground.granted(fork));
            }
            1 if self.members.len() > 1 => self.drop_member(at),
            2 => self.truncate(at, random.below(10 * size)),
            3 => self.trim(at, random.below(2 * size + 1), random.below(4 * size + 1)),
            _ => self.append(at, random.below(3 * size)),
        }
        for member in &self.members {
            member.block_ids().iter().for_each(|&id| self.ground.cells.check(id, self.tag));
        }
    }

    fn append(&mut self, at: usize, num_new_tokens: usize) {
        let result = self.members[at].append(num_new_tokens);
        let Some(append) = self.ground.fair(result) else { return };
        let new = &self.members[at].block_ids()[append.new_blocks.clone()];
        new.iter().for_each(|&id| self.enter(id));
        if let Some(copy) = &append.copy {
            self.ground.cells.check(copy.src, self.tag);
            self.enter(copy.dst);
        }
    }

    fn truncate(&mut self, at: usize, end: usize) {
        let member = &self.members[at];
        let end = end.min(member.num_tokens());
        let last = end.checked_sub(1).map(|last| last / member.block_size());
        if last.is_some_and(|last| member.block_at(last).is_none()) {
            return;
        }
        let kept =
            (0..last.map_or(0, |last| last + 1)).filter_map(|at| member.block_at(at)).count();
        self.leave(&member.block_ids()[kept..]);
        let result = self.members[at].truncate(end);
        self.ground.granted(result);
    }

    fn trim(&mut self, at: usize, sink: usize, window: usize) {
        let member = &self.members[at];
        let size = member.block_size();
        let dropped: Vec<BlockId> = (0..member.num_tokens() / size)
            .filter(|at| at * size >= sink && (at + 1) * size + window <= member.num_tokens())
            .filter_map(|at| member.block_at(at))
            .collect();
        self.leave(&dropped);
        let Some(given_up) =
            self.ground.granted(self.members[at].apply_streaming_llm(sink, window))
        else {
            return;
        };
        self.ground.expect(given_up == dropped.len() * size, || {
            format!("a trim gave up {given_up} tokens and {} blocks", dropped.len())
        });
    }

    fn drop_member(&mut self, at: usize) {
        self.leave(self.members[at].block_ids());
        drop(self.members.swap_remove(at));
    }

    fn enter(&self, id: BlockId) {
        self.ground.cells.enter(id, self.tag);
        self.ground.cells.write(id, self.tag);
    }

    /// Clears the tags of those blocks in `ids` that only one member owns.
    fn leave(&self, ids: &[BlockId]) {
        let holders = self.holders();
        let last = ids.iter().filter(|id| holders[id] == 1);
        last.for_each(|&id| self.ground.cells.leave(id, self.tag));
    }

    fn holders(&self) -> BTreeMap<BlockId, usize> {
        let mut holders = BTreeMap::new();
        for &id in self.members.iter().flat_map(|member| member.block_ids()) {
            *holders.entry(id).or_default() += 1;
        }
        holders
    }
}

impl Drop for Family<'_> {
    fn drop(&mut self) {
        for &id in self.holders().keys() {
            self.ground.cells.check(id, self.tag);
            self.ground.cells.leave(id, self.tag);
        }
    }
}
