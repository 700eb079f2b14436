//! What must a kernel be told about a batch?
//!
//! Three answers, each written into buffers the caller gives:
//! - a **block table** ([`block_tables()`]): one padded row of block ids a sequence, as vLLM and
//!   FlashAttention read it;
//! - a **CSR triple** ([`csr()`]): `indptr`, `indices`, `last_page_len`, as FlashInfer reads it;
//! - a **slot mapping** ([`slot_mapping`], [`slots()`]): where the KV of each token goes.
//!
//! Each has a function over a batch of handles and a builder that takes one [`&Sequence`] at a
//! time, for whoever reaches its sequences one by one, as the cache does by id. Numbers are
//! written as `i32`, `u32` or `i64` ([`KernelInt`]), and a trimmed sequence shows its gaps or
//! closes them ([`Gaps`]).
//!
//! Invariant: everything is checked before the first cell is written, so a refused call (or, for
//! a builder, a refused `push`) leaves the buffers as they were. (Over ids and leases, where rows
//! are reached one by one, the rows before the refused one are written.) Nothing allocates and nothing
//! locks: a [`&Sequence`] holds still while it is borrowed.
//!
//! It does not know devices, models or streams, nor whether the sequences of a batch come from
//! one pool.
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
pub use gaps::Gaps;
pub use kernel_int::KernelInt;
pub(crate) use kernel_int::block_number;
pub use slots::{SlotMapping, slot_mapping, slots};
