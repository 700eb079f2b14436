//! `shared`, `own`: the rows of whole requests, by handle, with prompts that share prefixes.
//!
//! In `shared`, all threads take requests from one stream: they hit blocks that other threads published. In
//! `own`, each thread has a stream of its own conversations, and the cache has its blocks for each thread.

use std::time::Duration;

use paged_kv::{PagedKvCache, Prompt};

use crate::baseline::one_lock_prefix::OneLockPrefix;
use crate::kvbm::{ByGuard, Kvbm, Names};
use crate::plan::{Cell, Name, Plan};
use crate::rig::prompts::{
    ByHandle, ByTable, LIVE_OWN, Server, Serving, Stream, conversations, own_conversations, prompt,
    serving, warm_up,
};
use crate::rig::team::Burst;

/// A size of blocks.
pub struct Setting {
    block_size: usize,
    /// Blocks of a cache that all threads share.
    num_blocks: usize,
    /// Blocks for each thread that has its own conversations.
    num_blocks_own: usize,
    slice: Duration,
    /// Requests that a thread takes from the stream in one batch.
    portion: usize,
}

pub const SMALL_BLOCKS: Setting = Setting {
    block_size: 16,
    num_blocks: 200_000,
    num_blocks_own: 50_000,
    slice: Duration::from_millis(16),
    portion: 1,
};

pub const LARGE_BLOCKS: Setting = Setting {
    block_size: 512,
    num_blocks: 6_000,
    num_blocks_own: 1_500,
    slice: Duration::from_millis(5),
    portion: 8,
};

impl Setting {
    fn cache(&self, num_blocks: usize) -> PagedKvCache {
        let builder = PagedKvCache::builder().num_blocks(num_blocks).block_size(self.block_size);
        builder.build().expect("the options are valid")
    }

    fn prompts(&self, contents: &[Vec<u64>]) -> Vec<Prompt> {
        contents.iter().map(|names| prompt(names, self.block_size)).collect()
    }
}

/// Requests of a stream: they fill their cache about twice before the stream starts again.
const NUM_REQUESTS: usize = 1_000;
const NUM_REQUESTS_OWN: usize = 200;

/// Measures requests of one stream.
pub fn shared(plan: &Plan, setting: &Setting) -> Vec<Cell> {
    let prompts = setting.prompts(&conversations(NUM_REQUESTS));
    let names = Names::new(&prompts);
    let ours = plan.each(|_| setting.cache(setting.num_blocks));
    let lock = plan.each(|_| OneLockPrefix::new(setting.num_blocks));
    let kvbm = plan.each(|_| Kvbm::new(setting.num_blocks, setting.block_size));
    let streams = [(); 3].map(|()| plan.each(|_| Stream::new(&prompts, setting.portion)));
    let of = |design: usize, i: usize| (&streams[design][i], plan.threads[i]);
    let ours = |i: usize, thread| sharing(|| ByHandle::new(&ours[i]), &prompts, of(0, i), thread);
    let lock = |i: usize, thread| {
        let server = || ByTable::new(&lock[i], setting.block_size);
        sharing(server, &prompts, of(1, i), thread)
    };
    let kvbm = |i: usize, thread| {
        let server = || ByGuard::new(&kvbm[i], &names);
        sharing(server, &prompts, of(2, i), thread)
    };
    plan.measure(setting.slice, &[(Name::Ours, &ours), (Name::OneLock, &lock), (Name::Kvbm, &kvbm)])
}

/// Returns the work of a thread. The last thread of each instance warms it up: it is another one for each
/// instance, so that instances are warmed up in parallel.
fn sharing<'a, S: Server + 'a>(
    server: impl Fn() -> S,
    prompts: &[Prompt],
    (stream, threads): (&'a Stream<'a>, usize),
    thread: usize,
) -> Burst<'a> {
    if thread + 1 == threads {
        warm_up(server(), prompts);
    }
    serving(Serving::new(server(), stream, threads))
}

/// Measures requests of a stream for each thread.
pub fn own(plan: &Plan, setting: &Setting) -> Vec<Cell> {
    let own = |thread| setting.prompts(&own_conversations(thread, NUM_REQUESTS_OWN));
    let prompts: Vec<Vec<Prompt>> = (0..plan.most()).map(own).collect();
    let names: Vec<Names> = prompts.iter().map(|prompts| Names::new(prompts)).collect();
    let blocks = |threads: usize| threads * setting.num_blocks_own;
    let ours = plan.each(|threads| setting.cache(blocks(threads)));
    let lock = plan.each(|threads| OneLockPrefix::new(blocks(threads)));
    let kvbm = plan.each(|threads| Kvbm::new(blocks(threads), setting.block_size));
    let stream = |thread: usize| Stream::new(&prompts[thread], setting.portion);
    let streams = [(); 3].map(|()| plan.each(|threads| (0..threads).map(stream).collect()));
    let streams: [Vec<Vec<Stream<'_>>>; 3] = streams;
    let portions = NUM_REQUESTS_OWN / setting.portion;
    let ours = |i: usize, thread: usize| {
        by_itself(ByHandle::new(&ours[i]), &streams[0][i][thread], portions)
    };
    let lock = |i: usize, thread: usize| {
        let server = ByTable::new(&lock[i], setting.block_size);
        by_itself(server, &streams[1][i][thread], portions)
    };
    let kvbm = |i: usize, thread: usize| {
        let server = ByGuard::new(&kvbm[i], &names[thread]);
        by_itself(server, &streams[2][i][thread], portions)
    };
    plan.measure(setting.slice, &[(Name::Ours, &ours), (Name::OneLock, &lock), (Name::Kvbm, &kvbm)])
}

/// Returns the work of a thread with its own stream, of which it has served `portions`.
fn by_itself<'a, S: Server + 'a>(server: S, stream: &'a Stream<'a>, portions: usize) -> Burst<'a> {
    let mut thread = Serving::with_rows(server, stream, LIVE_OWN);
    for _ in 0..portions {
        thread.portion(|_, work| work());
    }
    serving(thread)
}
