//! Wakers that panic, and wakers that poll: single cases.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::Duration;

use paged_kv::{Fairness, PagedKvCache, PagedKvError, Reservation, Result, SeqId};

use crate::{BLOCK_SIZE, HANG, panic_quietly, watched};

/// A waker that panics.
struct Broken;

impl Wake for Broken {
    fn wake(self: Arc<Self>) {
        panic_quietly();
    }
}

/// A waker that counts its wake-ups.
#[derive(Default)]
struct Counts(AtomicUsize);

impl Wake for Counts {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Counts {
    fn get(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

fn poll<F: Future + Unpin>(
    future: &mut F,
    waker: &Arc<impl Wake + Send + Sync + 'static>,
) -> Poll<F::Output> {
    Pin::new(future).poll(&mut Context::from_waker(&Waker::from(Arc::clone(waker))))
}

fn cache(num_blocks: usize) -> PagedKvCache {
    PagedKvCache::new(num_blocks, BLOCK_SIZE, 1, 1)
}

#[test]
fn a_truncation_whose_waker_panics_gives_no_block_to_two_owners() {
    let cache = cache(2);
    cache.allocate(SeqId(1), 8).unwrap();
    let mut waiting = Box::pin(cache.waiting().reserve(1).timeout(HANG));
    assert!(poll(&mut waiting, &Arc::new(Broken)).is_pending());
    let truncated = catch_unwind(AssertUnwindSafe(|| cache.truncate(SeqId(1), 4)));
    assert_eq!(truncated.ok(), Some(Ok(())));
    assert_eq!(cache.get_sequence(SeqId(1)).unwrap().num_blocks(), 1);
    cache.allocate(SeqId(2), 4).unwrap();
    cache.validate().unwrap();
    drop(waiting);
    let blocks = |id| cache.get_sequence(SeqId(id)).unwrap().block_ids;
    assert_ne!(blocks(1), blocks(2));
    [1, 2].into_iter().for_each(|id| cache.free(SeqId(id)).unwrap());
    assert_eq!(cache.used_block_count(), 0);
}

#[test]
fn a_deadline_passes_although_the_waker_of_an_earlier_one_panics() {
    watched(|| {
        let cache = cache(1);
        let _all = cache.reserve(1).unwrap();
        let mut first = Box::pin(cache.waiting().reserve(1).timeout(Duration::from_millis(1)));
        assert!(poll(&mut first, &Arc::new(Broken)).is_pending());
        std::thread::sleep(Duration::from_millis(20)); // the alarm has fired
        let (rings, rung) = std::sync::mpsc::channel();
        struct Rings(std::sync::mpsc::Sender<()>);
        impl Wake for Rings {
            fn wake(self: Arc<Self>) {
                self.0.send(()).unwrap();
            }
        }
        let (mut second, waker) = (
            Box::pin(cache.waiting().reserve(1).timeout(Duration::from_millis(1))),
            Arc::new(Rings(rings)),
        );
        if poll(&mut second, &waker).is_pending() {
            rung.recv_timeout(HANG).expect("it is woken at its deadline");
        }
        let late = poll(&mut second, &waker).map(|late| late.map(drop));
        assert_eq!(late, Poll::Ready(Err(PagedKvError::DeadlinePassed)));
    });
}

#[test]
fn behind_ten_thousand_wakers_that_panic_the_next_is_woken() {
    watched(|| {
        let cache = cache(1);
        let all = cache.reserve(1).unwrap();
        let mut deaf: Vec<_> = (0..10_000).map(|_| cache.waiting().reserve(1)).collect();
        for waiting in &mut deaf {
            assert!(poll(waiting, &Arc::new(Broken)).is_pending());
        }
        let (mut last, waker) =
            (cache.waiting().reserve(1).timeout(HANG), Arc::<Counts>::default());
        assert!(poll(&mut last, &waker).is_pending());
        drop(all);
        assert_eq!(waker.get(), 1);
        assert!(poll(&mut last, &waker).is_ready());
        assert_eq!(cache.waiting().len(), 10_000, "they wait still");
        let mut first = deaf.remove(0);
        assert!(poll(&mut first, &waker).is_ready(), "and are served when they ask");
    });
}

#[test]
fn one_that_may_pass_is_woken_although_the_waker_in_front_panics() {
    let fairness = Fairness::Bypass { at_most: 1 };
    let builder = PagedKvCache::builder().num_blocks(4).block_size(BLOCK_SIZE);
    let cache = builder.fairness(fairness).build().unwrap();
    let mut all = cache.reserve(4).unwrap();
    let mut waiting = [2, 4, 1].map(|need| cache.waiting().reserve(need).timeout(HANG));
    assert!(poll(&mut waiting[0], &Arc::new(Broken)).is_pending());
    let wakers = [Arc::<Counts>::default(), Arc::default()];
    for (waiting, waker) in waiting[1..].iter_mut().zip(&wakers) {
        assert!(poll(waiting, waker).is_pending());
    }
    all.shrink_to(2);
    assert!(poll(&mut waiting[1], &wakers[0]).is_pending(), "it needs more");
    assert_eq!(wakers[1].get(), 1);
    assert!(poll(&mut waiting[2], &wakers[1]).is_ready());
}

#[test]
fn another_is_told_that_all_wait_if_the_one_that_was_chosen_does_not_hear() {
    let cache = cache(2);
    cache.allocate(SeqId(1), 4).unwrap();
    cache.allocate(SeqId(2), 4).unwrap();
    cache.touch(SeqId(2)).unwrap(); // sequence 1 is the next victim
    let mut first = cache.waiting().append(SeqId(1), 1).timeout(HANG);
    assert!(poll(&mut first, &Arc::new(Broken)).is_pending());
    let (mut second, waker) =
        (cache.waiting().append(SeqId(2), 1).timeout(HANG), Arc::<Counts>::default());
    let mut polled = poll(&mut second, &waker);
    while polled.is_pending() {
        assert!(waker.0.swap(0, Ordering::SeqCst) > 0, "it is woken, or it waits for ever");
        polled = poll(&mut second, &waker);
    }
    let told = polled.map(|appended| appended.map(drop));
    assert_eq!(told, Poll::Ready(Err(PagedKvError::Stalled(SeqId(2)))));
    cache.free(SeqId(2)).unwrap();
    assert!(poll(&mut first, &waker).is_ready());
}

/// A task that its waker polls, on the thread that wakes it.
struct Inline<F: Future>(Mutex<Running<F>>);

/// A future, and its result.
type Running<F> = (Pin<Box<F>>, Option<<F as Future>::Output>);

impl<F> Inline<F>
where
    F: Future<Output = Result<Reservation>> + Send + 'static,
{
    fn start(future: F) -> Arc<Self> {
        let task = Arc::new(Self(Mutex::new((Box::pin(future), None))));
        task.clone().wake();
        task
    }

    fn is_served(&self) -> bool {
        matches!(self.0.lock().unwrap().1, Some(Ok(_)))
    }
}

impl<F> Wake for Inline<F>
where
    F: Future<Output = Result<Reservation>> + Send + 'static,
{
    fn wake(self: Arc<Self>) {
        let waker = Waker::from(self.clone());
        let mut task = self.0.lock().unwrap();
        if task.1.is_none()
            && let Poll::Ready(served) = task.0.as_mut().poll(&mut Context::from_waker(&waker))
        {
            task.1 = Some(served);
        }
    }
}

#[test]
fn a_waker_may_poll_its_task_in_the_operation_that_gives_room() {
    watched(|| {
        let cache = Arc::new(cache(8));
        cache.allocate(SeqId(1), 32).unwrap();
        let reads = |cache: Arc<PagedKvCache>| async move {
            let reserved = cache.waiting().reserve(2).timeout(HANG).await;
            // This is the sequence that is being truncated, at that time.
            _ = cache.get_sequence(SeqId(1)).map(|_| cache.touch(SeqId(1)));
            reserved
        };
        let tasks: Vec<_> = (0..4).map(|_| Inline::start(reads(cache.clone()))).collect();
        assert!(tasks.iter().all(|task| !task.is_served()));
        cache.truncate(SeqId(1), 16).unwrap();
        let served = tasks.iter().filter(|task| task.is_served()).count();
        assert_eq!((served, cache.waiting().len()), (2, 2));
        cache.free(SeqId(1)).unwrap();
        assert!(tasks.iter().all(|task| task.is_served()));
        drop(tasks);
        assert_eq!(cache.used_block_count(), 0);
    });
}

/// A waker that reads a sequence, as a task that is polled immediately may do.
struct Reads {
    cache: std::sync::Weak<PagedKvCache>,
    wakes: AtomicUsize,
}

impl Wake for Reads {
    fn wake(self: Arc<Self>) {
        let cache = self.cache.upgrade().expect("the cache lives");
        assert!(cache.get_sequence(SeqId(1)).is_some());
        self.wakes.fetch_add(1, Ordering::SeqCst);
    }
}

/// A chunked prompt that waits is checked again when contents are reclaimed, here by an append.
#[test]
fn an_append_that_reclaims_contents_holds_no_lock_when_it_wakes() {
    for grows_by in [1, BLOCK_SIZE, 5 * BLOCK_SIZE] {
        watched(move || {
            let cache = Arc::new(cache(12));
            cache.admit(SeqId(9), &[7; 9 * BLOCK_SIZE]).unwrap();
            cache.commit(SeqId(9), 9 * BLOCK_SIZE).unwrap();
            cache.free(SeqId(9)).unwrap(); // nine idle blocks, three free
            cache.allocate(SeqId(1), 3 * BLOCK_SIZE).unwrap();
            let options = paged_kv::AdmitOptions::default().first_chunk(3 * BLOCK_SIZE);
            let prompt = cache.prompt(&[7; 13 * BLOCK_SIZE]);
            let mut waiting = cache.waiting().admit(SeqId(2), &prompt, &options).timeout(HANG);
            let waker =
                Arc::new(Reads { cache: Arc::downgrade(&cache), wakes: AtomicUsize::new(0) });
            assert!(poll(&mut waiting, &waker).is_pending());
            drop(cache.append(SeqId(1), grows_by).unwrap());
            assert!(waker.wakes.load(Ordering::SeqCst) > 0, "it may need less now");
        });
    }
}

#[test]
fn a_waker_called_by_a_thread_that_ends_finds_no_lock_held() {
    /// Changes sequence 1 of its cache, which would deadlock if the thread held a lock of the cache.
    struct Touches(Arc<PagedKvCache>);
    impl Wake for Touches {
        fn wake(self: Arc<Self>) {
            self.0.touch(SeqId(1)).unwrap();
        }
    }
    struct OnExit(Arc<PagedKvCache>);
    impl Drop for OnExit {
        fn drop(&mut self) {
            self.0.truncate(SeqId(1), 0).unwrap();
        }
    }
    thread_local! {
        static ON_EXIT: RefCell<Option<OnExit>> = const { RefCell::new(None) };
    }
    watched(|| {
        let [last, other] = [(); 2].map(|()| Arc::new(cache(1)));
        for cache in [&last, &other] {
            cache.allocate(SeqId(1), 4).unwrap();
        }
        let mut waiting = Box::pin(last.waiting().reserve(1).timeout(HANG));
        let waker = Arc::new(Touches(last.clone()));
        assert!(poll(&mut waiting, &waker).is_pending());
        let mut waiting_for_other = Box::pin(other.waiting().reserve(1).timeout(HANG));
        assert!(poll(&mut waiting_for_other, &Arc::new(Counts::default())).is_pending());
        let of_thread = last.clone();
        let thread = thread::spawn(move || {
            ON_EXIT.set(Some(OnExit(of_thread)));
            // The library's own thread-local state is younger, so it is dropped before `ON_EXIT`.
            other.truncate(SeqId(1), 0).unwrap();
        });
        thread.join().unwrap();
        assert!(poll(&mut waiting, &waker).is_ready());
    });
}

#[test]
fn wakers_that_poll_serve_any_number_of_waiters_on_one_stack() {
    type Waiting = Pin<Box<dyn Future<Output = Result<Reservation>> + Send>>;
    /// Polls its task when it is woken, and keeps the result.
    #[derive(Default)]
    struct Polls(Mutex<Option<Waiting>>, Mutex<Option<Reservation>>);
    impl Wake for Polls {
        fn wake(self: Arc<Self>) {
            let Some(mut waiting) = self.0.lock().unwrap().take() else { return };
            match poll(&mut waiting, &self) {
                Poll::Ready(served) => *self.1.lock().unwrap() = Some(served.unwrap()),
                Poll::Pending => *self.0.lock().unwrap() = Some(waiting),
            }
        }
    }
    watched(|| {
        const WAITERS: usize = 2000;
        let cache = cache(WAITERS);
        let all = cache.reserve(WAITERS).unwrap();
        let tasks: Vec<Arc<Polls>> = (0..WAITERS).map(|_| Arc::default()).collect();
        for task in &tasks {
            *task.0.lock().unwrap() = Some(Box::pin(cache.waiting().reserve(1).timeout(HANG)));
            Arc::clone(task).wake();
        }
        assert_eq!(cache.waiting().len(), WAITERS);
        drop(all);
        assert_eq!((cache.waiting().len(), cache.used_block_count()), (0, WAITERS));
        drop(tasks);
        assert_eq!(cache.used_block_count(), 0);
    });
}
