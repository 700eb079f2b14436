//! What do listeners believe to be cached? The announced contents, as the tree that prompts make of them.
//!
//! Each content lives in one block, its *home*. What follows it hangs below it. A content whose parent
//! is not there cannot be reached by an admission: it is an *orphan*, hidden from listeners with all
//! that hangs below it, until the parent comes back. So what listeners hold is closed: no content
//! without those before it.
//!
//! Invariant: a content is announced exactly when it has a home here and all its ancestors have. The
//! tree does not know who listens, nor which block can be matched; whoever calls it says so.

use std::collections::HashMap;

use crate::id::BlockId;
use crate::prefix::{BlockHash, ExtraKeys};
use crate::sync::PlainArc;

/// No block.
const NONE: u32 = u32::MAX;

/// The era of a block that is no home.
const NO_ERA: u32 = 0;

/// A content, and what is to be told of it.
pub(crate) struct Content<'a> {
    pub(crate) hash: BlockHash,
    /// What comes before it; `None` at the beginning of a prompt.
    pub(crate) parent: Option<BlockHash>,
    /// All of its block, or none if they are not known.
    pub(crate) tokens: &'a [u32],
    /// What else it depends on, if on anything.
    pub(crate) extra: Option<&'a PlainArc<ExtraKeys>>,
    /// How many blocks come before it.
    pub(crate) index: usize,
}

/// The contents by the blocks that are their homes.
pub(crate) struct AnnouncedTree {
    nodes: Box<[Node]>,
    /// Of each block, while it is a home.
    tokens: Box<[u32]>,
    block_size: usize,
    /// The first of the contents that follow one without a home.
    orphans: HashMap<BlockHash, u32>,
    /// Counts on when everything ends at once; nodes of an earlier count are none.
    era: u32,
    /// Kept for its memory.
    open: Vec<u32>,
}

#[derive(Clone)]
struct Node {
    hash: BlockHash,
    parent_hash: Option<BlockHash>,
    extra: Option<PlainArc<ExtraKeys>>,
    index: u32,
    era: u32,
    /// The home of the parent, if it has one.
    parent: u32,
    first_child: u32,
    next: u32,
    before: u32,
    announced: bool,
    has_tokens: bool,
}

impl Node {
    const EMPTY: Self = Self {
        hash: BlockHash::NONE,
        parent_hash: None,
        extra: None,
        index: 0,
        era: NO_ERA,
        parent: NONE,
        first_child: NONE,
        next: NONE,
        before: NONE,
        announced: false,
        has_tokens: false,
    };
}

impl AnnouncedTree {
    /// Of the blocks `0..num_blocks`, none of which is a home.
    pub(crate) fn new(num_blocks: usize, block_size: usize) -> Self {
        Self {
            nodes: vec![Node::EMPTY; num_blocks].into(),
            tokens: vec![0; num_blocks * block_size].into(),
            block_size,
            orphans: HashMap::new(),
            era: NO_ERA + 1,
            open: Vec::new(),
        }
    }

    /// True if `id` is the home of `hash`.
    #[inline]
    pub(crate) fn is_home_of(&self, id: BlockId, hash: BlockHash) -> bool {
        let node = &self.nodes[id.index()];
        node.era == self.era && node.hash == hash
    }

    /// Makes `id` the home of a content that has none; `parent` is the home of what comes before it.
    /// True if it is to be announced.
    pub(crate) fn insert(
        &mut self,
        id: BlockId,
        content: &Content<'_>,
        parent: Option<BlockId>,
    ) -> bool {
        let (announced, next) = match (parent, content.parent) {
            (Some(parent), _) => {
                let parent = &mut self.nodes[parent.index()];
                (parent.announced, std::mem::replace(&mut parent.first_child, id.0))
            }
            (None, Some(hash)) => (false, self.orphans.insert(hash, id.0).unwrap_or(NONE)),
            (None, None) => (true, NONE),
        };
        if next != NONE {
            self.nodes[next as usize].before = id.0;
        }
        let node = &mut self.nodes[id.index()];
        node.hash = content.hash;
        node.parent_hash = content.parent;
        // An `Arc` is let go of only where there is one.
        if node.extra.is_some() || content.extra.is_some() {
            node.extra = content.extra.cloned();
        }
        node.index = content.index as u32;
        node.era = self.era;
        node.parent = parent.map_or(NONE, |parent| parent.0);
        (node.first_child, node.next, node.before) = (NONE, next, NONE);
        node.announced = announced;
        node.has_tokens = !content.tokens.is_empty();
        if node.has_tokens {
            let start = id.index() * self.block_size;
            self.tokens[start..start + self.block_size].copy_from_slice(content.tokens);
        }
        announced
    }

    /// True if there are contents whose parent is not there.
    #[inline]
    pub(crate) fn has_orphans(&self) -> bool {
        !self.orphans.is_empty()
    }

    /// Lets the orphans of a content follow it that has a home now. Appends what is to be announced
    /// for that to `found`, parents first.
    pub(crate) fn adopt(&mut self, id: BlockId, found: &mut Vec<BlockId>) {
        let Some(first) = self.orphans.remove(&self.nodes[id.index()].hash) else {
            return;
        };
        self.set_parent_of_all(first, id.0);
        self.nodes[id.index()].first_child = first;
        if self.nodes[id.index()].announced {
            self.push_all(first);
            while let Some(at) = self.open.pop() {
                self.nodes[at as usize].announced = true;
                found.push(BlockId(at));
                self.push_all(self.nodes[at as usize].first_child);
            }
        }
    }

    /// Ends what `id` is the home of, if it is one: appends what is to be called removed for that to
    /// `removed`, those behind before those in front.
    pub(crate) fn remove(&mut self, id: BlockId, removed: &mut Vec<BlockHash>) {
        let Node { era, hash, first_child, announced, .. } = self.nodes[id.index()];
        if era != self.era {
            return;
        }
        if first_child == NONE {
            // Mostly: contents are reclaimed from the end of a prompt.
            if announced {
                removed.push(hash);
            }
        } else {
            if announced {
                self.hide(id, removed);
            }
            self.set_parent_of_all(first_child, NONE);
            self.orphans.insert(hash, first_child);
        }
        self.unlink(id.0);
        let node = &mut self.nodes[id.index()];
        node.era = NO_ERA;
        if node.extra.is_some() {
            node.extra = None;
        }
    }

    /// Appends what hangs below `id` and is announced to `removed`, then itself, all of it from the end;
    /// none of it is announced any more.
    #[cold]
    fn hide(&mut self, id: BlockId, removed: &mut Vec<BlockHash>) {
        let start = removed.len();
        self.open.clear();
        self.open.push(id.0);
        while let Some(at) = self.open.pop() {
            let node = &mut self.nodes[at as usize];
            node.announced = false;
            removed.push(node.hash);
            self.push_all(self.nodes[at as usize].first_child);
        }
        removed[start..].reverse();
    }

    /// The content of `old` lives in `new`, which is no home, from now on.
    pub(crate) fn rehouse(&mut self, old: BlockId, new: BlockId) {
        self.unlink(old.0);
        let node = std::mem::replace(&mut self.nodes[old.index()], Node::EMPTY);
        let start = old.index() * self.block_size;
        self.tokens.copy_within(start..start + self.block_size, new.index() * self.block_size);
        self.set_parent_of_all(node.first_child, new.0);
        self.nodes[new.index()] = node;
        self.link(new.0);
    }

    /// Ends everything at once.
    pub(crate) fn clear(&mut self) {
        self.era = self.era.checked_add(1).expect("fewer than 2^32 resets");
        self.orphans.clear();
    }

    /// Appends the homes of all that is announced to `found`, parents first.
    pub(crate) fn list(&mut self, found: &mut Vec<BlockId>) {
        let is_root =
            |node: &Node| node.era == self.era && node.announced && node.parent_hash.is_none();
        let roots = (0_u32..).zip(&self.nodes).filter(|(_, node)| is_root(node));
        self.open.extend(roots.map(|(at, _)| at));
        while let Some(at) = self.open.pop() {
            found.push(BlockId(at));
            self.push_all(self.nodes[at as usize].first_child);
        }
    }

    /// What lives in `id`.
    pub(crate) fn content(&self, id: BlockId) -> Content<'_> {
        let node = &self.nodes[id.index()];
        let start = id.index() * self.block_size;
        let end = if node.has_tokens { start + self.block_size } else { start };
        Content {
            hash: node.hash,
            parent: node.parent_hash,
            tokens: &self.tokens[start..end],
            extra: node.extra.as_ref(),
            index: node.index as usize,
        }
    }

    /// Puts a node before those that follow the same content.
    fn link(&mut self, at: u32) {
        let Node { parent, parent_hash, .. } = self.nodes[at as usize];
        let Some(parent_hash) = parent_hash else { return };
        let next = match parent {
            NONE => self.orphans.insert(parent_hash, at).unwrap_or(NONE),
            _ => std::mem::replace(&mut self.nodes[parent as usize].first_child, at),
        };
        if next != NONE {
            self.nodes[next as usize].before = at;
        }
        let node = &mut self.nodes[at as usize];
        (node.next, node.before) = (next, NONE);
    }

    #[inline(always)]
    fn unlink(&mut self, at: u32) {
        let Node { parent, next, before, .. } = self.nodes[at as usize];
        if parent != NONE && next == NONE && before == NONE {
            // Mostly: few contents have siblings.
            self.nodes[parent as usize].first_child = NONE;
        } else {
            self.unlink_among_others(at);
        }
    }

    fn unlink_among_others(&mut self, at: u32) {
        let Node { parent, parent_hash, next, before, .. } = self.nodes[at as usize];
        let Some(parent_hash) = parent_hash else { return };
        if next != NONE {
            self.nodes[next as usize].before = before;
        }
        if before != NONE {
            self.nodes[before as usize].next = next;
        } else if parent != NONE {
            self.nodes[parent as usize].first_child = next;
        } else if next != NONE {
            self.orphans.insert(parent_hash, next);
        } else {
            self.orphans.remove(&parent_hash);
        }
    }

    /// Notes where the parent of `first` and of its siblings lives.
    fn set_parent_of_all(&mut self, first: u32, parent: u32) {
        let mut at = first;
        while at != NONE {
            let node = &mut self.nodes[at as usize];
            node.parent = parent;
            at = node.next;
        }
    }

    /// Puts `first` and its siblings on the list of what is to be visited.
    fn push_all(&mut self, first: u32) {
        let mut at = first;
        while at != NONE {
            self.open.push(at);
            at = self.nodes[at as usize].next;
        }
    }
}
