//! `BlockHash` as text for serde: 32 hex digits, in every format.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, Unexpected, Visitor};
use serde::ser::{Serialize, Serializer};

use super::BlockHash;

impl Serialize for BlockHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for BlockHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(HexDigits)
    }
}

struct HexDigits;

impl Visitor<'_> for HexDigits {
    type Value = BlockHash;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("32 hex digits")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<BlockHash, E> {
        // `from_str_radix` takes a sign, too.
        let is_hash = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let bits = is_hash.then(|| u128::from_str_radix(text, 16).ok()).flatten();
        let refusal = || E::invalid_value(Unexpected::Str(text), &self);
        bits.map(BlockHash::from_u128).ok_or_else(refusal)
    }
}
