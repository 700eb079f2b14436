//! Tests of events of caches with groups of layers: at each moment a listener that keeps the contents of each group
//! apart can compute the hits that a probe finds. The listener refuses events that are out of order.

mod common;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;

use common::random::Random;
use paged_kv::{
    AdmitOptions, BlockHash, CachedSequence, EventSink, GroupId, KvEvent, LayerGroup, Overwritten,
    PagedKvCache, Prompt,
};

const FULL: LayerGroup = LayerGroup::Full { block_size: 4 };
const WINDOW: LayerGroup = LayerGroup::SlidingWindow { block_size: 4, window: 8 };
const WIDER: LayerGroup = LayerGroup::SlidingWindow { block_size: 4, window: 13 };
const LARGE: LayerGroup = LayerGroup::Full { block_size: 8 };
const CHUNKED: LayerGroup = LayerGroup::Chunked { block_size: 4, chunk: 16 };
const STATE: LayerGroup = LayerGroup::State { block_size: 8 };
const SINK: LayerGroup = LayerGroup::SinkWindow { block_size: 4, sink: 4, window: 8 };

/// A content that a listener holds.
struct Held {
    parent: Option<BlockHash>,
    tokens: Vec<u32>,
    index: usize,
}

/// The contents that a listener holds, of each group.
#[derive(Default)]
struct Heard {
    contents: HashMap<(GroupId, BlockHash), Held>,
    events: usize,
    removed: usize,
}

struct Listener {
    groups: Vec<LayerGroup>,
    heard: Mutex<Heard>,
}

/// Returns true if events tell the contents of the group as a tree.
fn has_tree(kind: LayerGroup) -> bool {
    matches!(kind, LayerGroup::Full { .. } | LayerGroup::SinkWindow { .. })
}

impl Listener {
    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap()
    }

    fn hear(&self, heard: &mut Heard, event: &KvEvent<'_>) {
        heard.events += 1;
        if let Some((group, kind)) = event.group() {
            assert_eq!(kind, self.groups[usize::from(group.0)], "each event has its group's kind");
            assert!(!event.hashes().is_empty());
        }
        match *event {
            KvEvent::BlockStored {
                hashes,
                mut parent,
                tokens,
                block_size,
                index,
                group,
                kind,
                ..
            } => {
                assert_eq!(block_size, kind.block_size());
                assert_eq!(tokens.len(), hashes.len() * block_size);
                assert!(has_tree(kind) || parent.is_none(), "no content there needs another one");
                for ((at, &hash), tokens) in (index..).zip(hashes).zip(tokens.chunks(block_size)) {
                    let is_known = |parent| heard.contents.contains_key(&(group, parent));
                    assert!(parent.is_none_or(is_known), "parents come first, in each group");
                    assert!(!has_tree(kind) || parent.is_some() == (at > 0));
                    let content = Held { parent, tokens: tokens.to_vec(), index: at };
                    let before = heard.contents.insert((group, hash), content);
                    assert!(before.is_none(), "{hash} of {group} was announced already");
                    parent = Some(hash).filter(|_| has_tree(kind));
                }
            }
            KvEvent::BlockRemoved { hashes, group, .. } => {
                for &hash in hashes {
                    heard.contents.remove(&(group, hash)).expect("announced before");
                    let is_child = |(&(of, _), held): (&(GroupId, BlockHash), &Held)| {
                        of == group && held.parent == Some(hash)
                    };
                    assert!(!heard.contents.iter().any(is_child), "children go first");
                }
                heard.removed += hashes.len();
            }
            KvEvent::AllBlocksCleared => heard.contents.clear(),
            _ => unreachable!("no other events"),
        }
    }

    /// Returns the longest hit of a prompt as the events say it: the naive definition.
    fn find(&self, heard: &Heard, prompt: &Prompt) -> usize {
        let most = prompt.num_tokens() - 1;
        let fits = |length: &usize| {
            self.groups.iter().all(|kind| length.is_multiple_of(kind.block_size()))
        };
        let unit = (1..=8)
            .rev()
            .find(|unit| self.groups.iter().all(|g| g.block_size().is_multiple_of(*unit)));
        let unit = unit.unwrap();
        let is_hit = |length: &usize| {
            let numbered = (0..).map(GroupId).zip(&self.groups);
            numbered.into_iter().all(|(group, &kind)| {
                let block_size = kind.block_size();
                (0..length / block_size).filter(|&block| is_needed(kind, *length, block)).all(
                    |block| {
                        let hash = prompt.hashes()[(block + 1) * block_size / unit - 1];
                        heard.contents.contains_key(&(group, hash))
                    },
                )
            })
        };
        (0..=most).rev().filter(fits).find(is_hit).unwrap_or(0)
    }
}

/// Returns true if the token at position `length` attends to a position of the block.
fn is_needed(kind: LayerGroup, length: usize, block: usize) -> bool {
    let block_size = kind.block_size();
    let mut positions = block * block_size..(block + 1) * block_size;
    match kind {
        LayerGroup::Full { .. } => true,
        LayerGroup::SlidingWindow { window, .. } => positions.any(|at| at + window > length),
        LayerGroup::Chunked { chunk, .. } => positions.any(|at| at / chunk == length / chunk),
        LayerGroup::State { .. } => positions.end == length,
        LayerGroup::SinkWindow { sink, window, .. } => {
            positions.any(|at| at < sink || at + window > length)
        }
        _ => unreachable!("no other kinds"),
    }
}

impl EventSink for Listener {
    fn on_event(&self, event: &KvEvent<'_>) {
        self.hear(&mut self.heard(), event);
    }
}

fn cache_of(num_blocks: usize, groups: &[LayerGroup]) -> (PagedKvCache, Arc<Listener>) {
    let listener = Arc::new(Listener { groups: groups.to_vec(), heard: Mutex::default() });
    let builder = PagedKvCache::builder().num_blocks(num_blocks).groups(groups).home_shards(2);
    (builder.event_sink(listener.clone()).build().unwrap(), listener)
}

const FAMILIES: usize = 4;
const BRANCHES: usize = 4;
const LONGEST: usize = 48;

/// Returns a prompt of one of some families, which share beginnings and differ from some position on.
fn tokens_of(family: usize, branch: usize, len: usize) -> Vec<u32> {
    let of_branch = |at: usize| if at < 12 * branch { 0 } else { 1 + branch };
    (0..len).map(|at| (family * 100_000 + of_branch(at) * 1_000 + at) as u32).collect()
}

fn prompts() -> impl Iterator<Item = Vec<u32>> {
    let all = (0..FAMILIES).flat_map(|family| (0..BRANCHES).map(move |branch| (family, branch)));
    all.map(|(family, branch)| tokens_of(family, branch, LONGEST + 1))
}

/// Compares the hits that the events say with those of a probe, and each content with its prompt.
fn assert_true(cache: &PagedKvCache, listener: &Listener) {
    let heard = listener.heard();
    let has_sink = listener.groups.contains(&SINK);
    let mut reachable = HashMap::new();
    for tokens in prompts() {
        let prompt = cache.prompt(&tokens);
        let (found, probed) = (listener.find(&heard, &prompt), cache.prefix().probe(&prompt));
        // Of a group with a sink, blocks after a lost one are hidden, and may still be hit.
        assert!(found == probed || has_sink && found < probed, "{found} of {probed}");
        let unit = LONGEST / prompt.hashes().len();
        reachable.extend(
            (1..).zip(prompt.hashes()).map(|(units, &h)| (h, tokens[..units * unit].to_vec())),
        );
    }
    for (&(group, hash), held) in &heard.contents {
        let block_size = listener.groups[usize::from(group.0)].block_size();
        let before = &reachable[&hash];
        assert_eq!(held.tokens, before[before.len() - block_size..], "of {group}");
        assert_eq!((held.index + 1) * block_size, before.len(), "of {group}");
    }
    assert!(heard.contents.len() <= cache.prefix().cached_blocks());
}

/// Does one random operation.
fn act(cache: &PagedKvCache, random: &mut Random, held: &mut Vec<CachedSequence>) {
    let len = 1 + random.below(LONGEST + 1);
    let tokens = tokens_of(random.below(FAMILIES), random.below(BRANCHES), len);
    match random.below(16) {
        0..6 => match cache.admit_sequence(&cache.prompt(&tokens), &AdmitOptions::default()) {
            Ok((sequence, _)) => held.push(sequence),
            Err(_) => held.clear(),
        },
        6..10 => {
            if let Some(sequence) = held.last_mut() {
                let all = sequence.num_tokens();
                let _ = sequence.commit([all, all / 8 * 8, random.below(all + 1)][random.below(3)]);
            }
        }
        10 => {
            if let Some(sequence) = held.last_mut() {
                let mut step = cache.step(Default::default());
                step.join(sequence).unwrap();
                let all = sequence.num_tokens();
                step.commit(sequence, all).unwrap();
                if random.below(4) > 0 {
                    step.complete();
                }
            }
        }
        11 => {
            if let Some(sequence) = held.last_mut() {
                let _ = sequence.truncate(sequence.num_tokens() - sequence.num_tokens().min(3));
                if let Ok(fork) = sequence.fork() {
                    held.push(fork);
                }
            }
        }
        12 => {
            if let Some(sequence) = held.first() {
                let group = GroupId(random.below(2) as u8);
                let ids: Vec<_> = sequence.blocks_in(group).flatten().collect();
                cache.prefix().uncache(&ids[..ids.len().min(2)]);
            }
        }
        13 => drop(cache.allocate_sequence(8 * (1 + random.below(6)))),
        14 => match random.below(12) {
            0 => cache.prefix().reset(),
            1..4 => cache.prefix().announce_all(),
            4 => drop(held.first_mut().map(|sequence| sequence.apply_streaming_llm(4, 8))),
            most => drop(cache.prefix().forget(most)),
        },
        _ => {
            if !held.is_empty() {
                drop(held.swap_remove(random.below(held.len())));
            }
        }
    }
}

const CASES: [&[LayerGroup]; 9] = [
    &[FULL],
    &[FULL, WINDOW],
    &[WINDOW, LARGE],
    &[WINDOW, WIDER],
    &[FULL, LARGE, CHUNKED],
    &[FULL, STATE],
    &[CHUNKED, STATE, FULL, FULL],
    &[SINK, FULL],
    &[FULL, SINK, WINDOW, STATE],
];

#[test]
#[cfg_attr(miri, ignore = "thousands of operations: minutes under an interpreter")]
fn at_each_moment_the_events_say_the_hits_of_a_probe() {
    for (number, groups) in (0..).zip(CASES) {
        let (cache, listener) = cache_of(60, groups);
        let (mut random, mut held) = (Random::new(number), Vec::new());
        let (mut hits, mut most) = (0, 0);
        for _ in 0..1_000 {
            act(&cache, &mut random, &mut held);
            assert_true(&cache, &listener);
            let probe = |tokens: Vec<u32>| cache.prefix().probe(&cache.prompt(&tokens));
            let hit = prompts().map(probe).max().unwrap_or(0);
            hits += usize::from(hit > 0);
            most = most.max(hit);
        }
        drop(held);
        cache.validate().unwrap();
        let heard = listener.heard();
        assert!(hits > 60 && most > 24 && heard.removed > 100, "{groups:?}: {hits}, {most}");
    }
}

#[test]
#[cfg_attr(miri, ignore = "thousands of operations: minutes under an interpreter")]
fn at_rest_the_events_of_many_threads_say_the_hits_of_a_probe() {
    for (number, groups) in (0..).zip(CASES) {
        let (cache, listener) = cache_of(90, groups);
        thread::scope(|scope| {
            for thread in 0..4 {
                let cache = &cache;
                scope.spawn(move || {
                    let (mut random, mut held) = (Random::new(number * 10 + thread), Vec::new());
                    (0..2_000).for_each(|_| act(cache, &mut random, &mut held));
                });
            }
        });
        assert_true(&cache, &listener);
        cache.validate().unwrap();
    }
}

/// Contents that were published by hashes only are hidden until a request with tokens matches them: in each group the
/// blocks that it matched.
#[test]
fn matched_contents_get_their_tokens_in_all_groups() {
    for groups in CASES {
        let (cache, listener) = cache_of(60, groups);
        let tokens = tokens_of(1, 3, 33);
        let prompt = cache.prompt(&tokens);
        // Its length is that of the state.
        let hashed = Prompt::from_hashes(prompt.hashes(), 32);
        let options = AdmitOptions::default();
        let (mut sequence, _) = cache.admit_sequence(&hashed, &options).unwrap();
        sequence.commit(32).unwrap();
        assert_eq!(listener.heard().contents.len(), 0);
        let (_second, admission) = cache.admit_sequence(&prompt, &options).unwrap();
        assert_eq!(admission.cached_tokens, 32, "{groups:?}");
        let heard = listener.heard();
        let needed = (0..).map(GroupId).zip(groups).map(|(group, &kind)| {
            let needed = |&block: &usize| is_needed(kind, 32, block);
            // After the sink, a block is missing in the tree.
            let in_tree = |&block: &usize| kind != SINK || block < 1;
            let blocks = (0..32 / kind.block_size()).filter(needed).filter(in_tree).count();
            let told = heard.contents.keys().filter(|(of, _)| *of == group).count();
            assert_eq!(told, blocks, "{group} of {groups:?}");
            blocks
        });
        assert_eq!(needed.sum::<usize>(), heard.contents.len());
    }
}

/// A block of two units of a hash has the hash of the last one.
#[test]
fn a_larger_block_has_the_hash_of_its_last_unit() {
    let (cache, listener) = cache_of(32, &[FULL, LARGE, STATE]);
    let tokens = tokens_of(0, 0, 16);
    let prompt = cache.prompt(&tokens);
    let (mut sequence, _) = cache.admit_sequence(&prompt, &AdmitOptions::default()).unwrap();
    sequence.commit(16).unwrap();
    let heard = listener.heard();
    let hashes = prompt.hashes();
    let held = |group, hash: BlockHash| heard.contents.get(&(GroupId(group), hash));
    assert!(hashes.iter().all(|&hash| held(0, hash).is_some_and(|held| held.tokens.len() == 4)));
    let [first, last] = [hashes[1], hashes[3]].map(|hash| held(1, hash).unwrap());
    assert_eq!((first.parent, &first.tokens[..]), (None, &tokens[..8]));
    assert_eq!((last.parent, &last.tokens[..]), (Some(hashes[1]), &tokens[8..16]));
    assert_eq!(held(2, hashes[3]).map(|held| held.parent), Some(None));
    assert_eq!((heard.contents.len(), heard.events), (7, 3), "an event for each group");
}

/// Of a step with and without an observer, and of the observer of another allocation.
#[test]
fn overwritten_contents_say_their_group() {
    for (is_observed, in_step) in [(true, false), (true, true), (false, true)] {
        let seen = Arc::new(Mutex::new(Vec::<Overwritten>::new()));
        let mut builder = PagedKvCache::builder().num_blocks(8).groups(&[FULL, WINDOW]);
        if is_observed {
            let seen = Arc::clone(&seen);
            builder = builder.overwrite_observer(move |lost| seen.lock().unwrap().extend(lost));
        }
        let cache = builder.build().unwrap();
        let prompt = cache.prompt(&tokens_of(0, 0, 9));
        let (mut sequence, _) = cache.admit_sequence(&prompt, &AdmitOptions::default()).unwrap();
        sequence.commit(9).unwrap();
        drop(sequence);
        let mut row = cache.allocate_sequence(1).unwrap();
        if in_step {
            let mut step = cache.step(Default::default());
            assert_eq!(step.grow(&mut [(&mut row, 15)]).unwrap().grown_rows, 1);
            *seen.lock().unwrap() = step.overwritten().to_vec();
        } else {
            drop(row.append(15).unwrap());
        }
        let mut seen: Vec<_> = seen.lock().unwrap().iter().map(|l| (l.group, l.hash)).collect();
        seen.sort();
        let hashes = prompt.hashes().iter();
        let mut published: Vec<_> =
            hashes.flat_map(|&hash| [GroupId(0), GroupId(1)].map(|group| (group, hash))).collect();
        published.sort();
        assert_eq!(seen, published, "{is_observed} {in_step}");
    }
}
