//! Every operation under which a waiter may be woken or an event be told. Each says what came of it.

use std::task::Poll;

use paged_kv::wait::Patience;
use paged_kv::{AdmitOptions, BlockId, PagedKvCache, SeqId, append_batch, append_batch_fitting};

use crate::world::{World, tokens};
use crate::{BLOCK_SIZE, HANG};

pub type Operation = fn(&mut World<'_>) -> String;

/// What came out, without the numbers that differ from run to run.
fn told<T, E: std::fmt::Debug>(result: Result<T, E>, outcome: impl FnOnce(T) -> usize) -> String {
    format!("{:?}", result.map(outcome))
}

fn done<E: std::fmt::Debug>(result: Result<(), E>) -> String {
    told(result, |()| 0)
}

/// For ever, but for a defect.
fn patience() -> Patience {
    Patience::default().timeout(HANG)
}

fn admit(cache: &PagedKvCache, id: u64, number: u32, len: usize) -> String {
    told(cache.admit(SeqId(id), &tokens(number, len)), |admission| admission.cached_tokens)
}

/// Those that give blocks back, and may wake.
pub const GIVING: &[(&str, Operation)] = &[
    ("free", |world| done(world.cache.free(SeqId(3)))),
    ("free a fork", |world| done(world.cache.free(SeqId(2)))),
    ("free when released", |world| done(world.cache.free_when_released(SeqId(4)))),
    ("free what is leased, and end the lease", |world| {
        let freed = done(world.cache.free_when_released(SeqId(6)));
        drop(world.lease.take());
        freed
    }),
    ("truncate", |world| done(world.cache.truncate(SeqId(3), 4))),
    ("truncate what is forked", |world| done(world.cache.truncate(SeqId(1), 2))),
    ("truncate what is leased", |world| done(world.cache.truncate(SeqId(6), 0))),
    ("trim", |world| told(world.cache.apply_streaming_llm(SeqId(4), 1, 1), |tokens| tokens)),
    ("evict", |world| told(world.cache.evict(), |_| 0)),
    ("evict for room", |world| told(world.cache.evict_to_threshold(0.5), |all| all.len())),
    ("evict everything", |world| told(world.cache.evict_to_threshold(0.0), |all| all.len())),
    ("shrink a reservation", |world| {
        let reservation = world.reservation.as_mut().unwrap();
        reservation.shrink_to(1);
        reservation.num_blocks().to_string()
    }),
    ("drop a reservation", |world| format!("{:?}", world.reservation.take().map(drop))),
    ("truncate a table", |world| {
        let table = world.table.as_mut().unwrap();
        table.truncate(0);
        table.len().to_string()
    }),
    ("remove from a table", |world| {
        let table = world.table.as_mut().unwrap();
        table.remove(0..1);
        table.len().to_string()
    }),
    ("drop a table", |world| format!("{:?}", world.table.take().map(drop))),
    ("drop a handle", |world| format!("{:?}", world.handle.take().map(drop))),
    ("truncate a handle", |world| done(world.handle.as_mut().unwrap().truncate(1))),
    ("trim a handle", |world| world.handle.as_mut().unwrap().apply_streaming_llm(1, 1).to_string()),
    ("drop the source of a copy", |world| format!("{:?}", world.copy.take().map(drop))),
    ("release by id", |world| {
        let ids: Vec<BlockId> = world.table.take().unwrap().into_ids();
        done(ids.into_iter().try_for_each(|id| world.cache.pool().release(id)))
    }),
    ("settle", |world| {
        let step = world.step.as_mut().unwrap();
        told(world.cache.settle(SeqId(5), 0, &[], step), |published| published)
    }),
    ("settle, and complete", |world| {
        let mut step = world.step.take().unwrap();
        let settled = told(world.cache.settle(SeqId(5), 0, &[], &mut step), |blocks| blocks);
        settled + &step.complete().to_string()
    }),
    ("abort", |world| done(world.cache.abort(world.step.take().unwrap(), &[SeqId(5)]))),
    ("free in a step, and drop it", |world| {
        let freed = done(world.cache.free(SeqId(5)));
        drop(world.step.take());
        freed
    }),
    ("a batch that lets go of the one before", |world| {
        let mut rows = [(world.plain.take().unwrap().fork().unwrap(), 1)];
        let appended = append_batch(&mut rows, &mut world.batch);
        drop(rows);
        let again = world.lease.as_mut().unwrap().append_batch(&[0], &mut world.batch);
        done(appended) + &done(again)
    }),
    ("free inside a closure", |world| {
        let cache = world.cache;
        format!("{:?}", cache.with_sequence(SeqId(1), |_| done(cache.free(SeqId(3)))))
    }),
];

/// Those of a waiter's own task.
pub const WAITING: &[(&str, Operation)] = &[
    ("drop the first waiter", |world| {
        drop(world.waiting.remove(0));
        world.cache.num_waiting().to_string()
    }),
    ("give room, and serve the first waiter", |world| {
        drop((world.table.take(), world.reservation.take()));
        format!("{:?}", world.waiting[0].poll())
    }),
    ("poll the first waiter again", |world| {
        let first = world.waiting[0].poll() == Poll::Pending;
        format!("{first} {}", world.cache.num_waiting())
    }),
];

/// Those that publish and reclaim, and tell.
pub const TELLING: &[(&str, Operation)] = &[
    ("allocate over idle blocks", |world| done(world.cache.allocate(SeqId(8), 8))),
    ("allocate what does not fit", |world| done(world.cache.allocate(SeqId(8), 99))),
    ("allocate for an id that is there", |world| done(world.cache.allocate(SeqId(1), 8))),
    ("append over idle blocks", |world| {
        told(world.cache.append(SeqId(3), 5), |append| append.new_blocks.len())
    }),
    ("append that copies, over an idle block", |world| {
        told(world.cache.append(SeqId(2), 1), |append| append.new_blocks.len())
    }),
    ("append to what is leased", |world| {
        told(world.cache.append(SeqId(6), 8), |append| append.new_blocks.len())
    }),
    ("append over idle blocks, ready to wait", |world| {
        let appended = world.cache.append_blocking(SeqId(3), 5, patience());
        told(appended, |append| append.new_blocks.len())
    }),
    ("append that copies, ready to wait", |world| {
        let appended = world.cache.append_blocking(SeqId(2), 1, patience());
        told(appended, |append| append.new_blocks.len())
    }),
    ("append to what is leased, ready to wait", |world| {
        let appended = world.cache.append_blocking(SeqId(6), 8, patience());
        told(appended, |append| append.new_blocks.len())
    }),
    ("allocate over idle blocks, ready to wait", |world| {
        done(world.cache.allocate_blocking(SeqId(8), 8, patience()))
    }),
    ("admit over idle blocks, ready to wait", |world| {
        let (prompt, options) = (world.cache.prompt(&tokens(8, 8)), AdmitOptions::default());
        let admitted = world.cache.admit_blocking(SeqId(8), &prompt, &options, patience());
        told(admitted, |admission| admission.cached_tokens)
    }),
    ("reserve over idle blocks, ready to wait", |world| {
        let reserved = world.cache.reserve_blocking(2, patience());
        told(reserved, |reservation| reservation.num_blocks())
    }),
    ("append tokens", |world| {
        let named = told(world.cache.commit_tokens(SeqId(1), &[]), |blocks| blocks);
        let appended = world.cache.append_tokens(SeqId(1), &tokens(1, 24)[14..]);
        named + &told(appended, |append| append.new_blocks.len())
    }),
    ("commit", |world| told(world.cache.commit(SeqId(1), 14), |blocks| blocks)),
    ("commit a whole prompt", |world| told(world.cache.commit(SeqId(4), 9), |blocks| blocks)),
    ("commit a handle", |world| told(world.handle.as_mut().unwrap().commit(9), |blocks| blocks)),
    ("commit in a step", |world| {
        let mut step = world.step.take().unwrap();
        let committed = told(world.cache.commit_in(SeqId(4), 9, &mut step), |blocks| blocks);
        committed + &step.complete().to_string()
    }),
    ("grow a step over idle blocks", |world| {
        let step = world.step.as_mut().unwrap();
        told(world.cache.grow_batch(&[(SeqId(3), 5)], step), |grown| grown.done)
    }),
    ("grow a batch over idle blocks", |world| {
        let World { cache, batch, .. } = world;
        done(cache.append_batch(&[(SeqId(3), 1), (SeqId(4), 4)], batch))
    }),
    ("grow a batch of handles as far as it goes", |world| {
        let mut rows =
            [(world.plain.take().unwrap(), 9), (world.cache.allocate_sequence(0).unwrap(), 9)];
        told(append_batch_fitting(&mut rows, &mut world.batch), |fitted| fitted.done)
    }),
    ("admit what is idle", |world| admit(world.cache, 8, 0, 9)),
    ("admit over idle blocks", |world| admit(world.cache, 8, 8, 8)),
    ("admit what is idle, and reclaim the rest of it", |world| {
        let options = AdmitOptions::default().most_cached_tokens(4);
        let admitted = world.cache.admit_with(SeqId(8), &tokens(0, 8), &options);
        told(admitted, |admission| admission.cached_tokens)
    }),
    ("admit into a reservation", |world| {
        let World { cache, reservation, .. } = world;
        let prompt = cache.prompt(&tokens(4, 8));
        let reservation = reservation.as_mut().unwrap();
        let admitted = reservation.admit(cache, SeqId(8), &prompt, &AdmitOptions::default());
        told(admitted, |admission| admission.cached_tokens)
    }),
    ("grow a table over idle blocks", |world| {
        told(world.table.as_mut().unwrap().grow(2), |new| new.len())
    }),
    ("reserve over idle blocks", |world| {
        told(world.cache.reserve(2), |reservation| reservation.num_blocks())
    }),
    ("reset", |world| {
        world.cache.reset_prefix_cache();
        String::new()
    }),
    ("announce again", |world| {
        world.cache.announce_again();
        String::new()
    }),
    ("commit, reset, commit", |world| {
        let before = told(world.cache.commit(SeqId(1), 14), |blocks| blocks);
        world.cache.reset_prefix_cache();
        before + &told(world.cache.commit(SeqId(4), 9), |blocks| blocks)
    }),
    ("append inside a closure", |world| {
        let cache = world.cache;
        let append = |_: &paged_kv::Sequence| {
            told(cache.append(SeqId(3), 2 * BLOCK_SIZE), |append| append.new_blocks.len())
        };
        format!("{:?}", cache.with_sequence(SeqId(1), append))
    }),
];
