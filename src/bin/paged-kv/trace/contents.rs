//! `Contents`: numbers the contents of a trace. A content is a hash id together with all ids before it.
//!
//! Two contents have equal numbers exactly if their chains of ids are equal: chains are compared, not
//! hashed.

use std::collections::HashMap;

use anyhow::{Result, bail};
use paged_kv::BlockHash;

/// One content of a trace: an id and all ids before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Content(u32);

/// The contents that a trace has named so far.
#[derive(Default)]
pub struct Contents {
    known: HashMap<(Option<Content>, u64), Content>,
}

impl Content {
    /// The most contents of a trace. Their tokens are smaller than those of requests.
    const MOST: u32 = 1 << 31;

    /// Returns the hash of a block of the request that arrived at this place, which no other request shares.
    pub fn own_hash(arrival: usize, block: usize) -> BlockHash {
        BlockHash::from_u128(1 << 127 | (arrival as u128) << 64 | block as u128)
    }

    /// Returns the token at positions of the request that arrived at this place which no id names. No content
    /// has it, and no other of 2^31 requests.
    pub fn own_token(arrival: usize) -> u32 {
        Self::MOST | (arrival % Self::MOST as usize) as u32
    }

    /// Returns the hash of block `part` of this content.
    pub fn hash(self, part: usize) -> BlockHash {
        BlockHash::from_u128(u128::from(self.0) << 64 | part as u128)
    }

    /// Returns the token that each position of this content holds. Two prompts of such tokens are
    /// equal up to a position exactly if their ids are.
    pub fn token(self) -> u32 {
        self.0
    }
}

impl Contents {
    /// Returns the contents of a prompt with these ids.
    ///
    /// # Errors
    /// The trace names 2^31 contents already, or the machine has no memory for another one.
    pub fn chain(&mut self, ids: &[u64]) -> Result<Box<[Content]>> {
        self.known.try_reserve(ids.len())?;
        let mut before = None;
        let mut chain = Vec::new();
        chain.try_reserve_exact(ids.len())?;
        for &id in ids {
            let next = u32::try_from(self.known.len()).unwrap_or(Content::MOST);
            if next == Content::MOST {
                bail!("the trace names {} contents already, as many as can be told apart", next);
            }
            let content = *self.known.entry((before, id)).or_insert(Content(next));
            before = Some(content);
            chain.push(content);
        }
        Ok(chain.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_content_is_an_id_after_the_ids_before_it() {
        let mut contents = Contents::default();
        let mut chain = |ids: &[u64]| contents.chain(ids).unwrap();
        let first = chain(&[1, 2, 3]);
        assert_eq!(chain(&[1, 2, 3]), first);
        assert_eq!(chain(&[1, 2, 4])[..2], first[..2]);
        assert_ne!(chain(&[1, 2, 4])[2], first[2]);
        let turned = chain(&[3, 2, 1]);
        assert!(turned.iter().all(|content| !first.contains(content)));
        assert!(!first.contains(&chain(&[2, 3])[0]), "an id in another place is another content");
    }

    #[test]
    fn a_request_has_contents_of_its_own() {
        let mut contents = Contents::default();
        let shared = contents.chain(&[1]).unwrap()[0];
        assert_ne!(Content::own_token(0), Content::own_token(1));
        assert_ne!(Content::own_token(0), shared.token());
        let hashes = [(0, 0), (0, 1), (1, 0)].map(|(arrival, at)| Content::own_hash(arrival, at));
        assert!(!hashes.contains(&shared.hash(0)));
        assert_eq!(std::collections::HashSet::from(hashes).len(), 3);
    }

    #[test]
    fn ids_keep_all_their_bits() {
        let mut contents = Contents::default();
        let bits = (0..64).map(|bit| contents.chain(&[1 << bit]).unwrap()[0]);
        let bits: std::collections::HashSet<_> = bits.collect();
        assert_eq!(bits.len(), 64);
    }
}
