//! Prefix reuse: the hash of a block's content, the index that finds it, and the contents that can be
//! matched.

mod extra_keys;
mod generation;
mod hash;
mod index;
mod published;

pub use self::extra_keys::ExtraKeys;
pub(crate) use self::generation::Generation;
pub use self::hash::{BlockHash, BlockHasher, HashAlgorithm};
pub(crate) use self::published::Told;
pub(crate) use self::published::{Offer, PublishedBlocks};
