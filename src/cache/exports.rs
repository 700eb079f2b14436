//! What does a kernel need to know of these requests? The exports, over ids of the cache.
