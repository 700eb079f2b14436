//! Models of waiting for room: a waiter is woken, whatever other threads release, take or cancel during
//! the wait. The models rely on loom, which fails an execution in which a thread sleeps and no thread is
//! left to wake it.

mod common;

use std::fmt::Debug;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use common::{Kv, explore, race, spawn_at};
use loom::future::block_on;
use paged_kv::{
    Admission, AdmitOptions, BlockHash, PagedKvCache, PinAnswer, Prompt, Reservation, Result,
    SeqId, Watermark,
};

const FIRST: SeqId = SeqId(1);
const SECOND: SeqId = SeqId(2);

/// Creates a cache of blocks of one token.
fn cache(num_blocks: usize, home_shards: usize) -> Arc<PagedKvCache> {
    let builder = PagedKvCache::builder().num_blocks(num_blocks).block_size(1);
    Arc::new(builder.home_shards(home_shards).build().expect("a cache of that shape"))
}

fn room(
    cache: &PagedKvCache,
    num_blocks: usize,
) -> impl Future<Output = Result<Reservation>> + Debug + Unpin + use<> {
    cache.waiting().reserve(num_blocks)
}

/// Waits for blocks, and gives them back.
fn take_when_there_is_room(cache: &PagedKvCache, num_blocks: usize) {
    drop(block_on(room(cache, num_blocks)).expect("it has no deadline"));
}

/// Writes and reads the block that was waited for, and gives it back.
fn use_alone(granted: Result<Reservation>, kv: &Kv, value: u64) {
    let mut granted = granted.expect("it has no deadline");
    kv.use_alone(granted.allocate_sequence(1).expect("it holds a block").block_ids(), value);
}

/// Queues a request whose task never runs again.
fn asleep(
    cache: &PagedKvCache,
    num_blocks: usize,
) -> impl Future<Output = Result<Reservation>> + Debug + Unpin + use<> {
    let mut wait = room(cache, num_blocks);
    let polled = Pin::new(&mut wait).poll(&mut Context::from_waker(Waker::noop()));
    assert!(polled.is_pending(), "there is no room");
    wait
}

/// Returns the contents A and B, as hashes.
fn contents() -> [BlockHash; 2] {
    [0xA << 100 | 0xA, 0xB << 100 | 0xB].map(BlockHash::from_u128)
}

fn prompt() -> Prompt {
    Prompt::from_hashes(&contents(), 2)
}

/// Admits a sequence of content A, which is not published yet.
fn admit_first(cache: &PagedKvCache) {
    let prompt = Prompt::from_hashes(&contents()[..1], 1);
    cache.admit_with(FIRST, &prompt, &AdmitOptions::default()).expect("there is room");
}

/// Admits the prompt of A and B, as a request that waits for its turn and for room.
fn admit_when_there_is_room(cache: &PagedKvCache) -> Admission {
    let (prompt, options) = (prompt(), AdmitOptions::default());
    block_on(cache.waiting().admit(SECOND, &prompt, &options)).expect("it has no deadline")
}

/// Frees the sequences. Then no request waits, nothing is used, and words, entries and ledgers agree.
#[track_caller]
fn assert_all_free(cache: &PagedKvCache) {
    assert_eq!(cache.waiting().len(), 0);
    for id in cache.sequence_ids() {
        assert_eq!(cache.free(id), Ok(()));
    }
    assert_eq!((cache.used_block_count(), cache.validate()), (0, Ok(())));
}

#[test]
fn a_release_wakes_a_waiter_that_concurrently_falls_asleep() {
    for shards in [1, 2] {
        explore(move || {
            let (cache, kv) = (cache(1, shards), Arc::new(Kv::new(1)));
            let held = cache.pool().allocate(1).unwrap();
            kv.use_alone(held.as_slice(), 1);
            let (theirs, their_kv) = (Arc::clone(&cache), Arc::clone(&kv));
            race(
                || drop(held),
                move || {
                    use_alone(block_on(room(&theirs, 1)), &their_kv, 2);
                },
            );
            assert_all_free(&cache);
        });
    }
}

/// Publishes content A and leaves its block idle.
fn leave_first(cache: &PagedKvCache) {
    admit_first(cache);
    assert_eq!(cache.commit(FIRST, 1), Ok(1));
    assert_eq!(cache.free(FIRST), Ok(()));
}

fn pin_first(cache: &PagedKvCache, until: Instant) -> PinAnswer {
    let prompt = Prompt::from_hashes(&contents()[..1], 1);
    cache.retention().pin(&prompt, until).expect("a cache without groups")
}

/// No clock runs in a model, so that the alarm is there and does not ring.
#[test]
fn a_waiter_knows_the_deadline_of_each_pin() {
    for shards in [1, 2] {
        explore(move || {
            let cache = cache_with_pins(shards);
            leave_first(&cache);
            let held = cache.pool().allocate(1).unwrap();
            let theirs = Arc::clone(&cache);
            let pin = spawn_at(1, move || {
                match pin_first(&theirs, Instant::now() + Duration::from_secs(60)) {
                    PinAnswer::Accepted(pin) => Some(pin),
                    _ => None,
                }
            });
            let waiter = asleep(&cache, 2);
            let pin = pin.join().unwrap();
            let knows = format!("{waiter:?}").contains("has_alarm: true");
            assert!(pin.is_none() || knows, "it sleeps until a call that may not come");
            drop((waiter, held, pin));
            assert_all_free(&cache);
        });
    }
}

/// One thread ends the pin, while the other finds neither the pin nor its blocks.
#[test]
fn an_expired_pin_refuses_none_of_two() {
    for shards in [1, 2] {
        explore(move || {
            let cache = cache_with_pins(shards);
            let prompt = prompt();
            cache.admit_with(FIRST, &prompt, &AdmitOptions::default()).expect("there is room");
            assert_eq!(cache.commit(FIRST, 2), Ok(2));
            assert_eq!(cache.free(FIRST), Ok(()));
            let pin = cache.retention().pin(&prompt, Instant::now());
            assert!(matches!(pin, Ok(PinAnswer::Accepted(_))));
            let theirs = Arc::clone(&cache);
            let allocate = |cache: &PagedKvCache| cache.pool().allocate(1);
            let mut tables = [None, None];
            let other = spawn_at(1, move || allocate(&theirs).expect("the pin has expired"));
            tables[0] = Some(allocate(&cache).expect("the pin has expired"));
            tables[1] = Some(other.join().unwrap());
            drop((pin, tables));
            assert_all_free(&cache);
        });
    }
}

/// The guard of the pin is dropped, while a request finds neither the pin nor its blocks.
#[test]
fn an_expired_pin_that_is_dropped_refuses_no_request() {
    for shards in [1, 2] {
        explore(move || {
            let cache = cache_with_pins(shards);
            leave_first(&cache);
            let pin = pin_first(&cache, Instant::now());
            assert!(matches!(pin, PinAnswer::Accepted(_)));
            let theirs = Arc::clone(&cache);
            race(
                move || drop(pin),
                move || drop(theirs.pool().allocate(2).expect("the pin has expired")),
            );
            assert_all_free(&cache);
        });
    }
}

/// A match, a reclaim and the end of a pin of one block.
#[test]
fn a_pinned_block_is_not_reclaimed_while_it_is_pinned() {
    explore(|| {
        let cache = cache_with_pins(2);
        leave_first(&cache);
        let theirs = Arc::clone(&cache);
        let taker = spawn_at(1, move || theirs.pool().allocate(2).is_ok());
        let answer = pin_first(&cache, Instant::now() + Duration::from_secs(60));
        let is_pinned = matches!(answer, PinAnswer::Accepted(_));
        if is_pinned {
            let prompt = Prompt::from_hashes(&contents()[..1], 2);
            assert_eq!(cache.prefix().probe(&prompt), 1);
        }
        drop(answer);
        taker.join().unwrap();
        assert_all_free(&cache);
    });
}

/// Creates a cache of two blocks of one token, which may all be pinned.
fn cache_with_pins(home_shards: usize) -> Arc<PagedKvCache> {
    let builder = PagedKvCache::builder().num_blocks(2).block_size(1);
    let builder = builder.home_shards(home_shards).pin_budget(Watermark::Blocks(2));
    Arc::new(builder.build().expect("a cache of that shape"))
}

/// Each release alone leaves too little room, and the waiter may have read the count between them.
#[test]
fn two_releases_that_suffice_together_wake_the_waiter() {
    explore(|| {
        let cache = cache(2, 2);
        let (one, other) = (cache.pool().allocate(1).unwrap(), cache.pool().allocate(1).unwrap());
        let theirs = Arc::clone(&cache);
        let waiter = spawn_at(0, move || take_when_there_is_room(&theirs, 2));
        race(|| drop(one), move || drop(other));
        waiter.join().unwrap();
        assert_all_free(&cache);
    });
}

/// The release wakes the request in front, which leaves at the same time, and was the only one awake.
#[test]
fn a_first_waiter_that_leaves_wakes_the_next() {
    explore(|| {
        let cache = cache(1, 2);
        let held = cache.pool().allocate(1).unwrap();
        let front = asleep(&cache, 1);
        let theirs = Arc::clone(&cache);
        let next = spawn_at(1, move || take_when_there_is_room(&theirs, 1));
        // Acts as a deadline that passes at the time of the wake-up.
        let release = spawn_at(1, move || drop(held));
        drop(front);
        release.join().unwrap();
        next.join().unwrap();
        assert_all_free(&cache);
    });
}

/// A large request in front leaves: throughout, there was enough room for the small one after it.
#[test]
fn a_first_waiter_that_leaves_frees_its_room_for_others() {
    explore(|| {
        let cache = cache(2, 1);
        let held = cache.pool().allocate(1).unwrap();
        let front = asleep(&cache, 2);
        let theirs = Arc::clone(&cache);
        race(|| drop(front), move || take_when_there_is_room(&theirs, 1));
        drop(held);
        assert_all_free(&cache);
    });
}

/// Two requests wait for one release. The first gives its block back, and so the second is served.
#[test]
fn a_served_waiter_passes_on_the_room_it_leaves() {
    explore(|| {
        let (cache, kv) = (cache(1, 1), Arc::new(Kv::new(1)));
        let held = cache.pool().allocate(1).unwrap();
        let first = asleep(&cache, 1);
        let (theirs, their_kv) = (Arc::clone(&cache), Arc::clone(&kv));
        race(
            || {
                drop(held);
                use_alone(block_on(first), &kv, 1);
            },
            move || {
                use_alone(block_on(room(&theirs, 1)), &their_kv, 2);
            },
        );
        assert_all_free(&cache);
    });
}

/// A caller that does not wait takes the room of the woken waiter, and gives it back.
#[test]
fn a_waiter_that_was_passed_is_woken_again() {
    explore(|| {
        let cache = cache(1, 1);
        let held = cache.pool().allocate(1).unwrap();
        let theirs = Arc::clone(&cache);
        let waiter = spawn_at(1, move || take_when_there_is_room(&theirs, 1));
        drop(held);
        drop(cache.pool().allocate(1));
        waiter.join().unwrap();
        assert_all_free(&cache);
    });
}

/// Another thread concurrently publishes one of the prompt's two blocks, and then the room suffices for
/// the other.
#[test]
fn a_publication_wakes_a_prompt_that_goes_to_sleep() {
    explore(|| {
        let cache = cache(2, 1);
        admit_first(&cache);
        let theirs = Arc::clone(&cache);
        let waiter = spawn_at(1, move || {
            assert_eq!(admit_when_there_is_room(&theirs).cached_tokens, 1);
        });
        assert_eq!(cache.commit(FIRST, 1), Ok(1));
        waiter.join().unwrap();
        assert_all_free(&cache);
    });
}

/// The first waiter needs all blocks. A publication is not lost to the prompt after it, once the first
/// has left.
#[test]
fn a_prompt_that_becomes_first_sees_a_concurrent_publication() {
    explore(|| {
        let cache = cache(2, 1);
        admit_first(&cache);
        let front = asleep(&cache, 2);
        let (theirs, publisher) = (Arc::clone(&cache), Arc::clone(&cache));
        let waiter = spawn_at(1, move || _ = admit_when_there_is_room(&theirs));
        let publisher = spawn_at(2, move || assert_eq!(publisher.commit(FIRST, 1), Ok(1)));
        drop(front);
        waiter.join().unwrap();
        publisher.join().unwrap();
        assert_all_free(&cache);
    });
}

/// A match of idle blocks lowers the room and the prompt's need alike. Then the blocks that are given
/// back suffice.
#[test]
fn a_match_beside_a_prompt_that_goes_to_sleep_is_seen_by_it() {
    explore(|| {
        let cache = cache(3, 1);
        admit_first(&cache);
        assert_eq!(cache.commit(FIRST, 1), Ok(1));
        cache.free(FIRST).expect("it is there");
        let held = [(); 2].map(|()| cache.pool().allocate(1).expect("there is room"));
        let [one, other] = held;
        let theirs = Arc::clone(&cache);
        let waiter = spawn_at(1, move || _ = admit_when_there_is_room(&theirs));
        let (prompt, options) = (prompt(), AdmitOptions::default().first_chunk(0));
        // Admitted out of an empty reservation: by itself it would be refused, because requests wait.
        let mut reserved = cache.reserve(0).expect("it asks for no block");
        let matched = reserved.admit(&cache, FIRST, &prompt, &options).expect("it is idle");
        assert_eq!(matched.cached_tokens, 1);
        drop(one);
        waiter.join().unwrap();
        drop(other);
        assert_all_free(&cache);
    });
}
