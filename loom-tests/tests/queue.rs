//! Checks that the queue of the models behaves as the queue that ships: one test body runs against both.
//!
//! Every outcome that two or three threads may see of a bounded queue is legal in both. The model's queue
//! is checked in every interleaving, `crossbeam`'s queue in the interleavings that real threads meet.

mod common;

use std::sync::Arc;

use common::{explore, spawn_at};

const ROUNDS: usize = 2_000;

/// The operations that the library uses.
trait Queue: Send + Sync + 'static {
    fn new(capacity: usize) -> Self;
    fn push(&self, element: u32) -> Result<(), u32>;
    fn pop(&self) -> Option<u32>;
    fn len(&self) -> usize;
}

macro_rules! queue {
    ($queue:ty) => {
        impl Queue for $queue {
            fn new(capacity: usize) -> Self {
                Self::new(capacity)
            }
            fn push(&self, element: u32) -> Result<(), u32> {
                self.push(element)
            }
            fn pop(&self) -> Option<u32> {
                self.pop()
            }
            fn len(&self) -> usize {
                self.len()
            }
        }
    };
}

queue!(crossbeam::queue::ArrayQueue<u32>);
queue!(paged_kv::loom_api::ArrayQueue<u32>);

type Body<T> = Box<dyn FnOnce() -> T + Send>;

/// Runs two bodies concurrently and returns their results.
trait Threads {
    fn both<T: Send + 'static>(bodies: [Body<T>; 2]) -> [T; 2];
}

struct RealThreads;

impl Threads for RealThreads {
    fn both<T: Send + 'static>(bodies: [Body<T>; 2]) -> [T; 2] {
        bodies.map(std::thread::spawn).map(|thread| thread.join().unwrap())
    }
}

struct ModelThreads;

impl Threads for ModelThreads {
    fn both<T: Send + 'static>(bodies: [Body<T>; 2]) -> [T; 2] {
        bodies.map(|body| spawn_at(0, body)).map(|thread| thread.join().unwrap())
    }
}

fn in_order_until_full<Q: Queue>() {
    let queue = Q::new(2);
    assert_eq!((queue.len(), queue.pop()), (0, None));
    for round in 0..3 {
        assert_eq!(queue.push(round), Ok(()));
        assert_eq!(queue.push(round + 10), Ok(()));
        assert_eq!(queue.push(round + 20), Err(round + 20));
        assert_eq!(queue.len(), 2);
        assert_eq!(queue.pop(), Some(round));
        assert_eq!(queue.push(round + 30), Ok(()));
        assert_eq!(queue.pop(), Some(round + 10));
        assert_eq!(queue.pop(), Some(round + 30));
        assert_eq!(queue.pop(), None);
    }
}

/// After two threads push, pops return the pushed elements of both, in the order of each.
fn pushes_are_all_there<Q: Queue, T: Threads>() {
    let queue = Arc::new(Q::new(3));
    let push = |first: u32| -> Body<()> {
        let queue = Arc::clone(&queue);
        Box::new(move || (first..first + 2).for_each(|element| _ = queue.push(element)))
    };
    T::both([push(0), push(10)]);
    assert_eq!(queue.len(), 3, "of four pushes into three slots one was refused");
    let popped: Vec<u32> = std::iter::from_fn(|| queue.pop()).collect();
    assert_eq!(popped.len(), 3);
    for first in [0, 10] {
        let of_one: Vec<_> = popped.iter().filter(|&&e| e / 10 == first / 10).collect();
        assert!(of_one.is_sorted(), "one thread's pushes keep their order: {popped:?}");
    }
}

/// Two threads pop the elements that were there before: each element once, none left, and no pop finds
/// the queue empty.
fn pops_share_the_elements<Q: Queue, T: Threads>() {
    let queue = Arc::new(Q::new(2));
    queue.push(1).unwrap();
    queue.push(2).unwrap();
    let pop = || -> Body<Option<u32>> {
        let queue = Arc::clone(&queue);
        Box::new(move || queue.pop())
    };
    let mut popped = T::both([pop(), pop()]);
    popped.sort();
    assert_eq!(popped, [Some(1), Some(2)]);
    assert_eq!(queue.pop(), None);
}

/// A slot is used again while the other end works: elements leave in order, each once.
fn a_slot_is_used_again<Q: Queue, T: Threads>() {
    let queue = Arc::new(Q::new(1));
    let (pusher, popper) = (Arc::clone(&queue), Arc::clone(&queue));
    let [refused, popped] = T::both::<Vec<u32>>([
        Box::new(move || (1..=2).filter_map(|element| pusher.push(element).err()).collect()),
        Box::new(move || (0..2).filter_map(|_| popper.pop()).collect()),
    ]);
    let mut out = popped;
    out.extend(queue.pop());
    assert_eq!(queue.pop(), None);
    assert!(out.is_sorted());
    out.extend(refused);
    out.sort();
    assert_eq!(out, [1, 2], "every element came out or was refused");
}

/// A thread counts while another pushes and pops: the count is the length at some moment.
fn a_count_is_of_a_moment<Q: Queue, T: Threads>() {
    let queue = Arc::new(Q::new(3));
    queue.push(0).unwrap();
    let (mover, watcher) = (Arc::clone(&queue), Arc::clone(&queue));
    let move_two = move || {
        for element in 1..=2 {
            mover.push(element).unwrap();
            mover.pop().unwrap();
        }
        1
    };
    let [_, seen] = T::both::<usize>([Box::new(move_two), Box::new(move || watcher.len())]);
    assert!((1..=2).contains(&seen), "{seen} of one or two");
    assert_eq!(queue.len(), 1);
}

type Shipped = crossbeam::queue::ArrayQueue<u32>;
type Modelled = paged_kv::loom_api::ArrayQueue<u32>;

#[test]
fn both_queues_are_in_order_until_full() {
    in_order_until_full::<Shipped>();
    loom::model(in_order_until_full::<Modelled>);
}

#[test]
fn pushes_are_all_there_in_the_shipped_queue() {
    (0..ROUNDS).for_each(|_| pushes_are_all_there::<Shipped, RealThreads>());
}

#[test]
fn pushes_are_all_there_in_the_modelled_queue() {
    explore(pushes_are_all_there::<Modelled, ModelThreads>);
}

#[test]
fn pops_share_the_elements_of_the_shipped_queue() {
    (0..ROUNDS).for_each(|_| pops_share_the_elements::<Shipped, RealThreads>());
}

#[test]
fn pops_share_the_elements_of_the_modelled_queue() {
    explore(pops_share_the_elements::<Modelled, ModelThreads>);
}

#[test]
fn a_slot_is_used_again_in_the_shipped_queue() {
    (0..ROUNDS).for_each(|_| a_slot_is_used_again::<Shipped, RealThreads>());
}

#[test]
fn a_slot_is_used_again_in_the_modelled_queue() {
    explore(a_slot_is_used_again::<Modelled, ModelThreads>);
}

#[test]
fn a_count_is_of_a_moment_in_the_shipped_queue() {
    (0..ROUNDS).for_each(|_| a_count_is_of_a_moment::<Shipped, RealThreads>());
}

#[test]
fn a_count_is_of_a_moment_in_the_modelled_queue() {
    explore(a_count_is_of_a_moment::<Modelled, ModelThreads>);
}
