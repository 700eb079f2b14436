//! `Notes`: copies of the events that wait to be encoded, in memory that is reused.
//!
//! The thread that emits an event copies it here and continues; the reader of the batch encodes it later.
//! Hashes and tokens are copied as they are. Contents rarely depend on more than their tokens. If they do,
//! those keys are encoded immediately, so that they need no memory other than that of the notes.
//!
//! Invariant: the encoded events are the noted ones, in the same order.

use super::wire::{Extra, WireEvent, WireFormat, WireGroup, write_extra};
use crate::id::Medium;
use crate::prefix::BlockHash;
use crate::prefix::kv_event::KvEvent;

/// Events that are not encoded yet.
#[derive(Default)]
pub(super) struct Notes {
    entries: Vec<Note>,
    hashes: Vec<BlockHash>,
    tokens: Vec<u32>,
    /// The encoded keys of contents that depend on more than their tokens.
    extra: Vec<u8>,
}

/// An event, and the number of its elements in the vectors.
enum Note {
    Stored {
        parent: Option<BlockHash>,
        hashes: usize,
        tokens: usize,
        block_size: usize,
        /// Bytes of the adapter's name and of the keys.
        extra: Option<(usize, usize)>,
        group: WireGroup,
        medium: Medium,
    },
    Removed {
        hashes: usize,
        group: WireGroup,
        medium: Medium,
    },
    Cleared,
}

impl Notes {
    /// Creates empty notes with room for the events of `other`.
    pub(super) fn with_room_of(other: &Self) -> Self {
        Self {
            entries: Vec::with_capacity(other.entries.len()),
            hashes: Vec::with_capacity(other.hashes.len()),
            tokens: Vec::with_capacity(other.tokens.len()),
            extra: Vec::with_capacity(other.extra.len()),
        }
    }

    /// Notes an event, without salts unless `salts` is true. Returns false for an event that no consumer could
    /// use: blocks on the device without tokens.
    pub(super) fn push(&mut self, event: &KvEvent<'_>, salts: bool) -> bool {
        let entry = match *event {
            KvEvent::BlockStored { tokens: [], medium: Medium::Device, .. } => return false,
            KvEvent::BlockStored {
                hashes,
                parent,
                tokens,
                block_size,
                extra,
                index,
                group: id,
                kind,
                medium,
            } => {
                self.hashes.extend_from_slice(hashes);
                self.tokens.extend_from_slice(tokens);
                let blocks = index..index + hashes.len();
                let extra = extra
                    .map(|extra| write_extra(extra, blocks, block_size, salts, &mut self.extra));
                let (hashes, tokens) = (hashes.len(), tokens.len());
                let group = WireGroup { id, kind };
                Note::Stored { parent, hashes, tokens, block_size, extra, group, medium }
            }
            KvEvent::BlockRemoved { hashes, group: id, kind, medium } => {
                self.hashes.extend_from_slice(hashes);
                Note::Removed { hashes: hashes.len(), group: WireGroup { id, kind }, medium }
            }
            KvEvent::AllBlocksCleared => Note::Cleared,
        };
        self.entries.push(entry);
        true
    }

    /// Returns the number of noted events.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Returns the number of blocks in the noted events.
    pub(super) fn blocks(&self) -> usize {
        self.hashes.len()
    }

    /// Returns the bytes of the noted events.
    pub(super) fn bytes(&self) -> usize {
        size_of_val(&self.entries[..])
            + size_of_val(&self.hashes[..])
            + size_of_val(&self.tokens[..])
            + self.extra.len()
    }

    /// Returns the bytes of allocated memory, of which some may be unused.
    pub(super) fn held(&self) -> usize {
        self.entries.capacity() * size_of::<Note>()
            + self.hashes.capacity() * size_of::<BlockHash>()
            + self.tokens.capacity() * size_of::<u32>()
            + self.extra.capacity()
    }

    /// Removes all events and keeps the memory.
    pub(super) fn clear(&mut self) {
        self.entries.clear();
        self.hashes.clear();
        self.tokens.clear();
        self.extra.clear();
    }

    /// Appends all events to `out`, encoded in `format`.
    pub(super) fn write(&self, format: &WireFormat, out: &mut Vec<u8>) {
        let (mut hashes, mut tokens, mut extra) =
            (&self.hashes[..], &self.tokens[..], &self.extra[..]);
        for entry in &self.entries {
            let event = match *entry {
                Note::Stored {
                    parent,
                    hashes: blocks,
                    tokens: of_blocks,
                    block_size,
                    extra: lens,
                    group,
                    medium,
                } => WireEvent::Stored {
                    hashes: next(&mut hashes, blocks),
                    parent,
                    tokens: next(&mut tokens, of_blocks),
                    block_size,
                    extra: lens.map(|(lora_name, keys)| Extra {
                        lora_name: next(&mut extra, lora_name),
                        keys: next(&mut extra, keys),
                    }),
                    group,
                    medium,
                },
                Note::Removed { hashes: blocks, group, medium } => {
                    WireEvent::Removed { hashes: next(&mut hashes, blocks), group, medium }
                }
                Note::Cleared => WireEvent::Cleared,
            };
            format.write(&event, out);
        }
    }
}

/// Splits the first `len` elements off `rest`.
fn next<'a, T>(rest: &mut &'a [T], len: usize) -> &'a [T] {
    rest.split_off(..len).expect("what an entry tells of is noted")
}

#[cfg(test)]
mod tests {
    use super::super::published_media::PublishedMedia;
    use super::super::samples::{FULL, removed, stored};
    use super::super::wire::Dialect;
    use super::*;
    use crate::id::GroupId;
    use crate::prefix::ExtraKeys;

    fn written(notes: &Notes) -> Vec<u8> {
        let mut out = Vec::new();
        let format = WireFormat {
            dialect: Dialect::Map,
            media: PublishedMedia::default(),
            rank: 0,
            salts: true,
            groups: None,
        };
        notes.write(&format, &mut out);
        out
    }

    /// Notes an event of `blocks` blocks; its kind depends on `blocks % 4`.
    fn push(notes: &mut Notes, blocks: usize) {
        let hashes: Vec<_> = (1..=blocks as u128).map(BlockHash::from_u128).collect();
        let tokens: Vec<u32> = (40..).step_by(97).take(4 * blocks).collect();
        let extra = ExtraKeys::default().lora("sql", "/sql").salt("s").media("cat", 1..9);
        let of_prompt = |extra, index| KvEvent::BlockStored {
            hashes: &hashes,
            parent: (index > 0).then_some(BlockHash::from_u128(99)),
            tokens: &tokens,
            block_size: 4,
            extra,
            index,
            group: GroupId(0),
            kind: FULL,
            medium: Medium::Device,
        };
        let event = match blocks % 4 {
            0 => KvEvent::AllBlocksCleared,
            1 => removed(&hashes),
            2 => of_prompt(None, 0),
            _ => of_prompt(Some(&extra), blocks - 3),
        };
        assert!(notes.push(&event, true));
    }

    #[test]
    fn events_noted_together_are_written_as_if_noted_alone() {
        let (mut together, mut alone) = (Notes::default(), Vec::new());
        for blocks in (0..20).chain((0..20).rev()) {
            push(&mut together, blocks);
            let mut one = Notes::default();
            push(&mut one, blocks);
            alone.extend(written(&one));
        }
        assert_eq!(written(&together), alone);
        assert_eq!(together.len(), 40);
    }

    #[test]
    fn cleared_notes_are_as_new_and_need_no_memory() {
        let (mut used, mut new) = (Notes::default(), Notes::default());
        (0..50).for_each(|blocks| push(&mut used, blocks));
        let held = used.held();
        assert!(held >= used.bytes());
        used.clear();
        assert!(used.is_empty() && used.blocks() == 0 && used.bytes() == 0);
        for blocks in [7, 3, 2, 1, 0] {
            push(&mut used, blocks);
            push(&mut new, blocks);
        }
        assert_eq!(written(&used), written(&new));
        assert_eq!(used.held(), held);
        let room = Notes::with_room_of(&new).held();
        assert!((new.bytes()..=new.held()).contains(&room), "{room}");
    }

    #[test]
    fn blocks_without_tokens_are_not_noted() {
        let hashes = [BlockHash::from_u128(7)];
        let mut notes = Notes::default();
        assert!(!notes.push(&stored(&hashes, &[]), true) && notes.is_empty() && notes.bytes() == 0);
    }
}
