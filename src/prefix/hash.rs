//! `BlockHash` and `HashAlgorithm`: the hash of a block, chained over all tokens before and in the block.
//!
//! ```text
//!   tokens   0 1 2 3 │ 4 5 6 7 │ 8 9         block_size 4
//!   hash        h0 ────> h1                  h1 = H(h0, tokens 4..8, extra keys)
//! ```
//!
//! Equal hashes mean equal tokens from the beginning on, and equal extra keys. So one look-up a block finds
//! the longest cached prefix. Source: vLLM's automatic prefix caching; two of the algorithms are bit-equal to
//! its own.
//!
//! Invariant: only full blocks have hashes.

#[cfg(feature = "serde")]
mod text;

use std::fmt;
use std::hash::{BuildHasher, RandomState};

use crate::sync::OnceLock;

/// The text that is hashed as the first block's parent: vLLM's words.
pub(super) const NONE_HASH: &str = "vllm-none-hash";

/// The hash of a block's content: 128 bits, chained over all tokens before it.
///
/// ```
/// use paged_kv::BlockHash;
///
/// let hash = BlockHash::from_u128(0x0123_4567_89ab_cdef_fedc_ba98_7654_3210);
/// assert_eq!(hash.to_string(), "0123456789abcdeffedcba9876543210");
/// assert_eq!(hash.event_hash(), 0xfedc_ba98_7654_3210);
/// ```
///
/// With the feature `serde` it is a text of 32 hex digits. Hashes under a key that is random for each process,
/// the default, mean nothing in another process: there, use another [`HashAlgorithm`] or a fixed key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct BlockHash(u128);

impl BlockHash {
    /// A placeholder that is no block's hash.
    pub(crate) const NONE: Self = Self(0);

    /// Creates the hash of these bits, for callers that supply their own hashes.
    ///
    /// ```
    /// assert_eq!(paged_kv::BlockHash::from_u128(7).as_u128(), 7);
    /// ```
    pub fn from_u128(bits: u128) -> Self {
        Self(bits)
    }

    /// Returns the bits, with the first byte of the digest on top.
    ///
    /// ```
    /// assert_eq!(paged_kv::BlockHash::from_u128(7).as_u128(), 7);
    /// ```
    pub fn as_u128(self) -> u128 {
        self.0
    }

    /// Returns the block's hash in KV events: the last 8 bytes of the digest as a big-endian integer.
    ///
    /// ```
    /// assert_eq!(paged_kv::BlockHash::from_u128((1 << 64) | 7).event_hash(), 7);
    /// ```
    pub fn event_hash(self) -> u64 {
        self.0 as u64
    }

    /// Returns the hash in the last 16 bytes of a digest.
    pub(super) fn of_digest(digest: &[u8]) -> Self {
        let (_, last) = digest.split_last_chunk().expect("a digest has 16 bytes or more");
        Self(u128::from_be_bytes(*last))
    }
}

impl fmt::Display for BlockHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for BlockHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlockHash({self})")
    }
}

/// The algorithm that hashes contents.
///
/// ```
/// use paged_kv::{BlockHasher, ExtraKeys, HashAlgorithm};
///
/// let hash = |seed| {
///     let mut hashes = Vec::new();
///     let mut hasher = BlockHasher::new(HashAlgorithm::Xxh3 { seed }, 4, ExtraKeys::default());
///     hasher.extend(&[0, 1, 2, 3], &mut hashes);
///     hashes[0]
/// };
/// assert_eq!(hash(1), hash(1));
/// assert_ne!(hash(1), hash(2));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HashAlgorithm {
    /// XXH3-128 under a key: some 10 ns a block of 16 tokens. Without the key a client cannot construct two
    /// prompts of one hash. Against a client that knows the key, or can try for long, use `Sha256Cbor`.
    Xxh3 {
        /// The key.
        seed: u64,
    },
    /// SHA-256 over canonical CBOR, as vLLM's `sha256_cbor`. The last 16 bytes of a digest are the block's
    /// hash; all 32 go into the next block's. With the feature `vllm-hashes`.
    ///
    /// ```
    /// use paged_kv::{HashAlgorithm, PagedKvCache};
    ///
    /// let cache = PagedKvCache::builder()
    ///     .num_blocks(8)
    ///     .block_size(4)
    ///     .hash_algorithm(HashAlgorithm::Sha256Cbor)
    ///     .build()?;
    /// let first = cache.prompt(&[0, 1, 2, 3]).hashes()[0];
    /// assert_eq!(first.to_string(), "0ba1807e8cac5f940f1a5c4c20741898");
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    #[cfg(feature = "vllm-hashes")]
    Sha256Cbor,
    /// XXH3-128 over canonical CBOR, as vLLM's `xxhash_cbor`. With the feature `vllm-hashes`.
    #[cfg(feature = "vllm-hashes")]
    XxhashCbor,
}

impl fmt::Display for HashAlgorithm {
    /// Writes the algorithm's name, without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Xxh3 { .. } => "xxh3",
            #[cfg(feature = "vllm-hashes")]
            Self::Sha256Cbor => "sha256_cbor",
            #[cfg(feature = "vllm-hashes")]
            Self::XxhashCbor => "xxhash_cbor",
        })
    }
}

impl Default for HashAlgorithm {
    /// [`Xxh3`](Self::Xxh3) with a key that is random for each process, and the same within it.
    fn default() -> Self {
        static SEED: OnceLock<u64> = OnceLock::new();
        Self::Xxh3 { seed: *SEED.get_or_init(|| RandomState::new().hash_one(NONE_HASH)) }
    }
}
