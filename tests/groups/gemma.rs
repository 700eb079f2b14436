//! The blocks that a long sequence holds with groups as gemma-3 has them: five windows of 1,024 tokens to one
//! group of full attention, in blocks of 16 tokens.

use paged_kv::{LayerGroup, PagedKvCache, Sequence};

use crate::{assert_at_rest, cache_of, full, missing, sliding};

const TOKENS: usize = 32 * 1024;
const CHUNK: usize = 512;
const WINDOW: usize = 1024;
const BLOCK_SIZE: usize = 16;

/// Grows a sequence to 32k tokens in chunks, and returns it with the most blocks that it held at a time.
fn prefilled(cache: &PagedKvCache) -> (Sequence, usize) {
    let mut sequence = cache.allocate_sequence(0).unwrap();
    let mut most = 0;
    for _ in 0..TOKENS / CHUNK {
        drop(sequence.append(CHUNK).unwrap());
        most = most.max(cache.used_block_count());
    }
    (sequence, most)
}

#[test]
#[cfg_attr(miri, ignore = "one thread takes 14,000 blocks: minutes under an interpreter")]
fn five_windows_to_one_full_group_hold_a_fifth_of_the_blocks_of_full_attention() {
    let windows = [sliding(BLOCK_SIZE, WINDOW); 5];
    let mixed: Vec<LayerGroup> = [full(BLOCK_SIZE)].into_iter().chain(windows).collect();
    let all_full = [full(BLOCK_SIZE); 6];
    let (of_mixed, of_full) = (cache_of(16_384, &mixed), cache_of(16_384, &all_full));
    let (mut sequence, most) = prefilled(&of_mixed);
    let (mut other, most_of_full) = prefilled(&of_full);
    // The last chunk began at 32,256 tokens: of its window, positions 31,233 on, the first block is 1,952.
    let after_prefill = of_mixed.used_block_count();
    assert_eq!((after_prefill, most), (2_048 + 5 * 96, 2_048 + 5 * 96));
    assert_eq!((of_full.used_block_count(), most_of_full), (6 * 2_048, 6 * 2_048));
    assert_eq!(missing(&sequence, 0), [0; 0]);
    assert_eq!(missing(&sequence, 5), (0..1_952).collect::<Vec<_>>());
    println!("32,768 tokens, after the last chunk: {after_prefill} blocks against {most_of_full}");

    let mut fewest = usize::MAX;
    let mut most = 0;
    for token in 1..=BLOCK_SIZE {
        drop(sequence.append(1).unwrap());
        drop(other.append(1).unwrap());
        let held = of_mixed.used_block_count();
        assert_eq!(of_full.used_block_count(), 6 * 2_049);
        (fewest, most) = (fewest.min(held), most.max(held));
        println!("32,768 + {token:2} tokens: {held} blocks against {}", of_full.used_block_count());
    }
    // A window of 1,024 tokens is in 64 blocks if its end is that of a block, else in 65.
    assert_eq!((fewest, most), (2_049 + 5 * 64, 2_049 + 5 * 65));
    drop((sequence, other));
    assert_at_rest(&of_mixed);
    assert_at_rest(&of_full);
}
