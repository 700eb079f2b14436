//! `ExtraKeys`: a request's adapter, media and tenant, hashed into its blocks in vLLM's format.

use std::ops::Range;

use super::cbor::Cbor;

/// Inputs other than tokens on which keys and values depend. They are part of every hash.
///
/// ```
/// use paged_kv::{ExtraKeys, PagedKvCache};
///
/// let cache = PagedKvCache::new(8, 4, 1, 1);
/// let plain = cache.prompt(&[7; 4]);
/// let adapted = cache.prompt_with(&[7; 4], &ExtraKeys::default().lora("sql", "/lora/sql"));
/// assert_ne!(plain.hashes(), adapted.hashes());
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct ExtraKeys {
    lora: Option<(String, String)>,
    media: Vec<(String, Range<usize>)>,
    salt: Option<String>,
}

impl ExtraKeys {
    /// Adds a LoRA adapter: part of every block.
    ///
    /// ```
    /// use paged_kv::ExtraKeys;
    ///
    /// assert_ne!(ExtraKeys::default().lora("sql", "/lora/sql"), ExtraKeys::default());
    /// ```
    pub fn lora(self, name: impl Into<String>, path: impl Into<String>) -> Self {
        Self { lora: Some((name.into(), path.into())), ..self }
    }

    /// Adds an image or another medium, whose placeholder tokens are at these positions. It is part of every
    /// block that holds some of them, together with its start, counted from the block's first token.
    ///
    /// ```
    /// use paged_kv::{ExtraKeys, PagedKvCache};
    ///
    /// let cache = PagedKvCache::new(8, 4, 1, 1);
    /// let seen = cache.prompt_with(&[7; 12], &ExtraKeys::default().media("cat", 4..8));
    /// assert_eq!(seen.hashes()[0], cache.prompt(&[7; 12]).hashes()[0]);
    /// assert_ne!(seen.hashes()[1], cache.prompt(&[7; 12]).hashes()[1]);
    /// ```
    pub fn media(mut self, identifier: impl Into<String>, positions: Range<usize>) -> Self {
        self.media.push((identifier.into(), positions));
        self.media.sort_by_key(|(_, positions)| positions.start);
        self
    }

    /// Adds a salt, which isolates hashes: a prompt never matches blocks of another salt, or of none. The
    /// salt is part of the first block's hash, and by the chain of all hashes.
    ///
    /// ```
    /// use paged_kv::ExtraKeys;
    ///
    /// assert_ne!(ExtraKeys::default().salt("a"), ExtraKeys::default().salt("b"));
    /// ```
    pub fn salt(self, salt: impl Into<String>) -> Self {
        Self { salt: Some(salt.into()), ..self }
    }

    /// Returns the name of the LoRA adapter.
    #[cfg(feature = "events")]
    pub(crate) fn lora_name(&self) -> Option<&str> {
        self.lora.as_ref().map(|(name, _)| &**name)
    }

    #[cfg(feature = "events")]
    pub(crate) fn salt_text(&self) -> Option<&str> {
        self.salt.as_deref()
    }

    /// Returns the media in the block of these positions, each with its start relative to the block.
    #[cfg(feature = "events")]
    pub(crate) fn media_in(&self, block: &Range<usize>) -> impl Iterator<Item = (&str, i64)> {
        let media = self.media.iter().filter(move |(_, positions)| overlap(positions, block));
        media.map(|(name, positions)| (&**name, positions.start as i64 - block.start as i64))
    }

    /// Appends to `out` the canonical CBOR of the keys that concern the block of these positions, in vLLM's
    /// order. It is null if none does.
    #[inline]
    pub(super) fn encode(&self, block: &Range<usize>, out: &mut Cbor) {
        if self.concern(block) {
            self.encode_entries(block, out);
        } else {
            out.null();
        }
    }

    fn encode_entries(&self, block: &Range<usize>, out: &mut Cbor) {
        let media = || self.media.iter().filter(|(_, positions)| overlap(positions, block));
        let salt = self.salt.as_ref().filter(|_| block.start == 0);
        let entries =
            usize::from(self.lora.is_some()) + media().count() + usize::from(salt.is_some());
        out.array(entries);
        if let Some((name, path)) = &self.lora {
            out.array(3).text("lora").text(name).text(path);
        }
        for (identifier, positions) in media() {
            let start = positions.start as i64 - block.start as i64;
            out.array(3).text("mm").text(identifier).integer(start);
        }
        if let Some(salt) = salt {
            out.array(2).text("cache_salt").text(salt);
        }
    }

    /// Returns true if some of the keys are part of the block of these positions.
    #[inline]
    pub(crate) fn concern(&self, block: &Range<usize>) -> bool {
        self.lora.is_some()
            || self.salt.is_some() && block.start == 0
            || self.media.iter().any(|(_, positions)| overlap(positions, block))
    }
}

fn overlap(positions: &Range<usize>, block: &Range<usize>) -> bool {
    !positions.is_empty() && positions.start < block.end && block.start < positions.end
}
