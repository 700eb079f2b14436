//! Caches and pools that are too large for the memory allocator are refused with an error, without an
//! abort.

use std::process::Command;

use paged_kv::{BlockPool, EventSink, KvEvent, PagedKvCache, PagedKvError};

struct Deaf;

impl EventSink for Deaf {
    fn on_event(&self, _: &KvEvent<'_>) {}
}

/// Runs one of the ignored tests of this file in a process of its own, which has this many KiB of memory.
#[track_caller]
fn run_in(kibibytes: usize, test: &str) {
    let program = std::env::current_exe().expect("a test has a program");
    let script = format!("ulimit -v {kibibytes} && exec \"$0\" --exact {test} --ignored");
    let output = Command::new("sh").arg("-c").arg(script).arg(program).output();
    let output = output.expect("a shell");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{test}: {output:?}");
}

#[test]
fn as_many_blocks_as_there_are_ids_are_refused_in_little_memory() {
    run_in(1 << 19, "memory::most_blocks_are_refused");
}

#[test]
#[ignore = "run by another test, in little memory"]
fn most_blocks_are_refused() {
    for num_blocks in [1 << 28, u32::MAX as usize - 1] {
        let builder = PagedKvCache::builder().num_blocks(num_blocks).block_size(1);
        for builder in [
            builder.clone(),
            builder.clone().prefix_reuse(false),
            builder.clone().home_shards(1),
            builder.event_sink(std::sync::Arc::new(Deaf)),
        ] {
            let refused = builder.build().unwrap_err();
            assert!(matches!(refused, PagedKvError::OutOfHostMemory { .. }), "{refused}");
            assert!(refused.to_string().contains("bytes"), "{refused}");
        }
        let build: [fn(usize); 2] =
            [|n| _ = BlockPool::new(n), |n| _ = PagedKvCache::new(n, 1, 1, 1)];
        for build in build {
            let panicked = std::panic::catch_unwind(|| build(num_blocks)).unwrap_err();
            let said = panicked.downcast_ref::<String>().expect("a message");
            assert!(said.contains("out of host memory"), "{said}");
        }
    }
}

/// The allocation of one array or another fails.
#[test]
fn memory_that_ends_anywhere_is_an_error() {
    run_in(3 << 15, "memory::a_cache_is_built_or_refused");
}

#[test]
#[ignore = "run by another test, in little memory"]
fn a_cache_is_built_or_refused() {
    let mut refused = 0;
    for num_blocks in (2..9).map(|n| n << 18) {
        let builder = PagedKvCache::builder().num_blocks(num_blocks).block_size(1);
        if let Err(refusal) = builder.build() {
            assert!(matches!(refusal, PagedKvError::OutOfHostMemory { .. }), "{refusal}");
            refused += 1;
        }
    }
    assert!((1..7).contains(&refused), "{refused} of 7");
}
