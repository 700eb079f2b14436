//! Requests that wait for room, with wakers that panic at random, and that leave at random.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use paged_kv::{AdmitOptions, PagedKvError, SeqId};

use super::Storm;
use super::by_handle::fair;
use super::common::random::Random;
use super::listener::OnPurpose;
use super::shadow::Script;

/// A waker that notes its wake-up, and panics if its flag is set.
struct Bell {
    rung: AtomicBool,
    panics: bool,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.rung.store(true, Ordering::Release);
        if self.panics {
            std::panic::panic_any(OnPurpose);
        }
    }
}

/// Polls a future a few times, and then drops it.
fn poll_a_while<T>(
    future: impl Future<Output = Result<T, PagedKvError>>,
    random: &mut Random,
) -> Option<T> {
    let mut future = pin!(future);
    for _ in 0..1 + random.below(4) {
        let bell = Arc::new(Bell { rung: AtomicBool::new(false), panics: random.below(3) == 0 });
        let waker = Waker::from(Arc::clone(&bell));
        if let Poll::Ready(done) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return fair(done);
        }
        for _ in 0..random.below(20) {
            if bell.rung.load(Ordering::Acquire) {
                break;
            }
            std::thread::yield_now();
        }
    }
    None
}

pub fn one(storm: &Storm, number: usize, random: &mut Random) {
    let cache = &storm.cache;
    let own = SeqId((2 << 32 | number << 8 | random.below(2)) as u64);
    let patience = match random.below(3) {
        0 => Duration::MAX, // no deadline
        _ => Duration::from_micros(random.below(300) as u64),
    };
    let brief = Duration::from_micros(random.below(300) as u64);
    let prompt = || cache.prompt(&Script::all().next().expect("there are some").tokens(0..9));
    let options = AdmitOptions::default();
    let n = random.below(6);
    match random.below(10) {
        0 => drop(poll_a_while(cache.waiting().reserve(n).timeout(patience), random)),
        1 => drop(poll_a_while(cache.waiting().append(own, n).timeout(patience), random)),
        2 => drop(poll_a_while(cache.waiting().allocate(own, 3 * n).timeout(patience), random)),
        3 => drop(poll_a_while(
            cache.waiting().admit(own, &prompt(), &options).timeout(patience),
            random,
        )),
        4 => drop(fair(cache.waiting().reserve(n).timeout(brief).block())),
        5 => drop(fair(cache.waiting().append(own, n).timeout(brief).block())),
        6 => drop(fair(cache.waiting().allocate(own, 3 * n).timeout(brief).block())),
        7 => drop(fair(cache.waiting().admit(own, &prompt(), &options).timeout(brief).block())),
        _ => drop(fair(cache.free(own))),
    }
}
