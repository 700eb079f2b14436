//! The operations of [`World`] that publish: commits, and steps that grow, commit and end.

use paged_kv::{BlockId, LayerGroup, LeaseRow, PagedKvError, Result, SeqId, Step};

use crate::held::{CopyOf, Growth, Held, Offer};
use crate::world::{Owner, Report, World};

/// The end of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    Complete,
    Drop,
    Abort,
}

/// A step to make.
#[derive(Clone, Debug)]
pub struct StepPlan {
    /// Sequences in ascending order of the keys, all by their handles or all by their ids, with their new tokens.
    pub rows: Vec<(u64, usize)>,
    /// True if the sequences join the step before they grow.
    pub joins: bool,
    pub ending: Ending,
}

/// The rows of a step: handles, which stay with their owners, or rows of a lease.
enum Rows {
    Handles,
    Leased(Vec<(LeaseRow, usize)>),
}

impl World {
    /// Returns the sequence after a report, and the number of its computed tokens.
    fn reported(&mut self, key: u64, report: &Report) -> (Held, usize) {
        let mut held = self.held(key).clone();
        match (report, &mut held.names) {
            (Report::Length(length), _) => (held, *length),
            (Report::Tokens(_), None) => (held, 0),
            (Report::Tokens(tokens), Some(names)) => {
                let new = self.reference.names(names.last().copied(), tokens);
                names.extend(new);
                let computed = names.len();
                (held, computed)
            }
        }
    }

    /// Commits tokens of a sequence. Copies of contents that would be one too many are uncached before.
    #[track_caller]
    pub fn commit(&mut self, key: u64, report: &Report) {
        self.take_copies(key);
        let (mut held, computed) = self.reported(key, report);
        if computed > held.length {
            let refusal = self.make_commit(key, report).expect_err("tokens without slots");
            assert!(matches!(refusal, PagedKvError::CommitBeyondEnd { .. }), "{refusal}");
            return;
        }
        let stays_unsure = held.has_offered_beyond(&self.reference.layout, computed);
        let published = held.commit(&self.reference.layout, computed);
        held.is_unsure &= stays_unsure;
        let is_sure = published.iter().all(|offer| offer.is_sure);
        let surplus = self.reference.surplus(&published);
        self.uncache(&surplus);
        let count = self.make_commit(key, report).expect("the tokens have slots");
        let new = self.reference.publish(held.generation, published);
        self.reference.sequences.insert(key, held);
        assert!(count == new || !is_sure || !self.is_exact, "{count} published, {new} expected");
        self.uncache_unsure();
    }

    /// Uncaches the blocks that may have been published again, so that the reference knows all contents.
    fn uncache_unsure(&mut self) {
        let unsure = self.reference.unsure();
        self.uncache(&unsure);
    }

    fn make_commit(&mut self, key: u64, report: &Report) -> Result<usize> {
        match (self.owners.get_mut(&key).expect("a key of an owner"), report) {
            (Owner::Handle(sequence), Report::Length(length)) => sequence.commit(*length),
            (Owner::Handle(sequence), Report::Tokens(tokens)) => sequence.commit(tokens),
            (Owner::Id(id), Report::Length(length)) => self.cache.commit(*id, *length),
            (Owner::Id(id), Report::Tokens(tokens)) => self.cache.commit(*id, tokens),
        }
    }

    /// Compares the hit of a prompt.
    #[track_caller]
    pub fn probe(&mut self, tokens: &[u32]) {
        let names = self.reference.names(None, tokens);
        let hit = self.cache.prefix().probe(&self.cache.prompt(tokens));
        let [least, most] = self.reference.joint_hit(&names, tokens.len().saturating_sub(1));
        assert!(!self.is_exact || least <= hit && hit <= most, "{hit} of {least}..={most}");
    }

    /// Grows sequences in a step, commits as `report` says, and ends the step.
    #[track_caller]
    pub fn step(&mut self, step_plan: &StepPlan, mut report: impl FnMut(&Held) -> Option<Report>) {
        let StepPlan { rows: plan, joins, ending } = step_plan;
        let mut rows = self.rows(plan);
        let before: Vec<Held> = plan.iter().map(|(key, _)| self.held(*key).clone()).collect();
        let mut step = self.cache.step(std::mem::take(&mut self.buffers));
        let mut copies = Vec::new();
        if *joins {
            copies = self.join_rows(&mut step, &mut rows, plan);
        }
        let grown = self.grow_rows(&mut step, &mut rows, plan);
        copies.extend(self.adopt_step(step_plan, grown));
        compare_copies(&step, &copies);
        self.check();
        let grown = &plan[..grown];
        if *ending == Ending::Abort {
            self.abort(step, &mut rows, grown, &before, &copies);
            return;
        }
        let mut published = Vec::new();
        for (row, &(key, _)) in grown.iter().enumerate() {
            if let Some(report) = report(self.held(key)) {
                self.commit_in_step(&mut step, &mut rows, (row, key), &report, &mut published);
            }
        }
        for &(key, _) in grown {
            let last = self.held(key).names.as_ref().and_then(|names| names.last().copied());
            let tokens = self.reference.tokens(last.unwrap_or(0));
            self.probe(&tokens);
        }
        let mut offers = published.iter().flat_map(|(_, offers)| offers);
        let is_sure = offers.all(|offer| offer.is_sure);
        if *ending == Ending::Complete {
            let mut new = 0;
            for (held, blocks) in published {
                new += self.reference.publish(held.generation, blocks);
            }
            let completed = step.complete();
            self.buffers = completed.buffers;
            let count = completed.published;
            assert!(count == new || !is_sure || !self.is_exact, "{count} published, not {new}");
            self.uncache_unsure();
        } else {
            drop(step);
            let has_failed = !published.is_empty();
            for (&(key, _), before) in grown.iter().zip(before) {
                self.reference.held_mut(key).offered = before.offered;
            }
            let held = self.reference.sequences.values_mut();
            held.for_each(|held| held.is_unsure |= has_failed);
        }
        self.reference.of_step.clear();
    }

    fn rows(&self, plan: &[(u64, usize)]) -> Rows {
        let id = |key: &u64| match self.owners[key] {
            Owner::Handle(_) => None,
            Owner::Id(id) => Some(id),
        };
        let ids: Vec<SeqId> = plan.iter().filter_map(|(key, _)| id(key)).collect();
        if ids.is_empty() {
            return Rows::Handles;
        }
        assert_eq!(ids.len(), plan.len(), "rows of one type");
        let lease = self.cache.lease(&ids).expect("the ids are there");
        Rows::Leased(lease.rows().zip(plan.iter().map(|row| row.1)).collect())
    }

    fn handles(&mut self, plan: &[(u64, usize)]) -> Vec<(&mut paged_kv::CachedSequence, usize)> {
        let planned = |key: &u64| plan.iter().find(|(planned, _)| planned == key);
        let rows = self.owners.iter_mut().filter_map(|(key, owner)| match owner {
            Owner::Handle(sequence) => Some((sequence, planned(key)?.1)),
            Owner::Id(_) => None,
        });
        rows.collect()
    }

    /// Lets the rows join the step, which takes their pending copies.
    fn join_rows(
        &mut self,
        step: &mut Step,
        rows: &mut Rows,
        plan: &[(u64, usize)],
    ) -> Vec<CopyOf> {
        match rows {
            Rows::Handles => {
                self.handles(plan).iter_mut().for_each(|row| step.join(&mut row.0).expect("joins"));
            }
            Rows::Leased(rows) => {
                rows.iter_mut().for_each(|row| step.join(&mut row.0).expect("joins"));
            }
        }
        let mut copies = Vec::new();
        for &(key, _) in plan {
            copies.append(&mut self.reference.held_mut(key).pending);
        }
        self.reference.of_step.extend(copies.iter().map(|&(_, src, _)| src));
        copies
    }

    fn grow_rows(&mut self, step: &mut Step, rows: &mut Rows, plan: &[(u64, usize)]) -> usize {
        let grown = match rows {
            Rows::Handles => step.grow(&mut self.handles(plan)),
            Rows::Leased(rows) => step.grow(rows),
        };
        grown.expect("only a lack of room stops it").grown_rows
    }

    /// Adopts the growth of the first `grown` rows. Returns the copies that the step must list.
    #[track_caller]
    fn adopt_step(&mut self, plan: &StepPlan, grown: usize) -> Vec<CopyOf> {
        let StepPlan { rows: plan, joins, .. } = plan;
        let mut copies = Vec::new();
        let mut growths = Vec::new();
        for &(key, num_new_tokens) in plan {
            // No kernel of the step reads these blocks: they are free, unless the row joined before.
            let before: Vec<BlockId> = self.held(key).blocks().collect();
            self.reference.release_windows(key);
            let after: Vec<BlockId> = self.held(key).blocks().collect();
            if *joins {
                let released = before.into_iter().filter(|block| !after.contains(block));
                self.reference.of_step.extend(released);
            }
            let length = self.held(key).length + num_new_tokens;
            growths.push(self.reference.growth(key, length));
        }
        let mut room = self.cache.total_blocks() - self.reference.owned().len();
        if growths.iter().map(Growth::new_blocks).sum::<usize>() > room {
            // The windows of later rows may have left blocks that were shared: all rows are planned again.
            for (&(key, num_new_tokens), growth) in plan.iter().zip(&mut growths) {
                *growth = self.reference.growth(key, self.held(key).length + num_new_tokens);
            }
        }
        for (row, (&(key, _), growth)) in plan.iter().zip(growths).enumerate() {
            let before = self.held(key).clone();
            let need = growth.new_blocks();
            if row >= grown {
                assert!(row > grown || need > room, "{need} blocks are needed, {room} are free");
                self.refusals += 1;
                continue;
            }
            assert!(need <= room, "{need} blocks were taken of {room}");
            room -= need;
            copies.extend(self.adopt_growth(key, &growth));
            copies.append(&mut self.reference.held_mut(key).pending);
            let after: Vec<_> = self.held(key).blocks().collect();
            let released = before.blocks().filter(|block| !after.contains(block));
            self.reference.of_step.extend(released);
        }
        copies
    }

    #[track_caller]
    fn commit_in_step(
        &mut self,
        step: &mut Step,
        rows: &mut Rows,
        (row, key): (usize, u64),
        report: &Report,
        published: &mut Vec<(Held, Vec<Offer>)>,
    ) {
        let (mut held, computed) = self.reported(key, report);
        let blocks = if computed > held.length {
            None
        } else {
            Some(held.commit(&self.reference.layout, computed))
        };
        let mut all: Vec<_> = published.iter().flat_map(|(_, blocks)| blocks).copied().collect();
        all.extend(blocks.iter().flatten());
        let surplus = self.reference.surplus(&all);
        self.uncache(&surplus);
        let committed = match (rows, report) {
            (Rows::Leased(rows), Report::Length(length)) => step.commit(&mut rows[row].0, *length),
            (Rows::Leased(rows), Report::Tokens(tokens)) => step.commit(&mut rows[row].0, tokens),
            (Rows::Handles, report) => {
                let Some(Owner::Handle(sequence)) = self.owners.get_mut(&key) else {
                    unreachable!("rows of one type");
                };
                match report {
                    Report::Length(length) => step.commit(sequence, *length),
                    Report::Tokens(tokens) => step.commit(sequence, tokens),
                }
            }
        };
        let Some(blocks) = blocks else {
            assert!(matches!(committed, Err(PagedKvError::CommitBeyondEnd { .. })));
            return;
        };
        committed.expect("the tokens have slots");
        published.push((held.clone(), blocks));
        held.is_unsure = true;
        self.reference.sequences.insert(key, held);
    }

    /// Aborts a step. Each sequence has its old length and the blocks for it: its own, or the destinations of
    /// copies. Blocks that windows left, and older states, may stay released.
    #[track_caller]
    fn abort(
        &mut self,
        step: Step,
        rows: &mut Rows,
        grown: &[(u64, usize)],
        before: &[Held],
        copies: &[CopyOf],
    ) {
        let aborted = match rows {
            Rows::Handles => step.abort(&mut self.handles(grown)),
            Rows::Leased(rows) => step.abort(rows),
        };
        self.buffers = aborted.expect("no row was changed since").buffers;
        self.reference.of_step.clear();
        for (&(key, _), before) in grown.iter().zip(before) {
            let tables = self.tables(key);
            let mut held = before.clone();
            for (group, table) in tables.iter().enumerate() {
                assert_eq!(table.len(), before.tables[group].len(), "group {group}");
                for (at, entry) in table.iter().enumerate() {
                    let old = before.tables[group][at];
                    let entry_of = |from, to| (Some(from), Some(to)) == (old, *entry);
                    // A copy may have been pending since before a truncation: then it is undone, too.
                    let is_copy = copies
                        .iter()
                        .any(|&(_, src, dst)| entry_of(src, dst) || entry_of(dst, src));
                    let is_kept = *entry == old || is_copy;
                    let is_released = entry.is_none() && !self.is_kept(before, group, at);
                    assert!(is_kept || is_released, "{group}:{at} is {entry:?}, was {old:?}");
                }
            }
            for (group, table) in tables.iter().enumerate() {
                if *table != before.tables[group] && self.is_state(group) {
                    held.before[group] = 0;
                }
            }
            held.tables = tables;
            held.forget_needless_copies();
            self.reference.sequences.insert(key, held);
        }
        self.check();
    }

    fn is_state(&self, group: usize) -> bool {
        matches!(self.reference.layout.kinds[group], LayerGroup::State { .. })
    }

    /// Returns true if no growth releases a block: neither a window has left it, nor is it of a state before the
    /// newest.
    fn is_kept(&self, before: &Held, group: usize, at: usize) -> bool {
        if self.is_state(group) {
            return at + 1 == before.tables[group].len();
        }
        let mut released = before.clone();
        released.release_windows(&self.reference.layout);
        released.tables[group][at].is_some()
    }
}

/// Asserts that a step lists exactly these copies. It lists them in any order: of a copy from the destination of an
/// earlier one, it names the first source.
#[track_caller]
fn compare_copies(step: &Step, copies: &[CopyOf]) {
    let mut listed: Vec<[u32; 2]> = Vec::new();
    step.copies(&mut listed).expect("ids fit");
    listed.sort();
    assert_eq!(listed, from_first_sources(copies), "copies of the step");
}

/// Returns copies that can be made in any order with the same result, sorted.
pub fn from_first_sources(copies: &[CopyOf]) -> Vec<[u32; 2]> {
    let mut all: Vec<[u32; 2]> = Vec::new();
    for (_, src, dst) in copies {
        let earlier = all.iter().find(|earlier| earlier[1] == src.0);
        all.push([earlier.map_or(src.0, |earlier| earlier[0]), dst.0]);
    }
    all.sort();
    all
}
