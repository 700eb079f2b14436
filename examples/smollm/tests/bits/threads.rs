//! Several threads that share one cache and one memory.

use super::*;
use smollm::server::Server;
use smollm::storm;

#[test]
fn threads_that_share_a_cache_change_no_bit() {
    let requests: Vec<_> = MIXED.iter().cycle().take(120).cloned().collect();
    for (threads, num_blocks) in [(2, 90), (4, 120), (8, 160)] {
        let setup = Setup { num_blocks, ..Setup::default() };
        let server = Server::new(SMALL.clone(), &setup).expect("a cache of that size");
        let (chaos, seed) = (Chaos::all(10), threads.into());
        let options = Options {
            most_running: 3,
            depth: 2,
            drafts: 3,
            chunk: 48,
            chaos,
            seed,
            ..Options::default()
        };
        let storm = storm::run(&server, &requests, threads, &options).expect("they are served");
        println!("| threads: {threads} | {} | {} |", storm.outcome, storm.counts);
        assert!(storm.outcome.is_equal(), "{:?}", storm.faults);
        server.check_empty().expect("all requests have ended");
        let counts = storm.counts;
        let names = [
            ("hits", counts.hits),
            ("copies", counts.copies),
            ("preemptions", counts.preemptions),
            ("evicted", counts.evicted),
            ("left in flight", counts.left_in_flight),
            ("accepted", counts.accepted),
            ("rejected", counts.rejected),
            ("cancellations", counts.cancellations),
            ("stale rows", counts.stale_rows),
        ];
        assert_happened(counts, &names);
    }
}
