//! `Held`: one sequence of the reference, as lists. It says which blocks a growth, a truncation and a commit
//! change, by the definition of attention alone.

use paged_kv::{BlockId, GroupRetention, LayerGroup};

use crate::Table;
use crate::attention::{is_needed, is_needed_after_cut, is_past};

/// The number of a list of tokens: a content names all tokens before its end.
pub type Content = u32;

/// The groups of a cache, and the settings that a sequence depends on.
#[derive(Clone, Debug)]
pub struct Layout {
    pub kinds: Vec<LayerGroup>,
    pub alignment: usize,
    pub max_rewind: usize,
    pub retention: GroupRetention,
}

/// A copy that a caller has to make: group, source and destination.
pub type CopyOf = (usize, BlockId, BlockId);

/// A block that a commit publishes.
#[derive(Clone, Copy, Debug)]
pub struct Offer {
    pub block: BlockId,
    pub group: usize,
    pub content: Content,
    /// False if the cache may have published it before, so that it may not do so again.
    pub is_sure: bool,
}

/// An entry of a table after a growth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    Kept(BlockId),
    New,
    Gone,
}

/// A copy that a growth asks for.
#[derive(Clone, Copy, Debug)]
pub struct NewCopy {
    pub group: usize,
    pub src: BlockId,
    /// The logical block of the destination.
    pub at: usize,
    /// False for a state that goes on in the next block.
    pub on_write: bool,
}

/// The change that a growth makes.
#[derive(Clone, Debug)]
pub struct Growth {
    pub length: usize,
    pub tables: Vec<Vec<Expected>>,
    pub copies: Vec<NewCopy>,
}

impl Growth {
    pub fn new_blocks(&self) -> usize {
        self.tables.iter().flatten().filter(|&&entry| entry == Expected::New).count()
    }
}

#[derive(Clone, Debug)]
pub struct Held {
    pub length: usize,
    /// The content of each prefix of the known tokens; `None` if the tokens are not known.
    pub names: Option<Vec<Content>>,
    pub prompt_tokens: usize,
    pub tables: Vec<Table>,
    /// Blocks of each group that were offered for publication.
    pub offered: Vec<usize>,
    /// For each group of states: the length at the state before the newest, or 0.
    pub before: Vec<usize>,
    /// Copies that no caller has taken.
    pub pending: Vec<CopyOf>,
    pub generation: u64,
    /// True after a step with a commit failed: blocks may be offered again.
    pub is_unsure: bool,
}

impl Held {
    /// Creates a sequence without tokens.
    pub fn empty(layout: &Layout, names: Option<Vec<Content>>, generation: u64) -> Self {
        let groups = layout.kinds.len();
        Self {
            length: 0,
            prompt_tokens: names.as_ref().map_or(0, Vec::len),
            names,
            tables: vec![Table::new(); groups],
            offered: vec![0; groups],
            before: vec![0; groups],
            pending: Vec::new(),
            generation,
            is_unsure: false,
        }
    }

    pub fn num_named(&self) -> usize {
        self.names.as_ref().map_or(0, Vec::len)
    }

    /// Returns every block that the sequence keeps from being free.
    pub fn blocks(&self) -> impl Iterator<Item = BlockId> + '_ {
        let resident = self.tables.iter().flatten().filter_map(|&block| block);
        resident.chain(self.pending.iter().map(|&(_, src, _)| src))
    }

    /// Releases the blocks that no token attends to from the present length on, less `max_rewind` tokens.
    pub fn release_windows(&mut self, layout: &Layout) {
        let length = self.length.saturating_sub(layout.max_rewind);
        for (table, &kind) in self.tables.iter_mut().zip(&layout.kinds) {
            if matches!(kind, LayerGroup::State { .. }) {
                continue;
            }
            for (block, entry) in table.iter_mut().enumerate() {
                if is_past(kind, length, block) {
                    *entry = None;
                }
            }
        }
        self.forget_needless_copies();
    }

    /// Forgets copies to blocks that may be another sequence's next: those that are neither in the table, nor the
    /// source of a later copy that is needed.
    pub fn forget_needless_copies(&mut self) {
        let mut needed: Vec<CopyOf> = Vec::new();
        for &copy in self.pending.iter().rev() {
            let (group, _, dst) = copy;
            let is_source = needed.iter().any(|&(of, src, _)| (of, src) == (group, dst));
            if is_source || self.tables[group].contains(&Some(dst)) {
                needed.push(copy);
            }
        }
        needed.reverse();
        self.pending = needed;
    }

    /// Returns the change of a growth, after the windows were released. `is_shared` says that a block has
    /// other owners or is cached, so that it must not be written.
    pub fn grown(
        &self,
        layout: &Layout,
        length: usize,
        is_shared: impl Fn(BlockId) -> bool,
    ) -> Growth {
        let mut growth = Growth { length, tables: Vec::new(), copies: Vec::new() };
        for (group, &kind) in layout.kinds.iter().enumerate() {
            let size = kind.block_size();
            let kept = |&entry: &Option<BlockId>| entry.map_or(Expected::Gone, Expected::Kept);
            let mut table: Vec<Expected> = self.tables[group].iter().map(kept).collect();
            let (start, end) = (table.len(), length.div_ceil(size));
            if matches!(kind, LayerGroup::State { .. }) && end > start {
                table.resize(end, Expected::Gone);
                table[end - 1] = Expected::New;
                if start > 0 {
                    table[..start - 1].fill(Expected::Gone);
                    let src = self.tables[group][start - 1].expect("the newest state is resident");
                    growth.copies.push(NewCopy { group, src, at: end - 1, on_write: false });
                }
            } else {
                table.resize(end, Expected::New);
                let writes_tail = length > self.length && !self.length.is_multiple_of(size);
                if writes_tail {
                    let src = self.tables[group][start - 1].expect("the last block is resident");
                    if is_shared(src) {
                        table[start - 1] = Expected::New;
                        let at = start - 1;
                        growth.copies.push(NewCopy { group, src, at, on_write: true });
                    }
                }
            }
            growth.tables.push(table);
        }
        growth
    }

    /// Carries out a growth with the blocks that the cache took. Returns the copies on write of group 0,
    /// which do not become pending.
    pub fn grow(&mut self, layout: &Layout, growth: &Growth, tables: Vec<Table>) -> Vec<CopyOf> {
        for (group, &kind) in layout.kinds.iter().enumerate() {
            let goes_on = tables[group].len() > self.tables[group].len();
            if matches!(kind, LayerGroup::State { .. }) && goes_on {
                self.before[group] = self.length;
            }
        }
        let mut at_once = Vec::new();
        for &NewCopy { group, src, at, on_write } in &growth.copies {
            let copy = (group, src, tables[group][at].expect("a destination is resident"));
            let list = if on_write && group == 0 { &mut at_once } else { &mut self.pending };
            list.push(copy);
        }
        self.length = growth.length;
        self.tables = tables;
        at_once
    }

    /// Trims the full groups to the first `sink` and the last `window` tokens. Returns the trimmed tokens of the first
    /// of them.
    pub fn trim(&mut self, layout: &Layout, sink: usize, window: usize) -> usize {
        let mut trimmed = None;
        for (table, &kind) in self.tables.iter_mut().zip(&layout.kinds) {
            if !matches!(kind, LayerGroup::Full { .. }) {
                continue;
            }
            let size = kind.block_size();
            let length = self.length;
            let is_kept = |block: usize| {
                let mut positions = block * size..(block + 1) * size;
                positions.any(|at| at < sink || at + window >= length)
            };
            let mut count = 0;
            for (block, entry) in table.iter_mut().enumerate() {
                if !is_kept(block) && entry.take().is_some() {
                    count += size;
                }
            }
            trimmed.get_or_insert(count);
        }
        self.forget_needless_copies();
        trimmed.unwrap_or(0)
    }

    /// Returns the tokens before the first gap that a trim left in a full group.
    fn whole_tokens(&self, layout: &Layout) -> usize {
        let tables = self.tables.iter().zip(&layout.kinds);
        let full = tables.filter(|(_, kind)| matches!(kind, LayerGroup::Full { .. }));
        let gap = |table: &Table| table.iter().position(Option::is_none);
        let gaps = full.filter_map(|(table, kind)| Some(gap(table)? * kind.block_size()));
        gaps.min().unwrap_or(usize::MAX)
    }

    /// Returns the first group that cannot be cut to `length` tokens.
    pub fn refuses_cut(&self, layout: &Layout, length: usize) -> Option<usize> {
        let groups = 0..layout.kinds.len();
        groups.into_iter().find(|&group| !self.can_cut(layout, group, length))
    }

    pub fn refuses_group(&self, layout: &Layout, group: usize, length: usize) -> bool {
        !self.can_cut(layout, group, length)
    }

    fn can_cut(&self, layout: &Layout, group: usize, length: usize) -> bool {
        let kind = layout.kinds[group];
        let size = kind.block_size();
        if length == self.length || length == 0 {
            return true;
        }
        if matches!(kind, LayerGroup::State { .. }) {
            let is_in_newest = length.div_ceil(size) == self.length.div_ceil(size);
            let rewinds = is_in_newest && self.length - length <= layout.max_rewind;
            return rewinds || length == self.before[group];
        }
        let table = &self.tables[group];
        let mut blocks = 0..length.div_ceil(size);
        let is_resident = |block: usize| table.get(block).is_some_and(Option::is_some);
        if matches!(kind, LayerGroup::Full { .. }) {
            // Only a trim leaves gaps there, and the caller chose it.
            return length.is_multiple_of(size) || is_resident(length / size);
        }
        blocks.all(|block| !is_needed_after_cut(kind, length, block) || is_resident(block))
    }

    /// Drops the tokens from `length` on, which is below the length.
    pub fn cut(&mut self, layout: &Layout, length: usize) {
        for (group, kind) in layout.kinds.iter().enumerate() {
            self.tables[group].truncate(length.div_ceil(kind.block_size()));
            self.offered[group] = self.offered[group].min(length / kind.block_size());
            if self.before[group] >= length {
                self.before[group] = 0;
            }
        }
        if let Some(names) = &mut self.names {
            names.truncate(length);
        }
        self.prompt_tokens = self.prompt_tokens.min(length);
        self.length = length;
        self.forget_needless_copies();
    }

    /// Returns true if more blocks were offered before than the first `computed` tokens fill.
    pub fn has_offered_beyond(&self, layout: &Layout, computed: usize) -> bool {
        let known = computed.min(self.num_named()).min(self.whole_tokens(layout));
        let mut offered = self.offered.iter().zip(&layout.kinds);
        offered.any(|(&offered, kind)| known / kind.block_size() < offered)
    }

    /// Returns the blocks that a commit of the first `computed` tokens publishes.
    pub fn commit(&mut self, layout: &Layout, computed: usize) -> Vec<Offer> {
        let Some(names) = &self.names else {
            return Vec::new();
        };
        // Contents after a gap do not depend on all tokens before them.
        let known = computed.min(names.len()).min(self.whole_tokens(layout));
        let mut published = Vec::new();
        for (group, &kind) in layout.kinds.iter().enumerate() {
            let size = kind.block_size();
            let (offered, full) = (self.offered[group], known / size);
            let (blocks, sure_from) = if matches!(kind, LayerGroup::State { .. }) {
                let has_state = known == self.length || known == self.before[group];
                let is_exact = known == computed && known.is_multiple_of(size) && has_state;
                (full.saturating_sub(usize::from(is_exact))..full, offered)
            } else {
                (if self.is_unsure { 0 } else { offered }..full, offered)
            };
            for block in blocks {
                let entry = self.tables[group].get(block).copied().flatten();
                let is_kept = is_worth(layout, kind, block, self.prompt_tokens);
                if let Some(id) = entry.filter(|_| is_kept) {
                    let content = names[(block + 1) * size - 1];
                    let is_sure = block >= sure_from;
                    published.push(Offer { block: id, group, content, is_sure });
                }
            }
            self.offered[group] = offered.max(full);
        }
        published
    }
}

/// Returns true if the retention keeps the block: some hit that it wants to serve needs it.
fn is_worth(layout: &Layout, kind: LayerGroup, block: usize, prompt_tokens: usize) -> bool {
    let end = (block + 1) * kind.block_size();
    let is_dense = match kind {
        LayerGroup::Full { .. } | LayerGroup::State { .. } => return true,
        // The sink is needed at every length.
        LayerGroup::SinkWindow { sink, .. } if block * kind.block_size() < sink => return true,
        _ => layout.retention == GroupRetention::Dense,
    };
    let is_multiple = |length: &usize| length.is_multiple_of(layout.alignment);
    let is_wanted = |length: &usize| {
        let last_aligned = |tokens: usize| tokens - tokens % layout.alignment;
        let ends_prompt = *length == last_aligned(prompt_tokens)
            || *length == last_aligned(prompt_tokens.saturating_sub(1));
        match layout.retention {
            GroupRetention::Every(tokens) => {
                let interval = tokens.div_ceil(layout.alignment) * layout.alignment;
                ends_prompt || length.is_multiple_of(interval)
            }
            _ => is_dense || ends_prompt,
        }
    };
    let far = end + 2 * layout.alignment + 64;
    (end..far).filter(is_multiple).filter(is_wanted).any(|length| is_needed(kind, length, block))
}
