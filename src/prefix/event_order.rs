//! `EventOrder`: one lock, under which a change of the cached contents is made and its event is noted.
//!
//! ```text
//!   commit ──> lock { key blocks, note them in the tree, note the event } ──> sink
//!   take   ──> a block that was a primary? ──> lock { remove it from the tree, note the event } ──> sink
//!   reset  ──> lock { next generation, empty tree, note the event } ──> sink
//! ```
//!
//! A cache has an `EventOrder` only if it has an event sink. There is one lock, because all events are emitted in
//! one order. A commit holds it while it keys its blocks. An allocation takes it only if one of its blocks may
//! hold a content of the tree. The *primary* of a content is the block that holds its primary copy.
//!
//! Lock order: a thread that holds this lock may claim a home shard. A thread that holds a claim never takes
//! this lock.
//!
//! The sink is called outside all locks, in the order of the notes (see [`delivery`]). The
//! thread that noted an event emits it before its operation returns, with two exceptions:
//!
//! - another thread is emitting, or
//! - a sink, a waker or a caller's closure called the operation.
//!
//! In both cases the event is emitted soon after.
//!
//! The order guarantees the following:
//!
//! - *A content is announced once, and removed with the last copy.* Publishers exclude each other. A
//!   publisher that finds the content cached notes its block as a copy. When the primary of a content ends, a copy
//!   takes its place without an event. Blocks that got no content key have no effect.
//! - *A removal never overtakes its announcement.* A block ends as a primary when it is taken, in
//!   [`taken`](crate::pool::TakeObserver::taken). The taker calls that before it can key the block again. The
//!   announcement was noted earlier, while a publisher owned the block.
//! - *A reclaimed block that is put back* (a refused allocation undoes its reclaims) causes no event and
//!   remains the primary. A block in which its content was published in between is a copy.
//! - *A content that the index has no room for* is not announced: a lookup cannot find it.
//! - *A content published under an earlier generation* is not announced. Blocks that were primaries before a reset
//!   end without an event.
//! - *Parents before children*, and no child without its parent: see [`announced_tree`](super::announced_tree).
//! - *Groups of layers are kept apart.* A content is a hash and a group. A block of one group is no copy, no parent and
//!   no child of a block of another one.
//! - *Media are kept apart.* The contents of tiers below the device are noted under the same lock, each with the medium
//!   of its tier; see [`in_tiers`].
//! - *No content on the device without its tokens.* A content published by hashes only is not announced, nor are those that
//!   follow it. That changes when a sequence that knows its tokens publishes or matches it.
//!
//! A consumer receives an event shortly after the change took effect. At rest it holds the contents that a
//! probe finds. Source: vLLM's KV events, whose removals ignore other copies of a content.

pub(crate) mod claimed_sink;
pub(crate) mod delivery;
pub(crate) mod in_tiers;
pub(crate) mod noted;
pub(crate) mod taken;
use self::claimed_sink::ClaimedSink;
use self::delivery::Delivery;
use self::in_tiers::{SlotFlags, TierSlots};
use self::noted::{NotedEvents, StoredBlocks};
use super::announced_tree::{AnnouncedTree, Content};
use super::{BlockHash, EventContext};
use crate::array::array_of;
use crate::error::Result;
use crate::groups::LayerGroup;
use crate::id::{BlockId, GroupId, Medium};
use crate::sync::later::{self, Postponed};
use crate::sync::{AtomicBool, AtomicUsize, Backoff, Mutex, Ordering, PlainArc, foreign};

/// The most blocks of one event.
const MOST_BLOCKS: usize = 1024;

/// Checks of a thread that waits for the emitting thread, before it continues in any case.
const MOST_LOOKS: usize = 128;

/// Batches that a thread emits before a waiting thread takes over.
const MOST_BATCHES: usize = 16;

/// Emits an event to a sink for each change of the contents that can be matched.
pub(crate) struct EventOrder {
    /// `None` only after the `EventOrder` was dropped.
    sink: Option<ClaimedSink>,
    /// Blocks that may be primaries or copies: false only for blocks that are neither.
    primaries: Box<[AtomicBool]>,
    /// At least the number of contents whose tokens are not known. Written under the lock only.
    tokenless: AtomicUsize,
    /// By tier, and by slot: false only for slots whose contents were not announced.
    in_tiers: Box<[SlotFlags]>,
    /// The kind of each group.
    groups: Box<[LayerGroup]>,
    state: Mutex<State>,
}

struct State {
    tree: AnnouncedTree,
    in_tiers: TierSlots,
    /// Consecutive contents that are in the tree and in no noted event yet.
    run: PendingStore,
    /// Empty between calls; kept for its memory, as are the next two.
    joined: Vec<u32>,
    /// By group.
    removed: Box<[Vec<BlockHash>]>,
    found: Vec<BlockId>,
    delivery: Delivery,
}

struct PendingStore {
    parent: Option<BlockHash>,
    hashes: Vec<BlockHash>,
    index: usize,
    /// The primary of the last content of the run.
    last: Option<BlockId>,
}

/// The right to change the announced contents.
pub(crate) struct Announcing<'a> {
    event_order: &'a EventOrder,
    state: &'a mut State,
}

impl EventOrder {
    /// Creates an event order for the blocks `0..num_blocks` of a cache with these groups, and for tiers, each with a
    /// number of slots. It takes about 100 bytes a block, the memory of the tokens, and about 70 bytes a slot.
    pub(crate) fn new(
        sink: ClaimedSink,
        num_blocks: usize,
        groups: Box<[LayerGroup]>,
        tiers: &[(Medium, usize)],
    ) -> Result<Self> {
        let block_sizes = groups.iter().map(|group| group.block_size()).collect();
        let num_slots: usize = tiers.iter().map(|(_, slots)| slots).sum();
        let state = State {
            in_tiers: TierSlots::new(tiers, groups.len())?,
            tree: AnnouncedTree::new(num_blocks, block_sizes)?,
            run: PendingStore { parent: None, hashes: Vec::new(), index: 0, last: None },
            joined: Vec::new(),
            removed: groups.iter().map(|_| Vec::new()).collect(),
            found: Vec::new(),
            delivery: Delivery::new(num_blocks.saturating_add(num_slots)),
        };
        let primaries = array_of(num_blocks, || AtomicBool::new(false))?;
        let in_tiers = in_tiers::flags_of(tiers)?;
        let (sink, tokenless, state) = (Some(sink), AtomicUsize::new(0), Mutex::new(state));
        Ok(Self { sink, primaries, tokenless, in_tiers, groups, state })
    }

    /// Emits a clearing to a sink that an earlier cache used: none of that cache's contents can be matched.
    pub(crate) fn begin(self: &PlainArc<Self>) {
        if self.sink.as_ref().is_some_and(ClaimedSink::begin) {
            self.announce(|events| events.clear(0));
        }
    }

    /// Changes the announced contents, then calls the sink.
    pub(crate) fn announce<R>(
        self: &PlainArc<Self>,
        change: impl FnOnce(&mut Announcing<'_>) -> R,
    ) -> R {
        let (changed, due) = {
            let mut state = self.state.lock();
            let changed = change(&mut Announcing { event_order: self, state: &mut state });
            self.set_tokenless(state.tree.num_tokenless());
            (changed, self.due(&mut state))
        };
        self.deliver(due);
        changed
    }

    /// Returns true if there are contents whose tokens are not known. A thread that has matched such a content
    /// gets true.
    pub(crate) fn has_tokenless(&self) -> bool {
        // Relaxed: a publisher counts its blocks before it keys them, and a thread that matched one of them
        // has read its key. Loom: a_match_recognizes_a_content_not_yet_emitted.
        self.tokenless.load(Ordering::Relaxed) > 0
    }

    fn set_tokenless(&self, contents: usize) {
        // Relaxed: as in `has_tokenless`. The load keeps the cache line shared while the number does not change.
        if self.tokenless.load(Ordering::Relaxed) != contents {
            self.tokenless.store(contents, Ordering::Relaxed);
        }
    }

    /// Returns the number of events that were noted and then dropped.
    pub(crate) fn events_dropped(&self) -> u64 {
        self.state.lock().delivery.dropped()
    }

    /// Returns the work that is left for this thread after it has released the lock.
    #[inline]
    fn due(self: &PlainArc<Self>, state: &mut State) -> Due {
        if later::is_open() {
            later::postpone(PlainArc::clone(self) as PlainArc<dyn Postponed>);
            return Due::Nothing;
        }
        state.due()
    }

    /// Does the work that is due. The caller holds no lock.
    #[inline]
    fn deliver(&self, due: Due) {
        match due {
            Due::Nothing => {}
            Due::Emit(noted) => self.emit(noted),
            Due::Wait => self.wait(),
        }
    }

    /// Emits the events that were taken, and those that are noted while it does so.
    #[inline(never)]
    fn emit(&self, mut noted: Box<NotedEvents>) {
        let Some(sink) = &self.sink else { return };
        for batches in 1.. {
            foreign::call(|| noted.emit(sink.sink(), &self.groups));
            let mut state = self.state.lock();
            state.delivery.end(noted);
            if batches >= MOST_BATCHES && state.delivery.is_awaited() {
                return;
            }
            match state.due() {
                Due::Emit(next) => noted = next,
                _ => return,
            }
        }
    }

    /// Waits a bounded time for the emitting thread, or takes over from it. This is backpressure: threads note
    /// no more events than a slow sink can take.
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
            if let Due::Emit(noted) = due {
                self.emit(noted);
            }
            return;
        }
    }
}

impl Postponed for EventOrder {
    fn perform(self: PlainArc<Self>) {
        let due = self.state.lock().due();
        self.deliver(due);
    }
}

impl Drop for EventOrder {
    fn drop(&mut self) {
        foreign::discard(self.sink.take());
    }
}

/// The next work of a thread that has noted events.
enum Due {
    Nothing,
    Emit(Box<NotedEvents>),
    /// Another thread is emitting, and too many events wait for it.
    Wait,
}

impl State {
    #[inline]
    fn due(&mut self) -> Due {
        if self.delivery.begin_again() {
            self.repeat();
        }
        match self.delivery.take() {
            Some(noted) => Due::Emit(noted),
            None if self.delivery.is_behind() => Due::Wait,
            None => Due::Nothing,
        }
    }

    /// Notes a clearing and then every announced content.
    #[cold]
    fn repeat(&mut self) {
        self.delivery.note_cleared();
        self.tree.list(&mut self.found);
        self.note_each();
        self.note_tiers();
    }

    /// Notes an event for each block of `found`.
    fn note_each(&mut self) {
        for id in self.found.drain(..) {
            let content = self.tree.content(id);
            self.delivery.note_stored(&StoredBlocks {
                group: content.group,
                hashes: &[content.hash],
                parent: content.parent,
                tokens: content.tokens,
                extra: content.extra,
                index: content.index,
                medium: Medium::Device,
            });
        }
    }
}

impl Announcing<'_> {
    /// Returns true if `id` is the primary or a copy of the content with this hash in a group.
    #[inline]
    pub(crate) fn holds(&self, id: BlockId, group: GroupId, hash: BlockHash) -> bool {
        self.state.tree.holds(id, group, hash)
    }

    /// Returns true if the contents of a group follow each other in a tree.
    #[inline]
    pub(crate) fn has_tree(&self, group: GroupId) -> bool {
        self.event_order.groups[group.index()].needs_prefix()
    }

    /// Returns the primary of the content of `id`: consumers were informed of that block.
    pub(crate) fn primary(&self, id: BlockId) -> BlockId {
        self.state.tree.primary(id)
    }

    /// Returns true if the tokens of the content of this primary are known.
    pub(crate) fn has_tokens(&self, primary: BlockId) -> bool {
        self.state.tree.has_tokens(primary)
    }

    /// Counts `blocks` blocks whose tokens are not known, before they get their keys.
    pub(crate) fn expect_tokenless(&mut self, blocks: usize) {
        self.event_order.set_tokenless(self.state.tree.num_tokenless() + blocks);
    }

    /// Notes that `id` is a further copy of the content of `primary`.
    pub(crate) fn add_copy(&mut self, primary: BlockId, id: BlockId) {
        // Relaxed: as in `store`.
        self.event_order.primaries[id.index()].store(true, Ordering::Relaxed);
        self.state.tree.add_copy(primary, id);
    }

    /// Stores the tokens of the content of `primary`, which were not known. Notes events for it and for the
    /// contents that follow it, if they can be announced now. `parent` is the primary of the content before it.
    /// The pending run, some of the contents of `context`, is announced first.
    pub(crate) fn learn(
        &mut self,
        primary: BlockId,
        content: &Content<'_>,
        parent: Option<BlockId>,
        context: &EventContext<'_>,
    ) {
        let State { tree, found, .. } = &mut *self.state;
        tree.learn(primary, content, parent, found);
        if !found.is_empty() {
            self.emit_pending(context);
        }
        self.state.note_each();
    }

    /// Notes a content whose only copy is in `id`; `parent` is the primary of the content before it. It is one of
    /// the contents of `context`. [`emit_pending`](Self::emit_pending) announces it at the latest, if its tokens and those
    /// of all contents before it are known.
    pub(crate) fn store(
        &mut self,
        id: BlockId,
        content: &Content<'_>,
        parent: Option<BlockId>,
        context: &EventContext<'_>,
    ) {
        // Relaxed: a thread takes the block only after its owners have left, and the caller is an owner.
        self.event_order.primaries[id.index()].store(true, Ordering::Relaxed);
        let announced = self.state.tree.insert(id, content, parent);
        if announced {
            self.add_to_run(id, content, parent, context);
        }
        if self.state.tree.has_orphans(content.group) {
            self.adopt(id, context);
        }
    }

    /// Ends everything that is announced, on the device and in tiers. Contents of this generation are announced from now
    /// on.
    pub(crate) fn clear(&mut self, generation: u64) {
        self.state.tree.clear();
        self.state.in_tiers.clear(generation);
        self.state.delivery.note_cleared();
    }

    /// Notes a clearing and then every announced content. The next change tries the sink even after panics.
    pub(crate) fn repeat(&mut self) {
        self.state.delivery.try_again();
        self.state.repeat();
    }

    #[cold]
    fn adopt(&mut self, id: BlockId, context: &EventContext<'_>) {
        let State { tree, found, .. } = &mut *self.state;
        tree.adopt(id, found);
        if !found.is_empty() {
            self.emit_pending(context);
        }
        self.state.note_each();
    }

    fn add_to_run(
        &mut self,
        id: BlockId,
        content: &Content<'_>,
        parent: Option<BlockId>,
        context: &EventContext<'_>,
    ) {
        let run = &self.state.run;
        let follows = match parent {
            Some(_) => run.last == parent,
            // Neighbours of a group without a tree are one event, too.
            None => run.last.is_some() && run.index + run.hashes.len() == content.index,
        };
        if !follows || run.hashes.len() >= MOST_BLOCKS {
            self.emit_pending(context);
            self.state.run.parent = content.parent;
            self.state.run.index = content.index;
        }
        let run = &mut self.state.run;
        run.hashes.push(content.hash);
        run.last = Some(id);
    }

    /// Notes one event for the contents of the run, which are some of the contents of `context`.
    pub(crate) fn emit_pending(&mut self, context: &EventContext<'_>) {
        let State { run, joined, delivery, .. } = &mut *self.state;
        if !run.hashes.is_empty() {
            let first = run.index - context.index;
            delivery.note_stored(&StoredBlocks {
                group: context.group,
                hashes: &run.hashes,
                parent: run.parent,
                tokens: context.tokens_of(first..first + run.hashes.len(), joined),
                extra: context.extra.as_ref(),
                index: run.index,
                medium: Medium::Device,
            });
        }
        run.hashes.clear();
        run.last = None;
    }
}
