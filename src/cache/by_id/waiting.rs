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

    fn append_to(
        &self,
        id: SeqId,
        tracked: &mut TrackedSequence,
        num_new_tokens: usize,
    ) -> Attempt<Append> {
        let appended = tracked.sequence_mut().append(num_new_tokens);
        match appended {
            Ok(append) => {
                tracked.note_use(self.stamp());
                Ok(Ok(append))
            }
            Err(PagedKvError::OutOfMemory { requested, .. }) => {
                let available = self.total_blocks().saturating_sub(tracked.sequence().num_blocks());
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
            Err(refusal) => Ok(Err(refusal)),
        }
    }
}
