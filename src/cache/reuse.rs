//! Prefix reuse by a cache: the tokens whose hashes a sequence keeps, and the commits that publish its blocks.

pub(super) mod cached_sequence;
pub(super) mod commit;
pub(super) mod computed;
pub(super) mod hashed_tokens;
pub(super) mod prefix_view;
