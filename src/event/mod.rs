//! Events: report the cached contents to routers.
//!
//! [`EventSink`] takes the events of a cache ([`PagedKvCacheBuilder::event_sink`]). `prefix::event_order` defines their
//! meaning and their order.
//!
//! With the feature `events`, `EventPublisher` is a sink that publishes to routers over ZeroMQ, as vLLM does.
//! NVIDIA Dynamo, llm-d and AIBrix subscribe to that.
//!
//! ```text
//!   event order ──> notes ──> batches, in a ring ──wire──> sockets: each batch to all subscribers
//!                                                   └──>          replays, on request
//!   └─ threads that use a cache ─┘               └───── the publisher's thread ──────┘
//! ```
//!
//! [`PagedKvCacheBuilder::event_sink`]: crate::PagedKvCacheBuilder::event_sink

#[cfg(feature = "events")]
mod batches;
#[cfg(feature = "events")]
mod notes;
#[cfg(feature = "events")]
mod published_groups;
#[cfg(feature = "events")]
mod published_media;
#[cfg(feature = "events")]
mod publisher;
#[cfg(feature = "events")]
mod ring;
#[cfg(all(test, feature = "events"))]
mod samples;
#[cfg(feature = "events")]
mod sockets;
#[cfg(feature = "events")]
mod wire;

#[cfg(feature = "events")]
pub use self::published_groups::PublishedGroups;
#[cfg(feature = "events")]
pub use self::publisher::options::PublisherOptions;
#[cfg(feature = "events")]
pub use self::publisher::{EventPublisher, PublisherStats};
#[cfg(feature = "events")]
pub use self::wire::Dialect;
pub use crate::prefix::kv_event::{EventSink, KvEvent};
