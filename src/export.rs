//! Exports: the block tables and slot mappings that a kernel needs for a batch.
//!
//! There are three, each written into the caller's buffers:
//! - a **block table** ([`block_tables()`]): one padded row of block ids a sequence, as vLLM and
//!   FlashAttention read it;
//! - a **CSR triple** ([`csr()`]): `indptr`, `indices`, `last_page_len`, as FlashInfer reads it;
//! - a **slot mapping** ([`slot_mapping`], [`slots()`]): the slot of each token's keys and values.
//!
//! Each has a function for a batch of handles, and a builder that takes one [`&Sequence`] at a time. The
//! builder is for callers that reach their sequences one by one, as the cache does by id. Numbers are written
//! as `i32`, `u32` or `i64` ([`KernelInt`]). A trimmed sequence shows its gaps or closes them ([`Gaps`]).
//!
//! Invariant: everything is checked before the first cell is written. So a refused call, or a refused `push` of
//! a builder, leaves the buffers unchanged. (Over ids and leases, where rows are reached one by one, the rows
//! before the refused row are written.) Nothing allocates and nothing locks: a [`&Sequence`] does not change
//! while it is borrowed.
//!
//! All rows of an export must be of one cache.
//!
//! [`&Sequence`]: crate::sequence::Sequence

mod block_tables;
mod csr;
mod gaps;
mod kernel_int;
mod one_cache;
mod slot_runs;
mod slots;
#[cfg(test)]
mod tests;

pub use block_tables::{BlockTables, TableShape, block_tables};
pub use csr::{Csr, CsrBuffers, csr};
pub use gaps::{Gaps, GroupGaps};
pub use kernel_int::KernelInt;
pub(crate) use kernel_int::{block_number, fit};
pub use slots::{SlotMapping, slot_mapping, slots};
