//! In which order is told what changed? `Announcer`: one lock, under which a change is made and its event
//! is noted.
//!
//! ```text
//!   commit ──> lock { name blocks, note them in the tree, note the event } ──> sink
//!   take   ──> a block that was a home? ──> lock { remove it from the tree, note the event } ──> sink
//!   reset  ──> lock { next generation, empty tree, note the event } ──> sink
//! ```
//!
//! There is no announcer unless somebody listens: then what can be matched is told in one order, which
//! is why there is one lock. It is held while a commit names its blocks,
//! and taken by no allocation whose blocks were nobody's home. Whoever holds it may claim a home shard;
//! nobody who holds a claim wants it.
//!
//! The sink is told outside all locks, in the order of the notes (see [`delivery`](super::delivery)): by
//! the thread that noted an event, before its operation returns, unless another thread is telling, or the
//! operation was called by a sink, a waker or a closure of the cache. Then soon after.
//!
//! What the order promises, and why:
//!
//! - *A content is announced once, and removed with the last copy.* Publishers exclude each other, and
//!   one that finds the content cached notes its block as a copy. When the home of a content ends, a copy
//!   takes its place, and nothing is told. Blocks that got no name count for nothing.
//! - *A removal never overtakes its announcement.* A block ends as a home when it is taken, in
//!   [`taken`](TakeObserver::taken), which the taker calls before it can name the block anew; the
//!   announcement came before, while a publisher owned it.
//! - *A reclaimed block that is put back* (a refused allocation undoes what it reclaimed) was never told
//!   of, and still is the home. A block in which its content was published in between is a copy.
//! - *A content that the index has no room for* is not announced: it cannot be found.
//! - *What is published under an earlier generation* is not announced, and blocks that were homes
//!   before a reset end in silence.
//! - *Parents before children*, and no child without its parent: see [`tree`](super::tree).
//! - *No content without its tokens.* One that was published by hashes only is not told, nor what follows
//!   it, until a sequence that knows its tokens publishes it too, or matches it.
//!
//! Consumers hear of a change a little after it took effect; at rest, what they hold is what a probe
//! finds. Source: vLLM's KV events, whose removals ignore other copies of a content.

use super::claimed_sink::ClaimedSink;
use super::delivery::Delivery;
use super::noted::{NotedEvents, StoredBlocks};
use super::tree::{AnnouncedTree, Content};
use crate::array::array_of;
use crate::error::Result;
use crate::id::BlockId;
use crate::pool::TakeObserver;
use crate::prefix::{BlockHash, Told};
use crate::sync::later::{self, Postponed};
use crate::sync::{AtomicBool, AtomicUsize, Backoff, Mutex, Ordering, PlainArc, foreign};

/// The most blocks of one event.
const MOST_BLOCKS: usize = 1024;

/// Looks of a thread at how far another one is that tells events, before it goes on all the same.
const MOST_LOOKS: usize = 128;

/// Batches that a thread tells before another one, which waits, takes over.
const MOST_BATCHES: usize = 16;

/// Tells a sink what can be matched.
pub(crate) struct Announcer {
    /// `None` only once it is dropped.
    sink: Option<ClaimedSink>,
    /// Blocks that may be homes or copies: false only for those that are none.
    homes: Box<[AtomicBool]>,
    /// Contents whose tokens are not known, at least: written under the lock only.
    untold: AtomicUsize,
    state: Mutex<State>,
}

struct State {
    tree: AnnouncedTree,
    block_size: usize,
    /// Consecutive contents that are noted and not told yet.
    run: Run,
    /// Kept for their memory.
    joined: Vec<u32>,
    removed: Vec<BlockHash>,
    found: Vec<BlockId>,
    delivery: Delivery,
}

struct Run {
    parent: Option<BlockHash>,
    hashes: Vec<BlockHash>,
    index: usize,
    /// The home of the last of them.
    last: Option<BlockId>,
}

/// The right to change what is announced.
pub(crate) struct Announcing<'a> {
    announcer: &'a Announcer,
    state: &'a mut State,
}

impl Announcer {
    /// For the blocks `0..num_blocks` of a cache. Some 100 bytes a block, and its tokens.
    pub(crate) fn new(sink: ClaimedSink, num_blocks: usize, block_size: usize) -> Result<Self> {
        let state = State {
            tree: AnnouncedTree::new(num_blocks, block_size)?,
            block_size,
            run: Run { parent: None, hashes: Vec::new(), index: 0, last: None },
            joined: Vec::new(),
            removed: Vec::new(),
            found: Vec::new(),
            delivery: Delivery::new(num_blocks),
        };
        let homes = array_of(num_blocks, || AtomicBool::new(false))?;
        let (sink, untold) = (Some(sink), AtomicUsize::new(0));
        Ok(Self { sink, homes, untold, state: Mutex::new(state) })
    }

    /// Tells a sink that listened to an earlier cache that nothing of that one can be matched.
    pub(crate) fn begin(self: &PlainArc<Self>) {
        if self.sink.as_ref().is_some_and(ClaimedSink::begin) {
            self.announce(|announcing| announcing.clear());
        }
    }

    /// Changes what is announced, and tells the sink.
    pub(crate) fn announce<R>(
        self: &PlainArc<Self>,
        change: impl FnOnce(&mut Announcing<'_>) -> R,
    ) -> R {
        let (changed, due) = {
            let mut state = self.state.lock();
            let changed = change(&mut Announcing { announcer: self, state: &mut state });
            self.set_untold(state.tree.num_untold());
            (changed, self.due(&mut state))
        };
        self.deliver(due);
        changed
    }

    /// True if there are contents whose tokens are not known, for a thread that has matched one of them.
    pub(crate) fn has_untold(&self) -> bool {
        // Relaxed: a publisher counts its blocks before it names them, and who matched one of them has
        // seen its name. Loom: who_matches_an_untold_content_knows_that_it_is.
        self.untold.load(Ordering::Relaxed) > 0
    }

    fn set_untold(&self, contents: usize) {
        // Relaxed: as in `has_untold`. The load keeps the line shared where nothing changes.
        if self.untold.load(Ordering::Relaxed) != contents {
            self.untold.store(contents, Ordering::Relaxed);
        }
    }

    /// Events that were noted and could not be told.
    pub(crate) fn events_dropped(&self) -> u64 {
        self.state.lock().delivery.dropped()
    }

    /// What this thread has to do once it has left the lock.
    #[inline]
    fn due(self: &PlainArc<Self>, state: &mut State) -> Due {
        if later::is_open() {
            later::postpone(PlainArc::clone(self) as PlainArc<dyn Postponed>);
            return Due::Nothing;
        }
        state.due()
    }

    /// Does what is due. The caller holds no lock.
    #[inline]
    fn deliver(&self, due: Due) {
        match due {
            Due::Nothing => {}
            Due::Tell(noted) => self.tell(noted),
            Due::Wait => self.wait(),
        }
    }

    /// Tells the sink what was taken, and what is noted in the meantime.
    #[inline(never)]
    fn tell(&self, mut noted: Box<NotedEvents>) {
        let Some(sink) = &self.sink else { return };
        for batches in 1.. {
            foreign::call(|| noted.tell(sink.sink()));
            let mut state = self.state.lock();
            state.delivery.end(noted);
            if batches >= MOST_BATCHES && state.delivery.is_awaited() {
                return;
            }
            match state.due() {
                Due::Tell(next) => noted = next,
                _ => return,
            }
        }
    }

    /// Waits, but not for long, for the thread that tells events, or takes over from it: so threads note
    /// no more than a slow sink can take.
    #[cold]
    fn wait(&self) {
        let mut backoff = Backoff::new();
        self.state.lock().delivery.begin_waiting();
        for looks in 1.. {
            backoff.wait();
            let mut state = self.state.lock();
            let due = state.due();
            if looks < MOST_LOOKS && matches!(due, Due::Wait) {
                continue;
            }
            state.delivery.end_waiting();
            drop(state);
            if let Due::Tell(noted) = due {
                self.tell(noted);
            }
            return;
        }
    }
}

impl Postponed for Announcer {
    fn perform(self: PlainArc<Self>) {
        let due = self.state.lock().due();
        self.deliver(due);
    }
}

impl Drop for Announcer {
    fn drop(&mut self) {
        foreign::discard(self.sink.take());
    }
}

/// What a thread that has noted events does next.
enum Due {
    Nothing,
    Tell(Box<NotedEvents>),
    /// Another thread tells, and is far behind.
    Wait,
}

impl State {
    #[inline]
    fn due(&mut self) -> Due {
        if self.delivery.begin_again() {
            self.repeat();
        }
        match self.delivery.take() {
            Some(noted) => Due::Tell(noted),
            None if self.delivery.is_behind() => Due::Wait,
            None => Due::Nothing,
        }
    }

    /// Notes everything once more, behind a clearing.
    #[cold]
    fn repeat(&mut self) {
        self.delivery.note_cleared();
        self.tree.list(&mut self.found);
        self.note_each();
    }

    /// Notes each of `found` by itself.
    fn note_each(&mut self) {
        for id in self.found.drain(..) {
            let content = self.tree.content(id);
            self.delivery.note_stored(&StoredBlocks {
                hashes: &[content.hash],
                parent: content.parent,
                tokens: content.tokens,
                block_size: self.block_size,
                extra: content.extra,
                index: content.index,
            });
        }
    }
}

impl Announcing<'_> {
    /// True if `id` is the home or a copy of `hash`.
    #[inline]
    pub(crate) fn holds(&self, id: BlockId, hash: BlockHash) -> bool {
        self.state.tree.holds(id, hash)
    }

    /// Where listeners believe the content of `id` to be.
    pub(crate) fn home(&self, id: BlockId) -> BlockId {
        self.state.tree.home(id)
    }

    /// True if the tokens of the content of this home are known.
    pub(crate) fn has_tokens(&self, home: BlockId) -> bool {
        self.state.tree.has_tokens(home)
    }

    /// Says that so many blocks are about to be named whose tokens are not known.
    pub(crate) fn expect_untold(&mut self, blocks: usize) {
        self.announcer.set_untold(self.state.tree.num_untold() + blocks);
    }

    /// Notes that the content of `home` can be found in `id` too.
    pub(crate) fn add_copy(&mut self, home: BlockId, id: BlockId) {
        // Relaxed: as in `store`.
        self.announcer.homes[id.index()].store(true, Ordering::Relaxed);
        self.state.tree.add_copy(home, id);
    }

    /// Tells the content of `home`, whose tokens were not known, and what follows it, if now it can be
    /// told. `parent` is the home of what comes before it; the others that are `told` come first.
    pub(crate) fn learn(
        &mut self,
        home: BlockId,
        content: &Content<'_>,
        parent: Option<BlockId>,
        told: &Told<'_>,
    ) {
        let State { tree, found, .. } = &mut *self.state;
        tree.learn(home, content, parent, found);
        if !found.is_empty() {
            self.tell_run(told);
        }
        self.state.note_each();
    }

    /// Notes a content that can be found in `id` now and nowhere else; `parent` is the home of what
    /// comes before it. It is one of those that are `told`, and told by [`tell_run`](Self::tell_run) at
    /// the latest, if its tokens and those of all before it are known.
    pub(crate) fn store(
        &mut self,
        id: BlockId,
        content: &Content<'_>,
        parent: Option<BlockId>,
        told: &Told<'_>,
    ) {
        // Relaxed: who takes the block does so after its owners, of whom the caller is one, have left.
        self.announcer.homes[id.index()].store(true, Ordering::Relaxed);
        let announced = self.state.tree.insert(id, content, parent);
        if announced {
            self.add_to_run(id, content, parent, told);
        }
        if self.state.tree.has_orphans() {
            self.adopt(id, told);
        }
    }

    /// Everything announced has ended.
    pub(crate) fn clear(&mut self) {
        self.state.tree.clear();
        self.state.delivery.note_cleared();
    }

    /// Tells everything once more, behind a clearing.
    pub(crate) fn repeat(&mut self) {
        self.state.delivery.try_again();
        self.state.repeat();
    }

    #[cold]
    fn adopt(&mut self, id: BlockId, told: &Told<'_>) {
        let State { tree, found, .. } = &mut *self.state;
        tree.adopt(id, found);
        if !found.is_empty() {
            self.tell_run(told);
        }
        self.state.note_each();
    }

    fn add_to_run(
        &mut self,
        id: BlockId,
        content: &Content<'_>,
        parent: Option<BlockId>,
        told: &Told<'_>,
    ) {
        let run = &self.state.run;
        let goes_on = parent.is_some() && run.last == parent && run.hashes.len() < MOST_BLOCKS;
        if !goes_on {
            self.tell_run(told);
            self.state.run.parent = content.parent;
            self.state.run.index = content.index;
        }
        let run = &mut self.state.run;
        run.hashes.push(content.hash);
        run.last = Some(id);
    }

    /// Tells of the contents that are noted and not told yet, which are some of those that are `told`.
    pub(crate) fn tell_run(&mut self, told: &Told<'_>) {
        let State { run, joined, block_size, delivery, .. } = &mut *self.state;
        if !run.hashes.is_empty() {
            let first = run.index - told.index;
            delivery.note_stored(&StoredBlocks {
                hashes: &run.hashes,
                parent: run.parent,
                tokens: told.tokens_of(first..first + run.hashes.len(), joined),
                block_size: *block_size,
                extra: told.extra.as_ref(),
                index: run.index,
            });
        }
        run.hashes.clear();
        run.last = None;
    }
}

/// An announcer as the pool knows it.
pub(crate) struct Taken(pub(crate) PlainArc<Announcer>);

impl TakeObserver for Taken {
    #[inline]
    fn taken(&self, ids: &[BlockId]) {
        let Self(announcer) = self;
        // Relaxed: see `Announcing::store`.
        let was_home = |id: &BlockId| announcer.homes[id.index()].load(Ordering::Relaxed);
        if let Some(first) = ids.iter().position(was_home) {
            announcer.end(&ids[first..]);
        }
    }
}

impl Announcer {
    /// Ends what `ids`, which have a new owner, held.
    fn end(self: &PlainArc<Self>, ids: &[BlockId]) {
        let mut state = self.state.lock();
        let State { tree, removed, delivery, .. } = &mut *state;
        for &id in ids {
            // Relaxed: see `Announcing::store`.
            if self.homes[id.index()].load(Ordering::Relaxed) {
                self.homes[id.index()].store(false, Ordering::Relaxed);
                tree.remove(id, removed);
            }
        }
        self.set_untold(tree.num_untold());
        for part in removed.chunks(MOST_BLOCKS) {
            delivery.note_removed(part);
        }
        removed.clear();
        let due = self.due(&mut state);
        drop(state);
        self.deliver(due);
    }
}
