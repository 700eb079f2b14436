//! Models of contents that stay by a learned order, by levels and by pins: a request matches only contents that were
//! computed for its prompt, and no block is lost between the lists.
//!
//! A duration of a nanosecond has passed when it is looked at, so an execution depends on the seed only.

use std::time::{Duration, Instant};

use paged_kv::{AdmitOptions, Level, PagedKvCache, PinAnswer, ReclaimPolicy, Retain, Watermark};
use shuttle::thread::scope;

use crate::explore::explore;
use crate::reuse::{ONE, THREE, TWO, Weights, serve_with};
use crate::{Contents, assert_all_free_at_end, shape};

const POLICIES: [ReclaimPolicy; 2] = [ReclaimPolicy::Lru, ReclaimPolicy::HitDensity];

/// A cache in which two requests do not fit at the same time, and the contents of its blocks.
struct Tight {
    cache: PagedKvCache,
    contents: Contents,
    weights: Weights,
}

impl Tight {
    fn new(policy: ReclaimPolicy, has_levels: bool) -> Self {
        let builder = shape(5).reclaim_policy(policy).retention_levels(has_levels);
        let cache =
            builder.pin_budget(Watermark::Blocks(3)).build().expect("a cache of that shape");
        Self { cache, contents: Contents::new(5), weights: Weights::new() }
    }

    fn serve(&self, prompt: &[u32], options: &AdmitOptions) {
        serve_with(&self.cache, prompt, options, &self.contents, &self.weights);
    }

    fn serve_all(&self, prompts: &[[u32; 5]]) {
        prompts.iter().for_each(|prompt| self.serve(prompt, &AdmitOptions::default()));
    }
}

fn at(level: Level) -> AdmitOptions {
    AdmitOptions::default().retain(Retain::new(0..usize::MAX, level))
}

/// Returns a level that ends at once after each release.
fn ending(level: Level) -> AdmitOptions {
    let retain = Retain::new(0..usize::MAX, level).ttl(Duration::from_nanos(1));
    AdmitOptions::default().retain(retain)
}

#[test]
fn a_hit_in_a_learned_order_holds_the_values_computed_for_its_tokens() {
    explore(|| {
        let tight = Tight::new(ReclaimPolicy::HitDensity, false);
        scope(|scope| {
            scope.spawn(|| tight.serve_all(&[ONE, TWO, ONE]));
            scope.spawn(|| tight.serve_all(&[TWO, ONE]));
            tight.serve_all(&[THREE, ONE]);
            tight.weights.update(&tight.cache);
            tight.serve_all(&[ONE]);
        });
        assert_all_free_at_end(&tight.cache);
    });
}

#[test]
fn levels_that_are_set_and_end_beside_reclaims_lose_no_block() {
    for policy in POLICIES {
        explore(move || {
            let tight = Tight::new(policy, true);
            scope(|scope| {
                scope.spawn(|| {
                    tight.serve(&ONE, &at(Level::High));
                    tight.serve(&TWO, &ending(Level::Low));
                    tight.serve(&ONE, &ending(Level::Highest));
                });
                scope.spawn(|| {
                    tight.serve(&TWO, &at(Level::Lowest));
                    tight.cache.prefix().reset();
                    tight.serve(&ONE, &AdmitOptions::default());
                });
                tight.serve(&THREE, &ending(Level::High));
                let (retention, prompt) = (tight.cache.retention(), tight.cache.prompt(&ONE));
                let set = retention.set(&prompt, &Retain::new(0..4, Level::Highest));
                // Two contents, of which a match may have used copies, in a pool of five blocks.
                assert!(set.expect("a cache with levels") <= 5);
                tight.serve(&TWO, &AdmitOptions::default());
            });
            assert_all_free_at_end(&tight.cache);
        });
    }
}

/// Pins before and after their deadlines. A pinned content stays matchable.
#[test]
fn pins_beside_reclaims_and_matches_lose_no_block() {
    for policy in POLICIES {
        explore(move || {
            let tight = Tight::new(policy, false);
            let pin = |prompt: &[u32], stays| {
                let prompt = tight.cache.prompt(prompt);
                let until = Instant::now() + Duration::from_secs(stays);
                let answer = tight.cache.retention().pin(&prompt, until).expect("a plain cache");
                if stays > 0
                    && let PinAnswer::Accepted(pin) = &answer
                {
                    assert_eq!(tight.cache.prefix().probe(&prompt), pin.num_tokens());
                }
                answer
            };
            scope(|scope| {
                scope.spawn(|| {
                    tight.serve_all(&[ONE]);
                    let pinned = pin(&ONE, 60);
                    tight.serve_all(&[TWO]);
                    drop(pinned);
                });
                scope.spawn(|| {
                    tight.serve_all(&[TWO]);
                    let expired = pin(&TWO, 0);
                    tight.serve_all(&[ONE]);
                    drop(expired);
                });
                tight.serve_all(&[THREE, TWO]);
            });
            assert_eq!(tight.cache.retention().pinned_blocks(), 0);
            assert_all_free_at_end(&tight.cache);
        });
    }
}
