//! `append_or_wait`: an append that may have to wait. It names the admission of its id, so it never grows
//! another request that has the id by then.

use crate::cache::PagedKvCache;
use crate::cache::entry::{MapEntry, TrackedSequence};
use crate::error::PagedKvError;
use crate::id::{AdmissionEpoch, SeqId};
use crate::pool::wait_queue::{Attempt, Grower, Short, Shortage};
use crate::sequence::Append;
use crate::sync::Later;

impl PagedKvCache {
    /// Does [`append`](Self::append) to the sequence of that epoch, or to any if none is known yet. If the
    /// append has to wait, its shortage names the epoch of the refused sequence.
    pub(crate) fn append_or_wait(
        &self,
        id: SeqId,
        epoch: Option<AdmissionEpoch>,
        num_new_tokens: usize,
    ) -> Attempt<Append> {
        if self.blocks().reports_overwrites() {
            return self.append_or_wait_outside_locks(id, epoch, num_new_tokens);
        }
        let _later = Later::begin();
        let shared = {
            let Some(mut entry) = self.sequences.get_mut(&id) else {
                return Ok(Err(self.missing(id)()));
            };
            if epoch.is_some_and(|epoch| epoch != entry.epoch()) {
                return Ok(Err(PagedKvError::SequenceNotFound(id)));
            }
            if let MapEntry::Owned(tracked) = entry.settle()
                && let Some(append) = tracked.sequence_mut().append_or_copy_near(num_new_tokens)
            {
                tracked.note_use(self.stamp());
                drop(entry);
                self.announce_append(id);
                return Ok(Ok(append));
            }
            entry.share()
        };
        match &mut *shared.write() {
            None => Ok(Err(self.missing(id)())),
            Some(tracked) => self.append_to(id, tracked, num_new_tokens),
        }
    }

    /// Appends from a stock of blocks that is taken outside of the locks. If the pool has too few, it computes
    /// the shortage under the locks again.
    #[cold]
    fn append_or_wait_outside_locks(
        &self,
        id: SeqId,
        epoch: Option<AdmissionEpoch>,
        num_new_tokens: usize,
    ) -> Attempt<Append> {
        let of_epoch = |tracked: &mut TrackedSequence| match epoch {
            Some(epoch) if epoch != tracked.epoch => Err(PagedKvError::SequenceNotFound(id)),
            _ => Ok(()),
        };
        let appended = self.grow_outside_locks(|stock| {
            self.update_if(
                id,
                |_| false,
                |tracked| {
                    of_epoch(tracked)?;
                    let append = stock.grow(tracked.sequence_mut(), num_new_tokens)?;
                    tracked.note_use(self.stamp());
                    Ok(append)
                },
            )?
        });
        match appended {
            Ok(append) => {
                self.announce_append(id);
                Ok(Ok(append))
            }
            Err(PagedKvError::OutOfMemory { requested, available }) => {
                let _later = Later::begin();
                let refusal = PagedKvError::OutOfMemory { requested, available };
                let short = self.update_if(
                    id,
                    |_| false,
                    |tracked| {
                        of_epoch(tracked)
                            .map(|()| self.shortage(id, tracked, num_new_tokens, refusal))
                    },
                );
                short.unwrap_or_else(Err).unwrap_or_else(|refusal| Ok(Err(refusal)))
            }
            Err(refusal) => Ok(Err(refusal)),
        }
    }

    fn append_to(
        &self,
        id: SeqId,
        tracked: &mut TrackedSequence,
        num_new_tokens: usize,
    ) -> Attempt<Append> {
        match tracked.sequence_mut().append(num_new_tokens) {
            Ok(append) => {
                tracked.note_use(self.stamp());
                Ok(Ok(append))
            }
            Err(refusal) => self.shortage(id, tracked, num_new_tokens, refusal),
        }
    }

    /// Returns how an append that was refused waits, or the refusal if it can never be served.
    fn shortage(
        &self,
        id: SeqId,
        tracked: &TrackedSequence,
        num_new_tokens: usize,
        refusal: PagedKvError,
    ) -> Attempt<Append> {
        match refusal {
            PagedKvError::OutOfMemory { requested, .. } => {
                let available =
                    self.total_blocks().saturating_sub(tracked.sequence().num_owned_blocks());
                let at_least = tracked.sequence().blocks_at_least(num_new_tokens);
                if at_least > available {
                    return Ok(Err(PagedKvError::OutOfMemory { requested, available }));
                }
                let grower = Grower { id, epoch: tracked.epoch };
                let shortage = match requested > at_least {
                    true => Shortage::GrowthWithCopy(grower),
                    false => Shortage::Growth(grower),
                };
                Err(Short { need: requested, shortage })
            }
            refusal => Ok(Err(refusal)),
        }
    }
}
