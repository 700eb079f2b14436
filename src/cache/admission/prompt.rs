//! `Prompt`: the tokens of a request and the hashes of its full blocks, computed once.

use std::fmt;

use crate::cache::PagedKvCache;
use crate::error::{PagedKvError, Result};
use crate::prefix::{BlockHash, BlockHasher, ExtraKeys};
use crate::sync::Arc;

/// A prompt and the hashes of its full blocks. Cheap to clone; keep it across retries and probes, and
/// [`extend`](Self::extend) it for the next turn of a conversation.
///
/// ```
/// use paged_kv::{AdmitOptions, PagedKvCache};
///
/// let cache = PagedKvCache::new(8, 4, 1, 1);
/// let prompt = cache.prompt(&[1, 2, 3, 4, 5, 6]);
/// assert_eq!((prompt.num_tokens(), prompt.hashes().len()), (6, 1));
/// assert_eq!(cache.prefix().probe(&prompt), 0);
/// let (mut sequence, _) = cache.admit_sequence(&prompt, &AdmitOptions::default())?;
/// sequence.commit(6)?;
/// assert_eq!(cache.prefix().probe(&prompt), 4);
/// # Ok::<(), paged_kv::PagedKvError>(())
/// ```
#[derive(Clone)]
pub struct Prompt(Arc<Hashed>);

/// Tokens, if they are known, and the values derived from them.
#[derive(Clone)]
struct Hashed {
    /// Empty if only the hashes were given.
    tokens: Vec<u32>,
    num_tokens: usize,
    hashes: Vec<BlockHash>,
    /// The chain after the last token; `None` if only the hashes were given.
    hasher: Option<BlockHasher>,
    /// The chain before the first token.
    start: Option<BlockHasher>,
}

/// # Prefix reuse: prompts
impl PagedKvCache {
    /// Creates the prompt of these tokens. `O(tokens)`, by the cache's
    /// [`HashAlgorithm`](crate::HashAlgorithm).
    ///
    /// ```
    /// let cache = paged_kv::PagedKvCache::new(8, 4, 1, 1);
    /// assert_eq!(cache.prompt(&[1, 2, 3, 4]).hashes(), cache.prompt(&[1, 2, 3, 4, 5]).hashes());
    /// assert_ne!(cache.prompt(&[1, 2, 3, 4]).hashes(), cache.prompt(&[1, 2, 3, 5]).hashes());
    /// ```
    pub fn prompt(&self, tokens: &[u32]) -> Prompt {
        self.prompt_with(tokens, &ExtraKeys::default())
    }

    /// Creates the prompt of these tokens with extra keys, on which its keys and values also depend: a LoRA
    /// adapter, images, the tenant's salt. Only a prompt with the same extra keys matches it.
    ///
    /// ```
    /// use paged_kv::{ExtraKeys, PagedKvCache};
    ///
    /// let cache = PagedKvCache::new(8, 4, 1, 1);
    /// let of_tenant = cache.prompt_with(&[1, 2, 3, 4], &ExtraKeys::default().salt("tenant 7"));
    /// assert_ne!(of_tenant.hashes(), cache.prompt(&[1, 2, 3, 4]).hashes());
    /// ```
    pub fn prompt_with(&self, tokens: &[u32], extra: &ExtraKeys) -> Prompt {
        Prompt::new(BlockHasher::new(self.hash_algorithm, self.hash_unit, extra.clone()), tokens)
    }
}

impl PagedKvCache {
    /// Checks that a prompt was hashed as this cache hashes. Every prompt passes here.
    ///
    /// # Errors
    /// [`PromptMismatch`](PagedKvError::PromptMismatch) for one of another block size, algorithm or key;
    /// [`InvalidConfig`](PagedKvError::InvalidConfig) for more hashes than full blocks.
    pub(crate) fn check_prompt(&self, prompt: &Prompt) -> Result<()> {
        let (algorithm, block_size) = (self.hash_algorithm, self.hash_unit);
        let Some(hasher) = &prompt.0.start else {
            let (hashes, full) = (prompt.hashes().len(), prompt.num_tokens() / block_size);
            if hashes <= full {
                return Ok(());
            }
            let num_tokens = prompt.num_tokens();
            let reason = format!("{hashes} for {num_tokens} tokens, which fill {full} blocks");
            return Err(PagedKvError::InvalidConfig { parameter: "hashes", reason });
        };
        if hasher.algorithm() == algorithm && hasher.block_size() == block_size {
            return Ok(());
        }
        let is_key = hasher.algorithm() != algorithm
            && hasher.algorithm().to_string() == algorithm.to_string();
        let key = if is_key { " under another key" } else { "" };
        Err(PagedKvError::PromptMismatch {
            of_prompt: format!("{} in blocks of {}{key}", hasher.algorithm(), hasher.block_size()),
            of_cache: format!("{algorithm} in blocks of {block_size}"),
        })
    }
}

impl Prompt {
    fn new(start: BlockHasher, tokens: &[u32]) -> Self {
        let mut hasher = start.clone();
        let mut hashes = Vec::with_capacity(tokens.len() / start.block_size());
        hasher.extend(tokens, &mut hashes);
        Self(Arc::new(Hashed {
            tokens: tokens.into(),
            num_tokens: tokens.len(),
            hashes,
            hasher: Some(hasher),
            start: Some(start),
        }))
    }

    /// Creates a prompt whose full blocks the caller has hashed: one hash a block, chained. The hashes of
    /// later blocks, which generated tokens fill, are reported with
    /// [`Computed::Hashed`](crate::Computed::Hashed).
    ///
    /// ```
    /// use paged_kv::{BlockHash, Prompt};
    ///
    /// let prompt = Prompt::from_hashes(&[BlockHash::from_u128(7)], 20);
    /// assert_eq!((prompt.num_tokens(), prompt.hashes().len()), (20, 1));
    /// ```
    pub fn from_hashes(hashes: &[BlockHash], num_tokens: usize) -> Self {
        Self(Arc::new(Hashed {
            tokens: Vec::new(),
            num_tokens,
            hashes: hashes.into(),
            hasher: None,
            start: None,
        }))
    }

    /// Appends tokens, such as an answer and the next question of a conversation. Only these tokens are
    /// hashed: amortized `O(new tokens)`. If a clone of the prompt exists, as in a sequence that it admitted,
    /// the known tokens and hashes are copied first (5 bytes a token for blocks of 16).
    ///
    /// # Errors
    /// [`HashesUnknown`](PagedKvError::HashesUnknown) for a prompt of [`from_hashes`](Self::from_hashes),
    /// whose later blocks cannot be hashed; use [`extend_hashes`](Self::extend_hashes).
    ///
    /// ```
    /// let cache = paged_kv::PagedKvCache::new(8, 4, 1, 1);
    /// let mut prompt = cache.prompt(&[1, 2, 3]);
    /// prompt.extend(&[4, 5])?;
    /// assert_eq!(prompt.hashes(), cache.prompt(&[1, 2, 3, 4, 5]).hashes());
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn extend(&mut self, tokens: &[u32]) -> Result<()> {
        if self.0.hasher.is_none() && !tokens.is_empty() {
            let known = self.num_tokens();
            let requested = known.saturating_add(tokens.len());
            return Err(PagedKvError::HashesUnknown { known, requested });
        }
        let prompt = self.unshared();
        if let Some(hasher) = &mut prompt.hasher {
            hasher.extend(tokens, &mut prompt.hashes);
        }
        prompt.tokens.extend_from_slice(tokens);
        prompt.num_tokens = prompt.tokens.len();
        Ok(())
    }

    /// Appends `num_new_tokens` tokens to a prompt of [`from_hashes`](Self::from_hashes), and the caller's
    /// hashes of the blocks that they fill. Costs as [`extend`](Self::extend).
    ///
    /// # Errors
    /// [`InvalidConfig`](PagedKvError::InvalidConfig) for a prompt whose tokens the cache hashes,
    /// [`TooManyTokens`](PagedKvError::TooManyTokens).
    ///
    /// ```
    /// use paged_kv::{BlockHash, Prompt};
    ///
    /// let [first, second] = [7, 8].map(BlockHash::from_u128);
    /// let mut prompt = Prompt::from_hashes(&[first], 20);
    /// prompt.extend_hashes(&[second], 13)?;
    /// assert_eq!((prompt.num_tokens(), prompt.hashes()), (33, &[first, second][..]));
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn extend_hashes(&mut self, hashes: &[BlockHash], num_new_tokens: usize) -> Result<()> {
        if self.0.hasher.is_some() {
            let reason = "the cache itself hashes the tokens of this prompt".to_owned();
            return Err(PagedKvError::InvalidConfig { parameter: "hashes", reason });
        }
        let (num_tokens, additional) = (self.num_tokens(), num_new_tokens);
        let refusal = PagedKvError::TooManyTokens { num_tokens, additional };
        let num_tokens = num_tokens.checked_add(additional).ok_or(refusal)?;
        let prompt = self.unshared();
        prompt.hashes.extend_from_slice(hashes);
        prompt.num_tokens = num_tokens;
        Ok(())
    }

    /// Returns the contents for a change: its own, copied first if a clone shares them.
    fn unshared(&mut self) -> &mut Hashed {
        if Arc::get_mut(&mut self.0).is_none() {
            self.0 = Arc::new(Hashed::clone(&self.0));
        }
        Arc::get_mut(&mut self.0).expect("no clone shares the contents")
    }

    /// Returns the number of tokens of the prompt.
    ///
    /// ```
    /// let cache = paged_kv::PagedKvCache::new(8, 4, 1, 1);
    /// assert_eq!(cache.prompt(&[1, 2, 3]).num_tokens(), 3);
    /// ```
    pub fn num_tokens(&self) -> usize {
        self.0.num_tokens
    }

    /// Returns the hashes of its full blocks.
    ///
    /// ```
    /// let cache = paged_kv::PagedKvCache::new(8, 4, 1, 1);
    /// assert!(cache.prompt(&[1, 2, 3]).hashes().is_empty());
    /// ```
    pub fn hashes(&self) -> &[BlockHash] {
        &self.0.hashes
    }

    /// Returns the tokens; none if only the hashes were given.
    pub(in crate::cache) fn tokens(&self) -> &[u32] {
        &self.0.tokens
    }

    /// Returns true if the caller gave the hashes. Then two of them may be equal.
    pub(in crate::cache) fn is_hashed_by_caller(&self) -> bool {
        self.0.hasher.is_none()
    }

    /// Returns the chain after the last token, if the tokens are known.
    pub(in crate::cache) fn hasher(&self) -> Option<&BlockHasher> {
        self.0.hasher.as_ref()
    }

    /// Returns the prompt of its first `num_tokens` tokens.
    pub(in crate::cache) fn truncated(&self, num_tokens: usize, block_size: usize) -> Self {
        match &self.0.start {
            Some(start) => Self::new(start.clone(), &self.0.tokens[..num_tokens]),
            None => {
                let full = (num_tokens / block_size).min(self.0.hashes.len());
                Self::from_hashes(&self.0.hashes[..full], num_tokens)
            }
        }
    }
}

impl fmt::Debug for Prompt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prompt")
            .field("num_tokens", &self.num_tokens())
            .field("hashes", &self.hashes().len())
            .finish_non_exhaustive()
    }
}
