//! Tests of deadlines: a late request is served if it can be served immediately, and otherwise refused
//! immediately.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use paged_kv::PagedKvError::DeadlinePassed;
use paged_kv::wait::{Request, Wait};
use paged_kv::{AdmitOptions, PagedKvCache, PagedKvError, SeqId};

use super::{HANG, Task, Wakes, assert_all_back, cache};

/// Returns deadlines that have passed.
fn late() -> [Limit; 2] {
    let now = Instant::now();
    let past = now.checked_sub(Duration::from_secs(1)).unwrap_or(now);
    [Limit::Timeout(Duration::ZERO), Limit::Deadline(past)]
}

/// The deadline of a request.
#[derive(Clone, Copy)]
enum Limit {
    Timeout(Duration),
    Deadline(Instant),
}

impl Limit {
    fn of<R: Request>(self, wait: Wait<R>) -> Wait<R> {
        match self {
            Limit::Timeout(timeout) => wait.timeout(timeout),
            Limit::Deadline(deadline) => wait.deadline(deadline),
        }
    }
}

/// Returns the result of each way to wait, as a future that is polled once and on this thread.
fn ask(cache: &PagedKvCache, limit: Limit) -> Vec<Result<(), PagedKvError>> {
    fn once<T>(
        future: impl Future<Output = Result<T, PagedKvError>> + Unpin,
    ) -> Result<(), PagedKvError> {
        match Task::new(future).poll() {
            Poll::Ready(result) => result.map(drop),
            Poll::Pending => panic!("a late request does not wait"),
        }
    }
    let (prompt, options) = (cache.prompt(&[7; 4]), AdmitOptions::default());
    let told = vec![
        once(limit.of(cache.waiting().reserve(1))),
        limit.of(cache.waiting().reserve(1)).block().map(drop),
        once(limit.of(cache.waiting().append(SeqId(0), 4))),
        cache
            .truncate(SeqId(0), 4)
            .and_then(|()| limit.of(cache.waiting().append(SeqId(0), 4)).block().map(drop)),
        cache
            .truncate(SeqId(0), 4)
            .and_then(|()| once(limit.of(cache.waiting().allocate(SeqId(1), 4)))),
        cache
            .free(SeqId(1))
            .or(Ok(()))
            .and_then(|()| limit.of(cache.waiting().allocate(SeqId(2), 4)).block()),
        cache
            .free(SeqId(2))
            .or(Ok(()))
            .and_then(|()| once(limit.of(cache.waiting().admit(SeqId(3), &prompt, &options)))),
        cache.free(SeqId(3)).or(Ok(())).and_then(|()| {
            limit.of(cache.waiting().admit(SeqId(4), &prompt, &options)).block().map(drop)
        }),
    ];
    let _ = cache.free(SeqId(4));
    told
}

#[test]
fn a_late_request_is_served_if_that_is_possible_at_once_and_else_refused_at_once() {
    let cache = cache(3);
    cache.allocate(SeqId(0), 4).unwrap();
    for limit in late() {
        assert_eq!(ask(&cache, limit), vec![Ok(()); 8]);
        let room = cache.reserve(2).unwrap();
        assert_eq!(ask(&cache, limit), vec![Err(DeadlinePassed); 8]);
        drop(room);
    }
    // Late requests do not pass waiting ones.
    let room = cache.reserve(1).unwrap();
    let waiter = Task::waiting(cache.waiting().reserve(2).timeout(HANG));
    for limit in late() {
        assert_eq!(limit.of(cache.waiting().reserve(1)).block().unwrap_err(), DeadlinePassed);
    }
    drop((room, waiter));
    cache.free(SeqId(0)).unwrap();
    assert_all_back(&cache);
}

#[test]
fn a_waiter_that_moved_to_another_task_is_woken_there_by_its_deadline() {
    let cache = cache(2);
    let _all = cache.reserve(2).unwrap();
    cache.allocate(SeqId(1), 0).unwrap();
    let soon = || Duration::from_millis(20);
    let (before, after) = (Arc::new(Wakes::default()), Arc::new(Wakes::default()));
    let mut reserve = cache.waiting().reserve(1).timeout(soon());
    let mut append = cache.waiting().append(SeqId(1), 1).timeout(soon());
    let start = Instant::now();
    for wakes in [&before, &after] {
        let waker = Waker::from(Arc::clone(wakes));
        let context = &mut Context::from_waker(&waker);
        // On a slow machine the request may be late already, which is right too.
        if Pin::new(&mut reserve).poll(context).is_ready()
            || Pin::new(&mut append).poll(context).is_ready()
        {
            return;
        }
    }
    while after.0.load(std::sync::atomic::Ordering::SeqCst) < 2 {
        assert!(start.elapsed() < HANG, "its deadline passed, and it was not woken");
        std::thread::sleep(Duration::from_millis(1));
    }
    // A poll by a third task finds the request late as well.
    let context = &mut Context::from_waker(Waker::noop());
    let late = Pin::new(&mut reserve).poll(context);
    assert!(matches!(late, Poll::Ready(Err(DeadlinePassed))));
    let late = Pin::new(&mut append).poll(context);
    assert!(matches!(late, Poll::Ready(Err(DeadlinePassed))));
    assert_eq!(cache.waiting().len(), 0);
}

#[test]
fn a_late_waiter_that_can_be_served_at_once_is_and_one_that_cannot_wakes_the_next() {
    let cache = cache(2);
    let room = cache.reserve(2).unwrap();
    let soon = Duration::from_millis(2);
    let mut first = Task::new(cache.waiting().reserve(2).timeout(soon));
    let mut second = Task::new(cache.waiting().reserve(1).timeout(HANG));
    if first.poll().is_ready() {
        return; // late already
    }
    assert!(second.poll().is_pending());
    let mut room = room;
    room.shrink_to(1);
    assert_eq!(second.wakes(), 0, "the first waits for two");
    std::thread::sleep(Duration::from_millis(4));
    match first.poll() {
        Poll::Ready(late) => assert_eq!(late.unwrap_err(), DeadlinePassed),
        Poll::Pending => panic!("it is late"),
    }
    drop(second.served().unwrap());
    let soon = Duration::from_millis(2);
    let mut first = Task::new(cache.waiting().reserve(2).timeout(soon));
    if first.poll().is_ready() {
        return;
    }
    std::thread::sleep(Duration::from_millis(4));
    drop(room);
    match first.poll() {
        Poll::Ready(served) => assert_eq!(served.unwrap().num_blocks(), 2),
        Poll::Pending => panic!("there is room"),
    }
    assert_all_back(&cache);
}
