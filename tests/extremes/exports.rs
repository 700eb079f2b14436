//! Exports with strides, rows and ranges of every length.

use paged_kv::export::{BlockTables, Csr, CsrBuffers, Gaps, SlotMapping, TableShape, slots};
use paged_kv::{PagedKvCache, PagedKvError, Sequence};

use crate::common::{lease_rows, s};
use crate::{LENGTHS, in_little_memory};

/// Lengths of the buffers.
const CELLS: [usize; 4] = [0, 1, 3, 24];

fn sequences(block_size: usize) -> (PagedKvCache, Sequence) {
    let builder = PagedKvCache::builder().num_blocks(14).block_size(block_size).block_bytes(1);
    let cache = builder.build().expect("the parameters make sense");
    cache.allocate(s(1), 3).expect("there is room");
    let mut handle = cache.allocate_sequence(block_size.saturating_mul(3)).expect("there is room");
    handle.apply_streaming_llm(1, 1).unwrap();
    (cache, handle)
}

#[test]
fn block_tables_of_any_stride_are_written_or_refused() {
    for block_size in [1, 4, 1 << 60] {
        let (cache, handle) = sequences(block_size);
        for (stride, cells, gaps) in cases() {
            let mut out = vec![7_i64; cells];
            let said = format!("stride {stride} of {cells}");
            let shape = TableShape { stride, pad: -1, gaps };
            let written = in_little_memory(&said, || {
                let step = cache.step(Default::default());
                let in_step = step.block_tables(&lease_rows(&cache, &[(s(1), 0)]), &mut out, shape);
                let leased = cache.lease(&[s(1)]).unwrap().block_tables(&mut out, shape);
                assert_eq!(in_step, leased, "{said}");
                BlockTables::new(&mut out, shape).and_then(|mut tables| {
                    let fits = tables.check_rows(stride).is_ok();
                    assert!(!fits || stride.saturating_mul(stride) <= cells, "{said}");
                    tables.push(&handle)?;
                    Ok(tables.finish())
                })
            });
            assert!(written.is_err() || stride <= cells, "{said}");
        }
    }
}

fn cases() -> impl Iterator<Item = (usize, usize, Gaps)> {
    let of = |stride| CELLS.into_iter().map(move |cells| (stride, cells));
    let all = LENGTHS.into_iter().flat_map(of);
    all.flat_map(|(stride, cells)| [(stride, cells, Gaps::Show), (stride, cells, Gaps::Close)])
}

#[test]
fn csr_buffers_of_any_length_are_written_or_refused() {
    for block_size in [1, 4, 1 << 60] {
        let (cache, handle) = sequences(block_size);
        for (rows, cells, gaps) in cases() {
            let said = format!("{rows} rows, {cells} cells");
            let (mut indptr, mut indices, mut last) =
                (vec![0_i64; cells + 1], vec![0; cells], vec![0; cells]);
            macro_rules! buffers {
                () => {
                    CsrBuffers {
                        indptr: &mut indptr,
                        indices: &mut indices,
                        last_page_len: &mut last,
                    }
                };
            }
            let leased = cache.lease(&[s(1)]).unwrap().csr(buffers!(), -1, gaps);
            assert!(leased.is_ok_and(|pages| pages <= cells) || cells < 3, "{said}");
            let mut csr = Csr::new(buffers!(), -1, gaps).expect("the lengths go together");
            assert_eq!(csr.check_rows(rows).is_ok(), rows <= cells, "{said}");
            assert!(csr.push(&handle).is_ok() || cells < 3, "{said}");
            assert!(csr.finish() <= cells);
        }
    }
}

#[test]
fn slots_of_any_range_are_written_or_refused() {
    for block_size in [1, 4, 1 << 60] {
        let (cache, handle) = sequences(block_size);
        for start in LENGTHS {
            for end in LENGTHS.into_iter().chain([handle.num_tokens(), handle.num_tokens() - 1]) {
                for (cells, gaps) in [(0, Gaps::Show), (3, Gaps::Close), (24, Gaps::Show)] {
                    let said = format!("{start}..{end} into {cells}");
                    in_little_memory(&said, || {
                        check_range(&cache, &handle, start, end, gaps, cells);
                    });
                }
            }
        }
        let lease = cache.lease(&[s(1)]).unwrap();
        for n in LENGTHS {
            let written = lease.last_slots(&[n], Gaps::Show, &mut [0_i64; 8]);
            assert_eq!(written.is_ok(), n <= 3, "{n}");
        }
    }
}

fn check_range(
    cache: &PagedKvCache,
    handle: &Sequence,
    start: usize,
    end: usize,
    gaps: Gaps,
    cells: usize,
) {
    let said = format!("{start}..{end} into {cells}");
    let mut out = vec![0_i64; cells];
    let outside = |refusal| matches!(refusal, PagedKvError::TokenRange { .. });
    let is_inside = start <= end && end <= handle.num_tokens();
    let count = gaps.num_slots(handle, start..end);
    assert_eq!(count.clone().is_err_and(outside), !is_inside, "{said}");
    let written = slots(handle, start..end, gaps, &mut out);
    assert!(written.is_err() || count == Ok(cells), "{said}");
    let mut mapping = SlotMapping::new(&mut out, gaps);
    let pushed = mapping.push(handle, start..end);
    assert_eq!(pushed.is_ok(), count.is_ok_and(|count| count <= cells), "{said}");
    assert!(mapping.finish() <= cells);
    let (lease, tokens) = (cache.lease(&[s(1)]).unwrap(), start..end);
    let leased = lease.slot_mapping(std::slice::from_ref(&tokens), gaps, &mut out);
    assert_eq!(leased.is_ok(), start <= end && end <= 3 && end - start <= cells, "{said}");
    let mut narrow = vec![0_i32; cells];
    let _ = slots(handle, start..end, gaps, &mut narrow);
}
