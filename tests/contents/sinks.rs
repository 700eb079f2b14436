//! Tests of event sinks: a sink serves one cache at a time.

use super::*;
use crate::common::s;
use paged_kv::{EventSink, KvEvent, PagedKvCacheBuilder, PagedKvError, Watermark};

fn builder(sink: &Arc<impl EventSink + 'static>) -> PagedKvCacheBuilder {
    let builder = PagedKvCache::builder().num_blocks(8).block_size(BLOCK_SIZE);
    builder.event_sink(sink.clone())
}

#[track_caller]
fn assert_refused(builder: PagedKvCacheBuilder) {
    match builder.build() {
        Err(PagedKvError::InvalidConfig { parameter: "event_sink", reason }) => {
            assert!(reason.contains("another cache"), "{reason}");
        }
        other => panic!("{:?}", other.map(|_| "built")),
    }
}

#[test]
fn a_second_cache_with_the_sink_of_a_living_one_is_refused() {
    let sink = Arc::new(Mirror::default());
    let first = builder(&sink);
    let cache = first.clone().build().unwrap();
    assert_refused(first);
    assert_refused(builder(&sink));
    cache.admit(s(1), &prompt(5, 2)).unwrap();
    cache.commit(s(1), 9).unwrap();
    assert_refused(builder(&sink));
    assert_eq!(sink.held().contents.len(), 2, "a refusal tells nothing");
    assert_eq!(sink.held().cleared, 0);
}

#[test]
fn a_sink_starts_empty_with_its_next_cache() {
    let sink = Arc::new(Mirror::default());
    for turn in 0..3 {
        let cache = builder(&sink).build().unwrap();
        assert_eq!(sink.held().len_and_cleared(), (0, turn));
        cache.admit(s(1), &prompt(5, 2)).unwrap();
        cache.commit(s(1), 9).unwrap();
        assert_eq!(sink.held().contents.len(), 2);
    }
}

/// A sequence that outlives its cache can still reclaim contents and emit events.
#[test]
fn a_sink_stays_taken_as_long_as_a_sequence_may_tell_it_something() {
    let sink = Arc::new(Mirror::default());
    let cache = builder(&sink).build().unwrap();
    cache.admit(s(1), &prompt(5, 2)).unwrap();
    cache.commit(s(1), 9).unwrap();
    let mut sequence = cache.allocate_sequence(4).unwrap();
    drop(cache);
    assert_refused(builder(&sink));
    let append = sequence.append(7 * BLOCK_SIZE).unwrap();
    assert_eq!(sink.held().contents.len(), 0, "it took the blocks of all");
    drop(append);
    assert_refused(builder(&sink));
    drop(sequence);
    assert!(builder(&sink).build().is_ok());
}

#[test]
fn a_build_that_is_refused_leaves_the_sink_as_it_was() {
    let sink = Arc::new(Mirror::default());
    for _ in 0..2 {
        assert!(builder(&sink).watermark(Watermark::Blocks(8)).build().is_err());
    }
    let cache = builder(&sink).build().unwrap();
    assert_eq!(sink.held().cleared, 0, "nothing had been told");
    drop(cache);
    // Without prefix reuse there are no events, and the sink is not attached.
    let quiet = builder(&sink).prefix_reuse(false);
    let both = [quiet.clone().build().unwrap(), quiet.build().unwrap()];
    assert!(builder(&sink).build().is_ok());
    drop(both);
}

/// Values of zero-sized types may all have one address.
#[test]
fn sinks_of_one_type_without_size_are_told_apart() {
    struct Deaf;
    impl EventSink for Deaf {
        fn on_event(&self, _: &KvEvent<'_>) {}
    }
    let sinks: Vec<_> = (0..20).map(|_| Arc::new(Deaf)).collect();
    let caches: Vec<_> = sinks.iter().map(|sink| builder(sink).build().unwrap()).collect();
    sinks.iter().for_each(|sink| assert_refused(builder(sink)));
    drop(caches);
    sinks.iter().for_each(|sink| assert!(builder(sink).build().is_ok()));
}

#[test]
fn of_many_threads_that_build_with_one_sink_one_gets_it() {
    let sink = Arc::new(Mirror::default());
    for _ in 0..50 {
        let built: Vec<_> = std::thread::scope(|scope| {
            let builds: Vec<_> = (0..4).map(|_| scope.spawn(|| builder(&sink).build())).collect();
            builds.into_iter().map(|build| build.join().unwrap()).collect()
        });
        assert_eq!(built.iter().filter(|built| built.is_ok()).count(), 1);
    }
}
