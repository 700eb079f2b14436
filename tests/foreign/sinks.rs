//! Event sinks that panic, block, call back or are slow: single cases.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak, mpsc};
use std::thread;

use paged_kv::{EventSink, KvEvent, PagedKvCache, SeqId};

use crate::trip::{Call, Trip};
use crate::world::{assert_heard, cache_of, tokens};
use crate::{BLOCK_SIZE, panic_quietly, watched};

/// Admits, commits and frees a prompt.
fn serve(cache: &PagedKvCache, number: u32, len: usize) {
    let id = SeqId(100 + u64::from(number));
    cache.admit(id, &tokens(number, len)).unwrap();
    cache.commit(id, len).unwrap();
    cache.free(id).unwrap();
}

#[test]
fn the_commit_after_a_sink_panicked_tells_its_own_tokens() {
    for call in [Call::EventBefore, Call::EventAfter] {
        let trip = Arc::new(Trip::default());
        let (cache, listener) = cache_of(16, &trip);
        trip.arm(call, 1, Arc::new(|| panic_quietly()));
        cache.admit(SeqId(1), &tokens(1, 9)).unwrap();
        assert_eq!(cache.commit(SeqId(1), 9), Ok(2), "the panic is the sink's alone");
        assert_heard(&cache, &listener);
        cache.admit(SeqId(2), &tokens(2, 13)).unwrap();
        assert_eq!(cache.commit(SeqId(2), 13), Ok(3));
        assert_heard(&cache, &listener);
        cache.validate().unwrap();
        assert_eq!(cache.used_block_count(), 3 + 4);
        assert_eq!((cache.stats().events_dropped, listener.heard.lock().unwrap().cleared), (1, 1));
    }
}

type With = dyn Fn(&PagedKvCache, &KvEvent<'_>) + Send + Sync;

/// A sink that runs a cache operation at each event.
struct CallsBack {
    cache: OnceLock<Weak<PagedKvCache>>,
    with: Box<With>,
}

impl EventSink for CallsBack {
    fn on_event(&self, event: &KvEvent<'_>) {
        if let Some(cache) = self.cache.get().and_then(Weak::upgrade) {
            (self.with)(&cache, event);
        }
    }
}

fn calling_back(
    num_blocks: usize,
    with: impl Fn(&PagedKvCache, &KvEvent<'_>) + Send + Sync + 'static,
) -> Arc<PagedKvCache> {
    let sink = Arc::new(CallsBack { cache: OnceLock::new(), with: Box::new(with) });
    let builder = PagedKvCache::builder().num_blocks(num_blocks).block_size(BLOCK_SIZE);
    let cache = Arc::new(builder.event_sink(sink.clone()).build().unwrap());
    sink.cache.set(Arc::downgrade(&cache)).unwrap();
    cache
}

#[test]
fn a_sink_reads_the_sequence_whose_append_it_is_told_of() {
    watched(|| {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let seen_too = seen.clone();
        let cache = calling_back(4, move |cache, event| {
            if let KvEvent::BlockRemoved { .. } = event {
                let info = cache.get_sequence(SeqId(1)).unwrap();
                seen_too.lock().unwrap().push((info.num_tokens, info.num_blocks()));
            }
        });
        serve(&cache, 1, 9); // two idle blocks
        cache.allocate(SeqId(1), 8).unwrap();
        _ = cache.append(SeqId(1), 1).unwrap();
        assert_eq!(*seen.lock().unwrap(), [(9, 3)], "as the append has left it");
    });
}

#[test]
fn a_sink_that_overflows_its_events_receives_all_contents_again() {
    watched(|| {
        let trip = Arc::new(Trip::default());
        let (cache, listener) = cache_of(8, &trip);
        let cache = Arc::new(cache);
        let called = cache.clone();
        // While the sink handles one event, thousands of others occur that cannot be delivered to it.
        let action = move || (0..2000).for_each(|round| serve(&called, round % 10, 21));
        trip.arm(Call::EventAfter, 1, Arc::new(action));
        serve(&cache, 1, 9);
        assert_heard(&cache, &listener);
        assert!(cache.stats().events_dropped > 0);
        let cleared = listener.heard.lock().unwrap().cleared;
        assert!(cleared > 0);
        serve(&cache, 2, 9);
        assert_heard(&cache, &listener);
        assert_eq!(listener.heard.lock().unwrap().cleared, cleared, "once");
    });
}

/// A sink that panics as long as it is broken.
struct Breaks {
    broken: AtomicBool,
    panics: AtomicUsize,
    listener: Arc<crate::world::Listener>,
}

impl EventSink for Breaks {
    fn on_event(&self, event: &KvEvent<'_>) {
        if self.broken.load(Ordering::SeqCst) {
            self.panics.fetch_add(1, Ordering::SeqCst);
            panic_quietly();
        }
        self.listener.on_event(event);
    }
}

fn breaking() -> (PagedKvCache, Arc<Breaks>) {
    let listener = cache_of(1, &Arc::default()).1;
    let (broken, panics) = (AtomicBool::new(true), AtomicUsize::new(0));
    let sink = Arc::new(Breaks { broken, panics, listener });
    let builder = PagedKvCache::builder().num_blocks(16).block_size(BLOCK_SIZE);
    (builder.event_sink(sink.clone()).build().unwrap(), sink)
}

#[test]
fn a_repaired_sink_receives_all_contents_again() {
    let (cache, sink) = breaking();
    for round in 0..1000 {
        serve(&cache, round % 10, 21);
    }
    let panics = sink.panics.load(Ordering::SeqCst);
    assert!((2..50).contains(&panics), "it is tried less and less often: {panics}");
    assert!(cache.stats().events_dropped > 0);
    sink.broken.store(false, Ordering::SeqCst);
    for round in 0..2000 {
        serve(&cache, round % 10, 21);
    }
    assert_heard(&cache, &sink.listener);
}

#[test]
fn a_mended_sink_is_told_at_once_if_the_cache_is_asked_to() {
    let (cache, sink) = breaking();
    (0..100).for_each(|round| serve(&cache, round % 10, 21));
    sink.broken.store(false, Ordering::SeqCst);
    cache.prefix().announce_all();
    assert_heard(&cache, &sink.listener);
}

#[test]
fn a_commit_does_not_wait_for_the_sink_that_another_thread_is_in() {
    watched(|| {
        let (reached, entered) = mpsc::channel();
        let (leave, left) = mpsc::channel::<()>();
        let left = Mutex::new(left);
        let trip = Arc::new(Trip::default());
        let (cache, listener) = cache_of(16, &trip);
        let action = move || {
            reached.send(()).unwrap();
            left.lock().unwrap().recv().unwrap();
        };
        trip.arm(Call::EventBefore, 1, Arc::new(action));
        thread::scope(|scope| {
            let first = scope.spawn(|| serve(&cache, 1, 9));
            entered.recv().unwrap();
            serve(&cache, 2, 9); // while the other thread is in the sink
            cache.validate().unwrap();
            leave.send(()).unwrap();
            first.join().unwrap();
        });
        assert_heard(&cache, &listener);
        assert_eq!(cache.stats().events_dropped, 0);
    });
}

#[test]
fn threads_that_meet_a_slow_sink_are_told_of_in_order() {
    struct Slow(Arc<crate::world::Listener>);
    impl EventSink for Slow {
        fn on_event(&self, event: &KvEvent<'_>) {
            thread::yield_now();
            self.0.on_event(event);
        }
    }
    watched(|| {
        let listener = cache_of(1, &Arc::default()).1;
        let builder = PagedKvCache::builder().num_blocks(64).block_size(BLOCK_SIZE);
        let builder = builder.event_sink(Arc::new(Slow(listener.clone())));
        let cache = builder.build().unwrap();
        thread::scope(|scope| {
            for number in 0..4 {
                let cache = &cache;
                scope.spawn(move || {
                    for round in 0..2000 {
                        let id = SeqId(number * 10_000 + round);
                        let tokens = tokens(((round + number) % 10) as u32, 25);
                        cache.admit(id, &tokens).unwrap();
                        cache.commit(id, 25).unwrap();
                        cache.free(id).unwrap();
                    }
                });
            }
        });
        assert_heard(&cache, &listener);
    });
}

#[test]
fn a_sink_whose_drop_panics_is_dropped_in_silence() {
    struct Dropped(Arc<AtomicBool>);
    impl EventSink for Dropped {
        fn on_event(&self, _: &KvEvent<'_>) {}
    }
    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
            panic_quietly();
        }
    }
    let dropped = Arc::new(AtomicBool::new(false));
    let builder = PagedKvCache::builder().num_blocks(8).block_size(BLOCK_SIZE);
    let cache = builder.event_sink(Arc::new(Dropped(dropped.clone()))).build().unwrap();
    let table = cache.pool().allocate(2).unwrap();
    drop(cache);
    assert!(!dropped.load(Ordering::SeqCst), "the table keeps the pool, and it tells the sink");
    drop(table);
    assert!(dropped.load(Ordering::SeqCst));
}
