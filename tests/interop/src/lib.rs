//! Do routers that others wrote understand what paged-kv publishes? See `tests/dynamo.rs`.
