//! What names a block's content, and where is it? Hashes, the index, and what is published.

mod extra_keys;
mod generation;
mod hash;
mod index;
#[cfg(paged_kv_loom)]
pub mod model;
mod published;

pub use self::extra_keys::ExtraKeys;
#[cfg(not(paged_kv_loom))]
pub(crate) use self::generation::Generation;
pub use self::hash::{BlockHash, BlockHasher, HashAlgorithm};
pub(crate) use self::published::Told;
#[cfg(not(paged_kv_loom))]
pub(crate) use self::published::{Offer, PublishedBlocks};
