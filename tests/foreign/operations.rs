//! Every operation that may wake a waiter or emit an event. Each returns its outcome as text.

use std::task::Poll;

use paged_kv::{AdmitOptions, BlockId, PagedKvCache, SeqId, append_batch};

use crate::common::{lease_row, lease_rows};
use crate::world::{World, tokens};
use crate::{BLOCK_SIZE, HANG};

pub type Operation = fn(&mut World<'_>) -> String;

/// Returns the outcome as text, without the numbers that differ between runs.
fn told<T, E: std::fmt::Debug>(result: Result<T, E>, outcome: impl FnOnce(T) -> usize) -> String {
    format!("{:?}", result.map(outcome))
}

fn done<E: std::fmt::Debug>(result: Result<(), E>) -> String {
    told(result, |()| 0)
}

fn admit(cache: &PagedKvCache, id: u64, number: u32, len: usize) -> String {
    told(cache.admit(SeqId(id), &tokens(number, len)), |admission| admission.cached_tokens)
}

/// Operations that give blocks back, and may wake waiters.
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
        table.truncate(0).unwrap();
        table.len().to_string()
    }),
    ("remove from a table", |world| {
        let table = world.table.as_mut().unwrap();
        table.remove(0..1).unwrap();
        table.len().to_string()
    }),
    ("drop a table", |world| format!("{:?}", world.table.take().map(drop))),
    ("drop a handle", |world| format!("{:?}", world.handle.take().map(drop))),
    ("truncate a handle", |world| done(world.handle.as_mut().unwrap().truncate(1))),
    ("trim a handle", |world| {
        world.handle.as_mut().unwrap().apply_streaming_llm(1, 1).unwrap().to_string()
    }),
    ("drop the source of a copy", |world| format!("{:?}", world.copy.take().map(drop))),
    ("release by id", |world| {
        let ids: Vec<BlockId> = world.table.take().unwrap().take_ids().unwrap();
        done(ids.into_iter().try_for_each(|id| world.cache.pool().release(id)))
    }),
    ("accept nothing", |world| {
        let World { step, rows, .. } = world;
        told(step.as_mut().unwrap().accept(0, &mut rows[0].0, &[]), |published| published)
    }),
    ("accept nothing, and complete", |world| {
        let mut step = world.step.take().unwrap();
        let accepted = told(step.accept(0, &mut world.rows[0].0, &[]), |blocks| blocks);
        accepted + &step.complete().published.to_string()
    }),
    ("abort", |world| done(world.step.take().unwrap().abort(&mut world.rows).map(drop))),
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

/// Operations of a waiter's own task.
pub const WAITING: &[(&str, Operation)] = &[
    ("drop the first waiter", |world| {
        drop(world.waiting.remove(0));
        world.cache.waiting().len().to_string()
    }),
    ("give room, and serve the first waiter", |world| {
        drop((world.table.take(), world.reservation.take()));
        format!("{:?}", world.waiting[0].poll())
    }),
    ("poll the first waiter again", |world| {
        let first = world.waiting[0].poll() == Poll::Pending;
        format!("{first} {}", world.cache.waiting().len())
    }),
];

/// Operations that publish and reclaim contents, and emit events.
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
        let appended = world.cache.waiting().append(SeqId(3), 5).timeout(HANG).block();
        told(appended, |append| append.new_blocks.len())
    }),
    ("append that copies, ready to wait", |world| {
        let appended = world.cache.waiting().append(SeqId(2), 1).timeout(HANG).block();
        told(appended, |append| append.new_blocks.len())
    }),
    ("append to what is leased, ready to wait", |world| {
        let appended = world.cache.waiting().append(SeqId(6), 8).timeout(HANG).block();
        told(appended, |append| append.new_blocks.len())
    }),
    ("allocate over idle blocks, ready to wait", |world| {
        done(world.cache.waiting().allocate(SeqId(8), 8).timeout(HANG).block())
    }),
    ("admit over idle blocks, ready to wait", |world| {
        let (prompt, options) = (world.cache.prompt(&tokens(8, 8)), AdmitOptions::default());
        let admitted =
            world.cache.waiting().admit(SeqId(8), &prompt, &options).timeout(HANG).block();
        told(admitted, |admission| admission.cached_tokens)
    }),
    ("reserve over idle blocks, ready to wait", |world| {
        let reserved = world.cache.waiting().reserve(2).timeout(HANG).block();
        told(reserved, |reservation| reservation.num_blocks())
    }),
    ("append tokens", |world| {
        let named = told(world.cache.commit(SeqId(1), &[]), |blocks| blocks);
        let appended = world.cache.append_tokens(SeqId(1), &tokens(1, 24)[14..]);
        named + &told(appended, |append| append.new_blocks.len())
    }),
    ("commit", |world| told(world.cache.commit(SeqId(1), 14), |blocks| blocks)),
    ("commit a whole prompt", |world| told(world.cache.commit(SeqId(4), 9), |blocks| blocks)),
    ("commit a handle", |world| told(world.handle.as_mut().unwrap().commit(9), |blocks| blocks)),
    ("commit in a step", |world| {
        let mut step = world.step.take().unwrap();
        let mut row = lease_row(world.cache, SeqId(4));
        let committed = told(step.commit(&mut row, 9), |blocks| blocks);
        committed + &step.complete().published.to_string()
    }),
    ("grow a step over idle blocks", |world| {
        let mut rows = lease_rows(world.cache, &[(SeqId(3), 5)]);
        told(world.step.as_mut().unwrap().grow(&mut rows), |grown| grown.grown_rows)
    }),
    ("grow a batch over idle blocks", |world| {
        let World { cache, batch, .. } = world;
        done(cache.append_batch(&[(SeqId(3), 1), (SeqId(4), 4)], batch))
    }),
    ("grow a step of handles as far as it goes", |world| {
        let mut rows =
            [(world.plain.take().unwrap(), 9), (world.cache.allocate_sequence(0).unwrap(), 9)];
        told(world.step.as_mut().unwrap().grow(&mut rows), |grown| grown.grown_rows)
    }),
    ("admit what is idle", |world| admit(world.cache, 8, 0, 9)),
    ("admit over idle blocks", |world| admit(world.cache, 8, 8, 8)),
    ("admit what is idle, and reclaim the rest of it", |world| {
        let options = AdmitOptions::default().max_cached_tokens(4);
        let admitted =
            world.cache.admit_with(SeqId(8), &world.cache.prompt(&tokens(0, 8)), &options);
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
        world.cache.prefix().reset();
        String::new()
    }),
    ("announce again", |world| {
        world.cache.prefix().announce_all();
        String::new()
    }),
    ("commit, reset, commit", |world| {
        let before = told(world.cache.commit(SeqId(1), 14), |blocks| blocks);
        world.cache.prefix().reset();
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
