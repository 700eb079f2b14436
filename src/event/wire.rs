//! `WireFormat`: encodes events in MessagePack, byte for byte as vLLM does, in either of its dialects.
//!
//! Events name the group of layers, as vLLM's field `group_idx`, and its kind. Removals by position name it only where
//! it is not the usual one: a group 0 of full attention.
//!
//! Events name the medium of their blocks. Blocks in tiers are sent by their hashes: with no token and without a parent,
//! as vLLM sends offloaded blocks. vLLM gives these the block size 0; here they have that of the cache, so that no
//! consumer divides by 0.
//!
//! Block hashes are unsigned 64-bit integers in the 9-byte form, never 0. A payload is
//! `[time, [events], rank]`.

#[cfg(test)]
mod tests;

use std::ops::Range;

use rmp::Marker;
use rmp::encode::{
    ValueWriteError, write_array_len, write_f64, write_map_len, write_nil, write_sint, write_str,
    write_u64, write_uint,
};

use super::published_groups::PublishedGroups;
use super::published_media::PublishedMedia;
use crate::groups::LayerGroup;
use crate::id::{GroupId, Medium};
use crate::prefix::kv_event::KvEvent;
use crate::prefix::{BlockHash, ExtraKeys};

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
    pub(super) media: PublishedMedia,
    /// The number of this engine among several data-parallel engines.
    pub(super) rank: i32,
    /// True if salts are written.
    pub(super) salts: bool,
    /// `None` for those that consumers of the dialect can use.
    pub(super) groups: Option<PublishedGroups>,
}

/// An event to be encoded. It has a hash at least.
pub(super) enum WireEvent<'a> {
    Stored {
        hashes: &'a [BlockHash],
        parent: Option<BlockHash>,
        /// `block_size` tokens for each hash, or none.
        tokens: &'a [u32],
        block_size: usize,
        extra: Option<Extra<'a>>,
        group: WireGroup,
        medium: Medium,
    },
    Removed {
        hashes: &'a [BlockHash],
        group: WireGroup,
        medium: Medium,
    },
    Cleared,
}

/// A group of layers, and its kind.
#[derive(Clone, Copy)]
pub(super) struct WireGroup {
    pub(super) id: GroupId,
    pub(super) kind: LayerGroup,
}

impl WireGroup {
    /// Returns vLLM's name of the kind.
    fn name(self) -> &'static str {
        match self.kind {
            LayerGroup::Full { .. } => "full_attention",
            LayerGroup::SlidingWindow { .. } => "sliding_window",
            LayerGroup::Chunked { .. } => "chunked_local_attention",
            LayerGroup::State { .. } => "mamba",
            LayerGroup::SinkWindow { .. } => "sink_full_attention",
        }
    }

    fn window(self) -> Option<u64> {
        match self.kind {
            LayerGroup::SlidingWindow { window, .. } | LayerGroup::SinkWindow { window, .. } => {
                Some(window as u64)
            }
            LayerGroup::Full { .. } | LayerGroup::Chunked { .. } | LayerGroup::State { .. } => None,
        }
    }

    /// Returns true if a removal that names no group means this one.
    fn is_usual(self) -> bool {
        self.id == GroupId(0) && self.kind.is_full()
    }

    fn write_id(self, out: &mut Vec<u8>) -> Written {
        write_uint(out, self.id.0.into()).map(|_| ())
    }
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
    /// Returns true if the event is sent.
    pub(super) fn publishes(&self, event: &KvEvent<'_>) -> bool {
        self.media.contain(event) && self.published_groups().contain(event)
    }

    /// Returns the groups whose events are sent.
    fn published_groups(&self) -> PublishedGroups {
        self.groups.unwrap_or(match self.dialect {
            Dialect::Map => PublishedGroups::All,
            // Most consumers of arrays do not know groups.
            Dialect::Array => PublishedGroups::Full,
        })
    }

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
            WireEvent::Stored { hashes, parent, tokens, block_size, extra, group, medium } => {
                let optional = u32::from(extra.is_some()) + u32::from(group.window().is_some());
                write_map_len(out, 10 + optional)?;
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
                write_pair(out, "medium", self.media.name(medium))?;
                write_str(out, "lora_name")?;
                write_lora_name(out, extra)?;
                if let Some(extra) = extra {
                    write_str(out, "extra_keys")?;
                    out.extend_from_slice(extra.keys);
                }
                write_str(out, "group_idx")?;
                group.write_id(out)?;
                write_pair(out, "kv_cache_spec_kind", group.name())?;
                if let Some(window) = group.window() {
                    write_str(out, "kv_cache_spec_sliding_window")?;
                    write_uint(out, window)?;
                }
                Ok(())
            }
            WireEvent::Removed { hashes, group, medium } => {
                write_map_len(out, 4)?;
                write_pair(out, "type", "BlockRemoved")?;
                write_str(out, "block_hashes")?;
                write_hashes(out, hashes)?;
                write_pair(out, "medium", self.media.name(medium))?;
                write_str(out, "group_idx")?;
                group.write_id(out)
            }
            WireEvent::Cleared => {
                write_map_len(out, 1)?;
                write_pair(out, "type", "AllBlocksCleared")
            }
        }
    }

    fn write_array(&self, event: &WireEvent<'_>, out: &mut Vec<u8>) -> Written {
        match *event {
            WireEvent::Stored { hashes, parent, tokens, block_size, extra, group, medium } => {
                write_array_len(out, 12)?;
                write_str(out, "BlockStored")?;
                write_hashes(out, hashes)?;
                write_parent(out, parent)?;
                write_tokens(out, tokens)?;
                write_uint(out, block_size as u64)?;
                write_nil_of(out)?;
                write_str(out, self.media.name(medium))?;
                write_lora_name(out, extra)?;
                match extra {
                    Some(extra) => out.extend_from_slice(extra.keys),
                    None => write_nil_of(out)?,
                }
                group.write_id(out)?;
                write_str(out, group.name())?;
                match group.window() {
                    Some(window) => write_uint(out, window).map(|_| ()),
                    None => write_nil_of(out),
                }
            }
            WireEvent::Removed { hashes, group, medium } => {
                write_array_len(out, 4)?;
                write_str(out, "BlockRemoved")?;
                write_hashes(out, hashes)?;
                write_str(out, self.media.name(medium))?;
                match group.is_usual() {
                    true => write_nil_of(out),
                    false => group.write_id(out),
                }
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
