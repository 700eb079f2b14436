//! Tests of workers in a fixed interleaving: one thread lets each take a step in turn, so all counts are exact.

use std::num::NonZeroUsize;

use super::*;
use crate::layer_groups::LayerGroups;
use crate::replay::synthetic;
use crate::serve::Victims;
use crate::serve::prompts::Prompts;
use crate::trace::contents::Contents;

/// Blocks that a synthetic request needs on average.
const MEAN_BLOCKS: usize = 199;

const PLAN: Plan = Plan {
    threads: NonZeroUsize::new(16).unwrap(),
    live: NonZeroUsize::new(64).unwrap(),
    leave_free: 1.0,
    victims: Victims::Youngest,
    threshold: 0.9,
    prompts: Prompts { id_tokens: None, as_tokens: false, unit: 16 },
    offload: None,
    gives_hints: false,
};

/// Serves all requests by workers that take their steps in turn.
fn serve_in_turn(requests: &[Request], blocks: usize, plan: Plan) -> Meter {
    let builder = PagedKvCache::builder().num_blocks(blocks).block_size(16);
    let cache = builder.num_heads(1).head_dim(1).build().unwrap();
    serve_in(&cache, &Needs::of_blocks(16), requests, plan)
}

/// As above, in this cache.
fn serve_in(cache: &PagedKvCache, needs: &Needs, requests: &[Request], plan: Plan) -> Meter {
    let progress = Progress::new();
    let service = Service::new(cache, requests, needs, plan, &progress);
    let mut workers: Vec<_> = (0..plan.threads.get()).map(|_| Worker::new(&service)).collect();
    let completed = |workers: &[Worker<'_>]| -> u64 {
        workers.iter().map(|worker| worker.meter.completed).sum()
    };
    while completed(&workers) < requests.len() as u64 {
        for worker in &mut workers {
            worker.fill_places().unwrap();
            worker.step().unwrap();
        }
    }
    let mut total = Meter::new();
    workers.iter().for_each(|worker| total.add(&worker.meter));
    let tokens = total.prompt_tokens + total.output_tokens;
    assert!(total.computed_tokens >= tokens - total.hit_blocks * needs.unit() as u64);
    assert_eq!(cache.used_block_count(), 0);
    cache.validate().unwrap();
    total
}

#[test]
fn sixteen_workers_with_defaults_preempt_none() {
    let meter = serve_in_turn(&synthetic::requests(0, 3000), 16 * 16_384, PLAN);
    assert_eq!((meter.preemptions, meter.evicted_sequences), (0, 0));
    assert_eq!(meter.goodput(), 1.0);
}

#[test]
fn eightfold_overcommitment_wastes_little() {
    let requests = synthetic::requests(0, 3000);
    let blocks = 16 * 64 * MEAN_BLOCKS / 8;
    let careful = serve_in_turn(&requests, blocks, PLAN);
    assert_eq!((careful.preemptions, careful.goodput()), (0, 1.0));

    let careless = serve_in_turn(&requests, blocks, Plan { leave_free: 0.0, ..PLAN });
    assert!(careless.preemptions > 0, "the pool had room for all outputs");
    assert_eq!(careless.evicted_sequences, 0);
    assert!(careless.kept_tokens > careless.recomputed_tokens);
    assert!(careless.goodput() >= 0.9, "{}", careless.goodput());

    let victims = Victims::ByStrategy(EvictionStrategy::LRU);
    let evicting = serve_in_turn(&requests, blocks, Plan { leave_free: 0.0, victims, ..PLAN });
    assert!(evicting.goodput() < careless.goodput(), "{}", evicting.goodput());
}

/// A worker of one request preempts it. Only the oldest of all evicts those of other workers.
#[test]
fn workers_of_one_request_each_end() {
    let requests: Vec<_> = (0..64).map(|_| Request::new(16, 160).unwrap()).collect();
    let one = Plan { live: NonZeroUsize::MIN, leave_free: 0.0, ..PLAN };
    let meter = serve_in_turn(&requests, 11, one);
    assert!(meter.preemptions > 0);
    assert_eq!(meter.completed, 64);
}

/// Two requests of three blocks share a pool of five. The younger one is preempted with two full blocks. It
/// computes the second of them again, because the last token of a prompt is always computed.
#[test]
fn a_preempted_request_continues_from_cache() {
    let mut contents = Contents::default();
    let mut named = |prompt, ids: &[u64]| {
        let request = Request::new(prompt, 48 - prompt).unwrap();
        request.with_contents(contents.chain(ids).unwrap())
    };
    let without = [named(16, &[]), named(16, &[])];
    let generated = [named(16, &[1]), named(16, &[2])];
    let partly = [named(24, &[1]), named(24, &[2])];
    let all = [named(32, &[1, 2]), named(32, &[3, 4])];
    let (threads, live) = (NonZeroUsize::MIN, NonZeroUsize::new(2).unwrap());
    for (requests, id_tokens, as_tokens) in [
        (&without, None, false),
        (&generated, None, false),
        (&generated, Some(16), false),
        (&generated, Some(16), true),
        (&partly, Some(16), false),
        (&partly, Some(16), true),
        (&all, Some(16), false),
        (&all, Some(16), true),
    ] {
        let prompts = Prompts { id_tokens, as_tokens, unit: 16 };
        let meter =
            serve_in_turn(requests, 5, Plan { threads, live, leave_free: 0.0, prompts, ..PLAN });
        let counts = [meter.preemptions, meter.evicted_sequences];
        assert_eq!(counts, [1, 0], "{requests:?} {prompts:?}");
        let tokens = [meter.kept_tokens, meter.recomputed_tokens, meter.computed_tokens];
        assert_eq!(tokens, [16, 16, 96 + 16], "{requests:?} {prompts:?}");
    }
}

/// As above, but without tokens there is nothing to publish in events.
#[test]
fn without_tokens_a_preempted_request_is_computed_again() {
    let requests = [(); 2].map(|()| Request::new(16, 32).unwrap());
    let (threads, live) = (NonZeroUsize::MIN, NonZeroUsize::new(2).unwrap());
    let prompts = Prompts { id_tokens: None, as_tokens: true, unit: 16 };
    let plan = Plan { threads, live, leave_free: 0.0, prompts, ..PLAN };
    let meter = serve_in_turn(&requests, 5, plan);
    assert_eq!([meter.kept_tokens, meter.recomputed_tokens], [0, 32]);
}

/// Serves requests whose prompts begin with the same 320 tokens, in a cache with groups and room for a few of them.
#[test]
fn requests_end_in_groups_of_every_kind_where_room_is_short() {
    let mut contents = Contents::default();
    let mut named = |at: usize| {
        let (prompt, ids) = (320 + 7 * at, [1, 2, 3, 4, 5, 10 + at as u64]);
        Request::new(prompt, 90).unwrap().with_contents(contents.chain(&ids).unwrap())
    };
    let requests: Vec<_> = (0..40).map(&mut named).collect();
    for text in [
        "full:16,window:16:64",
        "full:16,window:16:40,window:32:100",
        "full:16,chunked:16:64",
        "full:16,state:32",
        "sink:16:20:64,full:32",
        "state:16",
        "window:16:32",
    ] {
        let groups = LayerGroups::parse(text).unwrap();
        let needs = Needs::of_groups(&groups, 64).unwrap();
        let most = requests.iter().map(|request| needs.most(request)).max().unwrap();
        let (threads, live) = (NonZeroUsize::new(2).unwrap(), NonZeroUsize::new(6).unwrap());
        let prompts = Prompts { id_tokens: Some(64), as_tokens: false, unit: needs.unit() };
        for (leave_free, blocks, as_tokens) in
            [(1.0, 2 * most, false), (0.0, 2 * most, true), (0.0, most, false)]
        {
            let builder = PagedKvCache::builder().num_blocks(blocks).groups(groups.kinds());
            let cache = builder.build().unwrap();
            let prompts = Prompts { as_tokens, ..prompts };
            let plan = Plan { threads, live, leave_free, prompts, ..PLAN };
            let meter = serve_in(&cache, &needs, &requests, plan);
            assert_eq!(meter.completed, 40, "{text}");
            assert!(meter.longest_hit_blocks >= meter.hit_blocks, "{text}");
            assert!(meter.hit_blocks > 0 || blocks == most, "{text}: {leave_free}");
            // A window that others share is not released when a request leaves it.
            assert!(leave_free == 0.0 || meter.preemptions <= 4, "{text}: {}", meter.preemptions);
        }
    }
}
