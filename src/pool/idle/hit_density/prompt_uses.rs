//! `PromptUses`: the blocks of a prompt that earlier requests had, and the classes that follow from these at the release
//! ([`ReleasedPrompt`]).

use super::{BACK_SOON, CLOSED, LENGTHS, LONGER_THAN, ReuseHint, SHARED};
use crate::id::BlockId;
use crate::pool::release_note::ReleaseMark;

/// The blocks at the beginning of a prompt that earlier requests had. A sequence keeps it until its release.
#[derive(Clone, Debug, Default)]
pub(crate) struct PromptUses {
    /// Blocks that different conversations share.
    pub(super) shared: u32,
    /// Blocks that another conversation goes on from.
    pub(super) branched: u32,
    /// Blocks that at least two earlier requests had.
    pub(super) twice: u32,
    /// Blocks that an earlier request had.
    pub(super) once: u32,
    pub(super) prompt_tokens: usize,
}

/// The facts of a sequence that decide the classes of its blocks.
pub(crate) struct ReleasedPrompt<'a> {
    pub(crate) uses: &'a PromptUses,
    pub(crate) hint: ReuseHint,
    /// The length of the sequence at its release.
    pub(crate) num_tokens: usize,
    pub(crate) mark: ReleaseMark,
    /// The block before these, which the same sequence released.
    pub(crate) before: Option<BlockId>,
}

impl ReleasedPrompt<'_> {
    /// Returns the class, the uses and the end of the blocks that are released as the one at `at` is.
    pub(super) fn class(&self, at: usize) -> (usize, u32, usize) {
        let Self { uses, hint, num_tokens, .. } = *self;
        let answer = num_tokens.saturating_sub(uses.prompt_tokens);
        let length = LONGER_THAN.iter().filter(|&&least| answer > least).count();
        let [twice, once] = [uses.twice, uses.once].map(|end| end as usize);
        let shared = match hint {
            ReuseHint::Unknown => uses.shared,
            // A hint for this conversation does not hold for another.
            ReuseHint::BackSoon | ReuseHint::Closed => uses.shared.max(uses.branched),
        } as usize;
        let (uses, end) = match at {
            _ if at < twice => (3, twice),
            _ if at < once => (2, once),
            _ => (1, usize::MAX),
        };
        if at < shared {
            return (SHARED, uses, end.min(shared));
        }
        let class = match hint {
            ReuseHint::Unknown => LENGTHS * (uses as usize - 1) + length,
            ReuseHint::BackSoon => BACK_SOON + length,
            ReuseHint::Closed => CLOSED,
        };
        (class, uses, end)
    }
}
