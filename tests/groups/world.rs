//! `World`: a cache with groups beside its reference. Each operation is made on both, and each result and all
//! visible state are compared.

use std::collections::BTreeMap;

use paged_kv::{
    Admission, AdmitOptions, Append, BlockId, CachedSequence, GroupId, LayerGroup, PagedKvCache,
    PagedKvError, Prompt, SeqId, Sequence, StepBuffers,
};

use crate::held::{Content, CopyOf, Expected, Growth, Held};
use crate::operations::from_first_sources;
use crate::reference::Reference;
use crate::{Table, table};

/// A sequence of the cache.
pub enum Owner {
    Handle(CachedSequence),
    Id(SeqId),
}

/// The options of an admission.
#[derive(Clone, Copy, Debug, Default)]
pub struct Asked {
    pub by_id: bool,
    pub allows_full_hit: bool,
    pub first_chunk: Option<usize>,
    pub most_cached: Option<usize>,
}

impl Asked {
    fn options(&self) -> AdmitOptions {
        let mut options = AdmitOptions::default();
        if self.allows_full_hit {
            options = options.allow_full_hit();
        }
        if let Some(tokens) = self.first_chunk {
            options = options.first_chunk(tokens);
        }
        if let Some(tokens) = self.most_cached {
            options = options.max_cached_tokens(tokens);
        }
        options
    }

    fn cap(&self, num_tokens: usize) -> usize {
        let cap = num_tokens.saturating_sub(usize::from(!self.allows_full_hit));
        cap.min(self.most_cached.unwrap_or(cap))
    }
}

/// The tokens that a caller reports as computed.
#[derive(Clone, Debug)]
pub enum Report {
    Length(usize),
    Tokens(Vec<u32>),
}

pub struct World {
    pub cache: PagedKvCache,
    pub reference: Reference,
    pub owners: BTreeMap<u64, Owner>,
    /// True if no content is reclaimed unseen, so that the reference knows every hit.
    pub is_exact: bool,
    /// The memory of the next step.
    pub buffers: StepBuffers,
    pub hits: usize,
    pub refusals: usize,
    next: u64,
}

impl World {
    pub fn new(cache: PagedKvCache, reference: Reference, is_exact: bool) -> Self {
        let owners = BTreeMap::new();
        let buffers = StepBuffers::default();
        Self { cache, reference, owners, is_exact, buffers, hits: 0, refusals: 0, next: 0 }
    }

    pub fn keys(&self) -> Vec<u64> {
        self.owners.keys().copied().collect()
    }

    pub fn held(&self, key: u64) -> &Held {
        &self.reference.sequences[&key]
    }

    pub fn look<T>(&self, key: u64, look: impl FnOnce(&Sequence) -> T) -> T {
        match &self.owners[&key] {
            Owner::Handle(sequence) => look(sequence),
            Owner::Id(id) => self.cache.with_sequence(*id, look).expect("the id is there"),
        }
    }

    pub fn tables(&self, key: u64) -> Vec<Table> {
        let groups = self.reference.layout.kinds.len();
        self.look(key, |sequence| (0..groups).map(|group| table(sequence, group)).collect())
    }

    fn free_blocks(&self) -> usize {
        self.cache.total_blocks() - self.reference.owned().len()
    }

    fn new_key(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Admits a prompt. Returns false if there is no room.
    #[track_caller]
    pub fn admit(&mut self, tokens: &[u32], asked: &Asked) -> bool {
        let names = self.reference.names(None, tokens);
        let (prompt, options) = (self.cache.prompt(tokens), asked.options());
        let required = self.cache.required_blocks(&prompt, &options).expect("it is of this cache");
        let free = self.cache.free_block_count();
        let key = self.new_key();
        let admitted = self.make_admission(key, asked.by_id, &prompt, &options);
        if required > free {
            let refusal = admitted.expect_err("there is no room");
            let expected = PagedKvError::OutOfMemory { requested: required, available: free };
            assert_eq!(refusal, expected);
            self.refusals += 1;
            return false;
        }
        let admission = admitted.unwrap_or_else(|refusal| panic!("{refusal}: {required}, {free}"));
        let taken = free - self.cache.free_block_count();
        assert_eq!(taken, required, "blocks taken, and predicted: {admission:?}");
        self.compare_hit(&names, asked.cap(tokens.len()), &admission);
        let chunk = asked.first_chunk.unwrap_or(usize::MAX);
        let length = tokens.len().min(admission.cached_tokens.saturating_add(chunk));
        assert_eq!(admission.num_tokens, length);
        self.adopt_admitted(key, names, admission.cached_tokens, length, required);
        true
    }

    fn make_admission(
        &mut self,
        key: u64,
        by_id: bool,
        prompt: &Prompt,
        options: &AdmitOptions,
    ) -> Result<Admission, PagedKvError> {
        let (owner, admission) = if by_id {
            (Owner::Id(SeqId(key)), self.cache.admit_with(SeqId(key), prompt, options)?)
        } else {
            let (sequence, admission) = self.cache.admit_sequence(prompt, options)?;
            (Owner::Handle(sequence), admission)
        };
        self.owners.insert(key, owner);
        Ok(admission)
    }

    fn compare_hit(&mut self, names: &[Content], cap: usize, admission: &Admission) {
        let (hit, longest) = (admission.cached_tokens, admission.longest_group_hit);
        self.hits += usize::from(hit > 0);
        let [least, most] = self.reference.joint_hit(names, cap);
        let [least_alone, most_alone] = self.reference.longest_group_hit(names, cap);
        if self.is_exact {
            assert!(least <= hit && hit <= most, "hit {hit} of {least}..={most}, cap {cap}");
            assert!(least_alone <= longest && longest <= most_alone, "{longest} {most_alone}");
        }
        assert!(hit <= longest && longest <= cap, "{admission:?}, cap {cap}");
        let Some(GroupId(group)) = admission.limiting_group else {
            assert_eq!(hit, longest, "no group limited the hit");
            return;
        };
        assert!(hit < longest, "{admission:?}");
        let alignment = self.reference.layout.alignment;
        let mut longer = (hit + alignment..=longest).step_by(alignment);
        let lacks =
            |length: usize| !self.reference.covers(group.into(), names, length, self.is_exact);
        assert!(!self.is_exact || longer.any(lacks), "group {group} limits {names:?}");
    }

    #[track_caller]
    fn adopt_admitted(
        &mut self,
        key: u64,
        names: Vec<Content>,
        hit: usize,
        length: usize,
        required: usize,
    ) {
        let reference = &mut self.reference;
        let mut held = Held::empty(&reference.layout, Some(names), reference.generation);
        let groups = reference.layout.kinds.len();
        let owner = &self.owners[&key];
        let look = |sequence: &Sequence| (0..groups).map(|group| table(sequence, group)).collect();
        let tables: Vec<Table> = match owner {
            Owner::Handle(sequence) => look(sequence),
            Owner::Id(id) => self.cache.with_sequence(*id, look).expect("the id is there"),
        };
        reference.hit(&mut held, hit, &tables);
        let matched = held.blocks().count();
        reference.sequences.insert(key, held);
        let growth = reference.growth(key, length);
        let new = growth.new_blocks();
        assert!(new <= required && required <= new + matched, "{new}, {required}, {matched}");
        let at_once = reference.grow(key, &growth, tables);
        assert_eq!(at_once, [], "a hit ends with a block");
    }

    /// Allocates a sequence whose tokens are not known.
    #[track_caller]
    pub fn allocate(&mut self, length: usize) {
        let key = self.new_key();
        let reference = &mut self.reference;
        let held = Held::empty(&reference.layout, None, reference.generation);
        reference.sequences.insert(key, held);
        let growth = reference.growth(key, length);
        let allocated = self.cache.allocate(SeqId(key), length);
        if growth.new_blocks() > self.free_blocks() {
            assert!(matches!(allocated, Err(PagedKvError::OutOfMemory { .. })), "{allocated:?}");
            self.reference.sequences.remove(&key);
            self.refusals += 1;
            return;
        }
        allocated.expect("there is room");
        self.owners.insert(key, Owner::Id(SeqId(key)));
        let tables = self.tables(key);
        self.reference.grow(key, &growth, tables);
    }

    /// Appends to a sequence, by its handle or its id.
    #[track_caller]
    pub fn append(&mut self, key: u64, num_new_tokens: usize) {
        self.reference.release_windows(key);
        let growth = self.reference.growth(key, self.held(key).length + num_new_tokens);
        let free = self.free_blocks();
        let appended = match self.owners.get_mut(&key).expect("a key of an owner") {
            Owner::Handle(sequence) => sequence.append(num_new_tokens),
            Owner::Id(id) => self.cache.append(*id, num_new_tokens),
        };
        let requested = growth.new_blocks();
        if requested > free {
            let expected = PagedKvError::OutOfMemory { requested, available: free };
            assert_eq!(appended.expect_err("there is no room"), expected);
            self.refusals += 1;
            return;
        }
        let append = appended.unwrap_or_else(|refusal| panic!("{refusal}, {free} are free"));
        self.adopt_append(key, &growth, &append);
    }

    #[track_caller]
    fn adopt_append(&mut self, key: u64, growth: &Growth, append: &Append) {
        let at_once = self.adopt_growth(key, growth);
        let copy = append.copy.as_ref().map(|copy| (0, copy.src, copy.dst));
        assert_eq!(copy.into_iter().collect::<Vec<_>>(), at_once);
        let new = growth.tables[0].iter().filter(|&&entry| entry == Expected::New).count();
        assert_eq!(append.new_blocks.len(), new - at_once.len(), "{append:?}");
        let resident = self.tables(key)[0].iter().flatten().count();
        assert_eq!(append.new_blocks.end, resident, "{append:?}");
    }

    #[track_caller]
    pub fn adopt_growth(&mut self, key: u64, growth: &Growth) -> Vec<CopyOf> {
        let tables = self.tables(key);
        self.reference.grow(key, growth, tables)
    }

    /// Takes the pending copies of a sequence, and compares them.
    #[track_caller]
    pub fn take_copies(&mut self, key: u64) {
        let expected = std::mem::take(&mut self.reference.held_mut(key).pending);
        match self.owners.get_mut(&key).expect("a key of an owner") {
            Owner::Handle(sequence) => {
                let copies = sequence.take_copies().into_iter();
                let copies: Vec<CopyOf> =
                    copies.map(|copy| (copy.group.0.into(), copy.src, copy.dst)).collect();
                assert_eq!(copies, expected, "in the order of the growths and groups");
            }
            Owner::Id(id) => {
                let lease = self.cache.lease(&[*id]).expect("the id is there");
                let mut step = self.cache.step(Default::default());
                step.join(&mut lease.rows().next().expect("one is leased")).expect("it is there");
                let mut copies: Vec<[u32; 2]> = Vec::new();
                step.copies(&mut copies).expect("ids fit");
                copies.sort();
                assert_eq!(copies, from_first_sources(&expected));
                step.complete();
            }
        }
    }

    /// Forks a sequence, which is refused while copies are pending.
    #[track_caller]
    pub fn fork(&mut self, key: u64) {
        let new = self.new_key();
        let forked = match self.owners.get_mut(&key).expect("a key of an owner") {
            Owner::Handle(sequence) => sequence.fork().map(Owner::Handle),
            Owner::Id(id) => self.cache.fork(*id, SeqId(new)).map(|()| Owner::Id(SeqId(new))),
        };
        let copies = self.held(key).pending.len();
        if copies > 0 {
            let refusal = forked.err().expect("copies are pending");
            assert_eq!(refusal, PagedKvError::CopiesPending { copies });
            return;
        }
        self.owners.insert(new, forked.expect("nothing refuses a fork"));
        let fork = self.held(key).clone();
        self.reference.sequences.insert(new, fork);
    }

    #[track_caller]
    pub fn truncate(&mut self, key: u64, length: usize) {
        let truncated = match self.owners.get_mut(&key).expect("a key of an owner") {
            Owner::Handle(sequence) => sequence.truncate(length),
            Owner::Id(id) => self.cache.truncate(*id, length),
        };
        let (layout, held) = (self.reference.layout.clone(), self.held(key));
        if length > held.length {
            let (requested, num_tokens) = (length, held.length);
            let expected = PagedKvError::TruncateBeyondEnd { requested, num_tokens };
            assert_eq!(truncated, Err(expected));
        } else if let Some(refusing) = held.refuses_cut(&layout, length) {
            let refusal = truncated.expect_err("a block is gone");
            let kind = layout.kinds[refusing];
            match refusal {
                PagedKvError::TokensTrimmed { position } => {
                    assert!(matches!(kind, LayerGroup::Full { .. }), "{kind:?}");
                    assert_eq!(position, length);
                }
                PagedKvError::WindowReleased { group, requested, shortest } => {
                    assert_eq!((usize::from(group.0), requested), (refusing, length));
                    assert!(!held.refuses_group(&layout, refusing, shortest), "{shortest}");
                }
                refusal => panic!("{refusal}"),
            }
        } else {
            truncated.expect("all blocks are there");
            if length < held.length {
                self.reference.held_mut(key).cut(&layout, length);
            }
        }
    }

    /// Trims a sequence to sink and window.
    #[track_caller]
    pub fn trim(&mut self, key: u64, sink: usize, window: usize) {
        let trimmed = match self.owners.get_mut(&key).expect("a key of an owner") {
            Owner::Handle(sequence) => sequence.apply_streaming_llm(sink, window),
            Owner::Id(id) => self.cache.apply_streaming_llm(*id, sink, window),
        };
        let layout = self.reference.layout.clone();
        let expected = self.reference.held_mut(key).trim(&layout, sink, window);
        assert_eq!(trimmed, Ok(expected));
    }

    #[track_caller]
    pub fn free(&mut self, key: u64) {
        match self.owners.remove(&key).expect("a key of an owner") {
            Owner::Handle(sequence) => drop(sequence),
            Owner::Id(id) => self.cache.free(id).expect("the id is there"),
        }
        self.reference.sequences.remove(&key);
    }

    /// Makes blocks unmatchable.
    #[track_caller]
    pub fn uncache(&mut self, blocks: &[BlockId]) {
        let count = self.cache.prefix().uncache(blocks);
        let cached: Vec<_> =
            blocks.iter().filter_map(|&block| self.reference.cached(block)).collect();
        let sure = cached.iter().filter(|cached| cached.is_sure).count();
        assert!(count <= cached.len() && (count >= sure || !self.is_exact), "{count} of {sure}");
        blocks.iter().for_each(|&block| self.reference.forget(block));
    }

    pub fn reset(&mut self) {
        self.cache.prefix().reset();
        self.reference.generation += 1;
    }

    /// Compares all visible state.
    #[track_caller]
    pub fn check(&self) {
        for (&key, held) in &self.reference.sequences {
            assert_eq!(self.tables(key), held.tables, "tables of {key}");
            self.look(key, |sequence| {
                assert_eq!(sequence.num_tokens(), held.length);
                let first: Vec<BlockId> = held.tables[0].iter().flatten().copied().collect();
                assert_eq!(sequence.block_ids(), first);
                assert_eq!(sequence.blocks_in(GroupId(200)).len(), 0);
                for (group, kind) in self.reference.layout.kinds.iter().enumerate() {
                    let gone = held.tables[group].iter().rposition(Option::is_none);
                    let start = gone.map_or(0, |gone| (gone + 1) * kind.block_size());
                    let expected = start.min(held.length);
                    assert_eq!(sequence.window_start(GroupId(group as u8)), expected);
                }
            });
            if let (Owner::Handle(sequence), Some(names)) = (&self.owners[&key], &held.names) {
                assert_eq!(sequence.num_named_tokens(), names.len());
            }
        }
        let used = self.reference.owned().len();
        assert_eq!(self.cache.used_block_count(), used, "used blocks");
        assert_eq!(self.cache.free_block_count(), self.cache.total_blocks() - used);
    }
}
