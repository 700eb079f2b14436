//! `WireFormat`: encodes events in MessagePack, byte for byte as vLLM does, in either of its dialects.
//!
//! Block hashes are unsigned 64-bit integers in the 9-byte form, never 0. A payload is
//! `[time, [events], rank]`.

use std::ops::Range;

use rmp::Marker;
use rmp::encode::{
    ValueWriteError, write_array_len, write_f64, write_map_len, write_nil, write_sint, write_str,
    write_u64, write_uint,
};

use crate::prefix::{BlockHash, ExtraKeys};

/// The KV-cache group of all blocks.
const GROUP: u64 = 0;

/// The kind of layers of that group.
const KIND: &str = "full_attention";

/// The encoding of events: one of vLLM's two forms, as the consumer reads it.
///
/// ```
/// assert_eq!(paged_kv::event::Dialect::default(), paged_kv::event::Dialect::Map);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Dialect {
    /// Maps with named fields: vLLM from June 2026 on, SGLang, llm-d from 0.9 on, Dynamo.
    #[default]
    Map,
    /// Arrays with fields by position: earlier vLLM, AIBrix, earlier llm-d, Dynamo.
    Array,
}

/// The format of the events of one cache.
#[derive(Clone, Debug)]
pub(super) struct WireFormat {
    pub(super) dialect: Dialect,
    /// The place of the blocks.
    pub(super) medium: String,
    /// The number of this engine among several data-parallel engines.
    pub(super) rank: i32,
    /// True if salts are written.
    pub(super) salts: bool,
}

/// An event to be encoded. Its lists are never empty.
pub(super) enum WireEvent<'a> {
    Stored {
        hashes: &'a [BlockHash],
        parent: Option<BlockHash>,
        /// `block_size` tokens for each hash.
        tokens: &'a [u32],
        block_size: usize,
        extra: Option<Extra<'a>>,
    },
    Removed {
        hashes: &'a [BlockHash],
    },
    Cleared,
}

/// The keys of contents that depend on more than their tokens, encoded by [`write_extra`].
#[derive(Clone, Copy)]
pub(super) struct Extra<'a> {
    pub(super) lora_name: &'a [u8],
    /// The keys of each block.
    pub(super) keys: &'a [u8],
}

type Written = Result<(), ValueWriteError<std::io::Error>>;

impl WireFormat {
    /// Appends the bytes before `events` events of that time.
    pub(super) fn write_start(time: f64, events: usize, out: &mut Vec<u8>) {
        let written: Written = (|| {
            write_array_len(out, 3)?;
            write_f64(out, time)?;
            write_array_len(out, events as u32)?;
            Ok(())
        })();
        written.expect("writing to memory does not fail");
    }

    /// Appends an event.
    pub(super) fn write(&self, event: &WireEvent<'_>, out: &mut Vec<u8>) {
        let written = match self.dialect {
            Dialect::Map => self.write_map(event, out),
            Dialect::Array => self.write_array(event, out),
        };
        written.expect("writing to memory does not fail");
    }

    /// Appends the bytes after the events.
    pub(super) fn write_end(&self, out: &mut Vec<u8>) {
        write_sint(out, self.rank.into()).expect("writing to memory does not fail");
    }

    fn write_map(&self, event: &WireEvent<'_>, out: &mut Vec<u8>) -> Written {
        match *event {
            WireEvent::Stored { hashes, parent, tokens, block_size, extra } => {
                write_map_len(out, 10 + u32::from(extra.is_some()))?;
                write_pair(out, "type", "BlockStored")?;
                write_str(out, "block_hashes")?;
                write_hashes(out, hashes)?;
                write_str(out, "parent_block_hash")?;
                write_parent(out, parent)?;
                write_str(out, "token_ids")?;
                write_tokens(out, tokens)?;
                write_str(out, "block_size")?;
                write_uint(out, block_size as u64)?;
                write_str(out, "lora_id")?;
                write_nil_of(out)?;
                write_pair(out, "medium", &self.medium)?;
                write_str(out, "lora_name")?;
                write_lora_name(out, extra)?;
                if let Some(extra) = extra {
                    write_str(out, "extra_keys")?;
                    out.extend_from_slice(extra.keys);
                }
                write_str(out, "group_idx")?;
                write_uint(out, GROUP)?;
                write_pair(out, "kv_cache_spec_kind", KIND)
            }
            WireEvent::Removed { hashes } => {
                write_map_len(out, 4)?;
                write_pair(out, "type", "BlockRemoved")?;
                write_str(out, "block_hashes")?;
                write_hashes(out, hashes)?;
                write_pair(out, "medium", &self.medium)?;
                write_str(out, "group_idx")?;
                write_uint(out, GROUP).map(|_| ())
            }
            WireEvent::Cleared => {
                write_map_len(out, 1)?;
                write_pair(out, "type", "AllBlocksCleared")
            }
        }
    }

    fn write_array(&self, event: &WireEvent<'_>, out: &mut Vec<u8>) -> Written {
        match *event {
            WireEvent::Stored { hashes, parent, tokens, block_size, extra } => {
                write_array_len(out, 12)?;
                write_str(out, "BlockStored")?;
                write_hashes(out, hashes)?;
                write_parent(out, parent)?;
                write_tokens(out, tokens)?;
                write_uint(out, block_size as u64)?;
                write_nil_of(out)?;
                write_str(out, &self.medium)?;
                write_lora_name(out, extra)?;
                match extra {
                    Some(extra) => out.extend_from_slice(extra.keys),
                    None => write_nil_of(out)?,
                }
                write_uint(out, GROUP)?;
                write_str(out, KIND)?;
                write_nil_of(out)
            }
            WireEvent::Removed { hashes } => {
                write_array_len(out, 4)?;
                write_str(out, "BlockRemoved")?;
                write_hashes(out, hashes)?;
                write_str(out, &self.medium)?;
                // vLLM's removals in this form name no group.
                write_nil_of(out)
            }
            WireEvent::Cleared => {
                write_array_len(out, 1)?;
                write_str(out, "AllBlocksCleared")
            }
        }
    }
}

fn write_hashes(out: &mut Vec<u8>, hashes: &[BlockHash]) -> Written {
    write_array_len(out, hashes.len() as u32)?;
    out.reserve(9 * hashes.len());
    for &hash in hashes {
        let mut bytes = [Marker::U64.to_u8(); 9];
        bytes[1..].copy_from_slice(&wire_hash(hash).to_be_bytes());
        out.extend_from_slice(&bytes);
    }
    Ok(())
}

fn write_parent(out: &mut Vec<u8>, parent: Option<BlockHash>) -> Written {
    match parent {
        Some(hash) => write_u64(out, wire_hash(hash)),
        None => write_nil_of(out),
    }
}

fn write_tokens(out: &mut Vec<u8>, tokens: &[u32]) -> Written {
    write_array_len(out, tokens.len() as u32)?;
    // Written by hand, in the form of `write_uint`: most of a batch is tokens, mostly
    // of the length of their neighbours.
    out.reserve(5 * tokens.len());
    let (together, rest) = tokens.as_chunks::<TOGETHER>();
    for chunk in together {
        let all = |is: fn(u32) -> bool| chunk.iter().fold(true, |all, &token| all & is(token));
        if all(|token| token >= 0x1_0000) {
            let mut bytes = [Marker::U32.to_u8(); 5 * TOGETHER];
            for (slot, token) in bytes.as_chunks_mut::<5>().0.iter_mut().zip(chunk) {
                slot[1..].copy_from_slice(&token.to_be_bytes());
            }
            out.extend_from_slice(&bytes);
        } else if all(|token| token.wrapping_sub(0x100) < 0x1_0000 - 0x100) {
            let mut bytes = [Marker::U16.to_u8(); 3 * TOGETHER];
            for (slot, &token) in bytes.as_chunks_mut::<3>().0.iter_mut().zip(chunk) {
                slot[1..].copy_from_slice(&(token as u16).to_be_bytes());
            }
            out.extend_from_slice(&bytes);
        } else {
            write_each(out, chunk);
        }
    }
    write_each(out, rest);
    Ok(())
}

/// Tokens that are checked together.
const TOGETHER: usize = 16;

/// Writes each token in its shortest form.
fn write_each(out: &mut Vec<u8>, tokens: &[u32]) {
    for &token in tokens {
        let [a, b, c, d] = token.to_be_bytes();
        match token {
            0..0x80 => out.push(d),
            0x80..0x100 => out.extend_from_slice(&[Marker::U8.to_u8(), d]),
            0x100..0x1_0000 => out.extend_from_slice(&[Marker::U16.to_u8(), c, d]),
            _ => out.extend_from_slice(&[Marker::U32.to_u8(), a, b, c, d]),
        }
    }
}

/// Appends the adapter's name, or nil, and then the keys of `blocks`: all that they depend on
/// except tokens. Leaves the salt out unless `salts` is true. Returns the number of bytes of each part.
pub(super) fn write_extra(
    extra: &ExtraKeys,
    blocks: Range<usize>,
    block_size: usize,
    salts: bool,
    out: &mut Vec<u8>,
) -> (usize, usize) {
    let start = out.len();
    let written = match extra.lora_name() {
        Some(name) => write_str(out, name),
        None => write_nil_of(out),
    };
    let middle = out.len();
    let written = written.and_then(|()| write_keys(out, extra, blocks, block_size, salts));
    written.expect("writing to memory does not fail");
    (middle - start, out.len() - middle)
}

/// Appends for each block the list of its keys, or nil.
fn write_keys(
    out: &mut Vec<u8>,
    extra: &ExtraKeys,
    blocks: Range<usize>,
    block_size: usize,
    salts: bool,
) -> Written {
    write_array_len(out, blocks.len() as u32)?;
    for block in blocks {
        let positions = block * block_size..(block + 1) * block_size;
        let salt = extra.salt_text().filter(|_| salts && block == 0);
        let media = extra.media_in(&positions).count();
        let keys = media + usize::from(extra.lora_name().is_some()) + usize::from(salt.is_some());
        if keys == 0 {
            write_nil_of(out)?;
            continue;
        }
        write_array_len(out, keys as u32)?;
        if let Some(name) = extra.lora_name() {
            write_str(out, name)?;
        }
        for (identifier, offset) in extra.media_in(&positions) {
            write_array_len(out, 2)?;
            write_str(out, identifier)?;
            write_sint(out, offset)?;
        }
        if let Some(salt) = salt {
            write_str(out, salt)?;
        }
    }
    Ok(())
}

fn write_pair(out: &mut Vec<u8>, key: &str, value: &str) -> Written {
    write_str(out, key)?;
    write_str(out, value)
}

fn write_lora_name(out: &mut Vec<u8>, extra: Option<Extra<'_>>) -> Written {
    match extra {
        Some(extra) => {
            out.extend_from_slice(extra.lora_name);
            Ok(())
        }
        None => write_nil_of(out),
    }
}

fn write_nil_of(out: &mut Vec<u8>) -> Written {
    write_nil(out).map_err(ValueWriteError::InvalidMarkerWrite)
}

/// Returns the hash for consumers, to which 0 is no hash.
fn wire_hash(hash: BlockHash) -> u64 {
    hash.event_hash().max(1)
}

#[cfg(test)]
mod tests {
    use super::super::notes::Notes;
    use super::*;
    use crate::prefix::kv_event::KvEvent;

    const HASHES: [u64; 2] = [0xfedc_ba98_7654_3210, 0x0123_4567_89ab_cdef];

    fn payload(dialect: Dialect, event: &KvEvent<'_>) -> String {
        payload_with(dialect, event, true)
    }

    fn payload_with(dialect: Dialect, event: &KvEvent<'_>, salts: bool) -> String {
        let format = WireFormat { dialect, medium: "GPU".to_owned(), rank: 0, salts };
        let (mut notes, mut bytes) = (Notes::default(), Vec::new());
        assert!(notes.push(event, format.salts));
        WireFormat::write_start(1.5, 1, &mut bytes);
        notes.write(&format, &mut bytes);
        format.write_end(&mut bytes);
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn hashes() -> [BlockHash; 2] {
        HASHES.map(|hash| BlockHash::from_u128(hash.into()))
    }

    fn stored(hashes: &[BlockHash]) -> KvEvent<'_> {
        let tokens = &[1, 2, 3, 4, 5, 6, 7, 300];
        KvEvent::BlockStored { hashes, parent: None, tokens, block_size: 4, extra: None, index: 0 }
    }

    #[test]
    fn arrays_are_vllms() {
        let hashes = hashes();
        assert_eq!(
            payload(Dialect::Array, &stored(&hashes)),
            "93cb3ff8000000000000919cab426c6f636b53746f72656492cffedcba9876543210cf0123456789abcdef\
             c09801020304050607cd012c04c0a3475055c0c000ae66756c6c5f617474656e74696f6ec000"
        );
        assert_eq!(
            payload(Dialect::Array, &KvEvent::BlockRemoved { hashes: &hashes[..1] }),
            "93cb3ff80000000000009194ac426c6f636b52656d6f76656491cffedcba9876543210a3475055c000"
        );
    }

    #[test]
    fn maps_are_vllms() {
        let hashes = hashes();
        assert_eq!(
            payload(Dialect::Map, &KvEvent::BlockRemoved { hashes: &hashes[..1] }),
            "93cb3ff80000000000009184a474797065ac426c6f636b52656d6f766564ac626c6f636b5f68617368657391\
             cffedcba9876543210a66d656469756da3475055a967726f75705f6964780000"
        );
        assert_eq!(
            payload(Dialect::Map, &KvEvent::AllBlocksCleared),
            "93cb3ff80000000000009181a474797065b0416c6c426c6f636b73436c656172656400"
        );
    }

    #[test]
    fn a_hash_of_0_is_written_as_1_and_in_9_bytes() {
        let hashes = [BlockHash::from_u128(1 << 64)];
        let written = payload(Dialect::Array, &KvEvent::BlockRemoved { hashes: &hashes });
        assert!(written.contains("91cf0000000000000001"), "{written}");
    }

    #[test]
    fn tokens_are_written_in_their_shortest_forms() {
        let each = [0, 127, 128, 255, 256, 65_535, 65_536, u32::MAX];
        let in_threes: Vec<_> = (256..).step_by(97).take(3 * TOGETHER).collect();
        let in_fives: Vec<_> = (65_536..).step_by(9_973).take(2 * TOGETHER).collect();
        let around: Vec<_> = (65_536 - 20..65_536 + 20).chain(240..280).collect();
        let mixed = [&in_threes[..], &in_fives, &each, &around, &in_threes].concat();
        for tokens in [&each[..], &in_threes, &in_fives, &around, &mixed, &[]] {
            let (mut want, mut written) = (Vec::new(), Vec::new());
            write_array_len(&mut want, tokens.len() as u32).unwrap();
            tokens.iter().for_each(|&token| {
                write_uint(&mut want, token.into()).unwrap();
            });
            write_tokens(&mut written, tokens).unwrap();
            assert_eq!(written, want);
        }
    }

    #[test]
    fn salt_and_media_are_told_of_the_blocks_they_concern() {
        let extra = ExtraKeys::default().media("cat", 3..6).salt("s");
        let hashes = hashes();
        let KvEvent::BlockStored { parent, tokens, block_size, .. } = stored(&hashes) else {
            unreachable!()
        };
        let event = |index| KvEvent::BlockStored {
            hashes: &hashes,
            parent,
            tokens,
            block_size,
            extra: Some(&extra),
            index,
        };
        let first = payload(Dialect::Array, &event(0));
        // [[["cat", 3], "s"], [["cat", -1]]]
        assert!(first.contains("929292a363617403a1739192a3636174ff"), "{first}");
        assert!(payload(Dialect::Array, &event(7)).contains("92c0c000ae"));
        let mapped = payload(Dialect::Map, &event(0));
        assert!(mapped.contains("aa65787472615f6b657973929292a363617403"), "extra_keys: {mapped}");
    }

    #[test]
    fn salts_are_left_out_where_they_are_not_published() {
        let hashes = hashes();
        let written = |extra: &ExtraKeys, dialect, salts| {
            let KvEvent::BlockStored { parent, tokens, block_size, .. } = stored(&hashes) else {
                unreachable!()
            };
            let (hashes, extra) = (&hashes, Some(extra));
            let event =
                KvEvent::BlockStored { hashes, parent, tokens, block_size, extra, index: 0 };
            payload_with(dialect, &event, salts)
        };
        let none = ExtraKeys::default();
        for without in [none.clone().media("cat", 3..6), none.clone().lora("l", "/l"), none] {
            let salted = without.clone().salt("s");
            for dialect in [Dialect::Map, Dialect::Array] {
                let [plain, all] = [&without, &salted].map(|extra| written(extra, dialect, true));
                assert!(written(&salted, dialect, false) == plain && plain != all);
            }
        }
    }
}
