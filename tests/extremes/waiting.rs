//! Calls that may wait, with every length: what can never be served is refused and waits for nothing.

use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use paged_kv::wait::Patience;
use paged_kv::{AdmitOptions, PagedKvError, Prompt};

use crate::common::s;
use crate::world::{HERE, World, hashes, shapes};
use crate::{LENGTHS, in_little_memory};

/// Polls once: what waits then is dropped.
fn poll_once<T>(future: impl Future<Output = Result<T, PagedKvError>>) -> Option<bool> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => Some(done.is_ok()),
        Poll::Pending => None,
    }
}

#[test]
fn what_can_never_be_served_is_refused_at_once() {
    for shape in shapes() {
        for n in LENGTHS {
            let world = World::new(shape);
            let (cache, patience) = (&world.cache, Patience::default().timeout(Duration::MAX));
            let said = format!("{n}, {shape:?}");
            let before = world.picture();
            let polled = in_little_memory(&said, || {
                [
                    poll_once(cache.reserve_wait(n, patience)),
                    poll_once(cache.allocate_wait(s(20), n, patience)),
                    poll_once(cache.append_wait(HERE[0], n, patience)),
                    admit(&world, n, AdmitOptions::default()),
                    admit(&world, usize::MAX, AdmitOptions::default().first_chunk(n)),
                ]
            });
            if n >= 1 << 46 && shape.block_size < 1 << 40 {
                assert_eq!(polled, [Some(false); 5], "{said}");
                assert_eq!(world.picture(), before, "{said}");
            }
            assert_eq!(cache.num_waiting(), 0, "{said}");
            cache.validate().expect(&said);
            world.end();
        }
    }
}

fn admit(world: &World, n: usize, options: AdmitOptions) -> Option<bool> {
    let prompt = Prompt::from_hashes(&hashes(2), n);
    let admitted = poll_once(world.cache.admit_wait(s(21), &prompt, &options, Patience::default()));
    if admitted == Some(true) {
        world.cache.free(s(21)).expect("it was admitted");
    }
    admitted
}

#[test]
fn patience_of_any_length_is_heeded() {
    let world = World::new(shapes()[0]);
    for timeout in [Duration::ZERO, Duration::from_nanos(1)] {
        let refused = world.cache.reserve_blocking(4, Patience::default().timeout(timeout));
        assert_eq!(refused.unwrap_err(), PagedKvError::DeadlinePassed);
    }
    let seconds = [u32::MAX as u64, i64::MAX as u64 / 2, i64::MAX as u64, u64::MAX];
    for timeout in seconds.map(Duration::from_secs).into_iter().chain([Duration::MAX]) {
        let patience = Patience::default().timeout(timeout);
        assert_eq!(poll_once(world.cache.reserve_wait(4, patience)), None, "{timeout:?}");
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| world.cache.reserve_blocking(4, patience).map(drop));
            while world.cache.num_waiting() == 0 {
                std::thread::yield_now();
            }
            world.cache.free(HERE[2]).expect("it is there");
            assert_eq!(waiting.join().expect("it does not panic"), Ok(()), "{timeout:?}");
        });
        world.cache.admit_hashed(HERE[2], &[], 3).expect("there is room again");
    }
    world.end();
}
