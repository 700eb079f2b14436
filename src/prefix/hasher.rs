//! `BlockHasher`: hashes the blocks of one growing sequence of tokens.
//!
//! Invariant: the chain's digest is that of the block before `num_tokens`, or of the text that stands for the
//! first block's parent.

#[cfg(test)]
mod tests;

use std::ops::Range;

#[cfg(feature = "vllm-hashes")]
use sha2::{Digest, Sha256};
use twox_hash::XxHash3_128;

use super::cbor::Cbor;
use super::extra_keys::ExtraKeys;
use super::hash::{BlockHash, HashAlgorithm, NONE_HASH};
use crate::sync::PlainArc;

/// Hashes the blocks of one growing sequence of tokens.
///
/// ```
/// use paged_kv::{BlockHasher, ExtraKeys, HashAlgorithm};
///
/// let mut hasher = BlockHasher::new(HashAlgorithm::default(), 4, ExtraKeys::default());
/// let mut hashes = Vec::new();
/// hasher.extend(&[0, 1, 2], &mut hashes);
/// assert!(hashes.is_empty());
/// hasher.extend(&[3, 4], &mut hashes);
/// assert_eq!(hashes.len(), 1);
/// ```
#[derive(Clone, Debug)]
pub struct BlockHasher {
    chain: Chain,
    extra: ExtraKeys,
    block_size: usize,
    num_tokens: usize,
    /// Tokens after the last full block.
    rest: Vec<u32>,
    /// The encodings of the block that is hashed and of the one after it. Kept to reuse the memory.
    encoded: [Cbor; 2],
}

/// The digest of the block before, and the function that hashes the next one.
#[derive(Clone, Copy, Debug)]
enum Chain {
    Keyed {
        seed: u64,
        parent: [u8; 16],
    },
    #[cfg(feature = "vllm-hashes")]
    Sha256([u8; 32]),
    #[cfg(feature = "vllm-hashes")]
    Xxhash([u8; 16]),
}

impl Chain {
    /// Begins with the digest of the text that stands for the first block's parent.
    fn new(algorithm: HashAlgorithm) -> Self {
        #[cfg(feature = "vllm-hashes")]
        let mut encoded = Cbor::default();
        match algorithm {
            HashAlgorithm::Xxh3 { seed } => {
                Self::Keyed { seed, parent: keyed(seed, NONE_HASH.as_bytes()) }
            }
            #[cfg(feature = "vllm-hashes")]
            HashAlgorithm::Sha256Cbor => Self::Sha256(sha256(encoded.text(NONE_HASH).as_bytes())),
            #[cfg(feature = "vllm-hashes")]
            HashAlgorithm::XxhashCbor => Self::Xxhash(xxhash(encoded.text(NONE_HASH).as_bytes())),
        }
    }
}

fn keyed(seed: u64, bytes: &[u8]) -> [u8; 16] {
    XxHash3_128::oneshot_with_seed(seed, bytes).to_be_bytes()
}

#[cfg(feature = "vllm-hashes")]
fn sha256(encoded: &[u8]) -> [u8; 32] {
    Sha256::digest(encoded).into()
}

#[cfg(feature = "vllm-hashes")]
fn xxhash(encoded: &[u8]) -> [u8; 16] {
    XxHash3_128::oneshot(encoded).to_be_bytes()
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
        let chain = Chain::new(algorithm);
        let (rest, encoded) = (Vec::new(), Default::default());
        Self { chain, extra, block_size, num_tokens: 0, rest, encoded }
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
        match self.chain {
            Chain::Keyed { seed, .. } => HashAlgorithm::Xxh3 { seed },
            #[cfg(feature = "vllm-hashes")]
            Chain::Sha256(_) => HashAlgorithm::Sha256Cbor,
            #[cfg(feature = "vllm-hashes")]
            Chain::Xxhash(_) => HashAlgorithm::XxhashCbor,
        }
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
            tokens = behind;
            if self.rest.len() < self.block_size {
                self.num_tokens += missing.len();
                return;
            }
            let block = std::mem::take(&mut self.rest);
            self.num_tokens -= block.len() - missing.len();
            self.hash_blocks(&block, out);
            self.rest = block;
            self.rest.clear();
        }
        let (blocks, rest) = tokens.split_at(tokens.len() - tokens.len() % self.block_size);
        self.hash_blocks(blocks, out);
        self.rest.extend_from_slice(rest);
        self.num_tokens += rest.len();
    }

    /// Appends the hashes of full blocks, which begin at `num_tokens`.
    fn hash_blocks(&mut self, tokens: &[u32], out: &mut Vec<BlockHash>) {
        out.reserve(tokens.len() / self.block_size);
        self.chain = match self.chain {
            Chain::Keyed { seed, parent } => {
                Chain::Keyed { seed, parent: self.hash_keyed(parent, seed, tokens, out) }
            }
            #[cfg(feature = "vllm-hashes")]
            Chain::Sha256(parent) => Chain::Sha256(self.hash_encoded(parent, sha256, tokens, out)),
            #[cfg(feature = "vllm-hashes")]
            Chain::Xxhash(parent) => Chain::Xxhash(self.hash_encoded(parent, xxhash, tokens, out)),
        }
    }

    /// Hashes parent, tokens and extra keys of each block. Each is of known length, or the last.
    fn hash_keyed(
        &mut self,
        mut parent: [u8; 16],
        seed: u64,
        tokens: &[u32],
        out: &mut Vec<BlockHash>,
    ) -> [u8; 16] {
        const AT_ONCE: usize = 64;
        let mut bytes = [0; 16 + 4 * AT_ONCE];
        for block in tokens.chunks_exact(self.block_size) {
            let positions = self.next_block();
            let extra = self.extra.concern(&positions);
            parent = if block.len() <= AT_ONCE && !extra {
                bytes[..16].copy_from_slice(&parent);
                for (to, token) in bytes[16..].chunks_exact_mut(4).zip(block) {
                    to.copy_from_slice(&token.to_le_bytes());
                }
                keyed(seed, &bytes[..16 + 4 * block.len()])
            } else {
                let [encoded, _] = &mut self.encoded;
                encoded.truncate(0);
                encoded.append(&parent);
                block.iter().for_each(|token| _ = encoded.append(&token.to_le_bytes()));
                if extra {
                    self.extra.encode(&positions, encoded);
                }
                keyed(seed, encoded.as_bytes())
            };
            self.num_tokens += self.block_size;
            out.push(BlockHash::of_digest(&parent));
        }
        parent
    }

    /// Hashes `[parent, [tokens..], extra keys or null]` of each block, in vLLM's format.
    ///
    /// The next block is encoded before a block is hashed: a processor that reads bytes which it has just
    /// written in other pieces waits for the writes.
    #[cfg(feature = "vllm-hashes")]
    fn hash_encoded<const DIGEST: usize>(
        &mut self,
        mut parent: [u8; DIGEST],
        hash: impl Fn(&[u8]) -> [u8; DIGEST],
        tokens: &[u32],
        out: &mut Vec<BlockHash>,
    ) -> [u8; DIGEST] {
        let mut encoded = std::mem::take(&mut self.encoded);
        for encoded in &mut encoded {
            encoded.truncate(0);
            encoded.array(3).bytes(&[0; DIGEST]).array(self.block_size);
        }
        let head = encoded[0].as_bytes().len();
        let mut chain = |encoded: &mut Cbor| {
            // After the first byte of the array, and one or two of the digest's length.
            let at = if DIGEST < 24 { 2 } else { 3 };
            encoded.as_mut_bytes()[at..at + DIGEST].copy_from_slice(&parent);
            parent = hash(encoded.as_bytes());
            out.push(BlockHash::of_digest(&parent));
        };
        let blocks = tokens.chunks_exact(self.block_size);
        let count = blocks.len();
        for (number, block) in blocks.enumerate() {
            let next = &mut encoded[number % 2];
            next.truncate(head);
            next.integers(block);
            self.extra.encode(&self.next_block(), next);
            self.num_tokens += self.block_size;
            if number > 0 {
                chain(&mut encoded[(number - 1) % 2]);
            }
        }
        if count > 0 {
            chain(&mut encoded[(count - 1) % 2]);
        }
        self.encoded = encoded;
        parent
    }

    /// Returns the positions of the block after the hashed ones.
    fn next_block(&self) -> Range<usize> {
        self.num_tokens..self.num_tokens + self.block_size
    }
}
