//! A server of a language model on the blocks of `paged-kv`: several workers share one cache and one model.
//!
//! ```text
//!   http ── Sample ──> Queue ──> Worker (several) ── tokens ──> http
//!                        ^          │
//!                        └ preempt ─┘
//! ```
//!
//! | module | holds |
//! |---|---|
//! | [`worker`] | a scheduler: continuous batching in steps, chunks of prompts, drafts, samples by fork, preemption |
//! | [`queue`], [`job`] | samples that wait; requests and their events |
//! | [`conversations`] | hashed prompts that the next turn of a conversation extends |
//! | [`http`], [`connections`], [`answer_text`] | OpenAI's interface, limits of clients, texts up to a stop text |
//! | [`picture`], [`metrics`] | the live page and the figures |
//! | [`loaded`], [`text`], [`sampling`], [`model_file`] | the model, its texts, its tokens, its file |
//! | [`server`], [`shared`] | the parts together |
//! | [`client`] | a client for tests and load |
#![forbid(unsafe_code)]

pub mod answer_text;
pub mod client;
pub mod connections;
pub mod conversations;
pub mod http;
pub mod job;
pub mod loaded;
pub mod metrics;
pub mod model_file;
pub mod picture;
pub mod queue;
pub mod sampling;
pub mod server;
pub mod shared;
pub mod text;
pub mod worker;
