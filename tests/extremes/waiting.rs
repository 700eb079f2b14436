//! Extreme lengths for calls that may wait: a request that can never be served is refused without
//! waiting.

use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use paged_kv::{AdmitOptions, PagedKvError, Prompt};

use crate::common::s;
use crate::world::{HERE, World, hashes, shapes};
use crate::{LENGTHS, in_little_memory};

/// Polls a future once; a future that waits then is dropped.
fn poll_once<T>(future: impl Future<Output = Result<T, PagedKvError>>) -> Option<bool> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => Some(done.is_ok()),
        Poll::Pending => None,
    }
}

#[test]
fn a_request_that_can_never_be_served_is_refused_immediately() {
    for shape in shapes() {
        for n in LENGTHS {
            let world = World::new(shape);
            let (cache, patience) = (&world.cache, Duration::MAX);
            let said = format!("{n}, {shape:?}");
            let before = world.picture();
            let polled = in_little_memory(&said, || {
                [
                    poll_once(cache.waiting().reserve(n).timeout(patience)),
                    poll_once(cache.waiting().allocate(s(20), n).timeout(patience)),
                    poll_once(cache.waiting().append(HERE[0], n).timeout(patience)),
                    admit(&world, n, AdmitOptions::default()),
                    admit(&world, usize::MAX, AdmitOptions::default().first_chunk(n)),
                ]
            });
            if n >= 1 << 46 && shape.block_size < 1 << 40 {
                assert_eq!(polled, [Some(false); 5], "{said}");
                assert_eq!(world.picture(), before, "{said}");
            }
            assert_eq!(cache.waiting().len(), 0, "{said}");
            cache.validate().expect(&said);
            world.end();
        }
    }
}

fn admit(world: &World, n: usize, options: AdmitOptions) -> Option<bool> {
    let prompt = Prompt::from_hashes(&hashes(2), n);
    let admitted = poll_once(world.cache.waiting().admit(s(21), &prompt, &options));
    if admitted == Some(true) {
        world.cache.free(s(21)).expect("it was admitted");
    }
    admitted
}

#[test]
fn a_timeout_of_any_length_is_heeded() {
    let world = World::new(shapes()[0]);
    for timeout in [Duration::ZERO, Duration::from_nanos(1)] {
        let refused = world.cache.waiting().reserve(4).timeout(timeout).block();
        assert_eq!(refused.unwrap_err(), PagedKvError::DeadlinePassed);
    }
    let seconds = [u32::MAX as u64, i64::MAX as u64 / 2, i64::MAX as u64, u64::MAX];
    for timeout in seconds.map(Duration::from_secs).into_iter().chain([Duration::MAX]) {
        assert_eq!(
            poll_once(world.cache.waiting().reserve(4).timeout(timeout)),
            None,
            "{timeout:?}"
        );
        std::thread::scope(|scope| {
            let waiting =
                scope.spawn(|| world.cache.waiting().reserve(4).timeout(timeout).block().map(drop));
            while world.cache.waiting().is_empty() {
                std::thread::yield_now();
            }
            world.cache.free(HERE[2]).expect("it is there");
            assert_eq!(waiting.join().expect("it does not panic"), Ok(()), "{timeout:?}");
        });
        world
            .cache
            .admit_with(HERE[2], &Prompt::from_hashes(&[], 3), &AdmitOptions::default())
            .expect("there is room again");
    }
    world.end();
}
