//! [`Namespace`]: the contents that two processes may exchange through a file.

use std::fmt;

use twox_hash::XxHash3_128;

use super::Tiers;
use crate::error::{PagedKvError, Result};
use crate::prefix::HashAlgorithm;

/// Caches of one namespace have the same bytes under the same hash. A tier that outlives the process keeps its namespace,
/// and has nothing for another one.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Namespace([u8; 16]);

impl Namespace {
    /// Returns its bytes.
    ///
    /// ```
    /// use paged_kv::{HashAlgorithm, PagedKvCache, Tier};
    ///
    /// let builder = PagedKvCache::builder().num_blocks(8).tier(Tier::disk(64));
    /// let cache = builder.hash_algorithm(HashAlgorithm::Xxh3 { seed: 7 }).build()?;
    /// let of = |weights: &[u8]| cache.tiers().namespace(weights);
    /// assert_ne!(of(b"smollm2-135m f16")?.as_bytes(), of(b"smollm2-360m f16")?.as_bytes());
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Debug for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl Tiers<'_> {
    /// Returns the namespace of this cache's contents: of the caller's description of weights, layout and number format,
    /// of the block size and the groups of layers, and of the hash algorithm with its key.
    ///
    /// # Errors
    /// [`InvalidConfig`](PagedKvError::InvalidConfig) for a cache whose hash key is random, the default: the hashes mean
    /// nothing in another process.
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, Tier};
    ///
    /// let cache = PagedKvCache::builder().num_blocks(8).tier(Tier::disk(64)).build()?;
    /// assert!(cache.tiers().namespace(b"smollm2-135m f16").is_err());
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn namespace(self, description: &[u8]) -> Result<Namespace> {
        let algorithm = self.cache.hash_algorithm;
        if algorithm == HashAlgorithm::default() {
            let reason = "the key is random: contents that outlive the process need a fixed one";
            let parameter = "hash_algorithm";
            return Err(PagedKvError::InvalidConfig { parameter, reason: reason.to_owned() });
        }
        // Each part with its length, so that no two descriptions run together.
        let mut bytes = Vec::new();
        let groups =
            self.cache.layout().map_or(String::new(), |layout| format!("{:?}", layout.groups()));
        let parts =
            [format!("{algorithm:?}").into_bytes(), groups.into_bytes(), description.to_vec()];
        bytes.extend((self.cache.block_size as u64).to_le_bytes());
        for part in parts {
            bytes.extend((part.len() as u64).to_le_bytes());
            bytes.extend(part);
        }
        Ok(Namespace(XxHash3_128::oneshot(&bytes).to_be_bytes()))
    }
}
