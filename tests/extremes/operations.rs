//! Extreme lengths for every operation that takes one: on sequences by id, by handle, under a lease and
//! in a step.

use paged_kv::{
    AdmitOptions, AppendBatch, BlockId, EvictionStrategy, PagedKvError, Prompt, SeqId, Worker,
    append_batch,
};

use crate::common::{lease_row, lease_rows, s};
use crate::world::{HERE, Shape, World, hashes, shapes};
use crate::{LENGTHS, SHARES, in_little_memory};

type Refusable = Result<(), PagedKvError>;
type Call = fn(&mut World, usize) -> Refusable;

/// An id without a sequence.
const NEW: SeqId = s(9);

fn chunk_of(n: usize, hashed: usize, options: AdmitOptions) -> (Prompt, AdmitOptions) {
    (Prompt::from_hashes(&hashes(hashed), n), options)
}

const BY_ID: &[(&str, Call)] = &[
    ("allocate", |w, n| w.cache.allocate(NEW, n)),
    ("allocate_sequence", |w, n| w.cache.allocate_sequence(n).map(drop)),
    ("allocate under any id", |w, n| w.cache.allocate(SeqId(n as u64), 1)),
    ("append", |w, n| w.cache.append(HERE[0], n).map(drop)),
    ("append to a fork", |w, n| w.cache.append(HERE[1], n).map(drop)),
    ("append to an admitted", |w, n| w.cache.append(HERE[2], n).map(drop)),
    ("append to an empty", |w, n| w.cache.append(HERE[3], n).map(drop)),
    ("append to a missing", |w, n| w.cache.append(NEW, n).map(drop)),
    ("truncate", |w, n| w.cache.truncate(HERE[0], n)),
    ("truncate an admitted", |w, n| w.cache.truncate(HERE[2], n)),
    ("trim: sink", |w, n| w.cache.apply_streaming_llm(HERE[2], n, 1).map(drop)),
    ("trim: window", |w, n| w.cache.apply_streaming_llm(HERE[2], 1, n).map(drop)),
    ("trim: both", |w, n| w.cache.apply_streaming_llm(HERE[2], n, n).map(drop)),
    ("commit", |w, n| w.cache.commit(HERE[0], n).map(drop)),
    ("commit an admitted", |w, n| w.cache.commit(HERE[2], n).map(drop)),
    ("commit of named tokens", |w, _| w.cache.commit(HERE[2], &[7; 9]).map(drop)),
    ("append_tokens", |w, _| w.cache.append_tokens(HERE[2], &[7; 9]).map(drop)),
    ("admit_with hashes", |w, n| {
        w.cache
            .admit_with(NEW, &Prompt::from_hashes(&hashes(2), n), &AdmitOptions::default())
            .map(drop)
    }),
    ("admit_with a prompt without hashes", |w, n| {
        w.cache.admit_with(NEW, &Prompt::from_hashes(&[], n), &AdmitOptions::default()).map(drop)
    }),
    ("admit_with", |w, n| {
        let (prompt, options) = chunk_of(n, 2, AdmitOptions::default());
        w.cache.admit_with(NEW, &prompt, &options).map(drop)
    }),
    ("admit a first chunk of all", |w, n| {
        let (prompt, options) = chunk_of(usize::MAX, 2, AdmitOptions::default().first_chunk(n));
        w.cache.admit_with(NEW, &prompt, &options).map(drop)
    }),
    ("admit a chunk of any", |w, n| {
        let (prompt, options) = chunk_of(n, 2, AdmitOptions::default().first_chunk(1));
        w.cache.admit_with(NEW, &prompt, &options).map(drop)
    }),
    ("admit a chunk without hashes", |w, n| {
        let (prompt, options) = chunk_of(n, 0, AdmitOptions::default().first_chunk(4));
        w.cache.admit_with(NEW, &prompt, &options).map(drop)
    }),
    ("admit with few cached", |w, n| {
        let options = AdmitOptions::default().max_cached_tokens(n).first_chunk(1);
        let (prompt, options) = chunk_of(usize::MAX, 2, options);
        w.cache.admit_with(NEW, &prompt, &options).map(drop)
    }),
    ("admit more hashes than full blocks", |w, n| {
        let (prompt, options) = chunk_of(n, 90, AdmitOptions::default().first_chunk(1));
        w.cache.admit_with(NEW, &prompt, &options).map(drop)
    }),
    ("admit_sequence", |w, n| {
        let (prompt, options) = chunk_of(n, 2, AdmitOptions::default().first_chunk(2));
        w.cache.admit_sequence(&prompt, &options).map(drop)
    }),
    ("probe", |w, n| {
        assert!(w.cache.prefix().probe(&Prompt::from_hashes(&hashes(90), n)) <= n);
        Ok(())
    }),
    ("reserve", |w, n| w.cache.reserve(n).map(drop)),
    ("evict_for", |w, n| w.cache.evict_for(Worker(n as u32), n, &mut Vec::new()).map(drop)),
    ("set_priority", |w, n| w.cache.set_priority(HERE[0], n as u32)),
    ("a batch", |w, n| {
        w.cache.append_batch(&[(HERE[0], 1), (HERE[1], n)], &mut AppendBatch::default())
    }),
    ("a batch of enormous rows", |w, n| {
        let rows = HERE.map(|id| (id, n));
        w.cache.append_batch(&rows, &mut AppendBatch::default())
    }),
];

const BY_HANDLE: &[(&str, Call)] = &[
    ("append", |w, n| w.handle.append(n).map(drop)),
    ("truncate", |w, n| w.handle.truncate(n)),
    ("trim", |w, n| {
        w.handle.apply_streaming_llm(n, n / 2).unwrap();
        w.handle.apply_streaming_llm(1, n).unwrap();
        Ok(())
    }),
    ("look", |w, n| {
        assert_eq!((w.handle.slot(n).is_some(), w.cached.block_at(n).is_some()), (n < 3, n < 3));
        Ok(())
    }),
    ("fork_n", |w, n| w.handle.fork_n(n).map(drop)),
    ("fork_n of full blocks", |w, n| {
        w.handle.truncate(0)?;
        w.handle.fork_n(n).map(drop).or(Ok(()))
    }),
    ("copies_of_forks", |w, n| {
        assert!([0, n].contains(&w.handle.copies_of_forks(n)));
        Ok(())
    }),
    ("cached: append", |w, n| w.cached.append(n).map(drop)),
    ("cached: truncate", |w, n| w.cached.truncate(n)),
    ("cached: commit", |w, n| w.cached.commit(n).map(drop)),
    ("cached: fork_n", |w, n| w.cached.fork_n(n).map(drop)),
    ("batch", |w, n| append_batch(&mut [(&mut w.handle, n)], &mut AppendBatch::default())),
    ("reservation: shrink_to", |w, n| {
        w.room.shrink_to(n);
        Ok(())
    }),
    ("reservation: allocate", |w, n| w.room.allocate(&w.cache, NEW, n)),
    ("reservation: allocate_sequence", |w, n| w.room.allocate_sequence(n).map(drop)),
    ("reservation: append", |w, n| w.room.append(&w.cache, HERE[0], n).map(drop)),
    ("reservation: append_to", |w, n| w.room.append_to(&mut w.cached, n).map(drop)),
    ("reservation: admit", |w, n| {
        let (prompt, options) = chunk_of(n, 2, AdmitOptions::default());
        w.room.admit(&w.cache, NEW, &prompt, &options).map(drop)
    }),
    ("reservation: admit a chunk", |w, n| {
        let (prompt, options) = chunk_of(usize::MAX, 0, AdmitOptions::default().first_chunk(n));
        w.room.admit(&w.cache, NEW, &prompt, &options).map(drop)
    }),
    ("pool: sequence", |w, n| w.cache.pool().allocate_sequence(n, 3).map(drop)),
    ("pool: block size", |w, n| w.cache.pool().allocate_sequence(3, n.max(1)).map(drop)),
    ("pool: both", |w, n| w.cache.pool().allocate_sequence(n, n.max(1)).map(drop)),
    ("pool: blocks", |w, n| w.cache.pool().allocate(n).map(drop)),
    ("pool: retain", |w, n| {
        let id = BlockId(n.min(u32::MAX as usize - 7) as u32 + 6);
        w.cache.pool().retain(id)?;
        w.cache.pool().release(id)
    }),
    ("pool: release", |w, n| w.cache.pool().release(BlockId(n as u32))),
    ("pool: owners", |w, n| w.cache.pool().owners(BlockId(n as u32)).map(drop)),
    ("table: grow", |w, n| w.cache.pool().allocate(0)?.grow(n).map(drop)),
];

const IN_STEPS: &[(&str, Call)] = &[
    ("lease: append_batch", |w, n| {
        w.cache.lease(&HERE)?.append_batch(&[n, 0, n, 1], &mut AppendBatch::default())
    }),
    ("lease: a batch of its rows", |w, n| {
        let lease = w.cache.lease(&HERE)?;
        let mut rows: Vec<_> = lease.rows().zip([1, n, n, 1]).collect();
        append_batch(&mut rows, &mut AppendBatch::default())
    }),
    ("lease: a step of its rows", |w, n| {
        let lease = w.cache.lease(&HERE)?;
        let mut rows: Vec<_> = lease.rows().zip([1, n, n, 1]).collect();
        w.cache.step(Default::default()).grow(&mut rows).map(drop)
    }),
    ("step: grow", |w, n| {
        w.cache.step(Default::default()).grow(&mut [(&mut w.handle, n)]).map(drop)
    }),
    ("step: grow by id", |w, n| {
        let mut rows = lease_rows(&w.cache, &HERE.map(|id| (id, n)));
        w.cache.step(Default::default()).grow(&mut rows).map(drop)
    }),
    ("step: commit", |w, n| w.cache.step(Default::default()).commit(&mut w.cached, n).map(drop)),
    ("step: commit by id", |w, n| {
        let mut row = lease_row(&w.cache, HERE[2]);
        w.cache.step(Default::default()).commit(&mut row, n).map(drop)
    }),
    ("step: accept", |w, n| {
        w.cache.step(Default::default()).accept(n, &mut w.handle, &[]).map(drop)
    }),
    ("step: accept by id", |w, n| {
        let mut row = lease_row(&w.cache, HERE[0]);
        w.cache.step(Default::default()).accept(n, &mut row, &[]).map(drop)
    }),
];

/// Calls each of `calls` with each length in a world of each shape.
fn call_all(calls: &[(&str, Call)], shapes: &[Shape]) {
    for &shape in shapes {
        for &(name, call) in calls {
            for n in LENGTHS {
                let said = format!("{name}({n}), {shape:?}");
                let mut world = World::new(shape);
                let before = world.picture();
                let result = in_little_memory(&said, || call(&mut world, n));
                if let Err(refusal) = result {
                    assert_eq!(world.picture(), before, "{said}: {refusal}");
                }
                world.cache.validate().unwrap_or_else(|fault| panic!("{said}: {fault}"));
                world.end();
            }
        }
    }
}

#[test]
fn operations_by_id_refuse_lengths_without_room_and_change_nothing() {
    call_all(BY_ID, &shapes());
}

#[test]
fn operations_by_handle_refuse_lengths_without_room_and_change_nothing() {
    call_all(BY_HANDLE, &shapes());
}

#[test]
fn batches_and_steps_refuse_lengths_without_room_and_change_nothing() {
    call_all(IN_STEPS, &shapes());
}

/// A prompt longer than all memory, of which a chunk is admitted, works like any other.
#[test]
fn an_enormous_prompt_lives_as_others_do() {
    let tail: &[(&str, Call)] = &[
        ("append", |w, n| w.cache.append(NEW, n).map(drop)),
        ("commit", |w, n| w.cache.commit(NEW, n).map(drop)),
        ("commit of named tokens", |w, n| w.cache.commit(NEW, &[7; 9][..n.min(9)]).map(drop)),
        ("append_tokens", |w, n| w.cache.append_tokens(NEW, &[7; 9][..n.min(9)]).map(drop)),
        ("truncate", |w, n| w.cache.truncate(NEW, n)),
        ("fork_n", |w, n| w.cache.fork_n(NEW, &[s(n as u64 / 2 + 20)])),
        ("trim", |w, n| w.cache.apply_streaming_llm(NEW, 1, n).map(drop)),
        ("accept", |w, n| {
            let mut step = w.cache.step(Default::default());
            let mut rows = lease_rows(&w.cache, &[(NEW, 1)]);
            if step.grow(&mut rows)?.grown_rows == 0 {
                return Ok(());
            }
            let accepted = step.accept(0, &mut rows[0].0, &[7; 1][..n.min(1)]);
            accepted.map(drop).or(Ok(()))
        }),
    ];
    for shape in shapes() {
        for &(name, call) in tail {
            for (of_prompt, n) in [usize::MAX, 1 << 60]
                .into_iter()
                .flat_map(|of_prompt| LENGTHS.into_iter().map(move |n| (of_prompt, n)))
            {
                let mut world = World::new(shape);
                let said = format!("{name}({n}) of {of_prompt}, {shape:?}");
                world.room.shrink_to(0);
                world.handle.truncate(0).expect(&said);
                let options = AdmitOptions::default().first_chunk(2);
                // The prompt gets no more hashes than it has full blocks.
                let full = (of_prompt / world.cache.block_size()).min(2);
                let prompt = Prompt::from_hashes(&hashes(full), of_prompt);
                world.cache.admit_with(NEW, &prompt, &options).expect(&said);
                let before = world.picture();
                if let Err(refusal) = in_little_memory(&said, || call(&mut world, n)) {
                    assert_eq!(world.picture(), before, "{said}: {refusal}");
                }
                let stats = world.cache.stats();
                assert!(stats.prompt_tokens >= stats.prompt_tokens_hit, "{said}: {stats:?}");
                world.cache.validate().expect(&said);
                world.end();
            }
        }
    }
}

#[test]
fn thresholds_and_strategies_of_any_size_evict_within_their_meaning() {
    let strategies = LENGTHS.into_iter().flat_map(|n| {
        [
            EvictionStrategy::LRU,
            EvictionStrategy::LFU,
            EvictionStrategy::LongestFirst,
            EvictionStrategy::Priority { levels: n.max(1) },
            EvictionStrategy::StreamingLLM { sink_tokens: n, window_tokens: 1 },
            EvictionStrategy::StreamingLLM { sink_tokens: 1, window_tokens: n },
            EvictionStrategy::StreamingLLM { sink_tokens: n, window_tokens: n },
        ]
    });
    for strategy in strategies {
        for shape in shapes().into_iter().skip(1).step_by(3) {
            for threshold in SHARES {
                let said = format!("{strategy}, {threshold}, {shape:?}");
                let world = World::new(Shape { strategy, ..shape });
                world.cache.set_priority(HERE[0], u32::MAX).unwrap();
                let evicted = in_little_memory(&said, || world.cache.evict_to_threshold(threshold));
                assert_eq!(threshold.is_nan(), {
                    matches!(evicted, Err(PagedKvError::InvalidConfig { .. }))
                });
                world.cache.validate().expect(&said);
                world.end();
            }
            let world = World::new(Shape { strategy, ..shape });
            let evicted = world.cache.evict();
            assert!(evicted.is_ok_and(|id| HERE.contains(&id)), "{strategy}, {shape:?}");
            world.end();
        }
    }
}
