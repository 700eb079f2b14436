//! Models of prefix reuse: a request matches only contents that were computed for its prompt, while other
//! threads reclaim blocks and reset the cache.
//!
//! The content of a block is written when it is computed. It says for which tokens and with which
//! weights.

use std::sync::atomic::{AtomicU64, Ordering};

use paged_kv::PagedKvError::{
    CommitBeyondEnd, NothingToEvict, OutOfMemory, SequenceExists, SequenceNotFound,
};
use paged_kv::{AdmitOptions, PagedKvCache, SeqId};
use shuttle::thread::scope;

use crate::explore::explore;
use crate::{A, B, C, Contents, assert_all_free_at_end, cache};

pub(crate) const ONE: [u32; 5] = [1, 1, 1, 1, 1];
pub(crate) const TWO: [u32; 5] = [1, 1, 2, 2, 2];
pub(crate) const THREE: [u32; 5] = [3, 3, 3, 3, 3];

/// Returns the content of a block of two tokens, computed with the weights of a version.
fn content(prompt: &[u32], block: usize, weights: u64) -> u64 {
    let before = &prompt[..2 * (block + 1)];
    before.iter().fold(weights << 32, |content, &token| content * 10 + u64::from(token))
}

/// The weights in use, and the weights that all threads know to be in use since the last reset.
pub(crate) struct Weights {
    in_use: AtomicU64,
    known: AtomicU64,
}

impl Weights {
    pub(crate) fn new() -> Self {
        Self { in_use: AtomicU64::new(1), known: AtomicU64::new(1) }
    }

    fn in_use(&self) -> u64 {
        self.in_use.load(Ordering::Relaxed)
    }

    /// Replaces the weights, resets the cache, and then makes the new version known, in the order of an
    /// engine.
    pub(crate) fn update(&self, cache: &PagedKvCache) {
        self.in_use.fetch_add(1, Ordering::Relaxed);
        cache.prefix().reset();
        self.known.store(self.in_use(), Ordering::Relaxed);
    }
}

/// Admits a prompt, checks its hits, computes the rest and commits it.
fn serve(cache: &PagedKvCache, prompt: &[u32], contents: &Contents, weights: &Weights) {
    serve_with(cache, prompt, &AdmitOptions::default(), contents, weights);
}

/// Serves a prompt with options of its own.
pub(crate) fn serve_with(
    cache: &PagedKvCache,
    prompt: &[u32],
    options: &AdmitOptions,
    contents: &Contents,
    weights: &Weights,
) {
    let oldest = weights.known.load(Ordering::Relaxed);
    let admitted = cache.admit_sequence(&cache.prompt(prompt), options);
    let (mut sequence, admission) = match admitted {
        Ok(admitted) => admitted,
        Err(OutOfMemory { requested, available }) => {
            return assert!(available < requested, "{available} of {requested} is room enough");
        }
        Err(refusal) => panic!("refused with {refusal}"),
    };
    let hits = admission.cached_tokens / 2;
    assert!(hits <= 2, "the last token is always computed");
    let blocks = sequence.block_ids()[..2].to_vec();
    for (block, &id) in blocks.iter().enumerate().skip(hits) {
        contents.write(id, content(prompt, block, weights.in_use()));
    }
    let check = || {
        for (block, &id) in blocks.iter().enumerate() {
            let found = contents.read(id);
            let fits = |weights| found == content(prompt, block, weights);
            assert!(
                (oldest..=weights.in_use()).any(fits),
                "{id}, block {block} of {prompt:?} with {hits} hits, holds {found:x}, \
                 weights {oldest} are known"
            );
        }
    };
    check();
    sequence.commit(4).expect("so many tokens have slots");
    check();
}

/// Two requests do not fit at the same time: the blocks that one leaves are reclaimed for the next, or
/// matched.
#[test]
fn a_hit_holds_the_values_computed_for_its_tokens() {
    explore(|| {
        let (cache, contents, weights) = (cache(5), Contents::new(5), Weights::new());
        let serve = |prompt: &[u32]| serve(&cache, prompt, &contents, &weights);
        scope(|scope| {
            scope.spawn(|| [ONE, TWO].iter().for_each(|prompt| serve(prompt)));
            scope.spawn(|| [TWO, ONE].iter().for_each(|prompt| serve(prompt)));
            [THREE, ONE].iter().for_each(|prompt| serve(prompt));
        });
        assert_all_free_at_end(&cache);
    });
}

/// A request that is admitted after a reset has returned finds no content of the weights before it.
#[test]
fn after_a_reset_nothing_of_the_old_weights_is_hit() {
    explore(|| {
        let (cache, contents, weights) = (cache(8), Contents::new(8), Weights::new());
        let serve = |prompt: &[u32]| serve(&cache, prompt, &contents, &weights);
        scope(|scope| {
            scope.spawn(|| [ONE, ONE].iter().for_each(|prompt| serve(prompt)));
            scope.spawn(|| [TWO, ONE].iter().for_each(|prompt| serve(prompt)));
            weights.update(&cache);
            serve(&ONE);
        });
        assert_all_free_at_end(&cache);
    });
}

/// Operations by id, with evictions: every refusal has a reason that is possible.
#[test]
fn admissions_by_id_meet_evictions_and_a_reset() {
    explore(|| {
        let cache = cache(6);
        let serve = |id: SeqId, prompt: &[u32]| {
            match cache.admit(id, prompt) {
                Ok(admission) => {
                    assert!(admission.cached_tokens % 2 == 0 && admission.cached_tokens <= 4);
                    assert_eq!(admission.num_tokens, prompt.len());
                }
                Err(OutOfMemory { requested, available }) => assert!(available < requested),
                Err(refusal) => assert_eq!(refusal, SequenceExists(id)),
            }
            let committed = cache.commit(id, prompt.len());
            let possible =
                matches!(committed, Ok(0..=2) | Err(SequenceNotFound(_) | CommitBeyondEnd { .. }));
            assert!(possible, "{committed:?}");
            assert!(cache.prefix().probe(&cache.prompt(prompt)) <= 4);
        };
        scope(|scope| {
            scope.spawn(|| {
                serve(A, &ONE);
                let _ = cache.fork(A, C);
                let _ = cache.append_tokens(A, &[1]);
                let _ = cache.free(A);
            });
            scope.spawn(|| {
                serve(A, &TWO);
                serve(B, &ONE);
                cache.prefix().reset();
                assert!(cache.prefix().probe(&cache.prompt(&THREE)) == 0, "nobody computed it");
            });
            for _ in 0..2 {
                assert!(matches!(cache.evict(), Ok(_) | Err(NothingToEvict)));
            }
        });
        cache.prefix().reset();
        assert_eq!(
            (cache.prefix().probe(&cache.prompt(&ONE)), cache.prefix().probe(&cache.prompt(&TWO))),
            (0, 0),
            "found after a reset"
        );
        assert_all_free_at_end(&cache);
    });
}

/// At rest, a content is found that was committed last and never reclaimed.
#[test]
fn a_content_two_threads_compute_is_found_afterwards() {
    explore(|| {
        let cache = cache(9);
        let serve = |id: SeqId| {
            cache.admit(id, &ONE).expect("there is room");
            assert!(cache.commit(id, 5).is_ok_and(|blocks| blocks <= 2));
        };
        scope(|scope| {
            scope.spawn(|| {
                serve(A);
                cache.free(A).expect("it is there");
            });
            scope.spawn(|| serve(B));
            assert!([0, 2, 4].contains(&cache.prefix().probe(&cache.prompt(&ONE))));
        });
        assert_eq!(cache.prefix().probe(&cache.prompt(&ONE)), 4);
        let admission = cache.admit(C, &ONE).expect("there is room");
        assert_eq!(admission.cached_tokens, 4);
        // Two shared blocks and the tail of each request, unless it hit unused blocks.
        assert!((4..=6).contains(&cache.used_block_count()));
        assert_all_free_at_end(&cache);
    });
}
