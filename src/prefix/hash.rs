//! `BlockHash` and `BlockHasher`: the hash of a block, chained over all tokens before and in the block.
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

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::ops::Range;

use minicbor::Encoder;
use sha2::{Digest, Sha256};
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use super::extra_keys::ExtraKeys;
use crate::sync::{OnceLock, PlainArc};

/// The text that is hashed as the first block's parent: vLLM's words.
const NONE_HASH: &str = "vllm-none-hash";

/// The hash of a block's content: 128 bits, chained over all tokens before it.
///
/// ```
/// use paged_kv::BlockHash;
///
/// let hash = BlockHash::from_u128(0x0123_4567_89ab_cdef_fedc_ba98_7654_3210);
/// assert_eq!(hash.to_string(), "0123456789abcdeffedcba9876543210");
/// assert_eq!(hash.event_hash(), 0xfedc_ba98_7654_3210);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
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
    fn of_digest(digest: &[u8]) -> Self {
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HashAlgorithm {
    /// XXH3-128 under a key: some 10 ns a block of 16 tokens. Without the key a client cannot construct two
    /// prompts of one hash. Against a client that knows the key, or can try for long, use
    /// [`Sha256Cbor`](Self::Sha256Cbor).
    Xxh3 {
        /// The key.
        seed: u64,
    },
    /// SHA-256 over canonical CBOR, as vLLM's `sha256_cbor`. The last 16 bytes of a digest are the block's
    /// hash; all 32 go into the next block's.
    Sha256Cbor,
    /// XXH3-128 over canonical CBOR, as vLLM's `xxhash_cbor`.
    XxhashCbor,
}

impl fmt::Display for HashAlgorithm {
    /// Writes the algorithm's name, without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Xxh3 { .. } => "xxh3",
            Self::Sha256Cbor => "sha256_cbor",
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

/// Hashes the blocks of one growing sequence of tokens.
///
/// ```
/// use paged_kv::{BlockHasher, ExtraKeys, HashAlgorithm};
///
/// let mut hasher = BlockHasher::new(HashAlgorithm::Sha256Cbor, 4, ExtraKeys::default());
/// let mut hashes = Vec::new();
/// hasher.extend(&[0, 1, 2], &mut hashes);
/// assert!(hashes.is_empty());
/// hasher.extend(&[3, 4], &mut hashes);
/// assert_eq!(hashes.len(), 1);
/// ```
#[derive(Clone, Debug)]
pub struct BlockHasher {
    algorithm: HashAlgorithm,
    extra: ExtraKeys,
    block_size: usize,
    num_tokens: usize,
    parent: Parent,
    /// Tokens after the last full block.
    rest: Vec<u32>,
    /// A buffer that is kept to reuse its memory.
    encoded: Vec<u8>,
}

/// The digest of the block before.
#[derive(Clone, Copy, Debug)]
enum Parent {
    Short([u8; 16]),
    Long([u8; 32]),
}

impl Parent {
    fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Short(bytes) => bytes,
            Self::Long(bytes) => bytes,
        }
    }
}

impl BlockHasher {
    /// Creates a hasher at the beginning of a sequence, in blocks of `block_size` tokens.
    ///
    /// # Panics
    /// If `block_size` is 0.
    ///
    /// ```
    /// use paged_kv::{BlockHasher, ExtraKeys, HashAlgorithm};
    ///
    /// let hasher = BlockHasher::new(HashAlgorithm::default(), 16, ExtraKeys::default());
    /// assert_eq!(hasher.num_tokens(), 0);
    /// ```
    pub fn new(algorithm: HashAlgorithm, block_size: usize, extra: ExtraKeys) -> Self {
        assert!(block_size > 0, "a block has room for at least one token, block_size is 0");
        let none = || {
            let mut bytes = Vec::new();
            Encoder::new(&mut bytes).str(NONE_HASH).expect("writing to memory does not fail");
            bytes
        };
        let parent = match algorithm {
            HashAlgorithm::Xxh3 { seed } => {
                let digest = xxhash_rust::xxh3::xxh3_128_with_seed(NONE_HASH.as_bytes(), seed);
                Parent::Short(digest.to_be_bytes())
            }
            HashAlgorithm::Sha256Cbor => Parent::Long(Sha256::digest(none()).into()),
            HashAlgorithm::XxhashCbor => Parent::Short(xxh3_128(&none()).to_be_bytes()),
        };
        let (rest, encoded) = (Vec::new(), Vec::new());
        Self { algorithm, extra, block_size, num_tokens: 0, parent, rest, encoded }
    }

    /// Returns the number of tokens hashed so far, those of an unfinished block included.
    ///
    /// ```
    /// use paged_kv::{BlockHasher, ExtraKeys, HashAlgorithm};
    ///
    /// let mut hasher = BlockHasher::new(HashAlgorithm::default(), 4, ExtraKeys::default());
    /// hasher.extend(&[1, 2, 3, 4, 5], &mut Vec::new());
    /// assert_eq!(hasher.num_tokens(), 5);
    /// ```
    pub fn num_tokens(&self) -> usize {
        self.num_tokens
    }

    /// Returns the extra keys of the hashes, if there are any.
    pub(crate) fn extra_keys(&self) -> Option<PlainArc<ExtraKeys>> {
        (self.extra != ExtraKeys::default()).then(|| PlainArc::new(self.extra.clone()))
    }

    pub(crate) fn block_size(&self) -> usize {
        self.block_size
    }

    pub(crate) fn algorithm(&self) -> HashAlgorithm {
        self.algorithm
    }

    /// Continues with `tokens`, and appends the hash of each block that they fill to `out`. Costs
    /// `O(tokens)`. Without extra keys and by [`HashAlgorithm::Xxh3`], only `out` allocates memory.
    ///
    /// ```
    /// use paged_kv::{BlockHasher, ExtraKeys, HashAlgorithm};
    ///
    /// let start = BlockHasher::new(HashAlgorithm::default(), 4, ExtraKeys::default());
    /// let (mut at_once, mut in_parts) = (Vec::new(), Vec::new());
    /// start.clone().extend(&[1, 2, 3, 4, 5, 6, 7, 8], &mut at_once);
    /// let mut hasher = start;
    /// [1, 2, 3, 4, 5, 6, 7, 8].map(|token| hasher.extend(&[token], &mut in_parts));
    /// assert_eq!(at_once, in_parts);
    /// ```
    pub fn extend(&mut self, tokens: &[u32], out: &mut Vec<BlockHash>) {
        let mut tokens = tokens;
        if !self.rest.is_empty() {
            let (missing, behind) =
                tokens.split_at(tokens.len().min(self.block_size - self.rest.len()));
            self.rest.extend_from_slice(missing);
            self.num_tokens += missing.len();
            tokens = behind;
            if self.rest.len() < self.block_size {
                return;
            }
            let block = std::mem::take(&mut self.rest);
            out.push(self.hash(&block, self.num_tokens));
            self.rest = block;
            self.rest.clear();
        }
        let mut blocks = tokens.chunks_exact(self.block_size);
        for block in &mut blocks {
            self.num_tokens += self.block_size;
            out.push(self.hash(block, self.num_tokens));
        }
        self.rest.extend_from_slice(blocks.remainder());
        self.num_tokens += blocks.remainder().len();
    }

    /// Returns the hash of the full block that ends at `end`.
    fn hash(&mut self, block: &[u32], end: usize) -> BlockHash {
        let positions = end - self.block_size..end;
        self.parent = match self.algorithm {
            HashAlgorithm::Xxh3 { seed } => {
                Parent::Short(self.keyed(seed, block, &positions).to_be_bytes())
            }
            HashAlgorithm::Sha256Cbor => {
                self.encode(block, &positions);
                Parent::Long(Sha256::digest(&self.encoded).into())
            }
            HashAlgorithm::XxhashCbor => {
                self.encode(block, &positions);
                Parent::Short(xxh3_128(&self.encoded).to_be_bytes())
            }
        };
        BlockHash::of_digest(self.parent.as_bytes())
    }

    /// Hashes parent, tokens and extra keys. Each is of known length, or the last.
    fn keyed(&mut self, seed: u64, block: &[u32], positions: &Range<usize>) -> u128 {
        const AT_ONCE: usize = 64;
        let extra = self.extra.concern(positions);
        if block.len() <= AT_ONCE && !extra {
            let mut bytes = [0; 16 + 4 * AT_ONCE];
            bytes[..16].copy_from_slice(self.parent.as_bytes());
            for (to, token) in bytes[16..].chunks_exact_mut(4).zip(block) {
                to.copy_from_slice(&token.to_le_bytes());
            }
            return xxhash_rust::xxh3::xxh3_128_with_seed(&bytes[..16 + 4 * block.len()], seed);
        }
        let mut hasher = Xxh3::with_seed(seed);
        hasher.update(self.parent.as_bytes());
        block.iter().for_each(|token| hasher.update(&token.to_le_bytes()));
        if extra {
            self.encoded.clear();
            self.extra.encode(positions, &mut Encoder::new(&mut self.encoded));
            hasher.update(&self.encoded);
        }
        hasher.digest128()
    }

    /// Encodes `[parent, [tokens..], extra keys or null]` in vLLM's format.
    fn encode(&mut self, block: &[u32], positions: &Range<usize>) {
        self.encoded.clear();
        let mut encoder = Encoder::new(&mut self.encoded);
        let encoded = (|| {
            encoder.array(3)?.bytes(self.parent.as_bytes())?.array(block.len() as u64)?;
            block.iter().try_for_each(|&token| encoder.u32(token).map(|_| ()))
        })();
        encoded.expect("writing to memory does not fail");
        self.extra.encode(positions, &mut encoder);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digests(algorithm: HashAlgorithm, extra: ExtraKeys, tokens: &[u32]) -> Vec<String> {
        let mut hasher = BlockHasher::new(algorithm, 4, extra);
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut digests = vec![hex(hasher.parent.as_bytes())];
        for block in tokens.chunks(4) {
            hasher.extend(block, &mut Vec::new());
            digests.push(hex(hasher.parent.as_bytes()));
        }
        digests
    }

    #[test]
    fn sha256_cbor_is_vllms() {
        let goldens = [
            "9bd96a485ad84efdafb72ee48a1d7a69bcead0f8f0433173941b276b9581eef0",
            "c49ab11fb576db6f376aef58c24f728a0ba1807e8cac5f940f1a5c4c20741898",
            "9d0a7c928c548f9aeea31ae98471cf515045a206851732ac14cb3083c18d40f9",
        ];
        let tokens: Vec<u32> = (0..8).collect();
        assert_eq!(digests(HashAlgorithm::Sha256Cbor, ExtraKeys::default(), &tokens), goldens);
    }

    #[test]
    fn xxhash_cbor_is_vllms() {
        let goldens = [
            "a4e364baa0791a6f63bbf917db9b700d",
            "f4258c12e00ef72ae8ca84d60cf71df1",
            "c10ce0fe35916e5b646ba445b822e5ec",
        ];
        let tokens: Vec<u32> = (0..8).collect();
        assert_eq!(digests(HashAlgorithm::XxhashCbor, ExtraKeys::default(), &tokens), goldens);
    }

    #[test]
    fn a_salt_is_part_of_the_first_block_as_in_vllm() {
        let salted = ExtraKeys::default().salt("salt1");
        let digest = &digests(HashAlgorithm::Sha256Cbor, salted, &[0, 1, 2, 3])[1];
        assert_eq!(digest, "c6ff4bc1fd5c6b55b756427a15cbb296aaefaf0ce6436c6932c6b2a7ad5fbbaa");
    }

    const ALGORITHMS: [HashAlgorithm; 3] =
        [HashAlgorithm::Xxh3 { seed: 5 }, HashAlgorithm::Sha256Cbor, HashAlgorithm::XxhashCbor];

    fn hashes(algorithm: HashAlgorithm, extra: &ExtraKeys, tokens: &[u32]) -> Vec<BlockHash> {
        let mut out = Vec::new();
        BlockHasher::new(algorithm, 4, extra.clone()).extend(tokens, &mut out);
        out
    }

    #[test]
    fn a_hash_depends_on_every_token_before_it_and_on_none_behind() {
        let tokens: Vec<u32> = (10..22).collect();
        for algorithm in ALGORITHMS {
            let plain = hashes(algorithm, &ExtraKeys::default(), &tokens);
            for at in 0..tokens.len() {
                let mut other = tokens.clone();
                other[at] += 1;
                let other = hashes(algorithm, &ExtraKeys::default(), &other);
                let equal: Vec<bool> = plain.iter().zip(&other).map(|(a, b)| a == b).collect();
                let want: Vec<bool> = (0..3).map(|block| block < at / 4).collect();
                assert_eq!(equal, want, "{algorithm:?}, token {at}");
            }
        }
    }

    #[test]
    fn every_extra_key_tells_contents_apart() {
        let plain = ExtraKeys::default();
        let extras = [
            plain.clone(),
            plain.clone().salt("a"),
            plain.clone().salt("b"),
            plain.clone().lora("a", "p"),
            plain.clone().lora("a", "q"),
            plain.clone().media("a", 0..2),
            plain.clone().media("a", 1..2),
            plain.media("b", 0..2),
        ];
        for algorithm in ALGORITHMS {
            let mut seen: Vec<_> =
                extras.iter().map(|extra| hashes(algorithm, extra, &[1, 2, 3, 4])).collect();
            seen.sort();
            seen.dedup();
            assert_eq!(seen.len(), extras.len(), "{algorithm:?}");
        }
    }

    #[test]
    fn a_long_block_hashes_as_its_tokens_come() {
        let tokens: Vec<u32> = (0..400).collect();
        for block_size in [1, 3, 64, 65, 200] {
            let start = BlockHasher::new(ALGORITHMS[0], block_size, ExtraKeys::default());
            let (mut at_once, mut in_parts) = (Vec::new(), Vec::new());
            start.clone().extend(&tokens, &mut at_once);
            let mut hasher = start;
            tokens.chunks(7).for_each(|part| hasher.extend(part, &mut in_parts));
            assert_eq!(at_once, in_parts);
            assert_eq!(at_once.len(), 400 / block_size);
        }
    }
}
