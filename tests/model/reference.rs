//! `Reference`: a sequential model of the cache, made of plain lists and sets.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use paged_kv::{Append, EvictionStrategy, PagedKvError, SeqId};

/// The result of a call, without block ids.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    Done,
    Tokens(usize),
    Appended { new_blocks: Range<usize>, copied: bool },
    Batch(Vec<Outcome>),
    Evicted(Vec<SeqId>),
}

impl Outcome {
    pub fn appended(append: &Append) -> Self {
        Self::Appended { new_blocks: append.new_blocks.clone(), copied: append.copy.is_some() }
    }
}

type Result<T = Outcome> = std::result::Result<T, PagedKvError>;

/// A block, by a name that is never used twice.
type Name = u64;

#[derive(Clone, Debug, Default)]
pub struct Sequence {
    pub num_tokens: usize,
    /// A block, or a gap, for each logical block.
    pub blocks: Vec<Option<Name>>,
    pub access_count: u64,
    pub last_access: u64,
    pub priority: u32,
    pub leases: u32,
}

#[derive(Clone, Debug)]
pub struct Reference {
    total: usize,
    block_size: usize,
    strategy: EvictionStrategy,
    sequences: BTreeMap<SeqId, Sequence>,
    /// Sources of copies that the caller keeps.
    kept: Vec<Name>,
    /// Leases, oldest first: each on a sequence of the map, or on one that has left it.
    leases: Vec<Leased>,
    gone: Vec<Sequence>,
    now: u64,
    next_name: Name,
    allocated: u64,
    freed: u64,
    evictions: u64,
    forks: u64,
    peak: usize,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Leased {
    Here(SeqId),
    Gone(usize),
}

impl Reference {
    pub fn new(total: usize, block_size: usize, strategy: EvictionStrategy) -> Self {
        Self {
            total,
            block_size,
            strategy,
            sequences: BTreeMap::new(),
            kept: Vec::new(),
            leases: Vec::new(),
            gone: Vec::new(),
            now: 0,
            next_name: 0,
            allocated: 0,
            freed: 0,
            evictions: 0,
            forks: 0,
            peak: 0,
        }
    }

    pub fn ids(&self) -> Vec<SeqId> {
        self.sequences.keys().copied().collect()
    }

    pub fn get(&self, id: SeqId) -> &Sequence {
        &self.sequences[&id]
    }

    /// Returns every block that some list or some pending copy has.
    pub fn used(&self) -> BTreeSet<Name> {
        let listed =
            self.sequences.values().chain(&self.gone).flat_map(|it| it.blocks.iter().flatten());
        listed.chain(&self.kept).copied().collect()
    }

    /// True while the caller keeps the source of a copy.
    pub fn keeps_a_source(&self) -> bool {
        !self.kept.is_empty()
    }

    /// True while the caller holds a lease.
    pub fn has_leases(&self) -> bool {
        !self.leases.is_empty()
    }

    pub fn counts(&self) -> (u64, u64, u64, u64) {
        (self.allocated, self.freed, self.evictions, self.forks)
    }

    pub fn peak(&self) -> usize {
        self.peak
    }

    pub fn allocate(&mut self, id: SeqId, num_tokens: usize) -> Result {
        if self.sequences.contains_key(&id) {
            return Err(PagedKvError::SequenceExists(id));
        }
        self.check_length(0, num_tokens)?;
        let num_blocks = num_tokens.div_ceil(self.block_size);
        self.check_room(num_blocks)?;
        let blocks = (0..num_blocks).map(|_| Some(self.new_block())).collect();
        let mut sequence = Sequence { num_tokens, blocks, ..Sequence::default() };
        self.use_now(&mut sequence);
        self.sequences.insert(id, sequence);
        Ok(Outcome::Done)
    }

    pub fn append(&mut self, id: SeqId, num_new_tokens: usize, keep: bool) -> Result {
        let outcome = self.append_rows(&[(id, num_new_tokens)])?.remove(0);
        if !keep {
            self.let_go_from(self.kept.len() - usize::from(copied(&outcome)));
        }
        Ok(outcome)
    }

    pub fn append_batch(&mut self, rows: &[(SeqId, usize)]) -> Result {
        for &(id, _) in rows {
            self.find(id)?;
        }
        let ids: BTreeSet<SeqId> = rows.iter().map(|row| row.0).collect();
        if ids.len() < rows.len() {
            // The text of the refusal names one of the repeated ids.
            let repeated = rows.iter().map(|row| row.0);
            let repeated: Vec<SeqId> =
                repeated.filter(|&id| rows.iter().filter(|row| row.0 == id).count() > 1).collect();
            return Err(PagedKvError::InvalidConfig {
                parameter: "ids",
                reason: format!("{} is listed twice", repeated[0]),
            });
        }
        let before = self.kept.len();
        let outcomes = self.append_rows(rows)?;
        self.let_go_from(before);
        Ok(Outcome::Batch(outcomes))
    }

    /// Grows all rows or none. Keeps the sources of the copies, that of the last row last.
    fn append_rows(&mut self, rows: &[(SeqId, usize)]) -> Result<Vec<Outcome>> {
        let mut requested = 0_usize;
        for &(id, num_new_tokens) in rows {
            let sequence = self.find(id)?;
            self.check_length(sequence.num_tokens, num_new_tokens)?;
            let new_blocks = self.new_blocks(sequence, num_new_tokens);
            let copy = self.tail_to_copy(id, num_new_tokens).is_some();
            requested = requested.saturating_add(new_blocks + usize::from(copy));
        }
        self.check_room(requested)?;
        let mut outcomes = Vec::new();
        for &(id, num_new_tokens) in rows {
            let tail = self.tail_to_copy(id, num_new_tokens);
            let mut sequence = self.sequences.remove(&id).expect("it was found");
            if let Some(tail) = tail {
                self.kept.push(tail);
                *sequence.blocks.last_mut().expect("a tail is the last block") =
                    Some(self.new_block());
            }
            let resident = |sequence: &Sequence| sequence.blocks.iter().flatten().count();
            let start = resident(&sequence);
            for _ in 0..self.new_blocks(&sequence, num_new_tokens) {
                let name = self.new_block();
                sequence.blocks.push(Some(name));
            }
            sequence.num_tokens += num_new_tokens;
            self.use_now(&mut sequence);
            let new_blocks = start..resident(&sequence);
            self.sequences.insert(id, sequence);
            outcomes.push(Outcome::Appended { new_blocks, copied: tail.is_some() });
        }
        Ok(outcomes)
    }

    fn new_blocks(&self, sequence: &Sequence, num_new_tokens: usize) -> usize {
        let num_tokens = sequence.num_tokens + num_new_tokens;
        num_tokens.div_ceil(self.block_size) - sequence.blocks.len()
    }

    /// Returns the partly filled last block, if the append writes to it and another owner has it too.
    fn tail_to_copy(&self, id: SeqId, num_new_tokens: usize) -> Option<Name> {
        let sequence = &self.sequences[&id];
        if num_new_tokens == 0 || sequence.num_tokens.is_multiple_of(self.block_size) {
            return None;
        }
        let tail = sequence.blocks.last().copied().flatten();
        tail.filter(|tail| {
            let others = self.sequences.iter().filter(|(other, _)| **other != id);
            let others = others.map(|(_, sequence)| sequence).chain(&self.gone);
            let mut listed = others.flat_map(|sequence| &sequence.blocks);
            listed.any(|block| *block == Some(*tail)) || self.kept.contains(tail)
        })
    }

    pub fn let_go(&mut self) -> Result {
        self.let_go_from(0);
        Ok(Outcome::Done)
    }

    fn let_go_from(&mut self, len: usize) {
        self.changing(|this| this.kept.truncate(len));
    }

    pub fn free(&mut self, id: SeqId) -> Result {
        self.find_unleased(id)?;
        self.changing(|this| this.sequences.remove(&id));
        Ok(Outcome::Done)
    }

    pub fn free_when_released(&mut self, id: SeqId) -> Result {
        self.find(id)?;
        self.changing(|this| {
            let sequence = this.sequences.remove(&id).expect("it was found");
            if sequence.leases > 0 {
                let place = this.gone.len();
                this.gone.push(sequence);
                for lease in &mut this.leases {
                    if *lease == Leased::Here(id) {
                        *lease = Leased::Gone(place);
                    }
                }
            }
        });
        Ok(Outcome::Done)
    }

    pub fn fork(&mut self, src: SeqId, dst: SeqId) -> Result {
        if self.sequences.contains_key(&dst) {
            return Err(PagedKvError::SequenceExists(dst));
        }
        let source = self.find(src)?;
        let mut fork = Sequence { access_count: 0, leases: 0, ..source.clone() };
        self.use_now(&mut fork);
        self.sequences.insert(dst, fork);
        self.forks += 1;
        Ok(Outcome::Done)
    }

    pub fn truncate(&mut self, id: SeqId, end: usize) -> Result {
        let sequence = self.find(id)?;
        let (requested, num_tokens) = (end, sequence.num_tokens);
        if requested > num_tokens {
            return Err(PagedKvError::TruncateBeyondEnd { requested, num_tokens });
        }
        let ends_inside = !end.is_multiple_of(self.block_size);
        if ends_inside && sequence.blocks[end / self.block_size].is_none() {
            return Err(PagedKvError::TokensTrimmed { position: end });
        }
        let num_blocks = end.div_ceil(self.block_size);
        self.changing(|this| {
            let sequence = this.sequences.get_mut(&id).expect("it was found");
            sequence.blocks.truncate(num_blocks);
            sequence.num_tokens = end;
        });
        Ok(Outcome::Done)
    }

    pub fn trim(&mut self, id: SeqId, sink: usize, window: usize) -> Result {
        self.find_unleased(id)?;
        Ok(Outcome::Tokens(self.trim_found(id, sink, window)))
    }

    fn trim_found(&mut self, id: SeqId, sink: usize, window: usize) -> usize {
        let size = self.block_size;
        self.changing(|this| {
            let sequence = this.sequences.get_mut(&id).expect("it was found");
            let mut given_up = 0;
            for (logical, block) in sequence.blocks.iter_mut().enumerate() {
                let (start, end) = (logical * size, (logical + 1) * size);
                let is_full = end <= sequence.num_tokens;
                let meets_window = end.saturating_add(window) > sequence.num_tokens;
                if is_full && start >= sink && !meets_window && block.take().is_some() {
                    given_up += size;
                }
            }
            given_up
        })
    }

    pub fn touch(&mut self, id: SeqId) -> Result {
        self.find(id)?;
        let mut sequence = self.sequences.remove(&id).expect("it was found");
        self.use_now(&mut sequence);
        self.sequences.insert(id, sequence);
        Ok(Outcome::Done)
    }

    pub fn set_priority(&mut self, id: SeqId, priority: u32) -> Result {
        self.find(id)?;
        self.sequences.get_mut(&id).expect("it was found").priority = priority;
        Ok(Outcome::Done)
    }

    pub fn lease(&mut self, id: SeqId) -> Result {
        self.find(id)?;
        self.sequences.get_mut(&id).expect("it was found").leases += 1;
        self.leases.push(Leased::Here(id));
        Ok(Outcome::Done)
    }

    pub fn end_lease(&mut self) -> Result {
        let ended = self.leases.pop();
        match ended {
            Some(Leased::Here(id)) => {
                self.sequences.get_mut(&id).expect("a leased sequence stays").leases -= 1;
            }
            Some(Leased::Gone(place)) if !self.leases.contains(&Leased::Gone(place)) => {
                self.changing(|this| this.gone[place] = Sequence::default());
            }
            _ => {}
        }
        Ok(Outcome::Done)
    }

    pub fn evict(&mut self) -> Result {
        let target = self.eviction_target().ok_or(PagedKvError::NothingToEvict)?;
        self.evict_one(target);
        Ok(Outcome::Evicted(vec![target]))
    }

    pub fn evict_to_threshold(&mut self, threshold: f64) -> Result {
        let mut evicted = Vec::new();
        let mut trimmed = false;
        if let EvictionStrategy::StreamingLLM { sink_tokens, window_tokens } = self.strategy {
            for id in self.eviction_order() {
                if self.utilization() > threshold {
                    trimmed |= self.trim_found(id, sink_tokens, window_tokens) > 0;
                }
            }
        }
        while self.utilization() > threshold {
            let Some(target) = self.eviction_target() else {
                let nothing = evicted.is_empty() && !trimmed;
                return if nothing {
                    Err(PagedKvError::NothingToEvict)
                } else {
                    Ok(Outcome::Evicted(evicted))
                };
            };
            self.evict_one(target);
            evicted.push(target);
        }
        Ok(Outcome::Evicted(evicted))
    }

    /// Returns the first sequence, in the strategy's order, of which some block would be free if all
    /// unleased sequences left.
    pub fn eviction_target(&self) -> Option<SeqId> {
        let unleased = |sequence: &&Sequence| sequence.leases == 0;
        let leased = self.sequences.values().filter(|sequence| !unleased(sequence));
        let stay: BTreeSet<Name> = leased
            .chain(&self.gone)
            .flat_map(|sequence| sequence.blocks.iter().flatten())
            .chain(&self.kept)
            .copied()
            .collect();
        self.eviction_order().into_iter().find(|id| {
            let mut blocks = self.sequences[id].blocks.iter().flatten();
            blocks.any(|block| !stay.contains(block))
        })
    }

    fn eviction_order(&self) -> Vec<SeqId> {
        let unleased = self.sequences.iter().filter(|(_, sequence)| sequence.leases == 0);
        let mut order: Vec<_> = unleased
            .map(|(&id, sequence)| {
                let rank = match self.strategy {
                    EvictionStrategy::LRU | EvictionStrategy::StreamingLLM { .. } => 0,
                    EvictionStrategy::LFU => i128::from(sequence.access_count),
                    EvictionStrategy::LongestFirst => -(sequence.num_tokens as i128),
                    EvictionStrategy::Priority { levels } => {
                        i128::from(sequence.priority).min(levels as i128 - 1)
                    }
                };
                (rank, sequence.last_access, id)
            })
            .collect();
        order.sort();
        order.into_iter().map(|(_, _, id)| id).collect()
    }

    fn evict_one(&mut self, id: SeqId) {
        self.changing(|this| this.sequences.remove(&id));
        self.evictions += 1;
    }

    fn utilization(&self) -> f64 {
        self.used().len() as f64 / self.total as f64
    }

    fn find(&self, id: SeqId) -> Result<&Sequence> {
        self.sequences.get(&id).ok_or(PagedKvError::SequenceNotFound(id))
    }

    fn find_unleased(&self, id: SeqId) -> Result<()> {
        if self.find(id)?.leases > 0 {
            return Err(PagedKvError::SequenceLeased(id));
        }
        Ok(())
    }

    fn check_room(&self, requested: usize) -> Result<()> {
        let available = self.total - self.used().len();
        if requested > available {
            return Err(PagedKvError::OutOfMemory { requested, available });
        }
        Ok(())
    }

    fn check_length(&self, num_tokens: usize, additional: usize) -> Result<()> {
        let sum = num_tokens.checked_add(additional);
        match sum.and_then(|sum| sum.checked_add(self.block_size)) {
            Some(_) => Ok(()),
            None => Err(PagedKvError::TooManyTokens { num_tokens, additional }),
        }
    }

    fn new_block(&mut self) -> Name {
        self.next_name += 1;
        self.allocated += 1;
        // The new block is in no list yet.
        let in_use = (self.allocated - self.freed) as usize;
        self.peak = self.peak.max(in_use);
        self.next_name
    }

    fn use_now(&mut self, sequence: &mut Sequence) {
        self.now += 1;
        sequence.access_count += 1;
        sequence.last_access = self.now;
    }

    /// Makes a change, and counts the blocks that it frees.
    fn changing<R>(&mut self, change: impl FnOnce(&mut Self) -> R) -> R {
        let before = self.used().len();
        let changed = change(self);
        self.freed += (before - self.used().len()) as u64;
        changed
    }
}

fn copied(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Appended { copied: true, .. })
}
