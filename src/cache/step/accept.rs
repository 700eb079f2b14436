//! `Step::accept`: accepts the first of the tokens by which a row grew, and drops the slots of the others.

use super::Step;
use crate::cache::reuse::cached_sequence::Parts;
use crate::cache::reuse::hashed_tokens::HashedTokens;
use crate::cache::rows::{Row, update};
use crate::error::{PagedKvError, Result};
use crate::id::Identity;
use crate::sequence::Sequence;

impl Step {
    /// Accepts the first of the tokens by which row number `number` of this step grew. Drops the slots of
    /// the others, the rejected drafts. The blocks that the accepted tokens fill are published when the
    /// step completes. Returns the number of blocks that wait for it, 0 for a sequence whose tokens are not known.
    ///
    /// Some of the accepted tokens may be named already (a prompt's, with drafts after it): they have to be
    /// the same.
    ///
    /// # Errors
    /// [`InvalidConfig`](PagedKvError::InvalidConfig):
    ///
    /// - if there is no such row;
    /// - if the tokens of the sequence do not fit the row: its earlier tokens are not all named, or a later
    ///   step has grown it and slots would be dropped in the middle;
    /// - if more tokens are accepted than the row grew by, or one of them is named otherwise.
    ///
    /// [`WrongCache`](PagedKvError::WrongCache) for a sequence of another cache;
    /// [`TooManyOwners`](PagedKvError::TooManyOwners).
    ///
    /// ```
    /// use paged_kv::{AdmitOptions, PagedKvCache};
    ///
    /// let cache = PagedKvCache::new(4, 4, 1, 1);
    /// let (sequence, _) = cache.admit_sequence(&cache.prompt(&[1, 2]), &AdmitOptions::default())?;
    /// let mut rows = [(sequence, 5)];
    /// let mut step = cache.step(Default::default());
    /// assert_eq!(step.grow(&mut rows)?.grown_rows, 1);
    /// // Of five drafts two were right.
    /// assert_eq!(step.accept(0, &mut rows[0].0, &[3, 4])?, 1);
    /// step.complete();
    /// assert_eq!(rows[0].0.num_tokens(), 4);
    /// assert_eq!(cache.prefix().probe(&cache.prompt(&[1, 2, 3, 4, 5])), 4);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn accept<R: Row>(
        &mut self,
        number: usize,
        row: &mut R,
        accepted: &[u32],
    ) -> Result<usize> {
        update(row, |parts, identity| {
            self.refuse_other_cache(parts.0)?;
            self.refuse_other_row(number, identity)?;
            self.accept_parts(number, parts, accepted)
        })
    }

    fn accept_parts(
        &mut self,
        row: usize,
        (sequence, mut hashed): Parts<'_>,
        accepted: &[u32],
    ) -> Result<usize> {
        let named = hashed.as_deref().filter(|hashed| hashed.names_up_to().is_some());
        let num_tokens = self.accepted_length(row, sequence, named, accepted)?;
        let start_tokens = num_tokens - accepted.len();
        // Hash, commit, and only then cut: a refusal can undo the steps before it.
        let was_named = named.map(HashedTokens::num_named);
        if let (Some(hashed), Some(named)) = (&mut hashed, was_named)
            && named < num_tokens
        {
            hashed.name_tokens(sequence, &accepted[named - start_tokens..])?;
        }
        let length_before = hashed.as_deref().map(HashedTokens::num_named);
        if let Some(hashed) = &mut hashed {
            hashed.note_length(num_tokens);
        }
        let num_new_tokens = self.buffers.rows[row].num_new_tokens;
        if num_new_tokens == 0 {
            return Ok(0);
        }
        let cuts = accepted.len() < num_new_tokens;
        let accepted = self.commit_and_cut((sequence, hashed.as_deref_mut()), num_tokens, cuts);
        if let (Some(hashed), Some(before), Err(_)) = (hashed, length_before, &accepted) {
            hashed.take_length_back(before);
            if let Some(named) = was_named {
                hashed.forget_generated(named, sequence.hash_unit());
            }
        }
        accepted
    }

    /// Returns the number of tokens of the sequence after row `row` accepts these tokens, if it may.
    fn accepted_length(
        &self,
        row: usize,
        sequence: &Sequence,
        named: Option<&HashedTokens>,
        accepted: &[u32],
    ) -> Result<usize> {
        let refuse = |reason: String| Err(PagedKvError::InvalidConfig { parameter: "row", reason });
        let Some(grown) = self.buffers.rows.get(row) else {
            return refuse(format!("{row} of {}", self.buffers.rows.len()));
        };
        let (start_tokens, end, len) = (grown.start_tokens, grown.end(), sequence.num_tokens());
        if accepted.len() > grown.num_new_tokens {
            let num_new_tokens = grown.num_new_tokens;
            return refuse(format!("{} accepted of {num_new_tokens} tokens", accepted.len()));
        }
        let unnamed = named.map(HashedTokens::num_named).filter(|&named| named < start_tokens);
        if len < end || unnamed.is_some() {
            return refuse(format!("{len} tokens, {unnamed:?} named, where {start_tokens} were"));
        }
        if named.is_some_and(|named| !named.agrees_with(start_tokens, accepted)) {
            return refuse("a token that is accepted is named otherwise".to_owned());
        }
        let num_tokens = start_tokens + accepted.len();
        if num_tokens < end && len > end {
            return refuse(format!("grown to {len} tokens since, and {num_tokens} stay"));
        }
        Ok(num_tokens)
    }

    /// Commits the first `num_tokens` tokens and, if `cuts`, drops those after them: both or neither.
    fn commit_and_cut(
        &mut self,
        (sequence, mut hashed): Parts<'_>,
        num_tokens: usize,
        cuts: bool,
    ) -> Result<usize> {
        if cuts && sequence.layout().is_some() {
            // A later refusal would leave the commits of several groups.
            sequence.check_cut(num_tokens)?;
        }
        let parts = (&mut *sequence, hashed.as_deref_mut());
        let committed = self.commit_parts(parts, num_tokens)?;
        if !cuts {
            return Ok(committed);
        }
        let cut = sequence.truncate(num_tokens);
        match (&cut, hashed) {
            (Ok(()), Some(hashed)) => hashed.forget_generated(num_tokens, sequence.hash_unit()),
            (Err(_), Some(hashed)) if committed > 0 => {
                self.take_commit_back();
                hashed.take_offer_back(hashed.offered() - committed);
            }
            _ => {}
        }
        cut.map(|()| committed)
    }

    /// Refuses a row that is not the one that grew under this number. Handles are checked by their number
    /// of tokens.
    pub(super) fn refuse_other_row(&self, number: usize, identity: Option<Identity>) -> Result<()> {
        let Some(grown) = self.buffers.rows.get(number) else {
            let reason = format!("{number} of {}", self.buffers.rows.len());
            return Err(PagedKvError::InvalidConfig { parameter: "row", reason });
        };
        if grown.identity == identity {
            return Ok(());
        }
        let name = |identity: Option<Identity>| {
            identity.map_or("held by its handle".to_owned(), |(id, _)| id.to_string())
        };
        let (grew, given) = (name(grown.identity), name(identity));
        let reason = format!("row {number} of the step is {grew}, not {given}");
        Err(PagedKvError::InvalidConfig { parameter: "row", reason })
    }
}
