//! Tests that the gate admits prompts when it should, and only then.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::*;

fn cache() -> PagedKvCache {
    let builder = PagedKvCache::builder().num_blocks(8).block_size(1);
    builder.num_heads(1).head_dim(1).build().unwrap()
}

fn admit(admission: &Admission<'_>) -> (usize, SeqId) {
    let ticket = admission.try_next(0).expect("a prompt may try");
    let (arrival, sequence) = (ticket.arrival, ticket.sequence);
    admission.cache.allocate(sequence, 1).unwrap();
    admission.admitted(ticket).unwrap();
    (arrival, sequence)
}

fn refuse(admission: &Admission<'_>) -> usize {
    let ticket = admission.try_next(0).expect("a prompt may try");
    let arrival = ticket.arrival;
    admission.refused(ticket).unwrap();
    arrival
}

fn end(admission: &Admission<'_>, (arrival, sequence): (usize, SeqId)) {
    admission.ending(arrival).unwrap();
    admission.cache.free(sequence).unwrap();
    admission.ended();
}

#[test]
fn a_prompt_refused_twice_waits_for_an_end() {
    let cache = cache();
    let admission = Admission::new(&cache, 0..3);
    let first = admit(&admission);
    assert_eq!(refuse(&admission), 1);
    assert_eq!(refuse(&admission), 1, "another one passed it");
    assert!(admission.try_next(0).is_none());
    end(&admission, first);
    assert_eq!(admission.try_next(0).unwrap().arrival, 1);
    assert!(admission.try_next(0).is_none(), "two try where one was refused");
}

#[test]
fn an_end_during_a_try_is_not_missed() {
    let cache = cache();
    let admission = Admission::new(&cache, 0..2);
    let first = admit(&admission);
    refuse(&admission);
    let alone = admission.try_next(0).unwrap();
    end(&admission, first);
    admission.refused(alone).unwrap();
    assert!(admission.try_next(0).is_some(), "the room of the first is left unused");
}

#[test]
fn an_evicted_request_does_not_take_back_the_room_it_gave() {
    let cache = cache();
    let admission = Admission::new(&cache, 0..2);
    let (first, second) = (admit(&admission), admit(&admission));
    admission.shut();
    assert_eq!(cache.evict(), Ok(second.1));
    admission.put_back(second.0, 0).unwrap();
    assert!(admission.try_next(0).is_none());
    end(&admission, first);
    let again = admission.try_next(0).unwrap();
    assert_eq!(again.arrival, second.0);
    assert_ne!(again.sequence, second.1);
}

#[test]
fn a_shut_gate_lets_a_prompt_into_an_empty_cache() {
    let cache = cache();
    let admission = Admission::new(&cache, 0..2);
    let (arrival, sequence) = admit(&admission);
    admission.shut();
    assert!(admission.try_next(0).is_none());
    admission.put_back(arrival, 0).unwrap();
    cache.free(sequence).unwrap();
    let ticket = admission.try_next(0).expect("nothing runs");
    assert!(admission.try_next(0).is_none(), "two try where one was refused");
    let fault = admission.refused(ticket);
    assert!(matches!(fault, Err(PagedKvError::Inconsistent(_))), "{fault:?}");
}

#[test]
fn the_lease_is_always_of_the_oldest() {
    let cache = cache();
    let admission = Admission::new(&cache, 0..2);
    let zero = admission.try_next(0).unwrap();
    let one = admit(&admission);
    assert_eq!(admission.yielding(one.0), Ok(false), "it is the only one");
    let (arrival, sequence) = (zero.arrival, zero.sequence);
    cache.allocate(sequence, 1).unwrap();
    admission.admitted(zero).unwrap();
    assert_eq!(cache.evict(), Ok(one.1), "the younger one kept the lease");
    assert!(cache.evict().is_err(), "the older one did not get it");
    admission.put_back(one.0, 0).unwrap();

    let one = admit(&admission);
    end(&admission, (arrival, sequence));
    assert_eq!(admission.yielding(one.0), Ok(false), "it passed to no one");
    assert!(cache.evict().is_err());
}

/// Returns the prompt that a sleeping worker without requests gets when `event` happens.
fn woken_by(admission: &Admission<'_>, event: impl FnOnce()) -> Option<usize> {
    let (sender, receiver) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(move || {
            let ticket = admission.wait_next();
            sender.send(ticket.map(|ticket| ticket.arrival)).unwrap();
        });
        while admission.idle_workers.load(Ordering::Relaxed) == 0 {
            thread::yield_now();
        }
        // Once this thread gets the lock, the worker sleeps.
        drop(admission.lock());
        event();
        let woken = receiver.recv_timeout(Duration::from_secs(10));
        admission.stop();
        woken.expect("the worker sleeps on")
    })
}

#[test]
fn an_end_wakes_a_worker_for_the_prompt_it_makes_room_for() {
    let cache = cache();
    let admission = Admission::new(&cache, 0..2);
    let first = admit(&admission);
    admission.shut();
    assert_eq!(woken_by(&admission, || end(&admission, first)), Some(1));
}

#[test]
fn the_last_return_to_the_queue_wakes_a_worker() {
    let cache = cache();
    let admission = Admission::new(&cache, 0..1);
    let (arrival, sequence) = admit(&admission);
    admission.shut();
    let put_back = || {
        cache.free(sequence).unwrap();
        admission.put_back(arrival, 0).unwrap();
    };
    // The lease is dropped first, as for a request that was evicted.
    admission.ending(arrival).unwrap();
    assert_eq!(woken_by(&admission, put_back), Some(0));
}

#[test]
fn the_last_end_sends_idle_workers_home() {
    let cache = cache();
    let admission = Admission::new(&cache, 0..1);
    let only = admit(&admission);
    assert_eq!(woken_by(&admission, || end(&admission, only)), None);
}
