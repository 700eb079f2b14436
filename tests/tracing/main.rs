//! Tests of the trace events: each comes when its fact occurs, with its numbers, from a thread that holds no lock;
//! and an operation that finds room emits none.

mod subscriber;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use paged_kv::{
    AdmitOptions, EventSink, KvEvent, PagedKvCache, PagedKvError, SeqId, StepBuffers, Watermark,
};

use self::subscriber::{Told, record};

fn full() -> PagedKvCache {
    let cache = PagedKvCache::new(4, 4, 1, 1);
    cache.allocate(SeqId(1), 12).unwrap();
    cache.allocate(SeqId(2), 4).unwrap();
    cache
}

fn refused(requested: u64, available: u64) -> Told {
    Told::new("DEBUG", "too little room", &[("requested", requested), ("available", available)])
}

#[test]
fn each_refusal_is_told_once_with_its_numbers() {
    let cache = full();
    let told = |operation: &dyn Fn() -> Result<(), PagedKvError>| {
        let (told, outcome) = record(operation);
        assert!(matches!(outcome, Err(PagedKvError::OutOfMemory { .. })), "{outcome:?}");
        told
    };
    let prompt = cache.prompt(&[7; 9]);
    let options = AdmitOptions::default();
    assert_eq!(told(&|| cache.allocate(SeqId(3), 5)), [refused(2, 0)]);
    assert_eq!(told(&|| cache.append(SeqId(1), 1).map(drop)), [refused(1, 0)]);
    assert_eq!(told(&|| cache.admit(SeqId(3), &[7; 9]).map(drop)), [refused(3, 0)]);
    assert_eq!(told(&|| cache.admit_sequence(&prompt, &options).map(drop)), [refused(3, 0)]);
    assert_eq!(told(&|| cache.reserve(1).map(drop)), [refused(1, 0)]);
    assert_eq!(told(&|| cache.pool().allocate(2).map(drop)), [refused(2, 0)]);
    let lease = cache.lease(&[SeqId(1)]).unwrap();
    let mut batch = paged_kv::AppendBatch::default();
    let (batch_told, _) = record(|| lease.append_batch(&[1], &mut batch));
    assert_eq!(batch_told, [refused(1, 0)]);
    let mut rows: Vec<_> = lease.rows().map(|row| (row, 1)).collect();
    let mut step = cache.step(StepBuffers::default());
    let (step_told, grown) = record(|| step.grow(&mut rows).unwrap());
    assert_eq!((step_told, grown.grown_rows), (vec![refused(1, 0)], 0));
}

#[test]
fn a_refusal_by_the_watermark_is_told() {
    let builder = PagedKvCache::builder().num_blocks(8).block_size(4);
    let cache = builder.watermark(Watermark::Blocks(2)).build().unwrap();
    let (told, outcome) = record(|| cache.allocate(SeqId(1), 28));
    assert_eq!(outcome, Err(PagedKvError::OutOfMemory { requested: 7, available: 6 }));
    assert_eq!(told, [refused(7, 6)]);
}

#[test]
fn an_eviction_is_told() {
    let cache = full();
    let (told, evicted) = record(|| cache.evict());
    assert_eq!(evicted, Ok(SeqId(1)));
    let fields = [("id", 1), ("num_tokens", 12), ("num_blocks", 3)];
    assert_eq!(told, [Told::new("DEBUG", "sequence evicted", &fields)]);
}

#[test]
fn operations_that_find_room_tell_nothing() {
    let cache = PagedKvCache::new(64, 4, 1, 1);
    let (told, ()) = record(|| {
        cache.admit(SeqId(1), &[7; 20]).unwrap();
        cache.commit(SeqId(1), 20).unwrap();
        cache.fork(SeqId(1), SeqId(2)).unwrap();
        drop(cache.append(SeqId(2), 9).unwrap());
        cache.truncate(SeqId(2), 3).unwrap();
        drop(cache.lease(&[SeqId(1)]).unwrap());
        let mut step = cache.step(StepBuffers::default());
        let (row, _) =
            cache.admit_sequence(&cache.prompt(&[7; 9]), &AdmitOptions::default()).unwrap();
        let _ = step.grow(&mut [(row, 1)]).unwrap();
        step.complete();
        cache.free(SeqId(1)).unwrap();
        cache.free(SeqId(2)).unwrap();
        cache.stats();
    });
    assert_eq!(told, []);
}

/// Panics while it is told to.
#[derive(Default)]
struct Panics(AtomicBool);

impl EventSink for Panics {
    fn on_event(&self, _: &KvEvent<'_>) {
        assert!(!self.0.load(Ordering::Relaxed), "on purpose");
    }
}

#[test]
fn dropped_events_are_told_when_all_contents_are_repeated() {
    let sink = Arc::new(Panics::default());
    let builder = PagedKvCache::builder().num_blocks(16).block_size(4);
    let cache = builder.event_sink(sink.clone()).build().unwrap();
    cache.admit(SeqId(1), &[7; 9]).unwrap();
    sink.0.store(true, Ordering::Relaxed);
    let (told, _) = record(|| cache.commit(SeqId(1), 4).unwrap());
    sink.0.store(false, Ordering::Relaxed);
    // After a second panic the next attempts would pause: this one is asked for.
    let (again, _) = record(|| cache.prefix().announce_all());
    let told: Vec<_> = told.into_iter().chain(again).collect();
    let dropped = cache.stats().events_dropped;
    assert!(dropped > 0);
    let events: u64 = told.iter().map(|told| told.fields["events"]).sum();
    assert_eq!(events, dropped, "{told:?}");
    assert!(told.iter().all(|told| told.level == "WARN"), "{told:?}");
    let (none, _) = record(|| cache.prefix().announce_all());
    assert_eq!(none, [], "a repetition on request follows no loss");
}

/// A subscriber may use the cache, also the sequence that the operation was about to change.
#[test]
fn a_subscriber_may_call_the_cache() {
    let cache = Arc::new(full());
    let lease = cache.lease(&[SeqId(1)]).unwrap();
    let calls_back = Arc::new(AtomicBool::new(false));
    let (of_hook, called_back) = (Arc::clone(&cache), Arc::clone(&calls_back));
    let seen = subscriber::with_hook(
        move || {
            assert_eq!(of_hook.with_sequence(SeqId(1), |sequence| sequence.num_blocks()), Some(3));
            of_hook.touch(SeqId(1)).unwrap();
            of_hook.allocate(SeqId(9), 100).unwrap_err(); // and is not told of that
            called_back.store(true, Ordering::Relaxed);
        },
        || {
            cache.append(SeqId(1), 1).unwrap_err();
            cache.allocate(SeqId(3), 1).unwrap_err();
            cache.admit(SeqId(3), &[7; 9]).unwrap_err();
            cache.reserve(1).unwrap_err();
            let mut batch = paged_kv::AppendBatch::default();
            lease.append_batch(&[1], &mut batch).unwrap_err();
            let mut rows: Vec<_> = lease.rows().map(|row| (row, 1)).collect();
            paged_kv::append_batch(&mut rows, &mut batch).unwrap_err();
            let mut step = cache.step(StepBuffers::default());
            assert_eq!(step.grow(&mut rows).unwrap().grown_rows, 0);
            step.complete();
            cache.fork(SeqId(1), SeqId(3)).unwrap();
            cache.evict().unwrap();
        },
    );
    assert_eq!((seen, calls_back.load(Ordering::Relaxed)), (8, true));
    drop(lease);
}

#[test]
fn a_subscriber_that_panics_changes_no_outcome() {
    let cache = full();
    let seen = subscriber::with_hook(
        || panic!("on purpose"),
        || {
            let refusal = PagedKvError::OutOfMemory { requested: 1, available: 0 };
            assert_eq!(cache.append(SeqId(1), 1).unwrap_err(), refusal);
            assert_eq!(cache.evict(), Ok(SeqId(1)));
        },
    );
    assert_eq!((seen, cache.validate()), (2, Ok(())));
}

#[cfg(feature = "async")]
#[test]
fn a_sequence_that_yields_in_a_deadlock_is_told() {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    let cache = full();
    let mut context = Context::from_waker(Waker::noop());
    let mut first = pin!(cache.waiting().append(SeqId(2), 1));
    let mut second = pin!(cache.waiting().append(SeqId(1), 1));
    let (told, ()) = record(|| {
        assert!(first.as_mut().poll(&mut context).is_pending());
        assert!(second.as_mut().poll(&mut context).is_pending());
        let Poll::Ready(Err(refusal)) = second.as_mut().poll(&mut context) else {
            panic!("it yields")
        };
        assert_eq!(refusal, PagedKvError::Stalled(SeqId(1)));
    });
    let stalled = Told::new("WARN", "all sequences wait for room: one yields", &[("id", 1)]);
    assert_eq!(told.iter().filter(|told| **told == stalled).count(), 1, "{told:?}");
    assert!(told.iter().all(|told| *told == stalled || *told == refused(1, 0)), "{told:?}");
}

#[cfg(feature = "events")]
#[test]
fn batches_that_the_publisher_lost_are_told() {
    use std::time::{Duration, Instant};

    use paged_kv::event::{EventPublisher, PublisherOptions};
    use paged_kv::{BlockHash, GroupId, LayerGroup, Medium};

    let options = PublisherOptions::default().endpoint("tcp://127.0.0.1:0");
    let publisher = EventPublisher::bind(&options.batch_blocks(1).ring(1, 1 << 20)).unwrap();
    let (told, ()) = subscriber::record_all_threads(|| {
        let end = Instant::now() + Duration::from_secs(60);
        while publisher.stats().batches_lost == 0 && Instant::now() < end {
            for hash in 1..=64 {
                let (hashes, group) = ([BlockHash::from_u128(hash)], GroupId(0));
                let kind = LayerGroup::Full { block_size: 4 };
                let medium = Medium::Device;
                publisher.on_event(&KvEvent::BlockRemoved { hashes: &hashes, group, kind, medium });
            }
        }
        publisher.shutdown();
    });
    let lost: u64 = told.iter().map(|told| told.fields["batches"]).sum();
    assert!(lost > 0 && publisher.stats().batches_lost > 0, "{lost}");
}
