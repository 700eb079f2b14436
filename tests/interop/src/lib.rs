//! Interoperability tests: routers of other projects read the events of paged-kv. See `tests/dynamo.rs`.
