//! `Snapshot`: one byte for each block of a cache, for a display of the pool.

use crate::cache::PagedKvCache;
use crate::pool::BlockState;

/// The state of every block, one byte each, in the order of the ids.
///
/// | bits | meaning |
/// |---|---|
/// | 0 and 1 | 0: free; 1: one owner; 2: several owners; 3: idle, that is cached and without an owner |
/// | 2 | a prompt may match the block |
/// | 3 | its content was asked for again |
/// | 4 to 6 | how often the block has become idle since it was cached, modulo 8 |
/// | 7 | always 0, for a mark of the caller |
///
/// An owner is a sequence, or an open step that holds the block. The full blocks that forks have in common have one
/// owner for all of them. A null block appears as free.
///
/// ```
/// use paged_kv::{PagedKvCache, SeqId, Snapshot};
///
/// let cache = PagedKvCache::new(6, 4, 1, 1);
/// cache.admit(SeqId(1), &[1, 2, 3, 4, 5])?;
/// cache.commit(SeqId(1), 5)?;
/// cache.admit(SeqId(2), &[1, 2, 3, 4, 6])?;
/// let mut snapshot = Snapshot::default();
/// cache.inspect(&mut snapshot);
/// assert_eq!(snapshot.counts(), [3, 2, 1, 0]); // free, one owner, several, idle
/// assert_eq!(snapshot.bytes().len(), 6);
/// # Ok::<(), paged_kv::PagedKvError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    bytes: Vec<u8>,
}

impl Snapshot {
    /// Returns a byte for each block, as the table of [`Snapshot`] says.
    ///
    /// ```
    /// let (cache, mut snapshot) = (paged_kv::PagedKvCache::new(4, 4, 1, 1), Default::default());
    /// cache.inspect(&mut snapshot);
    /// assert_eq!(snapshot.bytes(), [0; 4]);
    /// ```
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Returns the numbers of blocks that are free, have one owner, have several owners, and are idle.
    ///
    /// ```
    /// let (cache, mut snapshot) = (paged_kv::PagedKvCache::new(4, 4, 1, 1), Default::default());
    /// cache.inspect(&mut snapshot);
    /// assert_eq!(snapshot.counts(), [4, 0, 0, 0]);
    /// ```
    pub fn counts(&self) -> [usize; 4] {
        let mut counts = [0; 4];
        self.bytes.iter().for_each(|byte| counts[usize::from(byte & 3)] += 1);
        counts
    }
}

/// # Figures: a byte for each block
impl PagedKvCache {
    /// Writes the state of every block into `snapshot`, in its memory. For a display of the pool a few times a second.
    ///
    /// One pass over the blocks' words, `O(blocks)`: takes no lock, writes nothing that other threads read, and
    /// waits for no operation. The bytes are of different moments while other threads use the cache.
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, SeqId, Snapshot};
    ///
    /// let cache = PagedKvCache::new(4, 4, 1, 1);
    /// let mut snapshot = Snapshot::default();
    /// cache.admit(SeqId(1), &[1, 2, 3, 4, 5])?;
    /// cache.commit(SeqId(1), 5)?;
    /// cache.free(SeqId(1))?;
    /// cache.inspect(&mut snapshot);
    /// assert_eq!(snapshot.counts(), [3, 0, 0, 1]); // the full block is idle
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn inspect(&self, snapshot: &mut Snapshot) {
        snapshot.bytes.clear();
        self.pool.blocks().read_words(|state| snapshot.bytes.push(byte_of(state)));
    }
}

fn byte_of(state: BlockState) -> u8 {
    let user = match state.owners() {
        0 if state.is_cached() => 3,
        0 => 0,
        1 => 1,
        _ => 2,
    };
    let cached = u8::from(state.is_cached()) << 2;
    user | cached | u8::from(state.is_hot()) << 3 | (state.epoch() & 7) << 4
}

#[cfg(all(test, not(paged_kv_loom)))]
mod tests {
    use super::*;
    use crate::id::SeqId;

    #[test]
    fn each_state_has_its_byte() {
        let cache = PagedKvCache::new(6, 4, 1, 1);
        let mut snapshot = Snapshot::default();
        let mut bytes = || {
            cache.inspect(&mut snapshot);
            let mut bytes = snapshot.bytes().to_vec();
            bytes.sort_unstable();
            bytes
        };
        cache.admit(SeqId(1), &[1, 2, 3, 4, 5]).unwrap();
        assert_eq!(bytes(), [0, 0, 0, 0, 1, 1]);
        cache.commit(SeqId(1), 5).unwrap();
        assert_eq!(bytes(), [0, 0, 0, 0, 1, 5]);
        cache.admit(SeqId(2), &[1, 2, 3, 4, 6]).unwrap();
        assert_eq!(bytes(), [0, 0, 0, 1, 1, 2 | 4 | 8]);
        cache.free(SeqId(1)).unwrap();
        cache.free(SeqId(2)).unwrap();
        assert_eq!(bytes(), [0, 0, 0, 0, 0, 3 | 4 | 8 | 1 << 4]);
        cache.validate().unwrap();
    }

    #[test]
    fn the_counts_are_those_of_the_statistics() {
        let cache = PagedKvCache::new(100, 4, 1, 1);
        for id in 0..9 {
            cache.admit(SeqId(id), &[id as u32 / 2; 13]).unwrap();
            cache.commit(SeqId(id), 13).unwrap();
        }
        (0..4).for_each(|id| cache.free(SeqId(id)).unwrap());
        let mut snapshot = Snapshot::default();
        cache.inspect(&mut snapshot);
        let [free, sole, shared, idle] = snapshot.counts();
        let stats = cache.stats();
        assert_eq!((sole + shared, idle), (stats.blocks_used, stats.blocks_idle));
        assert_eq!(free + sole + shared + idle, stats.blocks_total);
    }
}
