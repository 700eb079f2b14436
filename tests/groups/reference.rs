//! `Reference`: a sequential model of a cache with groups, made of sets and lists.
//!
//! A content is a list of tokens. A block is cached under a group and a content. The joint hit is found by
//! trying every aligned length from the longest down, and testing for each group every block that the
//! attention of the next token needs.
//!
//! The reference reads from the cache which of the free blocks it took, and checks everything else.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use paged_kv::{BlockId, LayerGroup};

use crate::Table;
use crate::attention::needed;
use crate::held::{Content, CopyOf, Expected, Growth, Held, Layout, Offer};

/// The most blocks that are cached under one content; further copies are left out.
const MOST_COPIES: usize = 4;

/// The content that was written to a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cached {
    pub group: usize,
    pub content: Content,
    pub generation: u64,
    /// False if the reference cannot know whether the block was published.
    pub is_sure: bool,
}

pub struct Reference {
    pub layout: Layout,
    pub sequences: BTreeMap<u64, Held>,
    pub generation: u64,
    cached: BTreeMap<BlockId, Cached>,
    copies: HashMap<(usize, Content), BTreeSet<BlockId>>,
    contents: HashMap<(Content, u32), Content>,
    /// For each content, the content before it and its last token.
    origins: Vec<(Content, u32)>,
    /// Blocks that the open step keeps from being free.
    pub of_step: Vec<BlockId>,
}

impl Reference {
    pub fn new(layout: Layout) -> Self {
        Self {
            layout,
            sequences: BTreeMap::new(),
            generation: 0,
            cached: BTreeMap::new(),
            copies: HashMap::new(),
            contents: HashMap::new(),
            origins: vec![(0, 0)],
            of_step: Vec::new(),
        }
    }

    /// Returns the content of each prefix of `tokens`, of which the first follows the content `after`.
    pub fn names(&mut self, after: Option<Content>, tokens: &[u32]) -> Vec<Content> {
        let mut last = after.unwrap_or(0);
        let name = |&token: &u32| {
            let next = self.origins.len() as Content;
            let content = *self.contents.entry((last, token)).or_insert(next);
            if content == next {
                self.origins.push((last, token));
            }
            last = content;
            content
        };
        tokens.iter().map(name).collect()
    }

    /// Returns the tokens of a content.
    pub fn tokens(&self, mut content: Content) -> Vec<u32> {
        let mut tokens = Vec::new();
        while content > 0 {
            let (before, token) = self.origins[content as usize];
            tokens.push(token);
            content = before;
        }
        tokens.reverse();
        tokens
    }

    pub fn cached(&self, block: BlockId) -> Option<Cached> {
        self.cached.get(&block).copied()
    }

    pub fn cached_blocks(&self) -> impl Iterator<Item = (BlockId, Cached)> + '_ {
        self.cached.iter().map(|(&block, &cached)| (block, cached))
    }

    fn is_cached(&self, group: usize, content: Content, surely: bool) -> bool {
        let copies = self.copies.get(&(group, content));
        copies.is_some_and(|copies| {
            copies
                .iter()
                .map(|block| self.cached[block])
                .any(|cached| cached.generation == self.generation && (cached.is_sure || !surely))
        })
    }

    /// Returns true if every block of a group that a hit of `length` tokens needs is cached.
    pub fn covers(&self, group: usize, names: &[Content], length: usize, surely: bool) -> bool {
        let kind = self.layout.kinds[group];
        let end = |block: usize| (block + 1) * kind.block_size();
        needed(kind, length)
            .into_iter()
            .all(|block| self.is_cached(group, names[end(block) - 1], surely))
    }

    /// Returns the longest hit of at most `cap` tokens of the given groups.
    fn longest(&self, groups: &[usize], names: &[Content], cap: usize, surely: bool) -> usize {
        let lengths = (0..=cap.min(names.len())).rev();
        let aligned = |length: &usize| length.is_multiple_of(self.layout.alignment);
        let covered =
            |&length: &usize| groups.iter().all(|&group| self.covers(group, names, length, surely));
        lengths.filter(aligned).find(covered).expect("no block is needed at 0")
    }

    /// Returns the least and the greatest joint hit that there can be.
    pub fn joint_hit(&self, names: &[Content], cap: usize) -> [usize; 2] {
        let all: Vec<usize> = (0..self.layout.kinds.len()).collect();
        [true, false].map(|surely| self.longest(&all, names, cap, surely))
    }

    /// Returns the longest hit of one full group, or of any group if none is full: least and greatest.
    pub fn longest_group_hit(&self, names: &[Content], cap: usize) -> [usize; 2] {
        let is_full = |&group: &usize| matches!(self.layout.kinds[group], LayerGroup::Full { .. });
        let all = 0..self.layout.kinds.len();
        let mut groups: Vec<usize> = all.clone().filter(is_full).collect();
        if groups.is_empty() {
            groups = all.collect();
        }
        [true, false].map(|surely| {
            let alone = groups.iter().map(|&group| self.longest(&[group], names, cap, surely));
            alone.max().expect("there is a group")
        })
    }

    /// Counts the owners of a block, the open step included: in one step the last of several forks copies too.
    fn owners(&self, block: BlockId) -> usize {
        let of_sequences = self.sequences.values().flat_map(Held::blocks);
        of_sequences.chain(self.of_step.iter().copied()).filter(|&other| other == block).count()
    }

    pub fn owned(&self) -> BTreeSet<BlockId> {
        let of_sequences = self.sequences.values().flat_map(Held::blocks);
        of_sequences.chain(self.of_step.iter().copied()).collect()
    }

    /// Returns true if a block must not be written by one of its owners.
    fn is_shared(&self, block: BlockId) -> bool {
        self.owners(block) > 1 || self.cached.contains_key(&block)
    }

    /// Returns the growth of a sequence to `length` tokens, whose windows were released.
    pub fn growth(&self, id: u64, length: usize) -> Growth {
        self.sequences[&id].grown(&self.layout, length, |block| self.is_shared(block))
    }

    /// Checks the tables that the cache shows after a growth, and adopts them. The contents of the new blocks
    /// are overwritten. Returns the copies on write of group 0.
    #[track_caller]
    pub fn grow(&mut self, id: u64, growth: &Growth, tables: Vec<Table>) -> Vec<CopyOf> {
        let owned = self.owned();
        let mut new = BTreeSet::new();
        for (group, (expected, actual)) in growth.tables.iter().zip(&tables).enumerate() {
            assert_eq!(expected.len(), actual.len(), "blocks of group {group}, {growth:?}");
            for (at, (&expected, &actual)) in expected.iter().zip(actual).enumerate() {
                match expected {
                    Expected::Kept(block) => assert_eq!(actual, Some(block), "{group}:{at}"),
                    Expected::Gone => assert_eq!(actual, None, "{group}:{at}"),
                    Expected::New => {
                        let block = actual.unwrap_or_else(|| panic!("{group}:{at} has no block"));
                        assert!(!owned.contains(&block), "{block:?} has an owner");
                        assert!(new.insert(block), "{block:?} was taken twice");
                    }
                }
            }
        }
        new.into_iter().for_each(|block| self.forget(block));
        let layout = self.layout.clone();
        self.held_mut(id).grow(&layout, growth, tables)
    }

    pub fn held_mut(&mut self, id: u64) -> &mut Held {
        self.sequences.get_mut(&id).expect("a sequence of the reference")
    }

    pub fn release_windows(&mut self, id: u64) {
        let layout = self.layout.clone();
        self.held_mut(id).release_windows(&layout);
    }

    /// Makes `hits` the blocks of a new sequence of `length` cached tokens. Every needed block must hold its
    /// content, and no other block is there.
    #[track_caller]
    pub fn hit(&mut self, held: &mut Held, length: usize, hits: &[Table]) {
        let names = held.names.clone().expect("only an admission hits");
        for (group, kind) in self.layout.kinds.clone().into_iter().enumerate() {
            let blocks = length / kind.block_size();
            let needed = needed(kind, length);
            for (at, &entry) in hits[group][..blocks].iter().enumerate() {
                assert_eq!(entry.is_some(), needed.contains(&at), "hit {length}, {group}:{at}");
                let Some(block) = entry else { continue };
                let content = names[(at + 1) * kind.block_size() - 1];
                let cached = self.cached.get_mut(&block);
                let cached = cached.unwrap_or_else(|| panic!("{block:?} holds no content"));
                let expected = (group, content, self.generation);
                assert_eq!((cached.group, cached.content, cached.generation), expected);
                cached.is_sure = true;
            }
            held.tables[group] = hits[group][..blocks].to_vec();
            held.offered[group] = blocks;
        }
        held.length = length;
    }

    /// Returns the blocks that hold the contents that a commit is about to publish, if there are so many
    /// copies that more would be left out: all but one of each, or all.
    pub fn surplus(&self, published: &[Offer]) -> Vec<BlockId> {
        let mut surplus = BTreeSet::new();
        for &Offer { group, content, .. } in published {
            let copies = self.copies.get(&(group, content));
            let is_same = |other: &&Offer| (other.group, other.content) == (group, content);
            let offered_copies = published.iter().filter(is_same).count();
            if let Some(copies) = copies
                && copies.len() + offered_copies > MOST_COPIES
            {
                let kept = MOST_COPIES.saturating_sub(offered_copies).min(1);
                surplus.extend(copies.iter().skip(kept));
            }
        }
        surplus.into_iter().collect()
    }

    /// Publishes blocks, and returns how many contents could not be matched before.
    pub fn publish(&mut self, generation: u64, published: Vec<Offer>) -> usize {
        if generation != self.generation {
            return 0;
        }
        let mut new = 0;
        for Offer { block, group, content, is_sure } in published {
            if self.cached.contains_key(&block) {
                continue;
            }
            new += usize::from(!self.is_cached(group, content, false));
            self.cached.insert(block, Cached { group, content, generation, is_sure });
            self.copies.entry((group, content)).or_default().insert(block);
        }
        new
    }

    /// Returns the blocks of which the reference cannot know whether they were published.
    pub fn unsure(&self) -> Vec<BlockId> {
        self.cached_blocks().filter(|(_, cached)| !cached.is_sure).map(|(block, _)| block).collect()
    }

    /// Forgets the content of a block.
    pub fn forget(&mut self, block: BlockId) {
        if let Some(Cached { group, content, .. }) = self.cached.remove(&block) {
            let copies = self.copies.get_mut(&(group, content)).expect("a cached block is a copy");
            copies.remove(&block);
        }
    }
}
