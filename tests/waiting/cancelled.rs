//! Tests of cancelled waits: a request that stops waiting, at any moment, holds nothing and leaves no
//! other waiter asleep.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::thread::scope;
use std::time::{Duration, Instant};

use paged_kv::{AdmitOptions, Fairness, PagedKvCache, SeqId, Watermark};

use super::{HANG, Task, assert_all_back, cache};

#[test]
fn a_woken_waiter_that_leaves_wakes_the_next() {
    let cache = cache(4);
    cache.allocate(SeqId(1), 16).unwrap();
    let first = Task::waiting(cache.waiting().reserve(4).timeout(HANG));
    let mut second = Task::waiting(cache.waiting().reserve(4).timeout(HANG));
    cache.free(SeqId(1)).unwrap();
    assert_eq!((first.wakes(), second.wakes()), (1, 0));
    drop(first);
    drop(second.served().unwrap());
    assert_all_back(&cache);
}

#[test]
fn a_sleeping_waiter_that_leaves_admits_those_it_blocked() {
    let cache = cache(4);
    cache.allocate(SeqId(1), 8).unwrap();
    let large = Task::waiting(cache.waiting().reserve(4).timeout(HANG));
    let mut small = Task::waiting(cache.waiting().reserve(1).timeout(HANG));
    drop(large);
    drop(small.served().unwrap());
    cache.free(SeqId(1)).unwrap();
    assert_all_back(&cache);
}

#[test]
fn a_future_that_was_never_polled_leaves_no_trace() {
    let cache = cache(4);
    drop(cache.waiting().reserve(4).timeout(HANG));
    drop(cache.waiting().allocate(SeqId(1), 4).timeout(HANG));
    assert_all_back(&cache);
}

/// Threads wait, cancel and release at random, for 10,000 rounds, and leave nothing behind.
#[test]
fn ten_thousand_cancellations_at_random_leak_nothing() {
    const THREADS: u64 = 4;
    const ROUNDS: u64 = 2_500;
    for fairness in [Fairness::Fifo, Fairness::Bypass { at_most: 3 }] {
        let builder = PagedKvCache::builder().num_blocks(16).block_size(4).home_shards(2);
        let cache = builder.watermark(Watermark::Blocks(1)).fairness(fairness).build().unwrap();
        let start = Instant::now();
        scope(|scope| {
            for thread in 0..THREADS {
                let cache = &cache;
                scope.spawn(move || {
                    let mut random = Random(thread + 1);
                    for round in 0..ROUNDS {
                        assert!(start.elapsed() < 4 * HANG, "round {round}");
                        visit(cache, SeqId(thread * ROUNDS + round), &mut random);
                    }
                });
            }
        });
        assert_all_back(&cache);
    }
}

/// Waits for room in some way or cancels, grows if there is room, and leaves.
fn visit(cache: &PagedKvCache, id: SeqId, random: &mut Random) {
    let tokens = 1 + random.below(40);
    let polls = random.below(12);
    let patience = match random.below(4) {
        0 => Duration::from_micros(random.below(200) as u64),
        _ => HANG,
    };
    match random.below(4) {
        0 => {
            let _ =
                give_up_after(polls, cache.waiting().reserve(tokens.div_ceil(4)).timeout(patience));
        }
        1 => {
            let _ = give_up_after(polls, cache.waiting().allocate(id, tokens).timeout(patience));
        }
        2 => {
            let prompt = cache.prompt(&vec![tokens as u32 % 3; tokens]);
            let wait =
                cache.waiting().admit(id, &prompt, &AdmitOptions::default()).timeout(patience);
            if let Some(Ok(_)) = give_up_after(polls, wait) {
                cache.commit(id, tokens).unwrap();
            }
        }
        _ => {
            let _ = cache.waiting().allocate(id, tokens).timeout(patience).block();
        }
    }
    if cache.with_sequence(id, |_| ()).is_some() {
        let _ = give_up_after(polls, cache.waiting().append(id, random.below(8)).timeout(patience));
        cache.free(id).unwrap();
    }
}

fn give_up_after<F: Future + Unpin>(polls: usize, mut future: F) -> Option<F::Output> {
    for _ in 0..polls {
        match Pin::new(&mut future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(output) => return Some(output),
            Poll::Pending => std::thread::yield_now(),
        }
    }
    None
}

/// xorshift64*, which is random enough for these threads.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % end
    }
}
