//! Releases of the blocks that a window or a chunk has left, and the blocks that a sequence holds for its growth.
//!
//! A growth releases first, by the sequence's newest step: whole blocks that no length needs to which the sequence can
//! still be truncated. Blocks that are not cached are free at once; cached ones take their place among the idle ones.

use std::ops::Range;

use super::{SequenceGroups, Tables};
use crate::error::Result;
use crate::sequence::Sequence;
use crate::table::BlockTable;

/// Blocks that a sequence holds so that later growth is not refused.
#[derive(Debug)]
pub(crate) struct Reserve {
    stock: BlockTable,
    /// The length for which blocks are held.
    length: usize,
    /// The most tokens by which the sequence is expected to grow at a time.
    chunk: usize,
}

impl Reserve {
    pub(super) fn table(&self) -> &BlockTable {
        &self.stock
    }
}

impl Sequence {
    /// Releases the blocks that the windows have left at the present length. A growth begins with this.
    #[inline]
    pub(crate) fn release_windows(&mut self) {
        if let Some(groups) = &self.groups
            && self.num_tokens >= groups.release_at
        {
            self.change_tables(|tables| tables.release());
        }
    }

    /// Holds as many blocks as the sequence will need, beyond those that it has, to grow to `length` tokens in parts of
    /// at most `chunk` tokens.
    ///
    /// # Errors
    /// `OutOfMemory`; it holds no blocks then.
    pub(crate) fn hold_for_growth(&mut self, length: usize, chunk: usize) -> Result<()> {
        self.change_tables(|tables| {
            let stock = tables.first.table.new_sibling();
            let mut reserve = Reserve { stock, length, chunk };
            // A window may leave a block that it shares before the other owners do: it needs one in its place then.
            let own = |table: &Sequence| table.table.num_sole();
            reserve.stock.grow(tables.missing_of(&reserve, own))?;
            tables.groups.reserve = Some(reserve);
            Ok(())
        })
    }

    /// Releases the logical blocks `blocks`, as far as they are resident. Releases none if a block would get too many
    /// owners.
    pub(super) fn release_blocks(&mut self, blocks: Range<usize>) {
        if blocks.is_empty() {
            return;
        }
        let resident =
            self.gaps.resident_before(blocks.start)..self.gaps.resident_before(blocks.end);
        if self.table.remove(resident).is_ok() {
            self.gaps.insert(blocks);
        }
    }

    /// Returns the first logical block from `sink` on that is resident or new.
    pub(super) fn first_resident(&self, sink: usize) -> usize {
        let gap = self.gaps.as_slice().iter().find(|gap| gap.start <= sink && sink < gap.end);
        gap.map_or(sink, |gap| gap.end)
    }
}

impl Tables<'_> {
    fn release(&mut self) {
        let rewind = self.groups.layout.max_rewind();
        for (_, kind, table) in self.each().filter(|(_, kind, _)| !kind.is_state()) {
            let needed = kind.first_needed(table.num_tokens.saturating_sub(rewind));
            let end = needed / kind.block_size();
            table.release_blocks(kind.sink_blocks().min(end)..end);
        }
        self.forget_needless_copies();
        self.groups.note_releases(self.first);
        self.refill_reserve();
    }

    /// Holds blocks in place of those that were released, as far as the sequence will need them.
    pub(super) fn refill_reserve(&mut self) {
        let Some(mut reserve) = self.groups.reserve.take() else {
            return;
        };
        let missing = self.missing_of(&reserve, |table| table.table.len());
        // If there is no room now, a later release or growth tries again.
        let _ = reserve.stock.grow(missing);
        self.groups.reserve = Some(reserve);
    }

    /// Returns how many blocks a reserve lacks. `of_window` counts the blocks of a sparse group that the sequence has.
    fn missing_of(&mut self, reserve: &Reserve, of_window: impl Fn(&Sequence) -> usize) -> usize {
        let (length, chunk) = (reserve.length, reserve.chunk);
        let rewind = self.groups.layout.max_rewind();
        let most = self.each().map(|(_, kind, table)| {
            let most = kind.most_blocks(length.max(table.num_tokens), chunk, rewind);
            // A full group takes nothing in place of blocks that were trimmed.
            let owned = match kind.is_full() {
                true => table.num_logical_blocks(),
                false => of_window(table),
            };
            most.saturating_sub(owned)
        });
        let most = most.fold(0_usize, usize::saturating_add);
        most.saturating_sub(reserve.stock.len())
    }
}

impl SequenceGroups {
    /// Notes the length at which the next block can be released.
    pub(super) fn note_releases(&mut self, first: &Sequence) {
        let tables = std::iter::once(first).chain(self.others.iter());
        let next = tables.zip(self.layout.groups()).map(|(table, kind)| {
            let sink = kind.sink_blocks();
            kind.length_beyond(table.first_resident(sink).saturating_add(1))
        });
        let next = next.min().unwrap_or(usize::MAX);
        self.release_at = next.saturating_add(self.layout.max_rewind());
    }

    /// Moves up to `n` blocks that are held for growth to the end of `table`. Returns how many.
    pub(super) fn take_from_reserve(&mut self, n: usize, table: &mut BlockTable) -> usize {
        let Some(reserve) = &mut self.reserve else {
            return 0;
        };
        let taken = n.min(reserve.stock.len());
        table.grow_from(&mut reserve.stock, taken);
        taken
    }

    /// Returns the number of blocks that are held for growth.
    pub(super) fn num_reserved(&self) -> usize {
        self.reserve.as_ref().map_or(0, |reserve| reserve.stock.len())
    }
}
