//! Models of events: the state of a listener is true, however publishing, reclaiming and resets
//! interleave.

mod common;

use std::collections::HashSet;
use std::sync::Arc;

use common::{explore, race};
use loom::sync::Mutex;
use paged_kv::{
    AdmitOptions, BlockHash, CachedSequence, EventSink, HashAlgorithm, KvEvent, PagedKvCache,
    Prompt,
};

/// Contents: blocks of this one token at the beginning of a prompt.
const A: u32 = 0xa;
const B: u32 = 0xb;

/// The contents that the listener holds, each once. Other changes may happen between a change and its
/// event, because loom schedules the lock.
struct Listener(Mutex<HashSet<BlockHash>>);

impl EventSink for Listener {
    fn on_event(&self, event: &KvEvent<'_>) {
        let mut held = self.0.lock().unwrap();
        for &hash in event.hashes() {
            match event {
                KvEvent::BlockStored { .. } => assert!(held.insert(hash), "announced once"),
                _ => assert!(held.remove(&hash), "announced before it was removed"),
            }
        }
        if *event == KvEvent::AllBlocksCleared {
            held.clear();
        }
    }
}

/// Creates a cache of blocks of one token, and its listener.
fn listening(num_blocks: usize) -> (Arc<PagedKvCache>, Arc<Listener>) {
    let listener = Arc::new(Listener(Mutex::new(HashSet::new())));
    let builder = PagedKvCache::builder().num_blocks(num_blocks).block_size(1).home_shards(1);
    let builder = builder.hash_algorithm(HashAlgorithm::Xxh3 { seed: 7 });
    let cache = builder.event_sink(listener.clone()).build().expect("a cache of that shape");
    (Arc::new(cache), listener)
}

/// Returns a prompt that begins with a content. Its last token is always computed.
fn prompt(cache: &PagedKvCache, content: u32) -> Prompt {
    cache.prompt(&[content, 0])
}

/// Matches the first block of a prompt, or takes a new block for it. True if it was cached.
fn admit(cache: &PagedKvCache, prompt: &Prompt) -> Option<(CachedSequence, bool)> {
    let options = AdmitOptions::default().first_chunk(0);
    let (mut sequence, admission) = cache.admit_sequence(prompt, &options).ok()?;
    let is_cached = admission.cached_tokens > 0;
    if !is_cached {
        _ = sequence.append(1).ok()?;
    }
    Some((sequence, is_cached))
}

/// Admits, publishes and releases.
fn serve(cache: &PagedKvCache, content: u32) {
    if let Some((mut sequence, false)) = admit(cache, &prompt(cache, content)) {
        sequence.commit(1).expect("it has a token");
    }
}

fn assert_true(cache: &PagedKvCache, listener: &Listener) {
    let held = listener.0.lock().unwrap();
    for content in [A, B] {
        let prompt = prompt(cache, content);
        let is_held = held.contains(&prompt.hashes()[0]);
        assert_eq!(cache.prefix().probe(&prompt), usize::from(is_held), "{content:x}");
    }
}

#[test]
fn a_removal_does_not_overtake_its_announcement() {
    explore(|| {
        let (cache, listener) = listening(1);
        serve(&cache, A);
        let theirs = Arc::clone(&cache);
        race(|| serve(&cache, B), move || serve(&theirs, A));
        assert_true(&cache, &listener);
    });
}

#[test]
fn a_content_that_moves_while_it_is_reclaimed_stays_announced() {
    explore(|| {
        let (cache, listener) = listening(2);
        let (mut copy, _) = admit(&cache, &prompt(&cache, A)).unwrap();
        serve(&cache, A); // idle, while another copy is being computed
        let theirs = Arc::clone(&cache);
        race(
            || {
                copy.commit(1).unwrap();
                drop(copy);
            },
            move || serve(&theirs, B),
        );
        assert_true(&cache, &listener);
    });
}

#[test]
fn resets_and_publications_are_emitted_in_order() {
    explore(|| {
        let (cache, listener) = listening(2);
        let theirs = Arc::clone(&cache);
        race(|| serve(&cache, A), move || theirs.prefix().reset());
        assert_true(&cache, &listener);
    });
}

/// Two threads reclaim the primary copy of a content and its other copy: the content is removed with the
/// last of them.
#[test]
fn a_content_is_removed_with_the_last_of_its_copies() {
    explore(|| {
        let (cache, listener) = listening(2);
        let [mut home, mut copy] = [(); 2].map(|()| admit(&cache, &prompt(&cache, A)).unwrap().0);
        assert_eq!((home.commit(1), copy.commit(1)), (Ok(1), Ok(0)));
        drop((home, copy));
        let theirs = Arc::clone(&cache);
        race(
            // The listener may be informed a little later, by the other thread.
            || drop(cache.pool().allocate(1).unwrap()),
            move || serve(&theirs, B),
        );
        assert_true(&cache, &listener);
    });
}

/// A request that knows only the hash publishes a content. A request that knows the tokens matches it
/// immediately.
#[test]
fn a_match_recognizes_a_content_not_yet_emitted() {
    explore(|| {
        let (cache, listener) = listening(2);
        let hash: BlockHash = prompt(&cache, A).hashes()[0];
        let (mut hashed, _) = admit(&cache, &Prompt::from_hashes(&[hash], 2)).unwrap();
        let theirs = Arc::clone(&cache);
        race(
            || {
                hashed.commit(1).unwrap();
            },
            move || serve(&theirs, A),
        );
        drop(hashed);
        assert_true(&cache, &listener);
    });
}
