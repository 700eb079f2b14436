//! Tests of values of one cache passed to another. Each pair of public types is refused with an error
//! that names the fault, and changes nothing.

mod common;

use common::{ALGORITHMS, lease_row, lease_rows, s};
use paged_kv::export::{self, CsrBuffers, Gaps, TableShape};
use paged_kv::{
    AdmitOptions, AppendBatch, CachedSequence, PagedKvCache, PagedKvError, Prompt, Result,
    append_batch,
};

fn cache() -> PagedKvCache {
    PagedKvCache::new(16, 4, 1, 1)
}

fn admitted(cache: &PagedKvCache) -> CachedSequence {
    cache.admit_sequence(&cache.prompt(&[7; 6]), &AdmitOptions::default()).unwrap().0
}

/// A cache with request 1, and a call on another one with request 1.
type Pair = fn(&PagedKvCache, &PagedKvCache) -> Result<()>;

const PAIRS: [(&str, Pair); 24] = [
    ("step, grow of a sequence", |one, other| {
        one.step(Default::default()).grow(&mut [(other.allocate_sequence(3)?, 1)]).map(drop)
    }),
    ("step, grow of a cached sequence", |one, other| {
        one.step(Default::default()).grow(&mut [(admitted(one), 1), (admitted(other), 1)]).map(drop)
    }),
    ("step, commit of a sequence", |one, other| {
        one.step(Default::default()).commit(&mut admitted(other), 4).map(drop)
    }),
    ("step, accept of a sequence", |one, other| {
        let mut step = one.step(Default::default());
        let grown = step.grow(&mut [(admitted(one), 1)])?;
        assert_eq!(grown.grown_rows, 1);
        let mut sequence = admitted(other);
        drop(sequence.append(1)?);
        step.accept(0, &mut sequence, &[9]).map(drop)
    }),
    ("step, slots of a sequence", |one, other| {
        let mut step = one.step(Default::default());
        let grown = step.grow(&mut [(admitted(one), 1)])?;
        assert_eq!(grown.grown_rows, 1);
        let mut rows = [(admitted(other), 1)];
        drop(rows[0].0.append(1)?);
        step.slots(&rows, Gaps::Show, &mut [0_i64; 4]).map(drop)
    }),
    ("step, block tables of a sequence", |one, other| {
        let shape = TableShape { stride: 2, pad: -1, gaps: Gaps::Show };
        one.step(Default::default()).block_tables(&[(admitted(other), 1)], &mut [0_i32; 2], shape)
    }),
    ("step, csr of a sequence", |one, other| {
        let buffers = CsrBuffers {
            indptr: &mut [0_i32; 2],
            indices: &mut [0; 4],
            last_page_len: &mut [0; 1],
        };
        one.step(Default::default()).csr(&[(admitted(other), 1)], buffers, -1, Gaps::Show).map(drop)
    }),
    ("step, abort with a sequence", |one, other| {
        let mut step = one.step(Default::default());
        let grown = step.grow(&mut [(admitted(one), 1)])?;
        assert_eq!(grown.grown_rows, 1);
        let mut rows = [(admitted(other), 1)];
        drop(rows[0].0.append(1)?);
        step.abort(&mut rows)?;
        Ok(())
    }),
    ("step, grow of a row", |one, other| {
        other.step(Default::default()).grow(&mut lease_rows(one, &[(s(1), 1)])).map(drop)
    }),
    ("step, grow of rows of two caches", |one, other| {
        let mut rows = [lease_rows(other, &[(s(1), 1)]), lease_rows(one, &[(s(1), 1)])].concat();
        other.step(Default::default()).grow(&mut rows).map(drop)
    }),
    ("step, join of a row", |one, other| {
        other.step(Default::default()).join(&mut lease_row(one, s(1)))
    }),
    ("step, commit of a row", |one, other| {
        other.step(Default::default()).commit(&mut lease_row(one, s(1)), 4).map(drop)
    }),
    ("step, slots of a row", |one, other| {
        let mut step = other.step(Default::default());
        assert_eq!(step.grow(&mut lease_rows(other, &[(s(1), 1)]))?.grown_rows, 1);
        step.slots(&lease_rows(one, &[(s(1), 1)]), Gaps::Show, &mut [0_i64; 4]).map(drop)
    }),
    ("step, accept of a row", |one, other| {
        let mut step = other.step(Default::default());
        assert_eq!(step.grow(&mut lease_rows(other, &[(s(1), 1)]))?.grown_rows, 1);
        step.accept(0, &mut lease_row(one, s(1)), &[9]).map(drop)
    }),
    ("step, abort with a row", |one, other| {
        let mut step = other.step(Default::default());
        assert_eq!(step.grow(&mut lease_rows(other, &[(s(1), 1)]))?.grown_rows, 1);
        step.abort(&mut lease_rows(one, &[(s(1), 1)]))?;
        Ok(())
    }),
    ("step, grow of a row under a lease", |one, other| {
        let lease = one.lease(&[s(1)])?;
        let mut rows: Vec<_> = lease.rows().map(|row| (row, 1)).collect();
        other.step(Default::default()).grow(&mut rows).map(drop)
    }),
    ("reservation, append in a cache", |one, other| {
        one.reserve(2)?.append(other, s(1), 4).map(drop)
    }),
    ("reservation, append to a sequence", |one, other| {
        one.reserve(2)?.append_to(&mut admitted(other), 4).map(drop)
    }),
    ("reservation, allocate in a cache", |one, other| one.reserve(2)?.allocate(other, s(2), 4)),
    ("reservation, admit in a cache", |one, other| {
        let prompt = other.prompt(&[1, 2, 3]);
        one.reserve(2)?.admit(other, s(2), &prompt, &AdmitOptions::default()).map(drop)
    }),
    ("batch of sequences", |one, other| {
        let mut rows = [(one.allocate_sequence(3)?, 1), (other.allocate_sequence(3)?, 1)];
        append_batch(&mut rows, &mut AppendBatch::default())
    }),
    ("batch of rows", |one, other| {
        let mut rows = [lease_rows(one, &[(s(1), 1)]), lease_rows(other, &[(s(1), 1)])].concat();
        append_batch(&mut rows, &mut AppendBatch::default())
    }),
    ("export of sequences, tables", |one, other| {
        let rows = [one.allocate_sequence(3)?, other.allocate_sequence(3)?];
        let shape = TableShape { stride: 1, pad: -1, gaps: Gaps::Show };
        export::block_tables(&rows, &mut [0_i32; 2], shape)
    }),
    ("export of sequences, slots and csr", |one, other| {
        let rows = [one.allocate_sequence(3)?, other.allocate_sequence(3)?];
        let buffers = CsrBuffers {
            indptr: &mut [0_i32; 3],
            indices: &mut [0; 2],
            last_page_len: &mut [0; 2],
        };
        let csr = export::csr(&rows, buffers, -1, Gaps::Show).map(drop);
        assert_eq!(csr, Err(PagedKvError::WrongCache { value: "row" }));
        let mut out = [0_i64; 8];
        let mut mapping = export::SlotMapping::new(&mut out, Gaps::Show);
        mapping.push(&rows[0], 0..3)?;
        mapping.push(&rows[1], 0..3)
    }),
];

#[test]
fn a_value_of_another_cache_is_refused_and_changes_nothing() {
    for (name, ask) in PAIRS {
        let (one, other) = (cache(), cache());
        for cache in [&one, &other] {
            cache.admit(s(1), &[7; 6]).unwrap();
        }
        // The other request is not compared: the call may have grown it, to have a step to pass on.
        let state = || {
            let blocks = [&one, &other].map(|cache| {
                (cache.used_block_count(), cache.prefix().probe(&cache.prompt(&[7; 6])))
            });
            (one.get_sequence(s(1)).unwrap(), blocks)
        };
        let before = state();
        let refused = ask(&one, &other).expect_err(name);
        assert!(matches!(refused, PagedKvError::WrongCache { .. }), "{name}: {refused}");
        assert!(refused.to_string().ends_with("was made by another cache"), "{refused}");
        assert_eq!(state(), before, "{name}");
        [one, other].iter().for_each(|cache| cache.validate().unwrap());
    }
}

#[test]
fn a_sequence_that_joins_a_step_of_another_cache_is_refused() {
    let (one, other) = (cache(), cache());
    let mut sequence = admitted(&other);
    let mut step = one.step(Default::default());
    assert_eq!(step.join(&mut sequence), Err(PagedKvError::WrongCache { value: "row" }));
    drop(sequence);
    assert_eq!(other.used_block_count(), 0, "no step holds its blocks");
}

/// Every way to pass a prompt in; it returns the tokens that it matched.
type WayIn = fn(&PagedKvCache, &Prompt) -> Result<usize>;
const WAYS_IN: [WayIn; 3] = [
    |cache, prompt| {
        let admission = cache.admit_with(s(2), prompt, &AdmitOptions::default())?;
        Ok(admission.cached_tokens)
    },
    |cache, prompt| Ok(cache.admit_sequence(prompt, &AdmitOptions::default())?.1.cached_tokens),
    |cache, prompt| {
        let mut room = cache.reserve(8)?;
        Ok(room.admit(cache, s(3), prompt, &AdmitOptions::default())?.cached_tokens)
    },
];

#[test]
fn a_prompt_hashed_otherwise_matches_nothing_and_is_refused() {
    let caches: Vec<PagedKvCache> = ALGORITHMS
        .iter()
        .flat_map(|&algorithm| [2, 4, 8].map(|block_size| (algorithm, block_size)))
        .map(|(algorithm, block_size)| {
            let builder = PagedKvCache::builder().num_blocks(64).block_size(block_size);
            builder.hash_algorithm(algorithm).build().unwrap()
        })
        .collect();
    let tokens: Vec<u32> = (0..33).collect();
    for (at, cache) in caches.iter().enumerate() {
        cache.admit(s(1), &tokens).unwrap();
        cache.commit(s(1), 33).unwrap();
        for (of, other) in caches.iter().enumerate() {
            let prompt = other.prompt(&tokens);
            let expected = if at == of { 32 } else { 0 };
            assert_eq!(cache.prefix().probe(&prompt), expected);
            for way_in in WAYS_IN {
                match way_in(cache, &prompt) {
                    Ok(cached_tokens) => assert_eq!((at, cached_tokens), (of, 32)),
                    Err(refused) => {
                        assert!(at != of && matches!(refused, PagedKvError::PromptMismatch { .. }));
                        let said = refused.to_string();
                        assert!(said.contains("cache hashes by"), "{said}");
                        assert!(!said.contains("seed"), "a key is nobody's business: {said}");
                    }
                }
            }
            _ = cache.free(s(2));
            _ = cache.free(s(3));
        }
        cache.free(s(1)).unwrap();
        assert_eq!(cache.used_block_count(), 0);
        cache.validate().unwrap();
    }
}

#[test]
fn more_hashes_than_full_blocks_are_refused_by_every_way_in() {
    let cache = cache();
    let hashes = cache.prompt(&[7; 16]).hashes().to_vec();
    for num_tokens in [0, 3, 15] {
        let prompt = Prompt::from_hashes(&hashes, num_tokens);
        for way_in in WAYS_IN {
            let refused = way_in(&cache, &prompt);
            assert!(
                matches!(refused, Err(PagedKvError::InvalidConfig { parameter: "hashes", .. })),
                "{refused:?}"
            );
        }
        assert_eq!(cache.prefix().probe(&prompt), 0);
    }
    assert_eq!(cache.used_block_count(), 0);
}

#[test]
fn an_export_that_refused_a_row_goes_on_with_those_of_its_cache_only() -> Result<()> {
    let (one, other) = (cache().allocate_sequence(3)?, cache().allocate_sequence(3)?);
    let rows = [(&one, true), (&other, false), (&other, false), (&one, true)];
    let shape = TableShape { stride: 1, pad: -1, gaps: Gaps::Show };
    let (mut table, mut slots) = ([0_i32; 4], [0_i64; 12]);
    let mut tables = export::BlockTables::new(&mut table, shape)?;
    let buffers =
        CsrBuffers { indptr: &mut [0_i32; 5], indices: &mut [0; 4], last_page_len: &mut [0; 4] };
    let mut csr = export::Csr::new(buffers, -1, Gaps::Show)?;
    let mut mapping = export::SlotMapping::new(&mut slots, Gaps::Show);
    for (row, is_taken) in rows {
        let pushed = [tables.push(row), csr.push(row), mapping.push(row, 0..3)];
        let answer = if is_taken { Ok(()) } else { Err(PagedKvError::WrongCache { value: "row" }) };
        assert_eq!(pushed, [answer.clone(), answer.clone(), answer]);
    }
    assert_eq!((tables.finish(), csr.finish(), mapping.finish()), (2, 2, 6));
    Ok(())
}
