//! Names: contents that look alike and are not. A hit on the wrong one shows in the logits.

use super::*;
use smollm::server::Server;

fn serve(mode: &Mode, server: &Server, requests: &[Arc<Request>]) -> Served {
    let served = mode.serve_on(server, requests).expect("the requests are served");
    println!("| {} | {} | {} |", mode.name, served.outcome, served.counts);
    assert!(served.outcome.is_equal(), "{}: {}", mode.name, served.outcome);
    served
}

fn server() -> Server {
    Server::new(SMALL.clone(), &Setup::default()).expect("a cache of that size")
}

#[test]
fn a_hit_on_prompts_and_answers_changes_no_bit() {
    let mut workload = Workload::new(&SMALL, 31);
    let first = Arc::new(Request::new(workload.prompt(300), 30));
    let mut conversation = first.conversation(&SMALL);
    conversation.extend(workload.prompt(4));
    let again = Arc::new(Request::new(first.prompt.clone(), 30));
    let longer = Arc::new(Request::new(conversation, 30));
    for held in [Held::ByHandle, Held::ById] {
        let server = server();
        let turns = [(&first, 0), (&again, 288), (&longer, 320)];
        for (number, (request, hits)) in turns.into_iter().enumerate() {
            let mode = Mode { held, ..mode(&format!("c: request {number}, {held:?}")) };
            let served = serve(&mode, &server, std::slice::from_ref(request));
            assert_eq!(served.counts.hits, hits);
        }
        server.check_empty().expect("all requests have ended");
    }
}

#[test]
fn adapters_and_salts_separate_contents() {
    let mut workload = Workload::new(&SMALL, 32);
    let prompt = workload.prompt(100);
    let of_adapter = |adapter| Arc::new(Request::new(prompt.clone(), 20).adapter(adapter));
    let requests: Vec<_> = [0, 1, 2, 3, 4, 0, 1, 2, 3, 4].map(of_adapter).into();
    let alone = Options { most_running: 1, ..Options::default() };
    let mode = Mode { options: alone, ..mode("j: one prompt under five adapters, twice") };
    let served = serve(&mode, &server(), &requests);
    assert_eq!(served.counts.hits, 5 * 96, "the second time each prompt hits");
}

#[test]
fn segments_in_another_order_are_other_contents() {
    let mut workload = Workload::new(&SMALL, 33);
    let segments: Vec<Vec<u32>> = (0..3).map(|_| workload.prompt(16)).collect();
    let mut requests = Vec::new();
    for order in 0..27 {
        let order = [order / 9, order / 3 % 3, order % 3];
        let mut prompt: Vec<u32> = order.iter().flat_map(|&at| segments[at].clone()).collect();
        prompt.push(order[0] as u32);
        requests.push(Arc::new(Request::new(prompt, 6)));
    }
    let alone = Options { most_running: 1, ..Options::default() };
    let mode = Mode { options: alone, ..mode("j: three blocks in all orders") };
    let served = serve(&mode, &server(), &requests);
    assert_eq!(served.counts.hits, 16 * (18 + 24), "first blocks and pairs hit, nothing else");
}

#[test]
fn contents_of_old_weights_are_not_matched_after_a_reset() {
    let mut workload = Workload::new(&SMALL, 34);
    let prompts: Vec<_> = (0..4).map(|_| workload.prompt(90)).collect();
    let requests = |weights: u32| -> Vec<_> {
        let request = |prompt: &Vec<u32>| Request::new(prompt.clone(), 20).update(weights);
        prompts.iter().map(|prompt| Arc::new(request(prompt))).collect()
    };
    for seed in 0..4 {
        let server = server();
        let options = Options { most_running: 2, seed, ..Options::default() };
        let before = Mode { options: options.clone(), ..mode("j: old weights") };
        serve(&before, &server, &requests(0));
        server.reset();
        let after = Mode { options, ..mode("j: new weights, after a reset") };
        let served = serve(&after, &server, &requests(1));
        assert_eq!(served.counts.hits, 0);
        let again = serve(&after, &server, &requests(1));
        assert_eq!(again.counts.hits, 4 * 80);
    }
}

/// The reset comes before each of the first chunks is committed, the very first one too.
#[test]
fn a_request_that_ran_across_a_reset_publishes_nothing_that_new_weights_match() {
    use smollm::engine::{ByHandle, Engine, Ids};
    use smollm::outcome::Outcome;
    let mut workload = Workload::new(&SMALL, 35);
    let prompt = workload.prompt(200);
    let request = |weights| Arc::new(Request::new(prompt.clone(), 30).update(weights));
    for turns in 1..6 {
        let server = server();
        let options = Options { chunk: 32, depth: 2, ..Options::default() };
        let mut engine = Engine::<ByHandle>::new(&server, Ids::of_worker(0, 0), options);
        engine.add(&request(0));
        for _ in 0..turns {
            engine.turn().expect("the request goes on");
        }
        server.reset();
        engine.run_all().expect("the request goes on");
        let outcome = Outcome::of(&SMALL, &engine.take_finished());
        assert!(outcome.is_equal(), "{outcome}");
        let mode = mode(&format!("j: new weights beside old ones, after {turns} turns"));
        assert_eq!(serve(&mode, &server, &[request(1)]).counts.hits, 0);
        assert_eq!(serve(&mode, &server, &[request(1)]).counts.hits, 192);
        server.check_empty().expect("all requests have ended");
    }
}

#[test]
fn all_hash_algorithms_and_policies_change_no_bit() {
    use paged_kv::HashAlgorithm::{Sha256Cbor, Xxh3, XxhashCbor};
    for (hash, two_queues) in [(Sha256Cbor, false), (XxhashCbor, true), (Xxh3 { seed: 5 }, true)] {
        let setup = Setup { hash, two_queues, num_blocks: 70, ..Setup::default() };
        let options = Options { most_running: 3, ..Options::default() };
        let mode = Mode { setup, options, ..mode(&format!("j: {hash}, two queues {two_queues}")) };
        let counts = assert_equal(&mode, &SMALL, &MIXED).counts;
        assert_happened(counts, &[("hits", counts.hits)]);
    }
}
