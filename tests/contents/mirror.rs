//! `Mirror`: an event sink that replays the events of a cache into a plain set. It refuses events that
//! are out of order or without tokens.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard};

use paged_kv::{BlockHash, EventSink, KvEvent};

/// The contents that the mirror holds, and how many events of each kind it got.
#[derive(Debug, Default)]
pub struct Held {
    /// The parent and the tokens of each content.
    pub contents: HashMap<BlockHash, (Option<BlockHash>, Vec<u32>)>,
    pub stored: usize,
    pub removed: usize,
    pub cleared: usize,
}

impl Held {
    fn hear(&mut self, event: &KvEvent<'_>) {
        match *event {
            KvEvent::BlockStored { hashes, parent, tokens, block_size, .. } => {
                assert_eq!(tokens.len(), hashes.len() * block_size, "tokens are always told");
                let mut parent = parent;
                for (&hash, tokens) in hashes.iter().zip(tokens.chunks(block_size)) {
                    let has_parent = parent.is_none_or(|hash| self.contents.contains_key(&hash));
                    assert!(has_parent, "{hash} comes after its parent");
                    let before = self.contents.insert(hash, (parent, tokens.to_vec()));
                    assert!(before.is_none(), "{hash} is told once");
                    parent = Some(hash);
                }
                self.stored += hashes.len();
            }
            KvEvent::BlockRemoved { hashes, .. } => {
                for hash in hashes {
                    assert!(self.contents.remove(hash).is_some(), "{hash} was told before");
                    let is_child = |(parent, _): &(_, _)| *parent == Some(*hash);
                    assert!(!self.contents.values().any(is_child), "children go first");
                }
                self.removed += hashes.len();
            }
            KvEvent::AllBlocksCleared => {
                self.contents.clear();
                self.cleared += 1;
            }
            _ => unreachable!("no other events"),
        }
    }

    /// Returns how many contents were reported as stored so far, and how many as removed.
    pub fn counts(&self) -> (usize, usize) {
        (self.stored, self.removed)
    }

    pub fn len_and_cleared(&self) -> (usize, usize) {
        (self.contents.len(), self.cleared)
    }

    pub fn hashes(&self) -> HashSet<BlockHash> {
        self.contents.keys().copied().collect()
    }
}

#[derive(Debug, Default)]
pub struct Mirror(Mutex<Held>);

impl Mirror {
    pub fn held(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap()
    }
}

impl EventSink for Mirror {
    fn on_event(&self, event: &KvEvent<'_>) {
        self.held().hear(event);
    }
}
