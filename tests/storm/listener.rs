//! `Listener`: an event sink that panics at some events, and holds the reported contents.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use paged_kv::{BlockHash, EventSink, KvEvent, PagedKvCache};

use super::BLOCK_SIZE;
use super::shadow::Script;

/// The payload of intended panics.
pub struct OnPurpose;

#[derive(Default)]
pub struct Listener {
    held: Mutex<HashMap<BlockHash, Option<BlockHash>>>,
    calls: AtomicU64,
}

impl EventSink for Listener {
    fn on_event(&self, event: &KvEvent<'_>) {
        if self.calls.fetch_add(1, Ordering::Relaxed) % 97 == 96 {
            std::panic::panic_any(OnPurpose);
        }
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        match *event {
            KvEvent::BlockStored { hashes, mut parent, tokens, block_size, .. } => {
                assert_eq!(tokens.len(), hashes.len() * block_size);
                for &hash in hashes {
                    assert!(
                        parent.is_none_or(|parent| held.contains_key(&parent)),
                        "parents first"
                    );
                    assert_eq!(held.insert(hash, parent), None, "stored twice");
                    parent = Some(hash);
                }
            }
            KvEvent::BlockRemoved { hashes, .. } => {
                for hash in hashes {
                    assert!(held.remove(hash).is_some(), "removed without having been stored");
                }
            }
            KvEvent::AllBlocksCleared => held.clear(),
            _ => unreachable!("no other events"),
        }
    }
}

impl Listener {
    pub fn assert_holds_the_cached_contents(&self, cache: &PagedKvCache) {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        for script in Script::all() {
            let prompt = cache.prompt(&script.tokens(0..20 * BLOCK_SIZE));
            let told = prompt.hashes().iter().take_while(|hash| held.contains_key(hash)).count();
            let cached = cache.prefix().probe(&prompt) / BLOCK_SIZE;
            assert_eq!(told.min(19), cached, "{script:?}");
        }
    }
}
