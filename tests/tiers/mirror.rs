//! `Mirror`: an event sink that keeps the contents of each medium apart, as a consumer of events does. It notes events
//! that no consumer can apply.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use paged_kv::{BlockHash, EventSink, KvEvent, Medium, PagedKvCache, Prompt, Tier};

use crate::BLOCK_SIZE;

/// The most events that are kept.
const MOST_EVENTS: usize = 1_000;

/// The contents that a consumer holds, by the number of their medium and group.
#[derive(Debug, Default)]
pub struct Held {
    contents: BTreeMap<(usize, u8), BTreeSet<BlockHash>>,
    /// The first events: the kind of each, its medium, and its hashes.
    pub events: Vec<(&'static str, Option<Medium>, Vec<BlockHash>)>,
    pub faults: Vec<String>,
}

#[derive(Debug, Default)]
pub struct Mirror(Mutex<Held>);

fn number_of(medium: Medium) -> usize {
    [Medium::Device, Medium::Host, Medium::Disk].iter().position(|&of| of == medium).unwrap()
}

impl Held {
    /// Returns the contents of a medium, of the first group.
    pub fn of(&self, medium: Medium) -> BTreeSet<BlockHash> {
        self.of_group(medium, 0)
    }

    pub fn of_group(&self, medium: Medium, group: u8) -> BTreeSet<BlockHash> {
        self.contents.get(&(number_of(medium), group)).cloned().unwrap_or_default()
    }

    fn take(&mut self, event: &KvEvent<'_>) {
        let mut faults = Vec::new();
        let mut fault = |rule: &str| faults.push(format!("{rule}: {event:?}"));
        let of_medium = event.medium().zip(event.group()).map(|(medium, (group, _))| {
            self.contents.entry((number_of(medium), group.0)).or_default()
        });
        let kind = match *event {
            KvEvent::BlockStored { hashes, parent, tokens, block_size, medium, .. } => {
                let held = of_medium.expect("stored blocks have a medium");
                let on_device = medium == Medium::Device;
                if !on_device && (parent.is_some() || !tokens.is_empty()) {
                    fault("a tier has hashes only");
                }
                if on_device && tokens.len() != hashes.len() * block_size {
                    fault("the device has all tokens");
                }
                if parent.is_some_and(|parent| !held.contains(&parent)) {
                    fault("a parent comes first");
                }
                if block_size != BLOCK_SIZE || !hashes.iter().all(|&hash| held.insert(hash)) {
                    fault("a content is stored once");
                }
                "stored"
            }
            KvEvent::BlockRemoved { hashes, .. } => {
                let held = of_medium.expect("removed blocks have a medium");
                if !hashes.iter().all(|hash| held.remove(hash)) {
                    fault("a content was stored before");
                }
                "removed"
            }
            KvEvent::AllBlocksCleared => {
                self.contents.clear();
                "cleared"
            }
            _ => "unknown",
        };
        self.faults.extend(faults);
        if self.events.len() < MOST_EVENTS {
            self.events.push((kind, event.medium(), event.hashes().to_vec()));
        }
    }
}

impl EventSink for Mirror {
    fn on_event(&self, event: &KvEvent<'_>) {
        self.held().take(event);
    }
}

impl Mirror {
    /// Builds a cache of one home shard, and its mirror.
    pub fn cache_of(num_blocks: usize, tiers: &[Tier]) -> (PagedKvCache, Arc<Self>) {
        let mirror = Arc::<Self>::default();
        let builder = PagedKvCache::builder().num_blocks(num_blocks).block_size(BLOCK_SIZE);
        let builder = tiers.iter().fold(builder, |builder, &tier| builder.tier(tier));
        (builder.event_sink(mirror.clone()).build().expect("the tiers make sense"), mirror)
    }

    pub fn held(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Returns the events since the last call.
    pub fn events(&self) -> Vec<(&'static str, Option<Medium>, Vec<BlockHash>)> {
        std::mem::take(&mut self.held().events)
    }

    /// Checks that the device's contents are those that the cache finds. `prompts` have all contents.
    #[track_caller]
    pub fn assert_device(&self, cache: &PagedKvCache, prompts: &[Prompt]) {
        let held = self.held();
        assert!(held.faults.is_empty(), "{:?}", held.faults);
        let mut found = BTreeSet::new();
        for prompt in prompts {
            let hits = cache.prefix().probe(prompt) / BLOCK_SIZE;
            found.extend(&prompt.hashes()[..hits]);
        }
        assert_eq!(held.of(Medium::Device), found);
    }

    /// Checks that the contents of a medium below the device are these.
    #[track_caller]
    pub fn assert_tier(&self, medium: Medium, contents: &BTreeSet<BlockHash>) {
        assert_eq!(self.held().of(medium), *contents, "{medium}");
    }
}
