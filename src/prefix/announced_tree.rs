//! `AnnouncedTree`: the cached contents as consumers see them, a tree by prefix.
//!
//! - The *primary* of a content is the block of its primary copy. Contents that follow it are its children.
//! - Further blocks with the same content are *copies*, chained to the primary. When the primary ends, a copy
//!   becomes the primary.
//! - A content whose parent has no primary is an *orphan*: no admission can reach it. It is hidden from consumers,
//!   with all its descendants, until the parent is stored again.
//! - A content whose tokens are not known is *tokenless*, and hidden in the same way until they are.
//!
//! Each group of layers has a tree of its own: equal tokens have equal hashes in all groups, so a content is a hash and
//! a group. Contents of groups that need no prefix (windows, chunks, states) have no parent here.
//!
//! So the contents that consumers hold are closed: no content without those before it in its tree.
//!
//! Invariant: a content is announced exactly when it and all its ancestors have a primary here and tokens.

pub(crate) mod kept_tokens;
#[cfg(test)]
mod tests;

use std::collections::HashMap;

use self::kept_tokens::KeptTokens;
use super::{BlockHash, ExtraKeys};
use crate::array::array_of;
use crate::error::Result;
use crate::id::{BlockId, GroupId};
use crate::sync::PlainArc;

/// No block.
const NONE: u32 = u32::MAX;

/// The era of a block that holds no content.
const NO_ERA: u32 = 0;

/// A content, with the data of its event.
pub(crate) struct Content<'a> {
    pub(crate) group: GroupId,
    pub(crate) hash: BlockHash,
    /// The content before it, in the same group; `None` at the beginning of a prompt, and in a group without a tree.
    pub(crate) parent: Option<BlockHash>,
    /// All tokens of its block, or none if they are not known: then it is not announced.
    pub(crate) tokens: &'a [u32],
    /// The other things that it depends on, if any.
    pub(crate) extra: Option<&'a PlainArc<ExtraKeys>>,
    /// Number of blocks before it.
    pub(crate) index: usize,
}

/// The contents, by the blocks that are their primaries.
pub(crate) struct AnnouncedTree {
    nodes: Box<[Node]>,
    /// The tokens of each block, while it is a primary.
    tokens: KeptTokens,
    /// Tokens of a block, by group.
    block_sizes: Box<[usize]>,
    /// By group, and by the hash of a content without a primary: the first of the contents that follow it.
    orphans: Box<[HashMap<BlockHash, u32>]>,
    /// Increases when all contents end together. Nodes of an earlier era hold nothing.
    era: u32,
    /// Contents whose tokens are not known.
    tokenless: usize,
    /// Blocks still to be visited; empty between calls, kept for its memory.
    open: Vec<u32>,
}

#[derive(Clone)]
struct Node {
    hash: BlockHash,
    parent_hash: Option<BlockHash>,
    extra: Option<PlainArc<ExtraKeys>>,
    index: u32,
    era: u32,
    /// The primary of the parent, if it has one.
    parent: u32,
    first_child: u32,
    next: u32,
    before: u32,
    /// The next block that holds the content, and the block before it there. The primary has none before it.
    next_copy: u32,
    copy_before: u32,
    group: GroupId,
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
        next_copy: NONE,
        copy_before: NONE,
        group: GroupId(0),
        announced: false,
        has_tokens: false,
    };
}

impl AnnouncedTree {
    /// Creates a tree over the blocks `0..num_blocks`, none of which is a primary. `block_sizes` has the tokens of a
    /// block of each group, which is at least one.
    pub(crate) fn new(num_blocks: usize, block_sizes: Box<[usize]>) -> Result<Self> {
        let largest = block_sizes.iter().fold(1, |largest, &size| largest.max(size));
        Ok(Self {
            nodes: array_of(num_blocks, || Node::EMPTY)?,
            tokens: KeptTokens::new(num_blocks, largest)?,
            orphans: block_sizes.iter().map(|_| HashMap::new()).collect(),
            block_sizes,
            era: NO_ERA + 1,
            tokenless: 0,
            open: Vec::new(),
        })
    }

    /// Returns true if `id` is the primary or a copy of the content with this hash in a group.
    #[inline]
    pub(crate) fn holds(&self, id: BlockId, group: GroupId, hash: BlockHash) -> bool {
        let node = &self.nodes[id.index()];
        node.era == self.era && node.hash == hash && node.group == group
    }

    /// Returns the group of the content that `id` holds, or held last.
    #[inline]
    pub(crate) fn group(&self, id: BlockId) -> GroupId {
        self.nodes[id.index()].group
    }

    /// Returns the primary of the content that `id` holds.
    pub(crate) fn primary(&self, id: BlockId) -> BlockId {
        let mut at = id.0;
        while self.nodes[at as usize].copy_before != NONE {
            at = self.nodes[at as usize].copy_before;
        }
        BlockId(at)
    }

    /// Returns true if the tokens of the content of this primary are known.
    pub(crate) fn has_tokens(&self, primary: BlockId) -> bool {
        self.nodes[primary.index()].has_tokens
    }

    /// Returns the number of contents whose tokens are not known.
    pub(crate) fn num_tokenless(&self) -> usize {
        self.tokenless
    }

    /// Makes `id`, which holds nothing, a copy of the content of `primary`.
    pub(crate) fn add_copy(&mut self, primary: BlockId, id: BlockId) {
        let Node { hash, group, .. } = self.nodes[primary.index()];
        let next_copy = std::mem::replace(&mut self.nodes[primary.index()].next_copy, id.0);
        if next_copy != NONE {
            self.nodes[next_copy as usize].copy_before = id.0;
        }
        let (era, copy_before) = (self.era, primary.0);
        self.nodes[id.index()] = Node { hash, era, next_copy, copy_before, group, ..Node::EMPTY };
    }

    /// Makes `id` the primary of a content that has none; `parent` is the primary of the content before it. Returns
    /// true if the content is to be announced.
    pub(crate) fn insert(
        &mut self,
        id: BlockId,
        content: &Content<'_>,
        parent: Option<BlockId>,
    ) -> bool {
        let (is_reached, next) = match (parent, content.parent) {
            (Some(parent), _) => {
                let parent = &mut self.nodes[parent.index()];
                (parent.announced, std::mem::replace(&mut parent.first_child, id.0))
            }
            (None, Some(hash)) => {
                let orphans = &mut self.orphans[content.group.index()];
                (false, orphans.insert(hash, id.0).unwrap_or(NONE))
            }
            (None, None) => (true, NONE),
        };
        if next != NONE {
            self.nodes[next as usize].before = id.0;
        }
        let node = &mut self.nodes[id.index()];
        (node.hash, node.group) = (content.hash, content.group);
        node.parent_hash = content.parent;
        // An `Arc` is dropped only if there is one.
        if node.extra.is_some() || content.extra.is_some() {
            node.extra = content.extra.cloned();
        }
        node.index = content.index as u32;
        node.era = self.era;
        node.parent = parent.map_or(NONE, |parent| parent.0);
        (node.first_child, node.next, node.before) = (NONE, next, NONE);
        (node.next_copy, node.copy_before) = (NONE, NONE);
        node.has_tokens = !content.tokens.is_empty();
        node.announced = is_reached && node.has_tokens;
        if !node.has_tokens {
            self.tokenless += 1;
            return false;
        }
        let announced = node.announced;
        self.set_tokens(id, content.tokens);
        announced
    }

    fn set_tokens(&mut self, id: BlockId, tokens: &[u32]) {
        self.tokens.store(id, tokens);
    }

    /// Stores the tokens of the content of `primary`, and its parent and keys, which this caller knows.
    /// Appends the primaries that are to be announced now to `found`, parents first.
    pub(crate) fn learn(
        &mut self,
        primary: BlockId,
        content: &Content<'_>,
        parent: Option<BlockId>,
        found: &mut Vec<BlockId>,
    ) {
        self.unlink(primary.0);
        let node = &mut self.nodes[primary.index()];
        (node.parent_hash, node.index) = (content.parent, content.index as u32);
        node.parent = parent.map_or(NONE, |parent| parent.0);
        node.extra = content.extra.cloned();
        node.has_tokens = true;
        self.tokenless -= 1;
        self.set_tokens(primary, content.tokens);
        self.link(primary.0);
        let is_reached = match parent {
            Some(parent) => self.nodes[parent.index()].announced,
            None => content.parent.is_none(),
        };
        if is_reached {
            self.open.push(primary.0);
            self.announce_open(found);
        }
    }

    /// Returns true if there are contents of a group whose parent has no primary.
    #[inline]
    pub(crate) fn has_orphans(&self, group: GroupId) -> bool {
        !self.orphans[group.index()].is_empty()
    }

    /// Makes the orphans of a content that has a primary now its children. Appends the primaries that are to be
    /// announced now to `found`, parents first.
    pub(crate) fn adopt(&mut self, id: BlockId, found: &mut Vec<BlockId>) {
        let Node { group, hash, .. } = self.nodes[id.index()];
        let Some(first) = self.orphans[group.index()].remove(&hash) else {
            return;
        };
        self.set_parent_of_all(first, id.0);
        self.nodes[id.index()].first_child = first;
        if self.nodes[id.index()].announced {
            self.push_all(first);
            self.announce_open(found);
        }
    }

    /// Announces the nodes to be visited and their descendants, as far as tokens are known.
    fn announce_open(&mut self, found: &mut Vec<BlockId>) {
        while let Some(at) = self.open.pop() {
            let node = &mut self.nodes[at as usize];
            node.announced = node.has_tokens;
            if node.announced {
                found.push(BlockId(at));
                self.push_all(self.nodes[at as usize].first_child);
            }
        }
    }

    /// Removes the content from `id`, if it holds one. If no other block holds it, appends the hashes of the
    /// contents that are to be reported as removed to `removed`, children before parents.
    pub(crate) fn remove(&mut self, id: BlockId, removed: &mut Vec<BlockHash>) {
        let Node { era, group, hash, first_child, announced, next_copy, copy_before, .. } =
            self.nodes[id.index()];
        if era != self.era {
            return;
        }
        if copy_before != NONE || next_copy != NONE {
            return self.remove_one_of_several(id);
        }
        if !self.nodes[id.index()].has_tokens {
            self.tokenless -= 1;
        }
        if first_child == NONE {
            // The usual case: contents are reclaimed from the end of a prompt.
            if announced {
                removed.push(hash);
            }
        } else {
            if announced {
                self.hide(id, removed);
            }
            self.set_parent_of_all(first_child, NONE);
            self.orphans[group.index()].insert(hash, first_child);
        }
        self.unlink(id.0);
        let node = &mut self.nodes[id.index()];
        node.era = NO_ERA;
        if node.extra.is_some() {
            node.extra = None;
        }
    }

    /// Appends the announced descendants of `id` and then its own content to `removed`, children before
    /// parents. None of them is announced any more.
    #[cold]
    fn hide(&mut self, id: BlockId, removed: &mut Vec<BlockHash>) {
        let start = removed.len();
        self.open.clear();
        self.open.push(id.0);
        while let Some(at) = self.open.pop() {
            let node = &mut self.nodes[at as usize];
            // The descendants of a tokenless content are hidden already.
            if std::mem::replace(&mut node.announced, false) {
                removed.push(node.hash);
                self.push_all(self.nodes[at as usize].first_child);
            }
        }
        removed[start..].reverse();
    }

    /// Removes a content from `id` that other blocks hold too: the next of them becomes the primary.
    #[cold]
    fn remove_one_of_several(&mut self, id: BlockId) {
        let Node { next_copy, copy_before, .. } = self.nodes[id.index()];
        if copy_before == NONE {
            return self.move_to_copy(id, BlockId(next_copy));
        }
        self.nodes[copy_before as usize].next_copy = next_copy;
        if next_copy != NONE {
            self.nodes[next_copy as usize].copy_before = copy_before;
        }
        self.nodes[id.index()] = Node::EMPTY;
    }

    /// Moves the content of `old` to `new`, its next copy.
    fn move_to_copy(&mut self, old: BlockId, new: BlockId) {
        self.unlink(old.0);
        let next_copy = self.nodes[new.index()].next_copy;
        let node = std::mem::replace(&mut self.nodes[old.index()], Node::EMPTY);
        if node.has_tokens {
            self.tokens.copy(old, new);
        }
        self.set_parent_of_all(node.first_child, new.0);
        self.nodes[new.index()] = Node { next_copy, ..node };
        self.link(new.0);
    }

    /// Ends all contents together.
    pub(crate) fn clear(&mut self) {
        self.era = self.era.checked_add(1).expect("fewer than 2^32 resets");
        self.orphans.iter_mut().for_each(HashMap::clear);
        self.tokenless = 0;
    }

    /// Appends the primaries of all announced contents to `found`, parents first.
    pub(crate) fn list(&mut self, found: &mut Vec<BlockId>) {
        let is_root =
            |node: &Node| node.era == self.era && node.announced && node.parent_hash.is_none();
        let roots = (0_u32..).zip(&self.nodes).filter(|(_, node)| is_root(node));
        self.open.extend(roots.map(|(at, _)| at));
        while let Some(at) = self.open.pop() {
            if self.nodes[at as usize].announced {
                found.push(BlockId(at));
                self.push_all(self.nodes[at as usize].first_child);
            }
        }
    }

    /// Returns the content whose primary is `id`.
    pub(crate) fn content(&self, id: BlockId) -> Content<'_> {
        let node = &self.nodes[id.index()];
        let num_tokens = if node.has_tokens { self.block_sizes[node.group.index()] } else { 0 };
        Content {
            group: node.group,
            hash: node.hash,
            parent: node.parent_hash,
            tokens: self.tokens.get(id, num_tokens),
            extra: node.extra.as_ref(),
            index: node.index as usize,
        }
    }

    /// Links a node before its siblings, the nodes that follow the same content.
    fn link(&mut self, at: u32) {
        let Node { group, parent, parent_hash, .. } = self.nodes[at as usize];
        let Some(parent_hash) = parent_hash else { return };
        let next = match parent {
            NONE => self.orphans[group.index()].insert(parent_hash, at).unwrap_or(NONE),
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
            // The usual case: few contents have siblings.
            self.nodes[parent as usize].first_child = NONE;
        } else {
            self.unlink_among_others(at);
        }
    }

    fn unlink_among_others(&mut self, at: u32) {
        let Node { group, parent, parent_hash, next, before, .. } = self.nodes[at as usize];
        let Some(parent_hash) = parent_hash else { return };
        if next != NONE {
            self.nodes[next as usize].before = before;
        }
        if before != NONE {
            self.nodes[before as usize].next = next;
        } else if parent != NONE {
            self.nodes[parent as usize].first_child = next;
        } else if next != NONE {
            self.orphans[group.index()].insert(parent_hash, next);
        } else {
            self.orphans[group.index()].remove(&parent_hash);
        }
    }

    /// Sets the parent of `first` and of its siblings.
    fn set_parent_of_all(&mut self, first: u32, parent: u32) {
        let mut at = first;
        while at != NONE {
            let node = &mut self.nodes[at as usize];
            node.parent = parent;
            at = node.next;
        }
    }

    /// Adds `first` and its siblings to the nodes to be visited.
    fn push_all(&mut self, first: u32) {
        let mut at = first;
        while at != NONE {
            self.open.push(at);
            at = self.nodes[at as usize].next;
        }
    }
}
