//! Many threads, with foreign code that panics or calls back at random: all counts agree at the end.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::task::{Context, Wake, Waker};
use std::thread;

use paged_kv::{EventSink, KvEvent, PagedKvCache, PagedKvError, Reservation, Result, SeqId};

use crate::common::random::Random;
use crate::common::row_if_there;
use crate::world::{Listener, assert_heard, cache_of, tokens};
use crate::{BLOCK_SIZE, panic_quietly, watched};

const THREADS: u64 = 4;
const ROUNDS: usize = 3000;
const IDS: usize = 12;

/// Foreign code that at random calls panics or calls back.
struct Moody {
    seed: AtomicU64,
    calm: AtomicBool,
    cache: OnceLock<Weak<PagedKvCache>>,
    listener: Arc<Listener>,
}

impl Moody {
    fn on_call(&self) {
        if self.calm.load(Ordering::SeqCst) {
            return;
        }
        let mut random = Random::new(self.seed.fetch_add(1, Ordering::SeqCst));
        let cache = self.cache.get().and_then(Weak::upgrade);
        match (random.below(40), cache) {
            (0, _) if !thread::panicking() => panic_quietly(),
            (1..4, Some(cache)) => operate(&cache, &mut random),
            _ => {}
        }
    }
}

impl EventSink for Moody {
    fn on_event(&self, event: &KvEvent<'_>) {
        self.on_call();
        self.listener.on_event(event);
    }
}

struct MoodyWaker(Arc<Moody>);

impl Wake for MoodyWaker {
    fn wake(self: Arc<Self>) {
        self.0.on_call();
    }
}

impl Drop for MoodyWaker {
    fn drop(&mut self) {
        if !thread::panicking() {
            self.0.on_call();
        }
    }
}

/// Makes one random operation.
fn operate(cache: &PagedKvCache, random: &mut Random) {
    let (id, other) = (SeqId(random.below(IDS) as u64), SeqId(random.below(IDS) as u64));
    let len = 1 + random.below(30);
    match random.below(16) {
        0..3 => _ = cache.admit(id, &tokens(random.below(10) as u32, len)),
        3..5 => _ = cache.commit(id, len),
        5 => _ = cache.append(id, 1 + len / 4),
        6 => _ = cache.truncate(id, len / 2),
        7 => _ = cache.apply_streaming_llm(id, 1, 4),
        8 => _ = cache.fork(id, other),
        9 => _ = cache.evict(),
        10 => {
            let row = |id, n| Ok::<_, PagedKvError>((row_if_there(cache, id)?, n));
            let (Ok(row), Ok(other)) = (row(id, 1), row(other, 2)) else { return };
            let (mut step, mut rows) = (cache.step(Default::default()), [row, other]);
            _ = step.grow(&mut rows);
            _ = step.commit(&mut rows[0].0, len);
            step.complete();
        }
        11 => _ = cache.pool().allocate(len / 4),
        12 if random.below(10) == 0 => cache.prefix().reset(),
        13 => _ = cache.with_sequence(id, |sequence| sequence.num_blocks()),
        _ => _ = cache.free(id),
    }
}

#[test]
fn moody_foreign_code_leaves_everything_consistent() {
    watched(|| {
        for num_blocks in [6, 20] {
            storm(num_blocks);
        }
    });
}

fn storm(num_blocks: usize) {
    let listener = cache_of(1, &Arc::default()).1;
    let (seed, calm, cache) = (AtomicU64::new(1), AtomicBool::new(false), OnceLock::new());
    let moody = Arc::new(Moody { seed, calm, cache, listener });
    let builder = PagedKvCache::builder().num_blocks(num_blocks).block_size(BLOCK_SIZE);
    let cache = Arc::new(builder.event_sink(moody.clone()).build().unwrap());
    moody.cache.set(Arc::downgrade(&cache)).unwrap();
    thread::scope(|scope| {
        for number in 0..THREADS {
            let (cache, moody) = (&cache, &moody);
            scope.spawn(move || {
                let mut random = Random::new(number + 1000);
                let mut waiting: Vec<Pin<Box<dyn Future<Output = Result<Reservation>>>>> =
                    Vec::new();
                for _ in 0..ROUNDS {
                    let work = AssertUnwindSafe(|| operate(cache, &mut random));
                    assert!(catch_unwind(work).is_ok(), "no panic of theirs comes through");
                    if waiting.len() < 3 && random.below(4) == 0 {
                        let need = 1 + random.below(3);
                        waiting.push(Box::pin(cache.waiting().reserve(need)));
                    }
                    let waker = Waker::from(Arc::new(MoodyWaker(moody.clone())));
                    waiting.retain_mut(|future| {
                        random.below(3) > 0
                            || future.as_mut().poll(&mut Context::from_waker(&waker)).is_pending()
                    });
                    // The drop of the waker is the executor's own.
                    _ = catch_unwind(AssertUnwindSafe(|| drop(waker)));
                    if random.below(20) == 0 {
                        waiting.clear();
                    }
                }
            });
        }
    });
    moody.calm.store(true, Ordering::SeqCst);
    cache.prefix().announce_all();
    cache.validate().unwrap();
    assert_heard(&cache, &moody.listener);
    for id in cache.sequence_ids() {
        cache.free(id).unwrap();
    }
    assert_eq!((cache.used_block_count(), cache.waiting().len()), (0, 0));
    let stats = cache.stats();
    assert_eq!(stats.total_allocations, stats.total_frees);
    cache.validate().unwrap();
}
