//! Tests of sequences whose blocks the caller hashes: they publish and match as those do whose tokens the
//! cache hashes, through every holder. They refuse tokens whose hashes are missing.

mod common;

use common::random::Random;
use common::{lease_row, s};
use paged_kv::{
    AdmitOptions, BlockHash, BlockHasher, CachedSequence, Computed, ExtraKeys, HashAlgorithm,
    PagedKvCache, PagedKvError, Prompt, Result, SeqId,
};

const BLOCK_SIZE: usize = 4;
const ALGORITHM: HashAlgorithm = HashAlgorithm::Xxh3 { seed: 5 };

fn cache(num_blocks: usize) -> PagedKvCache {
    let builder = PagedKvCache::builder().num_blocks(num_blocks).block_size(BLOCK_SIZE);
    builder.home_shards(1).hash_algorithm(ALGORITHM).build().expect("the parameters make sense")
}

/// Returns the hashes of the full blocks of these tokens, as an engine computes them by itself.
fn hashes_of(tokens: &[u32]) -> Vec<BlockHash> {
    let mut hashes = Vec::new();
    BlockHasher::new(ALGORITHM, BLOCK_SIZE, ExtraKeys::default()).extend(tokens, &mut hashes);
    hashes
}

fn prompt_of(tokens: &[u32]) -> Prompt {
    Prompt::from_hashes(&hashes_of(tokens), tokens.len())
}

/// A request in two caches: one hashes its tokens, the other is given hashes.
struct Request {
    id: SeqId,
    tokens: Vec<u32>,
    /// Owned handles in both caches, or none if both maps hold the request.
    handles: Option<(CachedSequence, CachedSequence)>,
}

struct Twins {
    by_tokens: PagedKvCache,
    by_hashes: PagedKvCache,
    requests: Vec<Request>,
    next: u64,
    random: Random,
}

impl Twins {
    fn new(num_blocks: usize, seed: u64) -> Self {
        let (by_tokens, by_hashes) = (cache(num_blocks), cache(num_blocks));
        Self { by_tokens, by_hashes, requests: Vec::new(), next: 0, random: Random::new(seed) }
    }

    /// Returns tokens of one of a few families, which share prefixes.
    fn some_tokens(&mut self) -> Vec<u32> {
        let (family, branch) = (self.random.below(3) as u32, self.random.below(24));
        let other = self.random.below(3) as u32;
        let token = |at: usize| 100 * family + if at < branch { 0 } else { 10 * (other + 1) };
        (0..self.random.below(36)).map(token).collect()
    }

    fn admit(&mut self, tokens: Vec<u32>) {
        let id = s(self.next);
        self.next += 1;
        let mut options = AdmitOptions::default();
        if self.random.below(2) == 0 {
            options = options.allow_full_hit();
        }
        if self.random.below(4) == 0 {
            options = options.leave_free(self.random.below(6));
        }
        let prompts = (self.by_tokens.prompt(&tokens), prompt_of(&tokens));
        let left = |cache: &PagedKvCache, prompt| {
            cache.free_block_count() - cache.required_blocks(prompt, &options).unwrap()
        };
        let left = (left(&self.by_tokens, &prompts.0), left(&self.by_hashes, &prompts.1));
        let handles = if self.random.below(2) == 0 {
            let one = self.by_tokens.admit_with(id, &prompts.0, &options).map(|a| a.cached_tokens);
            let two = self.by_hashes.admit_with(id, &prompts.1, &options).map(|a| a.cached_tokens);
            assert_eq!(one, two);
            None
        } else {
            let one = self.by_tokens.admit_sequence(&prompts.0, &options);
            let two = self.by_hashes.admit_sequence(&prompts.1, &options);
            let ((one, admission), (two, other)) = (one.unwrap(), two.unwrap());
            assert_eq!(admission.cached_tokens, other.cached_tokens);
            Some((one, two))
        };
        assert_eq!(
            self.by_tokens.free_block_count(),
            left.0,
            "an admission takes what it requires"
        );
        assert_eq!(
            self.by_hashes.free_block_count(),
            left.1,
            "an admission takes what it requires"
        );
        let mut request = Request { id, tokens, handles };
        let len = request.tokens.len();
        let published = self.commit(&mut request, Computed::Tokens(len), Computed::Tokens(len));
        assert!(published <= len / BLOCK_SIZE);
        self.requests.push(request);
    }

    /// Commits in both caches, directly or through a step that completes, and returns how many blocks became
    /// matchable.
    fn commit(&mut self, request: &mut Request, one: Computed<'_>, two: Computed<'_>) -> usize {
        let in_step = self.random.below(2) == 0;
        let pairs = [(&self.by_tokens, one, 0), (&self.by_hashes, two, 1)];
        let [one, two] = pairs.map(|(cache, computed, which)| -> Result<usize> {
            let handle = request
                .handles
                .as_mut()
                .map(|(one, two)| [one, two].into_iter().nth(which).unwrap());
            if !in_step {
                return match handle {
                    None => cache.commit(request.id, computed),
                    Some(handle) => handle.commit(computed),
                };
            }
            let mut step = cache.step(Default::default());
            match handle {
                None => step.commit(&mut lease_row(cache, request.id), computed)?,
                Some(handle) => step.commit(handle, computed)?,
            };
            Ok(step.complete().published)
        });
        assert_eq!(one, two, "in a step: {in_step}");
        one.expect("it has slots and hashes")
    }

    fn grow(&mut self, at: usize) {
        let mut request = self.requests.swap_remove(at);
        let new: Vec<u32> =
            (0..self.random.below(9)).map(|_| self.random.below(3) as u32).collect();
        let grown = match &mut request.handles {
            None => {
                let one = self.by_tokens.append(request.id, new.len()).map(drop);
                assert_eq!(self.by_hashes.append(request.id, new.len()).map(drop), one);
                one
            }
            Some((one, two)) => {
                let grown = one.append(new.len()).map(drop);
                assert_eq!(two.append(new.len()).map(drop), grown);
                grown
            }
        };
        if grown.is_ok() {
            let known = request.tokens.len() / BLOCK_SIZE;
            request.tokens.extend(&new);
            let hashes = hashes_of(&request.tokens);
            let computed = match &hashes[known..] {
                [] => Computed::Tokens(request.tokens.len()),
                filled => Computed::Hashed(filled),
            };
            self.commit(&mut request, Computed::Named(&new), computed);
        }
        self.requests.push(request);
    }

    fn truncate(&mut self, at: usize) {
        let len = self.random.below(self.requests[at].tokens.len() + 1);
        let request = &mut self.requests[at];
        request.tokens.truncate(len);
        match &mut request.handles {
            None => {
                self.by_tokens.truncate(request.id, len).unwrap();
                self.by_hashes.truncate(request.id, len).unwrap();
            }
            Some((one, two)) => {
                one.truncate(len).unwrap();
                two.truncate(len).unwrap();
            }
        }
    }

    fn fork(&mut self, at: usize) {
        let id = s(self.next);
        self.next += 1;
        let request = &mut self.requests[at];
        let tokens = request.tokens.clone();
        let handles = match &mut request.handles {
            None => {
                self.by_tokens.fork(request.id, id).unwrap();
                self.by_hashes.fork(request.id, id).unwrap();
                None
            }
            Some((one, two)) => Some((one.fork().unwrap(), two.fork().unwrap())),
        };
        self.requests.push(Request { id, tokens, handles });
    }

    /// Ends a request in both caches, and returns its tokens.
    fn end(&mut self, at: usize) -> Vec<u32> {
        let request = self.requests.swap_remove(at);
        if request.handles.is_none() {
            self.by_tokens.free(request.id).unwrap();
            self.by_hashes.free(request.id).unwrap();
        }
        request.tokens
    }

    fn act(&mut self) {
        let act = self.random.below(10);
        if self.requests.is_empty() || act < 3 {
            let tokens = self.some_tokens();
            return self.admit(tokens);
        }
        let at = self.random.below(self.requests.len());
        match act {
            3..6 => self.grow(at),
            6 => self.truncate(at),
            7 => self.fork(at),
            8 => drop(self.end(at)),
            _ if self.random.below(8) == 0 => {
                self.by_tokens.prefix().reset();
                self.by_hashes.prefix().reset();
            }
            _ => {
                let tokens = self.end(at);
                self.admit(tokens); // it was preempted and comes back
            }
        }
    }

    fn assert_alike(&mut self) {
        let tokens = self.some_tokens();
        let one = self.by_tokens.prefix().probe(&self.by_tokens.prompt(&tokens));
        assert_eq!(self.by_hashes.prefix().probe(&prompt_of(&tokens)), one);
    }
}

/// The pools have room for everything: which copy of a content is matched, and so which blocks are reclaimed, depends on
/// the random key of a cache.
#[test]
fn hashes_of_the_caller_publish_and_match_as_tokens_do() {
    for seed in 0..60 {
        let mut twins = Twins::new(4_096, seed);
        for _ in 0..150 {
            twins.act();
            twins.assert_alike();
        }
        twins.by_tokens.validate().unwrap();
        twins.by_hashes.validate().unwrap();
    }
}

/// Returns a cache with sequence 1 of 10 tokens, admitted by the hashes of its two full blocks.
fn admitted() -> (PagedKvCache, Vec<BlockHash>) {
    let cache = cache(16);
    let hashes = hashes_of(&[7; 24]);
    let prompt = Prompt::from_hashes(&hashes[..2], 10);
    cache.admit_with(s(1), &prompt, &AdmitOptions::default()).unwrap();
    assert_eq!(cache.commit(s(1), 10), Ok(2));
    (cache, hashes)
}

#[test]
fn lengths_and_tokens_that_fill_a_block_without_a_hash_are_refused() {
    let (cache, hashes) = admitted();
    drop(cache.append(s(1), 3).unwrap());
    let unknown = PagedKvError::HashesUnknown { known: 8, requested: 13 };
    let row = &mut lease_row(&cache, s(1));
    let mut step = cache.step(Default::default());
    assert_eq!(cache.commit(s(1), 13), Err(unknown.clone()));
    assert_eq!(cache.commit(s(1), &[7, 7, 7]), Err(unknown.clone()));
    assert_eq!(step.commit(row, 13), Err(unknown.clone()));
    assert_eq!(step.commit(row, &[7, 7, 7]), Err(unknown));
    drop(step);
    let refused = cache.append_tokens(s(1), &[7, 7, 7]).unwrap_err();
    assert!(matches!(refused, PagedKvError::HashesUnknown { known: 8, .. }), "{refused:?}");
    assert_eq!(cache.get_sequence(s(1)).unwrap().num_tokens, 13, "nothing was appended");
    // In the block that has no hash yet, tokens may come as long as they do not fill it.
    assert_eq!(cache.commit(s(1), 11), Ok(0));
    assert_eq!(cache.commit(s(1), &hashes[2..3]), Ok(1));
    assert_eq!(cache.prefix().probe(&Prompt::from_hashes(&hashes, 24)), 12);
}

#[test]
fn hashes_without_slots_are_refused_and_leave_nothing() {
    let (cache, hashes) = admitted();
    let refused = cache.commit(s(1), &hashes[2..3]).unwrap_err();
    assert_eq!(refused, PagedKvError::CommitBeyondEnd { requested: 12, num_tokens: 10 });
    drop(cache.append(s(1), 2).unwrap());
    assert_eq!(cache.commit(s(1), &hashes[2..3]), Ok(1));
    let none: &[BlockHash] = &[];
    assert_eq!(cache.commit(s(1), none), Ok(0));
}

#[test]
fn hashes_for_tokens_that_the_cache_hashes_are_refused() {
    let cache = cache(16);
    cache.admit(s(1), &[7; 9]).unwrap();
    let hashes = hashes_of(&[7; 8]);
    let refused = cache.commit(s(1), &hashes).unwrap_err();
    assert!(matches!(refused, PagedKvError::InvalidConfig { parameter: "hashes", .. }));
    cache.allocate(s(2), 8).unwrap();
    let refused = cache.commit(s(2), &hashes).unwrap_err();
    assert_eq!(refused, PagedKvError::HashesUnknown { known: 0, requested: 8 });
    let sequence = &mut cache.allocate_sequence(8).unwrap();
    let refused = cache.step(Default::default()).commit(sequence, &hashes).unwrap_err();
    assert_eq!(refused, PagedKvError::HashesUnknown { known: 0, requested: 8 });
}

#[test]
fn accepted_drafts_wait_for_the_hashes_of_the_blocks_that_they_fill() {
    let cache = cache(16);
    let hashes = hashes_of(&[7; 24]);
    let prompt = Prompt::from_hashes(&hashes[..2], 10);
    let (sequence, _) = cache.admit_sequence(&prompt, &AdmitOptions::default()).unwrap();
    let mut rows = [(sequence, 6)];
    rows[0].0.commit(10).unwrap();
    let mut step = cache.step(Default::default());
    assert_eq!(step.grow(&mut rows).unwrap().grown_rows, 1);
    assert_eq!(step.accept(0, &mut rows[0].0, &[7, 7, 7]), Ok(0), "the hash is not known yet");
    assert_eq!(step.commit(&mut rows[0].0, &hashes[2..3]), Ok(1));
    assert_eq!(step.complete().published, 1);
    assert_eq!((rows[0].0.num_tokens(), rows[0].0.num_named_tokens()), (13, 13));
    assert_eq!(cache.prefix().probe(&Prompt::from_hashes(&hashes, 24)), 12);
}

#[test]
fn a_step_that_fails_takes_its_hashes_back() {
    let (cache, hashes) = admitted();
    drop(cache.append(s(1), 6).unwrap());
    let mut step = cache.step(Default::default());
    assert_eq!(step.commit(&mut lease_row(&cache, s(1)), &hashes[2..4]), Ok(2));
    drop(step);
    assert_eq!(cache.prefix().probe(&Prompt::from_hashes(&hashes, 24)), 8);
    // The hashes stay known, and the blocks can be committed by their number.
    assert_eq!(cache.commit(s(1), 16), Ok(2));
    assert_eq!(cache.prefix().probe(&Prompt::from_hashes(&hashes, 24)), 16);
}

#[test]
fn a_prompt_that_is_extended_equals_one_made_of_all_tokens() {
    let cache = cache(16);
    let tokens: Vec<u32> = (0..50).collect();
    for cut in 0..=50 {
        let mut prompt = cache.prompt(&tokens[..cut]);
        let kept = prompt.clone();
        for part in tokens[cut..].chunks(7) {
            prompt.extend(part).unwrap();
        }
        assert_eq!(prompt.hashes(), cache.prompt(&tokens).hashes(), "{cut}");
        assert_eq!((prompt.num_tokens(), kept.num_tokens()), (50, cut), "a clone stays as it is");
        assert_eq!(kept.hashes(), cache.prompt(&tokens[..cut]).hashes());
        let mut by_hashes = prompt_of(&tokens[..cut]);
        by_hashes.extend_hashes(&prompt.hashes()[cut / BLOCK_SIZE..], 50 - cut).unwrap();
        assert_eq!((by_hashes.hashes(), by_hashes.num_tokens()), (prompt.hashes(), 50));
    }
    let mut by_tokens = cache.prompt(&tokens);
    assert!(by_tokens.extend_hashes(&[], 1).is_err());
    let mut by_hashes = prompt_of(&tokens);
    let refused = by_hashes.extend(&[1]).unwrap_err();
    assert_eq!(refused, PagedKvError::HashesUnknown { known: 50, requested: 51 });
    assert!(by_hashes.extend_hashes(&[], usize::MAX).is_err());
}

#[test]
fn the_required_blocks_of_a_repeated_hash_are_what_an_admission_takes() {
    let cache = cache(8);
    let hash = BlockHash::from_u128(7);
    let options = AdmitOptions::default();
    cache.admit_with(s(1), &Prompt::from_hashes(&[hash], 4), &options).unwrap();
    cache.commit(s(1), 4).unwrap();
    cache.free(s(1)).unwrap();
    let prompt = Prompt::from_hashes(&[hash; 3], 13);
    let (required, free) =
        (cache.required_blocks(&prompt, &options).unwrap(), cache.free_block_count());
    cache.admit_with(s(2), &prompt, &options).unwrap();
    assert_eq!(free - cache.free_block_count(), required);
}
