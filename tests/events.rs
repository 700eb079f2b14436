//! Tests of events: a listener holds exactly the contents that a probe finds. The events of caches under
//! all kinds of use are replayed into a plain set, which refuses events that are out of order.

mod common;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;

use common::random::Random;
use paged_kv::{
    AdmitOptions, BlockHash, CachedSequence, EventSink, ExtraKeys, KvEvent, PagedKvCache,
    ReclaimPolicy, SeqId,
};

const BLOCK_SIZE: usize = 4;

/// The contents that a listener holds.
#[derive(Default)]
struct Heard {
    /// The parent and the tokens of each content.
    contents: HashMap<BlockHash, (Option<BlockHash>, Vec<u32>)>,
    children: HashMap<BlockHash, usize>,
    events: u64,
    stored: u64,
    removed: u64,
    cleared: u64,
}

impl Heard {
    fn hear(&mut self, event: &KvEvent<'_>) {
        self.events += 1;
        match *event {
            KvEvent::BlockStored { hashes, parent, tokens, block_size, .. } => {
                assert!(!hashes.is_empty(), "an event tells of something");
                let mut parent = parent;
                assert!(tokens.is_empty() || tokens.len() == hashes.len() * block_size);
                for (at, &hash) in hashes.iter().enumerate() {
                    if let Some(parent) = parent {
                        assert!(self.contents.contains_key(&parent), "parents come first");
                        *self.children.entry(parent).or_default() += 1;
                    }
                    let tokens = tokens.chunks(block_size).nth(at).unwrap_or_default().to_vec();
                    let before = self.contents.insert(hash, (parent, tokens));
                    assert!(before.is_none(), "{hash} was announced already");
                    parent = Some(hash);
                }
                self.stored += hashes.len() as u64;
            }
            KvEvent::BlockRemoved { hashes, .. } => {
                for hash in hashes {
                    let (parent, _) = self.contents.remove(hash).expect("announced before");
                    assert_eq!(self.children.get(hash).copied().unwrap_or(0), 0, "children first");
                    if let Some(parent) = parent {
                        *self.children.get_mut(&parent).unwrap() -= 1;
                    }
                }
                self.removed += hashes.len() as u64;
            }
            KvEvent::AllBlocksCleared => {
                self.contents.clear();
                self.children.clear();
                self.cleared += 1;
            }
            _ => unreachable!("no other events"),
        }
    }

    /// Returns the number of blocks at the beginning of a prompt that a listener would expect to hit.
    fn find(&self, hashes: &[BlockHash]) -> usize {
        hashes.iter().take_while(|hash| self.contents.contains_key(hash)).count()
    }
}

#[derive(Default)]
struct Listener(Mutex<Heard>);

impl Listener {
    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.0.lock().unwrap()
    }
}

impl EventSink for Listener {
    fn on_event(&self, event: &KvEvent<'_>) {
        self.heard().hear(event);
    }
}

fn cache_of(num_blocks: usize, policy: ReclaimPolicy) -> (PagedKvCache, Arc<Listener>) {
    let listener = Arc::new(Listener::default());
    let builder = PagedKvCache::builder().num_blocks(num_blocks).block_size(BLOCK_SIZE);
    let builder = builder.home_shards(4).reclaim_policy(policy);
    (builder.event_sink(listener.clone()).build().unwrap(), listener)
}

fn admit(cache: &PagedKvCache, tokens: &[u32]) -> Option<CachedSequence> {
    let prompt = cache.prompt(tokens);
    cache.admit_sequence(&prompt, &AdmitOptions::default()).ok().map(|(sequence, _)| sequence)
}

fn serve(cache: &PagedKvCache, tokens: &[u32]) -> CachedSequence {
    let mut sequence = admit(cache, tokens).expect("there is room");
    sequence.commit(tokens.len()).unwrap();
    sequence
}

fn tokens(from: u32, blocks: usize) -> Vec<u32> {
    (from..).take(blocks * BLOCK_SIZE).collect()
}

/// Returns a prompt of one of some families, which share beginnings and differ from some block on.
fn prompt_of(random: &mut Random, most: usize) -> Vec<u32> {
    let (family, branch, blocks) = (random.below(6), random.below(8), 1 + random.below(most));
    let token = |at: usize| {
        let of_branch = if at / BLOCK_SIZE < branch { 0 } else { 1 + branch };
        (family * 1_000_000 + of_branch * 10_000 + at) as u32
    };
    (0..blocks * BLOCK_SIZE + 1).map(token).collect()
}

/// Returns every prompt that `prompt_of` makes.
fn all_prompts(most: usize) -> Vec<Vec<u32>> {
    let mut prompts = Vec::new();
    for (family, branch) in (0..6).flat_map(|family| (0..8).map(move |branch| (family, branch))) {
        let token = |at: usize| {
            let of_branch = if at / BLOCK_SIZE < branch { 0 } else { 1 + branch };
            (family * 1_000_000 + of_branch * 10_000 + at) as u32
        };
        prompts.push((0..most * BLOCK_SIZE + 1).map(token).collect());
    }
    prompts
}

/// Asserts that a listener holds exactly the contents that some prompt would hit. (A listener that
/// panicked has poisoned its lock.)
fn assert_true(cache: &PagedKvCache, heard: &Heard, prompts: &[Vec<u32>]) {
    let mut reachable = std::collections::HashSet::new();
    for tokens in prompts {
        let prompt = cache.prompt(tokens);
        let hits = cache.prefix().probe(&prompt) / BLOCK_SIZE;
        assert_eq!(heard.find(prompt.hashes()), hits, "what is heard is what hits");
        for (hash, want) in prompt.hashes()[..hits].iter().zip(tokens.chunks(BLOCK_SIZE)) {
            assert_eq!(heard.contents[hash].1, want, "with its tokens");
            reachable.insert(*hash);
        }
    }
    assert_eq!(heard.contents.len(), reachable.len(), "and nothing else is");
}

#[test]
fn a_commit_is_one_event_with_its_tokens() {
    let (cache, listener) = cache_of(16, ReclaimPolicy::Lru);
    let first = serve(&cache, &tokens(0, 3));
    let heard = listener.heard();
    assert_eq!((heard.events, heard.stored), (1, 3));
    assert_true(&cache, &heard, &[tokens(0, 4)]);
    drop(heard);
    let _second = serve(&cache, &[tokens(0, 3), tokens(90, 2)].concat());
    let heard = listener.heard();
    assert_eq!((heard.events, heard.stored), (2, 5));
    let hashes = cache.prompt(&[tokens(0, 3), tokens(90, 1)].concat());
    assert_eq!(heard.contents[&hashes.hashes()[3]].0, Some(hashes.hashes()[2]));
    drop((heard, first));
}

#[test]
fn a_content_computed_twice_is_announced_once_and_removed_once() {
    let (cache, listener) = cache_of(8, ReclaimPolicy::Lru);
    let mut twins = [admit(&cache, &tokens(0, 2)).unwrap(), admit(&cache, &tokens(0, 2)).unwrap()];
    twins.iter_mut().for_each(|twin| {
        twin.commit(2 * BLOCK_SIZE).unwrap();
    });
    assert_eq!(listener.heard().stored, 2);
    drop(twins);
    drop(serve(&cache, &tokens(500, 8)));
    let heard = listener.heard();
    assert_eq!((heard.stored, heard.removed), (10, 2));
}

#[test]
fn generated_tokens_are_told_also_across_the_end_of_the_prompt() {
    let (cache, listener) = cache_of(8, ReclaimPolicy::Lru);
    let mut sequence = serve(&cache, &tokens(0, 1)[..3]);
    for token in 3..13 {
        drop(sequence.append(1).unwrap());
        sequence.commit(&[token]).unwrap();
    }
    assert_eq!(listener.heard().stored, 3);
    assert_true(&cache, &listener.heard(), &[tokens(0, 4)]);
}

#[test]
fn a_reset_clears_once_and_later_commits_of_before_are_not_heard() {
    let (cache, listener) = cache_of(16, ReclaimPolicy::Lru);
    let mut running = admit(&cache, &tokens(0, 4)).unwrap();
    running.commit(2 * BLOCK_SIZE).unwrap();
    cache.prefix().reset();
    running.commit(4 * BLOCK_SIZE).unwrap();
    drop(running);
    drop(serve(&cache, &tokens(500, 16))); // takes the old blocks
    let heard = listener.heard();
    assert_eq!((heard.cleared, heard.stored, heard.removed), (1, 2 + 16, 0));
}

#[test]
fn a_refused_admission_ends_nothing() {
    let (cache, listener) = cache_of(8, ReclaimPolicy::Lru);
    drop(serve(&cache, &tokens(0, 6)));
    assert!(admit(&cache, &tokens(500, 9)).is_none());
    assert_eq!(listener.heard().removed, 0);
    assert_true(&cache, &listener.heard(), &[tokens(0, 8)]);
}

#[test]
fn blocks_after_a_lost_block_are_hidden_until_its_return() {
    let (cache, listener) = cache_of(8, ReclaimPolicy::Lru);
    let mut streaming = serve(&cache, &tokens(0, 6));
    streaming.apply_streaming_llm(BLOCK_SIZE, BLOCK_SIZE).unwrap(); // keeps blocks 0 and 5
    let others = serve(&cache, &tokens(500, 4)); // two were free, two are reclaimed: 4 and 3
    let heard = listener.heard();
    assert_eq!((heard.stored, heard.removed), (10, 3), "block 5 goes with those before it");
    assert_true(&cache, &heard, &[tokens(0, 8), tokens(500, 8)]);
    drop((heard, others));
    let again = serve(&cache, &tokens(0, 5));
    let heard = listener.heard();
    assert_true(&cache, &heard, &[tokens(0, 8), tokens(500, 8)]);
    assert_eq!(
        cache.prefix().probe(&cache.prompt(&tokens(0, 8))),
        6 * BLOCK_SIZE,
        "block 5 was there all the time"
    );
    drop((heard, again));
}

#[test]
fn contents_of_other_adapters_and_tenants_say_so() {
    type Seen = Vec<(Option<ExtraKeys>, usize)>;
    #[derive(Default)]
    struct Extras(Mutex<Seen>);
    impl EventSink for Extras {
        fn on_event(&self, event: &KvEvent<'_>) {
            if let KvEvent::BlockStored { extra, index, .. } = *event {
                self.0.lock().unwrap().push((extra.cloned(), index));
            }
        }
    }
    let sink = Arc::new(Extras::default());
    let builder = PagedKvCache::builder().num_blocks(8).block_size(BLOCK_SIZE);
    let cache = builder.event_sink(sink.clone()).build().unwrap();
    let extra = ExtraKeys::default().lora("sql", "/sql").salt("tenant");
    let prompt = cache.prompt_with(&tokens(0, 2), &extra);
    let (mut salted, _) = cache.admit_sequence(&prompt, &AdmitOptions::default()).unwrap();
    salted.commit(BLOCK_SIZE).unwrap();
    salted.commit(2 * BLOCK_SIZE).unwrap();
    drop(serve(&cache, &tokens(0, 1)));
    let seen = sink.0.lock().unwrap();
    assert_eq!(*seen, [(Some(extra.clone()), 0), (Some(extra), 1), (None, 0)]);
}

#[test]
fn a_listener_that_lost_its_place_is_told_everything_again() {
    let (cache, listener) = cache_of(32, ReclaimPolicy::Lru);
    for from in [0, 500, 900] {
        drop(serve(&cache, &[tokens(0, 3), tokens(from, 4)].concat()));
    }
    let before = std::mem::take(&mut *listener.heard());
    cache.prefix().announce_all();
    let heard = listener.heard();
    assert_eq!(heard.cleared, 1);
    assert_eq!(heard.contents, before.contents);
}

/// Admits, commits, trims, forks, drops and resets from many threads.
fn interleave(num_blocks: usize, most: usize, policy: ReclaimPolicy, resets: bool, rounds: usize) {
    let (cache, listener) = cache_of(num_blocks, policy);
    thread::scope(|scope| {
        for number in 0..8 {
            let cache = &cache;
            scope.spawn(move || {
                let mut random = Random::new(number + 17);
                let mut held = Vec::new();
                for _ in 0..rounds {
                    let tokens = prompt_of(&mut random, most);
                    match admit(cache, &tokens) {
                        None => held.clear(),
                        Some(mut sequence) => {
                            sequence.commit(random.below(tokens.len() + 1)).unwrap();
                            if random.below(4) > 0 {
                                sequence.commit(tokens.len()).unwrap();
                            }
                            if random.below(8) == 0 {
                                sequence.apply_streaming_llm(BLOCK_SIZE, 2 * BLOCK_SIZE).unwrap();
                            }
                            held.push(sequence);
                        }
                    }
                    if let Some(sequence) = held.last_mut()
                        && random.below(8) == 0
                        && let Ok(fork) = sequence.fork()
                    {
                        held.push(fork);
                    }
                    if resets && random.below(200) == 0 {
                        cache.prefix().reset();
                    }
                    if resets && random.below(500) == 0 {
                        cache.prefix().announce_all();
                    }
                    while held.len() > random.below(4) {
                        drop(held.swap_remove(random.below(held.len())));
                    }
                }
            });
        }
    });
    assert_true(&cache, &listener.heard(), &all_prompts(most));
    assert_eq!(cache.used_block_count(), 0);
    cache.validate().unwrap();
    assert!(listener.heard().removed > 0, "contents came and went");
}

#[test]
fn the_emitted_contents_equal_the_hits_at_rest() {
    for policy in [ReclaimPolicy::Lru, ReclaimPolicy::TwoQueue, ReclaimPolicy::HitDensity] {
        for resets in [false, true] {
            interleave(40, 12, policy, resets, 3_000);
            interleave(400, 30, policy, resets, 1_000);
        }
    }
}

/// 16 threads publish and reclaim a million contents.
#[test]
fn a_million_blocks_come_and_go_and_none_is_lost() {
    let million = if cfg!(debug_assertions) { 100_000 } else { 1_000_000 };
    let (cache, listener) = cache_of(8_192, ReclaimPolicy::Lru);
    let next = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                while listener.heard().removed < million {
                    let content = next.fetch_add(1, Ordering::Relaxed) as u32;
                    drop(serve(&cache, &tokens(content * 1_000, 40)));
                }
            });
        }
    });
    let heard = listener.heard();
    let made = next.load(Ordering::Relaxed) as u32;
    assert_eq!(heard.stored, u64::from(made) * 40, "every content was new");
    assert_eq!(heard.stored - heard.removed, heard.contents.len() as u64);
    let prompts: Vec<_> = (0..made).map(|content| tokens(content * 1_000, 41)).collect();
    assert_true(&cache, &heard, &prompts);
    println!("{} stored, {} removed, {} events", heard.stored, heard.removed, heard.events);
}

#[track_caller]
fn assert_told(cache: &PagedKvCache, heard: &Heard, tokens: &[u32]) {
    let prompt = cache.prompt(tokens);
    for (hash, want) in prompt.hashes().iter().zip(tokens.chunks(BLOCK_SIZE)) {
        assert_eq!(heard.contents[hash].1, want);
    }
    assert_eq!(heard.contents.len(), tokens.len() / BLOCK_SIZE);
}

#[test]
fn a_sequence_that_began_without_tokens_tells_those_that_came() {
    let (cache, listener) = cache_of(16, ReclaimPolicy::Lru);
    let tokens = tokens(7, 2);
    cache.admit(SeqId(1), &[]).unwrap();
    for token in tokens.chunks(1) {
        let _ = cache.append_tokens(SeqId(1), token).unwrap();
    }
    assert_told(&cache, &listener.heard(), &tokens);
}

#[test]
fn a_step_tells_the_tokens_of_the_blocks_that_it_published() {
    let (cache, listener) = cache_of(16, ReclaimPolicy::Lru);
    let tokens = tokens(7, 4);
    let mut rows = [(serve(&cache, &tokens[..8]), 8)];
    assert_told(&cache, &listener.heard(), &tokens[..8]);
    let mut step = cache.step(Default::default());
    assert_eq!(step.grow(&mut rows).unwrap().grown_rows, 1);
    assert_eq!(step.accept(0, &mut rows[0].0, &tokens[8..]), Ok(2));
    assert_eq!(step.complete().published, 2);
    assert_told(&cache, &listener.heard(), &tokens);
}
