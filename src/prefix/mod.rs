//! Prefix reuse: the hash of a block's content, the index that finds it, and the contents that can be
//! matched.

pub(crate) mod announced_tree;
mod cbor;
pub(crate) mod event_order;
mod extra_keys;
mod generation;
mod hash;
mod hasher;
mod index;
pub(crate) mod kv_event;
pub(crate) mod overwrites;
mod registry;

pub use self::extra_keys::ExtraKeys;
pub(crate) use self::generation::Generation;
pub use self::hash::{BlockHash, HashAlgorithm};
pub use self::hasher::BlockHasher;
pub use self::overwrites::Overwritten;
pub(crate) use self::registry::EventContext;
pub(crate) use self::registry::{
    Below, GroupHits, PublishRequest, PublishedBlocks, Sought, TO_LOAD,
};
