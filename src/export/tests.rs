//! Tests of the exports against a model that computes one cell at a time.

mod model;

use self::model::{
    BOTH, Life, PAD, Triple, for_every_small_sequence, model_pages, model_slots, resident,
};
use super::*;
use crate::cache::PagedKvCache;
use crate::error::{PagedKvError, Result};
use crate::id::BlockId;
use crate::sequence::Sequence;

#[test]
fn a_row_is_the_pages_and_then_pad() {
    for_every_small_sequence(|sequence| {
        for gaps in BOTH {
            let pages = model_pages(sequence, gaps);
            assert_eq!(gaps.num_pages(sequence), pages.len());
            for spare in 0..3 {
                let stride = (pages.len() + spare).max(1);
                let shape = TableShape { stride, pad: PAD, gaps };
                let mut out = vec![0; 2 * stride];
                block_tables([sequence], &mut out, shape).expect("the row is wide enough");
                let mut expected = pages.clone();
                expected.resize(2 * stride, PAD);
                assert_eq!(out, expected);
            }
        }
    });
}

#[test]
fn a_csr_row_is_the_pages_and_how_full_the_last_is() {
    for_every_small_sequence(|sequence| {
        for gaps in BOTH {
            let pages = model_pages(sequence, gaps);
            let total = pages.len() as i64;
            let mut triple = Triple::new(3, 2 * pages.len() + 1);
            let written = csr([sequence, sequence], triple.buffers(), PAD, gaps);
            assert_eq!(written, Ok(2 * pages.len()));
            assert_eq!(triple.indptr, [0, total, 2 * total, 2 * total]);
            assert_eq!(triple.indices[..2 * pages.len()], [&pages[..], &pages[..]].concat());
            assert_eq!(triple.indices[2 * pages.len()..], [99], "cells past the pages are left");

            let last = if gaps == Gaps::Show { sequence.num_tokens() } else { resident(sequence) };
            let block_size = sequence.block_size() as i64;
            let full = (total - 1).max(0) * block_size;
            assert_eq!(triple.last_page_len, [last as i64 - full, last as i64 - full, 0]);
            assert!((total == 0) == (triple.last_page_len[0] == 0));
            assert!(triple.last_page_len[0] <= block_size);
        }
    });
}

#[test]
fn every_range_of_tokens_has_the_slots_of_its_blocks() {
    for_every_small_sequence(|sequence| {
        for gaps in BOTH {
            for start in 0..=sequence.num_tokens() {
                for end in start..=sequence.num_tokens() {
                    let expected = model_slots(sequence, start..end, gaps);
                    let counted = gaps.num_slots(sequence, start..end);
                    assert_eq!(counted, Ok(expected.len()));
                    let mut out = vec![99_i64; expected.len()];
                    slots(sequence, start..end, gaps, &mut out).expect("one cell a slot");
                    assert_eq!(out, expected, "{start}..{end}");
                }
            }
        }
    });
}

#[test]
fn builders_and_batch_functions_write_the_same_values() {
    let lives = [(7, [(2, 2), (0, 1)]), (0, [(0, 9), (0, 9)]), (4, [(1, 1), (3, 3)])];
    let cache = PagedKvCache::new(32, 2, 1, 1);
    let live = |(tokens, trims)| Life { block_size: 2, tokens, trims, cut: 0 }.live_in(&cache);
    let batch = lives.map(live);
    for gaps in BOTH {
        let shape = TableShape { stride: 8, pad: -1_i32, gaps };
        let (mut whole, mut by_row) = ([5; 32], [6; 32]);
        block_tables(&batch, &mut whole, shape).expect("four rows of eight");
        let mut tables = BlockTables::new(&mut by_row, shape).expect("four rows of eight");
        batch.iter().for_each(|sequence| tables.push(sequence).expect("eight blocks a row"));
        assert_eq!(tables.finish(), 3);
        assert_eq!(whole, by_row);

        let (mut whole, mut by_row) = (Triple::new(4, 20), Triple::new(4, 20));
        let pages = csr(&batch, whole.buffers(), PAD, gaps);
        let mut rows = Csr::new(by_row.buffers(), PAD, gaps).expect("four rows");
        batch.iter().for_each(|sequence| rows.push(sequence).expect("twenty pages"));
        assert_eq!(pages, Ok(rows.finish()));
        assert_eq!(whole, by_row);

        let ranges = batch.iter().map(|sequence| (sequence, 0..sequence.num_tokens()));
        let (mut whole, mut by_row) = ([5_i64; 40], [6_i64; 40]);
        let written = slot_mapping(ranges.clone(), gaps, &mut whole);
        let mut mapping = SlotMapping::new(&mut by_row, gaps);
        ranges.for_each(|(sequence, all)| mapping.push(sequence, all).expect("forty slots"));
        assert_eq!(written, Ok(mapping.finish()));
        assert_eq!(whole, by_row);
    }
}

#[test]
fn a_refused_batch_leaves_the_buffers_as_they_were() {
    let cache = PagedKvCache::new(32, 4, 1, 1);
    let sequence = |tokens| cache.allocate_sequence(tokens).expect("room for a few blocks");
    let batch = [sequence(4), sequence(9)];

    let mut out = [9_i32; 4];
    let shape = |stride| TableShape { stride, pad: -1, gaps: Gaps::Show };
    let refused = block_tables(&batch, &mut out, shape(2));
    assert_eq!(refused, Err(PagedKvError::StrideTooSmall { row: 1, blocks: 3, stride: 2 }));
    assert_eq!(block_tables(&batch, &mut out, shape(4)), buffer_size("block table", 8, 4));
    assert_eq!(block_tables(&batch, &mut out, shape(3)), buffer_size("block table", 6, 4));
    let no_whole_rows = block_tables(&batch[..1], &mut out, shape(3));
    assert_eq!(no_whole_rows, buffer_size("block table", 6, 4));
    let refused = block_tables(&batch, &mut out, shape(0));
    assert!(matches!(refused, Err(PagedKvError::InvalidConfig { parameter: "stride", .. })));
    assert_eq!(out, [9; 4]);

    let ranges = [(&batch[0], 0..4), (&batch[1], 8..10)];
    let refused = slot_mapping(ranges, Gaps::Show, &mut out);
    assert_eq!(refused, Err(PagedKvError::TokenRange { start: 8, end: 10, num_tokens: 9 }));
    let ranges = [(&batch[0], 0..4), (&batch[1], 8..9)];
    assert_eq!(slot_mapping(ranges, Gaps::Show, &mut out), buffer_size("slots", 5, 4));
    assert_eq!(slots(&batch[0], 0..3, Gaps::Show, &mut out), buffer_size("slots", 3, 4));
    #[expect(clippy::reversed_empty_ranges, reason = "what is refused")]
    let reversed = slots(&batch[0], 3..2, Gaps::Show, &mut out);
    assert_eq!(reversed, Err(PagedKvError::TokenRange { start: 3, end: 2, num_tokens: 4 }));
    assert_eq!(out, [9; 4]);
}

#[test]
fn a_refused_csr_names_the_buffer_and_both_sizes() {
    let cache = PagedKvCache::new(32, 4, 1, 1);
    let batch = [4, 9].map(|tokens| cache.allocate_sequence(tokens).expect("room for few blocks"));

    for (rows, pages, buffer, required, actual) in
        [(1, 9, "last_page_len", 2, 1), (2, 3, "indices", 4, 3)]
    {
        let mut triple = Triple::new(rows, pages);
        let refused = csr(&batch, triple.buffers(), PAD, Gaps::Show);
        assert_eq!(refused, Err(size(buffer, required, actual)));
        assert_eq!(triple, Triple::new(rows, pages));
    }
    let mut triple = Triple::new(2, 4);
    triple.indptr.pop();
    let refused = csr(&batch, triple.buffers(), PAD, Gaps::Show);
    assert_eq!(refused, Err(size("indptr", 3, 2)));
}

#[test]
fn a_refused_push_can_be_followed_by_one_that_fits() {
    let cache = PagedKvCache::new(32, 4, 1, 1);
    let [short, long] = [4, 9].map(|tokens| cache.allocate_sequence(tokens).expect("few blocks"));
    let id = i64::from(short.block_ids()[0].0);

    let mut out = [9; 4];
    let shape = TableShape { stride: 2, pad: PAD, gaps: Gaps::Close };
    let mut tables = BlockTables::new(&mut out, shape).expect("two rows of two");
    assert!(tables.push(&long).is_err());
    assert_eq!(tables.push(&short), Ok(()));
    assert_eq!(tables.push(&short), Ok(()));
    assert_eq!(tables.push(&short), buffer_size("block table", 6, 4));
    assert_eq!(tables.finish(), 2);
    assert_eq!(out, [id, PAD, id, PAD]);

    let mut triple = Triple::new(3, 2);
    let mut csr = Csr::new(triple.buffers(), PAD, Gaps::Close).expect("three rows");
    assert_eq!(csr.push(&long), buffer_size("indices", 3, 2));
    assert_eq!(csr.push(&short), Ok(()));
    assert_eq!(csr.push(&long), buffer_size("indices", 4, 2));
    assert_eq!(csr.finish(), 1);
    assert_eq!(triple.indptr, [0, 1, 1, 1]);
    assert_eq!(triple.indices, [id, 99]);

    let mut mapping = SlotMapping::new(&mut out, Gaps::Show);
    assert_eq!(mapping.push(&long, 0..5), buffer_size("slots", 5, 4));
    assert_eq!(mapping.push(&short, 1..3), Ok(()));
    assert_eq!(mapping.finish(), 2);
    assert_eq!(out, [id * 4 + 1, id * 4 + 2, -1, -1]);
}

#[test]
fn a_slot_past_the_kernels_integer_is_refused() {
    let block_size = 1 << 30;
    let cache = PagedKvCache::new(4, block_size, 1, 1);
    let sequence = cache.allocate_sequence(4 * block_size).expect("room for four blocks");
    let highest = sequence.block_ids().iter().position(|id| id.0 == 3).expect("all four ids");
    let end = (highest + 1) * block_size;
    let last_two = end - 2..end;

    let too_large = |value, target| Err(PagedKvError::IdTooLarge { value, target });
    let refused = slots(&sequence, last_two.clone(), Gaps::Show, &mut [0_i32; 2]);
    assert_eq!(refused, too_large((1 << 32) - 1, "i32"));
    let refused = slots(&sequence, last_two.clone(), Gaps::Show, &mut [0_u32; 2]);
    assert_eq!(refused, too_large((1 << 32) - 1, "u32"), "u32::MAX is no slot");
    let mut out = [0_u32; 1];
    assert_eq!(slots(&sequence, end - 2..end - 1, Gaps::Show, &mut out), Ok(()));
    assert_eq!(out, [u32::MAX - 1]);
    let mut out = [0_i64; 2];
    assert_eq!(slots(&sequence, last_two, Gaps::Show, &mut out), Ok(()));
    assert_eq!(out, [(1 << 32) - 2, (1 << 32) - 1]);
}

#[test]
fn a_slot_past_the_integer_is_found_before_the_last_block_too() {
    let block_size = 1 << 31;
    let cache = PagedKvCache::new(2, block_size, 1, 1);
    let mut pair = [(); 2].map(|()| cache.allocate_sequence(block_size).expect("room for both"));
    pair.sort_by_key(|sequence| sequence.block_ids()[0]);
    let [low, mut sequence] = pair;
    drop(low);
    drop(sequence.append(1).expect("the block just freed"));
    assert_eq!(sequence.block_ids(), [BlockId(1), BlockId(0)]);

    let around = block_size - 1..block_size + 1;
    let too_large = |target| Err(PagedKvError::IdTooLarge { value: (1 << 32) - 1, target });
    let refused = slots(&sequence, around.clone(), Gaps::Show, &mut [0_i32; 2]);
    assert_eq!(refused, too_large("i32"));
    let refused = slots(&sequence, around, Gaps::Show, &mut [0_u32; 2]);
    assert_eq!(refused, too_large("u32"));
}

#[test]
fn a_block_size_past_the_kernels_integer_is_refused() {
    let block_size = 1 << 31;
    let cache = PagedKvCache::new(2, block_size, 1, 1);
    let sequence = cache.allocate_sequence(1).expect("room for one block");
    let refuse = |export: fn(&Sequence, CsrBuffers<'_, i32>) -> Result<usize>| {
        let (mut indptr, mut indices, mut last_page_len) = ([9; 2], [9; 1], [9; 1]);
        let buffers = CsrBuffers {
            indptr: &mut indptr,
            indices: &mut indices,
            last_page_len: &mut last_page_len,
        };
        let too_large = PagedKvError::IdTooLarge { value: 1 << 31, target: "i32" };
        assert_eq!(export(&sequence, buffers), Err(too_large));
        assert_eq!((indptr, indices, last_page_len), ([9; 2], [9; 1], [9; 1]));
    };
    refuse(|sequence, buffers| csr([sequence], buffers, 0, Gaps::Close));
    refuse(|sequence, buffers| {
        let mut rows = Csr::new(buffers, 0, Gaps::Close)?;
        rows.push(sequence)?;
        Ok(rows.finish())
    });
}

fn size(buffer: &'static str, required: usize, actual: usize) -> PagedKvError {
    PagedKvError::BufferSize { buffer, required, actual }
}

fn buffer_size<T>(buffer: &'static str, required: usize, actual: usize) -> Result<T> {
    Err(size(buffer, required, actual))
}
