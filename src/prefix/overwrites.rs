//! `Overwrites`: remembers the hash and the parent of each cached block, and reports the contents that an
//! allocation overwrites to the caller's observer.
//!
//! A reclaim gives a cached block to a new owner. The index no longer matches it then, and the new owner writes
//! it soon. Exactly between the two the contents can still be copied elsewhere.
//!
//! Invariant: the record of a block is written by an owner of the block, after the block was published. So the
//! thread that reclaims the block reads the record of its last publication.

use std::panic::{RefUnwindSafe, UnwindSafe};

use super::generation::Generation;
use super::hash::BlockHash;
use crate::array::array_of;
use crate::error::Result;
use crate::id::{BlockId, GroupId};
use crate::pool::{Blocks, OverwriteObserver};
use crate::sync::{AtomicU64, Ordering, PlainArc};

/// A cached content that an operation gave up: its block has a new owner, which may write it as soon as the
/// operation has returned.
///
/// ```
/// use std::sync::{Arc, Mutex};
///
/// use paged_kv::{PagedKvCache, SeqId};
///
/// let lost = Arc::new(Mutex::new(Vec::new()));
/// let seen = Arc::clone(&lost);
/// let builder = PagedKvCache::builder().num_blocks(4).block_size(4);
/// let cache = builder.overwrite_observer(move |lost| seen.lock().unwrap().extend_from_slice(lost)).build()?;
/// let prompt = cache.prompt(&[7; 9]);
/// cache.admit_with(SeqId(1), &prompt, &Default::default())?;
/// cache.commit(SeqId(1), 9)?;
/// cache.free(SeqId(1))?;
/// cache.allocate(SeqId(2), 16)?; // all four blocks
/// let lost = lost.lock().unwrap();
/// assert!(lost.iter().map(|lost| lost.hash).eq([prompt.hashes()[1], prompt.hashes()[0]]));
/// assert_eq!(lost[0].parent, Some(prompt.hashes()[0]));
/// # Ok::<(), paged_kv::PagedKvError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Overwritten {
    /// The block, which the operation has taken.
    pub block: BlockId,
    /// The group of layers whose block it was.
    pub group: GroupId,
    /// The hash under which it was published last.
    pub hash: BlockHash,
    /// The hash of the block before it in its prompt. `None` for the first block of a prompt, and in a cache
    /// without an [observer](crate::PagedKvCacheBuilder::overwrite_observer), which keeps no parents.
    pub parent: Option<BlockHash>,
}

/// Appends to `out` the contents that `cached` blocks had until a caller took them over. `generations` are those of the
/// groups.
pub(crate) fn list_overwritten(
    cached: &[BlockId],
    overwrites: Option<&Overwrites>,
    generations: &[Generation],
    pool: &Blocks,
    out: &mut Vec<Overwritten>,
) {
    if let Some(overwrites) = overwrites {
        return overwrites.list(cached, out);
    }
    out.extend(cached.iter().filter_map(|&id| {
        let (group, hash) = last_content(id, generations, pool)?;
        Some(Overwritten { block: id, group, hash, parent: None })
    }));
}

/// Returns the group and the hash under which a block was published last, if it was in one of these generations of the
/// groups.
pub(crate) fn last_content(
    id: BlockId,
    generations: &[Generation],
    pool: &Blocks,
) -> Option<(GroupId, BlockHash)> {
    // The mark of its last key says its group.
    let last = |(group, of): (u8, &Generation)| Some((GroupId(group), of.last_hash(pool, id)?));
    (0..).zip(generations).find_map(last)
}

/// The caller's function, called with all contents that one allocation overwrites.
pub(crate) type Observer = PlainArc<dyn Fn(&[Overwritten]) + Send + Sync>;

/// The records of a pool's blocks, and the caller's observer.
pub(crate) struct Overwrites {
    observer: Observer,
    records: Box<[Record]>,
    /// Number of resets. Contents from before the last one are not reported: no prompt could match them.
    resets: AtomicU64,
}

// A panic of the observer leaves the records as they were: see the guide's page on panics.
impl UnwindSafe for Overwrites {}
impl RefUnwindSafe for Overwrites {}

/// The place of the number of resets in the state of a record.
const RESETS: u32 = 9;

/// The last publication of a block.
struct Record {
    hash: [AtomicU64; 2],
    parent: [AtomicU64; 2],
    /// 0 for none, else: 1 if it has a parent (bit 0), its group (bits 1 to 8), and above them the number of resets
    /// before it, plus 1.
    state: AtomicU64,
}

// All accesses are Relaxed: the word of the block orders them, since an owner writes a record and the next
// owner reads it.
impl Record {
    fn new() -> Self {
        let zeros = || [AtomicU64::new(0), AtomicU64::new(0)];
        Self { hash: zeros(), parent: zeros(), state: AtomicU64::new(0) }
    }

    fn set(&self, content: Overwritten, resets: u64) {
        let Overwritten { group, hash, parent, .. } = content;
        store(&self.hash, hash);
        store(&self.parent, parent.unwrap_or(BlockHash::NONE));
        let of_group = u64::from(group.0) << 1 | u64::from(parent.is_some());
        self.state.store((resets + 1) << RESETS | of_group, Ordering::Relaxed);
    }

    fn get(&self, block: BlockId, resets: u64) -> Option<Overwritten> {
        let state = self.state.load(Ordering::Relaxed);
        if state >> RESETS != resets + 1 {
            return None;
        }
        let parent = (state & 1 == 1).then(|| load(&self.parent));
        let group = GroupId((state >> 1) as u8);
        Some(Overwritten { block, group, hash: load(&self.hash), parent })
    }
}

fn store(halves: &[AtomicU64; 2], hash: BlockHash) {
    let bits = hash.as_u128();
    halves[0].store(bits as u64, Ordering::Relaxed);
    halves[1].store((bits >> 64) as u64, Ordering::Relaxed);
}

fn load([low, high]: &[AtomicU64; 2]) -> BlockHash {
    let [low, high] = [low, high].map(|half| u128::from(half.load(Ordering::Relaxed)));
    BlockHash::from_u128(high << 64 | low)
}

impl Overwrites {
    /// Creates the records of the blocks `0..num_blocks`: 40 bytes each.
    pub(crate) fn new(num_blocks: usize, observer: Observer) -> Result<Self> {
        let records = array_of(num_blocks, Record::new)?;
        Ok(Self { observer, records, resets: AtomicU64::new(0) })
    }

    /// Notes that no content published so far can be matched any more.
    pub(super) fn reset(&self) {
        // Relaxed: a content that is reclaimed beside a reset is reported or not.
        self.resets.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes the publication of a content in a generation, for one of the owners of its block.
    pub(super) fn record(&self, content: Overwritten, generation: Generation) {
        let record = &self.records[content.block.index()];
        // A block that was published before keeps its parent.
        let known = record.get(content.block, generation.number());
        let is_known =
            |known: Overwritten| (known.group, known.hash) == (content.group, content.hash);
        if !known.is_some_and(is_known) {
            record.set(content, generation.number());
        }
    }

    /// Appends the contents of `ids` to `out`, for the new owner of these reclaimed blocks.
    pub(crate) fn list(&self, ids: &[BlockId], out: &mut Vec<Overwritten>) {
        // Relaxed: as in `reset`.
        let resets = self.resets.load(Ordering::Relaxed);
        out.extend(ids.iter().filter_map(|&id| self.records[id.index()].get(id, resets)));
    }
}

impl OverwriteObserver for Overwrites {
    fn report(&self, ids: &[BlockId]) {
        let mut overwritten = Vec::with_capacity(ids.len());
        self.list(ids, &mut overwritten);
        if !overwritten.is_empty() {
            (self.observer)(&overwritten);
        }
    }
}
