//! The hashes that a caller computes itself: their number limits the tokens that can be committed.
//!
//! Of such a sequence the cache knows no tokens, but the number of those that the caller reported.

use super::{HashedTokens, refuse_beyond_end};
use crate::error::{PagedKvError, Result};
use crate::prefix::BlockHash;
use crate::sequence::Sequence;

impl HashedTokens {
    /// Notes that the first `num_tokens` tokens are known by their number. Refuses them if they have no slots,
    /// or if they fill blocks whose hashes only the caller knows.
    #[inline]
    pub(in crate::cache) fn name_length(
        &mut self,
        sequence: &Sequence,
        num_tokens: usize,
    ) -> Result<()> {
        refuse_beyond_end(sequence, num_tokens)?;
        if !self.knows_tokens {
            self.refuse_unknown_hashes(num_tokens, sequence.hash_unit())?;
            self.note_length(num_tokens);
        }
        Ok(())
    }

    /// Notes that tokens up to `num_tokens` were accepted, of a sequence whose blocks the caller hashes.
    pub(in crate::cache) fn note_length(&mut self, num_tokens: usize) {
        if !self.knows_tokens {
            self.prompt_tokens = self.prompt_tokens.max(num_tokens);
        }
    }

    /// Refuses tokens up to `num_tokens` if they fill a block whose hash only the caller knows.
    pub(in crate::cache) fn refuse_unnameable(
        &self,
        num_tokens: usize,
        block_size: usize,
    ) -> Result<()> {
        if self.knows_tokens { Ok(()) } else { self.refuse_unknown_hashes(num_tokens, block_size) }
    }

    fn refuse_unknown_hashes(&self, requested: usize, block_size: usize) -> Result<()> {
        let known = self.num_hashes();
        if requested / block_size <= known {
            return Ok(());
        }
        Err(PagedKvError::HashesUnknown { known: known * block_size, requested })
    }

    /// Adds the caller's hashes of the next full blocks, which have slots.
    pub(in crate::cache) fn add_hashes(
        &mut self,
        sequence: &Sequence,
        hashes: &[BlockHash],
    ) -> Result<()> {
        if hashes.is_empty() {
            return Ok(());
        }
        if self.knows_tokens {
            let reason = "the cache itself hashes the tokens of this sequence".to_owned();
            return Err(PagedKvError::InvalidConfig { parameter: "hashes", reason });
        }
        let num_tokens = (self.num_hashes() + hashes.len()).saturating_mul(sequence.hash_unit());
        refuse_beyond_end(sequence, num_tokens)?;
        self.hashes.extend_from_slice(hashes);
        self.note_length(num_tokens);
        Ok(())
    }

    /// Takes back the last `added` hashes of [`add_hashes`](Self::add_hashes), and the tokens named since.
    pub(in crate::cache) fn take_hashes_back(&mut self, added: usize, num_named: usize) {
        self.hashes.truncate(self.hashes.len() - added);
        self.take_length_back(num_named);
    }

    /// Takes back the tokens after the first `num_named`, of a sequence whose blocks the caller hashes.
    pub(in crate::cache) fn take_length_back(&mut self, num_named: usize) {
        if !self.knows_tokens {
            self.prompt_tokens = num_named;
        }
    }
}
