//! Levels of contents by their hashes: a content may be cached in several blocks, of which a spare one goes first in any
//! case.

use super::{Generation, PublishRequest, PublishedBlocks};
use crate::pool::content_key::ContentKey;
use crate::pool::free_list::NewLevel;
use crate::pool::{Blocks, LevelNote};
use crate::prefix::hash::BlockHash;

impl PublishedBlocks {
    /// Gives the contents of `hashes` a level, wherever they are cached. Returns the number of blocks.
    pub(crate) fn set_levels(
        &self,
        blocks: &Blocks,
        hashes: &[BlockHash],
        generation: Generation,
        note: LevelNote,
    ) -> usize {
        // From the end, as a sequence releases its blocks.
        let contents = hashes.iter().rev().map(|&hash| (generation.key_of(hash), note));
        self.set_levels_of(blocks, contents, generation)
    }

    /// Gives contents that were just published the levels that `level_of` returns, in the order of the offered blocks, if
    /// other blocks hold them already: an offered block is a spare copy of such a content then, or has no key.
    #[cold]
    pub(crate) fn set_levels_of_copies(
        &self,
        blocks: &Blocks,
        offer: &PublishRequest<'_>,
        hash_of: impl Fn(usize) -> BlockHash,
        level_of: impl Fn(usize) -> Option<LevelNote>,
    ) {
        let is_copy =
            |&at: &usize| !blocks.is_cached(offer.ids[at]) || blocks.is_spare(offer.ids[at]);
        let mut copies = (0..offer.ids.len()).rev().filter(is_copy).peekable();
        if copies.peek().is_some() {
            let key_of = |at| offer.generation.key_of(hash_of(at));
            let with_levels = copies.filter_map(|at| Some((key_of(at), level_of(at)?)));
            self.set_levels_of(blocks, with_levels, offer.generation);
        }
    }

    /// Gives contents levels in the blocks that hold them. Spare copies are left out if another block has the content.
    /// Returns the number of blocks.
    fn set_levels_of(
        &self,
        blocks: &Blocks,
        contents: impl Iterator<Item = (ContentKey, LevelNote)>,
        generation: Generation,
    ) -> usize {
        if self.index.is_empty() {
            return 0;
        }
        let mut found = Vec::new();
        for (key, note) in contents {
            let (place, start) = (self.index.place(key), found.len());
            let mut spare = None;
            self.index.find(place, |id| {
                if blocks.is_cached_as(id, key) {
                    match blocks.is_spare(id) {
                        true => spare = Some(NewLevel { id, key, note }),
                        false => found.push(NewLevel { id, key, note }),
                    }
                }
                false
            });
            if found.len() == start {
                found.extend(spare);
            }
        }
        blocks.set_levels(&found, generation.number())
    }
}
