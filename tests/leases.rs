//! Tests of leases: which calls a lease refuses, which it allows, and how a leased batch grows.

mod common;

use common::snapshot::Snapshot;
use common::{assert_empties, lease_rows, s, shapes, shapes_with};
use paged_kv::export::{self, CsrBuffers, Gaps, KernelInt, TableShape};
use paged_kv::{
    AppendBatch, EvictionStrategy, Grown, LeaseRow, PagedKvCache, PagedKvError, SeqId, Sequence,
    Step, append_batch,
};

use PagedKvError::{OutOfMemory, SequenceLeased, SequenceNotFound};

fn leases(cache: &PagedKvCache, id: u64) -> u32 {
    cache.get_sequence(s(id)).expect("the sequence is there").leases
}

fn num_tokens(cache: &PagedKvCache, id: u64) -> usize {
    cache.get_sequence(s(id)).expect("the sequence is there").num_tokens
}

#[test]
fn leases_are_counted_and_the_last_one_lets_go() {
    for cache in shapes(8, 4) {
        cache.allocate(s(1), 9).unwrap();
        cache.allocate(s(2), 4).unwrap();
        let first = cache.lease(&[s(1), s(2)]).unwrap();
        let second = cache.lease(&[s(1)]).unwrap();
        assert_eq!((leases(&cache, 1), leases(&cache, 2)), (2, 1));
        assert_eq!(cache.free(s(1)), Err(SequenceLeased(s(1))));
        drop(first);
        assert_eq!(cache.free(s(1)), Err(SequenceLeased(s(1))), "the second is held");
        cache.free(s(2)).unwrap();
        drop(second);
        assert_eq!(leases(&cache, 1), 0);
        cache.free(s(1)).unwrap();
        assert_empties(&cache);
    }
}

#[test]
fn a_leased_sequence_is_neither_freed_nor_trimmed_nor_evicted_and_the_refusal_says_so() {
    let strategy = EvictionStrategy::StreamingLLM { sink_tokens: 4, window_tokens: 4 };
    for cache in shapes_with(8, 4, |builder| builder.with_eviction_strategy(strategy)) {
        cache.allocate(s(7), 28).unwrap();
        let lease = cache.lease(&[s(7)]).unwrap();
        let before = Snapshot::of(&cache);
        let refused = SequenceLeased(s(7));
        assert_eq!(refused.to_string(), "sequence S7 is leased");
        assert_eq!(cache.free(s(7)), Err(refused.clone()));
        assert_eq!(cache.apply_streaming_llm(s(7), 4, 4), Err(refused));
        assert_eq!(cache.evict(), Err(PagedKvError::NothingToEvict));
        assert_eq!(cache.evict_to_threshold(0.1), Err(PagedKvError::NothingToEvict));
        assert_eq!(Snapshot::of(&cache), before);
        drop(lease);
        assert_eq!(cache.apply_streaming_llm(s(7), 4, 4), Ok(20));
        assert_empties(&cache);
    }
}

#[test]
fn append_fork_and_truncate_go_on_under_a_lease() {
    for cache in shapes(8, 4) {
        cache.allocate(s(1), 6).unwrap();
        let lease = cache.lease(&[s(1)]).unwrap();
        assert_eq!(cache.append(s(1), 4).unwrap().new_blocks, 2..3);
        cache.fork(s(1), s(2)).unwrap();
        assert_eq!((leases(&cache, 1), leases(&cache, 2)), (1, 0), "a fork is not leased");
        assert!(cache.append(s(1), 1).unwrap().copy.is_some());
        cache.truncate(s(1), 3).unwrap();
        cache.touch(s(1)).unwrap();
        cache.set_priority(s(1), 4).unwrap();
        let info = cache.get_sequence(s(1)).unwrap();
        assert_eq!((info.num_tokens, info.num_blocks(), info.access_count), (3, 1, 4));
        cache.free(s(2)).unwrap();
        drop(lease);
        assert_empties(&cache);
    }
}

#[test]
fn one_sequence_leaves_a_lease_early() {
    for cache in shapes(8, 4) {
        (1..=3).for_each(|id| cache.allocate(s(id), 4).unwrap());
        let mut lease = cache.lease(&[s(3), s(1), s(2)]).unwrap();
        assert!(lease.ids().eq([3, 1, 2].map(s)));
        lease.release(s(1)).unwrap();
        assert_eq!(lease.release(s(1)), Err(SequenceNotFound(s(1))));
        assert!(lease.ids().eq([3, 2].map(s)), "the rows behind it move up");
        cache.free(s(1)).unwrap();
        assert_eq!(cache.free(s(2)), Err(SequenceLeased(s(2))));
        let mut batch = AppendBatch::default();
        lease.append_batch(&[1, 2], &mut batch).unwrap();
        assert_eq!((num_tokens(&cache, 3), num_tokens(&cache, 2)), (5, 6));
        lease.release(s(3)).unwrap();
        lease.release(s(2)).unwrap();
        assert!(lease.is_empty());
        lease.append_batch(&[], &mut batch).unwrap();
        assert_empties(&cache);
    }
}

#[test]
fn a_sequence_freed_when_released_gives_its_id_back_at_once_and_its_blocks_with_the_last_lease() {
    for cache in shapes(8, 4) {
        cache.allocate(s(1), 20).unwrap();
        let first = cache.lease(&[s(1)]).unwrap();
        let second = cache.lease(&[s(1)]).unwrap();
        cache.free_when_released(s(1)).unwrap();
        assert_eq!(cache.get_sequence(s(1)), None);
        assert_eq!(cache.free_when_released(s(1)), Err(SequenceNotFound(s(1))));
        assert_eq!(cache.used_block_count(), 5, "a batch runs on them");
        cache.allocate(s(1), 4).unwrap();
        assert_eq!(leases(&cache, 1), 0, "another sequence of that id");
        first.append_batch(&[1], &mut AppendBatch::default()).unwrap();
        assert_eq!(num_tokens(&cache, 1), 4, "the lease is on the old one");
        assert_eq!(cache.used_block_count(), 7);
        drop(second);
        assert_eq!(cache.used_block_count(), 7);
        drop(first);
        assert_eq!(cache.used_block_count(), 1);
        cache.free_when_released(s(1)).unwrap();
        assert_eq!(cache.used_block_count(), 0, "without a lease, at once");
        assert_empties(&cache);
    }
}

#[test]
fn a_lease_ends_on_any_thread_and_outlives_the_cache() {
    for cache in shapes(8, 4) {
        cache.allocate(s(1), 20).unwrap();
        let lease = cache.lease(&[s(1)]).unwrap();
        std::thread::spawn(move || drop(lease)).join().unwrap();
        cache.free(s(1)).unwrap();

        cache.allocate(s(1), 20).unwrap();
        let lease = cache.lease(&[s(1)]).unwrap();
        cache.free_when_released(s(1)).unwrap();
        std::thread::spawn(move || drop(lease)).join().unwrap();
        assert_eq!(cache.used_block_count(), 0);

        cache.allocate(s(1), 20).unwrap();
        let lease = cache.lease(&[s(1)]).unwrap();
        cache.validate().unwrap();
        drop(cache);
        let mut batch = AppendBatch::default();
        lease.append_batch(&[12], &mut batch).unwrap();
        let refused = lease.append_batch(&[1], &mut batch);
        assert_eq!(refused, Err(OutOfMemory { requested: 1, available: 0 }));
    }
}

#[test]
fn a_lease_of_all_or_of_none() {
    for cache in shapes(8, 4) {
        (1..=2).for_each(|id| cache.allocate(s(id), 4).unwrap());
        assert_eq!(cache.lease(&[s(1), s(2), s(3)]).err(), Some(SequenceNotFound(s(3))));
        assert_eq!((leases(&cache, 1), leases(&cache, 2)), (0, 0));
        let refused = cache.lease(&[s(1), s(2), s(1)]).err();
        assert!(matches!(refused, Some(PagedKvError::InvalidConfig { parameter: "ids", .. })));
        assert_eq!((leases(&cache, 1), leases(&cache, 2)), (0, 0));
        assert!(cache.lease(&[]).unwrap().is_empty());
        assert_empties(&cache);
    }
}

/// The four ways to grow the same batch.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Ids,
    Lease,
    RowsOfLease,
    Handles,
}

const WAYS: [Way; 4] = [Way::Ids, Way::Lease, Way::RowsOfLease, Way::Handles];

/// Rows of these lengths, the last a fork of the row before it, in the cache or as handles.
struct Rows<'a> {
    cache: &'a PagedKvCache,
    way: Way,
    handles: Vec<(Sequence, usize)>,
    ids: Vec<SeqId>,
}

impl<'a> Rows<'a> {
    fn new(cache: &'a PagedKvCache, way: Way, lengths: &[usize]) -> Self {
        let mut rows = Self { cache, way, handles: Vec::new(), ids: Vec::new() };
        for (row, &length) in lengths.iter().enumerate() {
            if way == Way::Handles {
                rows.handles.push((cache.allocate_sequence(length).unwrap(), 0));
            } else {
                cache.allocate(s(row as u64), length).unwrap();
                rows.ids.push(s(row as u64));
            }
        }
        rows.fork_last();
        rows
    }

    fn fork_last(&mut self) {
        if self.way == Way::Handles {
            let fork = self.handles.last_mut().unwrap().0.fork().unwrap();
            self.handles.push((fork, 0));
        } else {
            let next = s(self.ids.len() as u64);
            self.cache.fork(*self.ids.last().unwrap(), next).unwrap();
            self.ids.push(next);
        }
    }

    fn append(
        &mut self,
        num_new_tokens: &[usize],
        batch: &mut AppendBatch,
    ) -> Result<(), PagedKvError> {
        match self.way {
            Way::Ids => {
                let rows = self.ids.iter().copied().zip(num_new_tokens.iter().copied());
                self.cache.append_batch(&rows.collect::<Vec<_>>(), batch)
            }
            Way::Lease => self.cache.lease(&self.ids)?.append_batch(num_new_tokens, batch),
            Way::RowsOfLease => append_batch(&mut self.of_leases(num_new_tokens), batch),
            Way::Handles => append_batch(self.set(num_new_tokens), batch),
        }
    }

    /// Grows a prefix of the rows, as many as fit.
    fn grow(&mut self, num_new_tokens: &[usize], step: &mut Step) -> Result<Grown, PagedKvError> {
        match self.way {
            Way::Ids | Way::RowsOfLease => step.grow(&mut self.of_leases(num_new_tokens)),
            Way::Lease => {
                let lease = self.cache.lease(&self.ids)?;
                let mut rows: Vec<_> = lease.rows().zip(num_new_tokens.iter().copied()).collect();
                step.grow(&mut rows)
            }
            Way::Handles => step.grow(self.set(num_new_tokens)),
        }
    }

    fn of_leases(&self, num_new_tokens: &[usize]) -> Vec<(LeaseRow, usize)> {
        let rows = self.ids.iter().copied().zip(num_new_tokens.iter().copied());
        lease_rows(self.cache, &rows.collect::<Vec<_>>())
    }

    fn set(&mut self, num_new_tokens: &[usize]) -> &mut [(Sequence, usize)] {
        self.handles.iter_mut().zip(num_new_tokens).for_each(|(row, &n)| row.1 = n);
        &mut self.handles
    }

    fn lengths(&self) -> Vec<usize> {
        if self.way == Way::Handles {
            return self.handles.iter().map(|row| row.0.num_tokens()).collect();
        }
        self.ids.iter().map(|&id| num_tokens(self.cache, id.0)).collect()
    }

    fn uses(&self) -> Vec<u64> {
        self.ids.iter().map(|&id| self.cache.get_sequence(id).unwrap().access_count).collect()
    }
}

#[test]
fn a_batch_grows_whole_or_not_at_all() {
    // The lengths are 4, 6 and its fork. Growth by 5, 3 and 1 takes 2 blocks, then 1 and a copy, then a
    // copy.
    for free in 0..=6 {
        for way in WAYS {
            for cache in shapes(3 + free, 4) {
                let mut rows = Rows::new(&cache, way, &[4, 6]);
                let uses = rows.uses();
                let mut batch = AppendBatch::default();
                let grown = rows.append(&[5, 3, 1], &mut batch);
                if free < 5 {
                    assert_eq!(grown, Err(OutOfMemory { requested: 5, available: free }));
                    assert!(batch.as_slice().is_empty());
                    assert_eq!(rows.lengths(), [4, 6, 6]);
                    assert_eq!(rows.uses(), uses, "a refused batch is no use");
                    assert_eq!(cache.free_block_count(), free);
                } else {
                    assert_eq!(grown, Ok(()));
                    let new: Vec<_> =
                        batch.as_slice().iter().map(|append| append.new_blocks.clone()).collect();
                    assert_eq!(new, [1..3, 2..3, 2..2]);
                    let copies = batch.as_slice().iter().map(|append| append.copy.is_some());
                    assert!(copies.eq([false, true, true]), "the first copy still reads the tail");
                    assert_eq!(rows.lengths(), [9, 9, 7]);
                    assert_eq!(rows.uses(), uses.iter().map(|uses| uses + 1).collect::<Vec<_>>());
                    assert_eq!(cache.used_block_count(), 8);
                    batch.clear();
                    assert_eq!(cache.used_block_count(), 7, "nobody has the old tail any more");
                }
                cache.validate().unwrap();
                drop(rows);
                drop(batch);
                assert_empties(&cache);
            }
        }
    }
}

#[test]
fn a_step_grows_the_rows_that_fit() {
    // The rows need, in order: 2 blocks; 1 and a copy; none, as the last sharer.
    let fits = [(0, 2), (0, 1), (1, 2), (1, 1), (3, 0), (3, 0)];
    for (free, (done, missing)) in fits.into_iter().enumerate() {
        for way in WAYS {
            for cache in shapes(3 + free, 4) {
                let mut rows = Rows::new(&cache, way, &[4, 6]);
                let uses = rows.uses();
                let mut step = cache.step(Default::default());
                let grown = rows.grow(&[5, 3, 1], &mut step).unwrap();
                let stride = [0, 3, 3, 3][done];
                let expected = (done, missing, stride);
                assert_eq!(
                    (grown.grown_rows, grown.missing_blocks, grown.stride),
                    expected,
                    "{free} free"
                );
                let expected: Vec<_> = (0..3)
                    .map(|row| if row < done { [9, 9, 7][row] } else { [4, 6, 6][row] })
                    .collect();
                assert_eq!(rows.lengths(), expected);
                for (row, (after, before)) in rows.uses().iter().zip(uses).enumerate() {
                    assert_eq!(*after, before + u64::from(row < done));
                }
                cache.validate().unwrap();
                drop(rows);
                drop(step);
                assert_empties(&cache);
            }
        }
    }
}

#[test]
fn a_batch_whose_parent_leaves_early_copies_once() {
    for way in WAYS {
        for cache in shapes(4, 4) {
            let mut rows = Rows::new(&cache, way, &[6]);
            let mut batch = AppendBatch::default();
            rows.append(&[0, 1], &mut batch).unwrap();
            let copied: Vec<_> =
                batch.as_slice().iter().map(|append| append.copy.is_some()).collect();
            assert_eq!(copied, [false, true]);
            rows.append(&[1, 1], &mut batch).unwrap();
            assert!(batch.as_slice().iter().all(|append| append.copy.is_none()), "the last sharer");
            assert_eq!(cache.used_block_count(), 3);
            drop(rows);
            assert_empties(&cache);
        }
    }
}

#[test]
fn a_batch_of_different_pools_is_refused() {
    let (mine, other) = (PagedKvCache::new(4, 4, 1, 1), PagedKvCache::new(4, 4, 1, 1));
    let mut rows =
        [(mine.allocate_sequence(4).unwrap(), 1), (other.allocate_sequence(4).unwrap(), 1)];
    let mut batch = AppendBatch::default();
    let refused = append_batch(&mut rows, &mut batch);
    assert_eq!(refused, Err(PagedKvError::WrongCache { value: "row" }));
    assert!(rows.iter().all(|row| row.0.num_tokens() == 4));
    // Consecutive batches may belong to different pools.
    append_batch(&mut rows[..1], &mut batch).unwrap();
    append_batch(&mut rows[1..], &mut batch).unwrap();
    assert_eq!((mine.used_block_count(), other.used_block_count()), (2, 2));
    drop(rows);
    assert_empties(&mine);
    assert_empties(&other);
}

#[test]
fn the_refusal_of_a_batch_counts_its_rows() {
    for cache in shapes(4, 4) {
        (1..=2).for_each(|id| cache.allocate(s(id), 4).unwrap());
        let lease = cache.lease(&[s(1), s(2)]).unwrap();
        let mut batch = AppendBatch::default();
        let refused = lease.append_batch(&[1], &mut batch);
        let size = PagedKvError::BufferSize { buffer: "num_new_tokens", required: 2, actual: 1 };
        assert_eq!(refused, Err(size));
        let refused = lease.append_batch(&[1, usize::MAX], &mut batch);
        let too_many = PagedKvError::TooManyTokens { num_tokens: 4, additional: usize::MAX };
        assert_eq!(refused, Err(too_many.clone()));
        let mut rows: Vec<_> = lease.rows().zip([1, usize::MAX]).collect();
        assert_eq!(append_batch(&mut rows, &mut batch), Err(too_many.clone()));
        assert_eq!(cache.step(Default::default()).grow(&mut rows), Err(too_many));
        assert_eq!(cache.used_block_count(), 2);
        drop(lease);
        assert_empties(&cache);
    }
}

/// Asserts that a lease, its rows in a step, and the functions over `&Sequence` export the same.
fn assert_exports_agree<T: KernelInt + PartialEq + std::fmt::Debug>(zero: T, pad: T) {
    const LENGTHS: [(usize, Option<(usize, usize)>); 4] =
        [(9, None), (23, Some((4, 5))), (8, None), (30, Some((0, 3)))];
    for gaps in [Gaps::Show, Gaps::Close] {
        for cache in shapes(64, 4) {
            let ids: Vec<SeqId> = (0..4).map(s).collect();
            for (&id, (length, trim)) in ids.iter().zip(LENGTHS) {
                cache.allocate(id, length).unwrap();
                if let Some((sink, window)) = trim {
                    assert!(cache.apply_streaming_llm(id, sink, window).unwrap() > 0);
                }
            }
            let lease = cache.lease(&ids).unwrap();
            let shape = TableShape { stride: 8, pad, gaps };
            let (mut of_step, mut of_lease) = ([zero; 5 * 8], [pad; 5 * 8]);
            let step = cache.step(Default::default());
            let leased: Vec<_> = lease.rows().map(|row| (row, 0)).collect();
            step.block_tables(&leased, &mut of_step, shape).unwrap();
            lease.block_tables(&mut of_lease, shape).unwrap();
            assert_eq!(of_step, of_lease);

            let csr = |of_lease: bool| {
                let (mut indptr, mut indices, mut last) = ([zero; 6], [pad; 40], [zero; 5]);
                let buffers = CsrBuffers {
                    indptr: &mut indptr,
                    indices: &mut indices,
                    last_page_len: &mut last,
                };
                let pages = if of_lease {
                    lease.csr(buffers, pad, gaps)
                } else {
                    step.csr(&leased, buffers, pad, gaps)
                };
                (pages.unwrap(), indptr, indices, last)
            };
            assert_eq!(csr(true), csr(false));

            let num_last = [2, 7, 1, 3];
            let ranges = LENGTHS.iter().zip(num_last).map(|(&(length, _), n)| length - n..length);
            let ranges: Vec<_> = ranges.collect();
            let (mut of_ranges, mut of_lease) = ([zero; 15], [pad; 15]);
            let slots = lease.slot_mapping(&ranges, gaps, &mut of_ranges).unwrap();
            assert_eq!(lease.last_slots(&num_last, gaps, &mut of_lease), Ok(slots));
            assert_eq!(of_ranges, of_lease);

            // The exports of a handle are the functions over `&Sequence`: compare row by row.
            for (&id, tokens) in ids.iter().zip(ranges) {
                let lease = cache.lease(&[id]).unwrap();
                cache.with_sequence(id, |sequence| {
                    let (mut of_id, mut of_handle) = ([zero; 8], [pad; 8]);
                    lease.block_tables(&mut of_id, shape).unwrap();
                    export::block_tables([sequence], &mut of_handle, shape).unwrap();
                    assert_eq!(of_id, of_handle);

                    let (mut of_id, mut of_handle) = ([zero; 15], [pad; 15]);
                    let slots = lease
                        .slot_mapping(std::slice::from_ref(&tokens), gaps, &mut of_id)
                        .unwrap();
                    let again = export::slot_mapping([(sequence, tokens)], gaps, &mut of_handle);
                    assert_eq!((again, of_id), (Ok(slots), of_handle));

                    let csr = |of_handle: bool| {
                        let (mut indptr, mut indices, mut last) = ([zero; 2], [pad; 10], [zero; 1]);
                        let buffers = CsrBuffers {
                            indptr: &mut indptr,
                            indices: &mut indices,
                            last_page_len: &mut last,
                        };
                        let pages = if of_handle {
                            export::csr([sequence], buffers, pad, gaps)
                        } else {
                            lease.csr(buffers, pad, gaps)
                        };
                        (pages.unwrap(), indptr, indices, last)
                    };
                    assert_eq!(csr(true), csr(false));
                });
            }
            drop((lease, leased, step));
            assert_empties(&cache);
        }
    }
}

#[test]
fn exports_under_a_lease_are_those_in_a_step_and_over_handles() {
    assert_exports_agree(0_i32, -1);
    assert_exports_agree(0_u32, 77);
    assert_exports_agree(0_i64, -1);
}

#[test]
fn exports_say_where_each_resident_token_is() {
    for cache in shapes(64, 4) {
        cache.allocate(s(1), 23).unwrap();
        assert!(cache.apply_streaming_llm(s(1), 4, 5).unwrap() > 0);
        let lease = cache.lease(&[s(1)]).unwrap();
        let mut slots = [0_i64; 23];
        assert_eq!(lease.last_slots(&[23], Gaps::Show, &mut slots), Ok(23));
        let expected = cache.with_sequence(s(1), |sequence| {
            let slot = |position| sequence.slot(position).map_or(-1, |slot| slot as i64);
            (0..23).map(slot).collect::<Vec<_>>()
        });
        assert_eq!(slots.to_vec(), expected.unwrap());
        assert!(slots.contains(&-1));
        drop(lease);
        assert_empties(&cache);
    }
}

#[test]
fn a_batch_that_appends_nothing_to_a_shared_block_leaves_it_shared() {
    for cache in shapes(16, 4) {
        cache.allocate(s(1), 6).unwrap();
        cache.fork(s(1), s(2)).unwrap();
        let lease = cache.lease(&[s(1)]).unwrap();
        let mut batch = AppendBatch::default();
        lease.append_batch(&[0], &mut batch).unwrap();
        assert!(batch.as_slice()[0].copy.is_none());
        lease.append_batch(&[1], &mut batch).unwrap();
        let copy = batch.as_slice()[0].copy.as_ref().expect("the other one has that block too");
        assert_eq!(copy.src, cache.get_sequence(s(2)).unwrap().block_ids[1]);
        batch.clear();
        drop(lease);
        assert_empties(&cache);
    }
}
