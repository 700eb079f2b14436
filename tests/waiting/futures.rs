//! Tests of [`Wait`] as a future: it can be moved, sent to another thread, and limited at any time.

use std::sync::Arc;
use std::time::Duration;

use paged_kv::PagedKvError::DeadlinePassed;
use paged_kv::wait::{Request, Wait};
use paged_kv::{AdmitOptions, PagedKvCache, SeqId};

use super::{Task, assert_all_back, cache};

fn sendable<R: Request>(wait: Wait<R>) -> Wait<R>
where
    Wait<R>: Send + Unpin,
{
    wait
}

#[test]
fn every_wait_can_be_sent_and_moved() {
    let cache = cache(4);
    let waiting = cache.waiting();
    let (prompt, options) = (cache.prompt(&[7; 5]), AdmitOptions::default());
    std::thread::scope(|scope| {
        let allocate = sendable(waiting.allocate(SeqId(1), 4));
        scope.spawn(|| allocate.block().unwrap()).join().unwrap();
        let admit = sendable(waiting.admit(SeqId(2), &prompt, &options));
        let admission = scope.spawn(|| admit.block().unwrap()).join().unwrap();
        assert_eq!(admission.num_tokens, 5);
        let append = sendable(waiting.append(SeqId(1), 1));
        assert_eq!(scope.spawn(|| append.block().unwrap().new_blocks).join().unwrap(), 1..2);
    });
    [1, 2].into_iter().for_each(|id| cache.free(SeqId(id)).unwrap());
    assert_all_back(&cache);
}

#[test]
fn a_task_that_owns_the_cache_can_wait() {
    fn spawnable<F: Future<Output = paged_kv::Result<()>> + Send + 'static>(future: F) -> F {
        future
    }
    let cache = Arc::new(cache(2));
    let shared = Arc::clone(&cache);
    let served = spawnable(async move {
        shared.waiting().allocate(SeqId(1), 4).await?;
        drop(shared.waiting().append(SeqId(1), 1).await?);
        shared.free(SeqId(1))
    });
    assert!(Task::new(Box::pin(served)).poll().is_ready());
    assert_all_back(&cache);
}

#[test]
fn the_wait_for_a_reservation_does_not_borrow_the_cache() {
    fn is_static<T: 'static>(value: T) -> T {
        value
    }
    let wait = {
        let cache = PagedKvCache::new(2, 4, 1, 1);
        is_static(sendable(cache.waiting().reserve(2)))
    };
    assert_eq!(wait.block().unwrap().num_blocks(), 2);
}

#[test]
fn a_deadline_can_be_set_while_the_request_waits() {
    let cache = cache(1);
    let room = cache.reserve(1).unwrap();
    let mut task = Task::waiting(cache.waiting().reserve(1));
    assert_eq!(cache.waiting().len(), 1);
    task.future = task.future.timeout(Duration::ZERO);
    assert!(task.poll().map(Result::unwrap_err) == std::task::Poll::Ready(DeadlinePassed));
    assert!(cache.waiting().is_empty());
    drop(room);
    assert_all_back(&cache);
}
