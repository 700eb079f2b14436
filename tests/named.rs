//! Tests of sequences whose tokens are known, by handle and by id.

mod common;

use common::{assert_empties, s};
use paged_kv::{AdmitOptions, PagedKvCache, PagedKvError, Prompt};

#[test]
fn tokens_that_come_later_are_published_as_their_blocks_fill() {
    let cache = PagedKvCache::new(16, 4, 1, 1);
    let tokens: Vec<u32> = (0..17).collect();
    let (mut held, _) =
        cache.admit_sequence(&cache.prompt(&tokens[..5]), &AdmitOptions::default()).unwrap();
    assert_eq!(held.commit(5), Ok(1));
    let _ = held.append(11).unwrap();
    assert_eq!(held.commit(&tokens[5..6]), Ok(0), "no block is full by it");
    assert_eq!(held.commit(&tokens[6..16]), Ok(3));
    assert_eq!(cache.prefix().probe(&cache.prompt(&tokens)), 16);
    let beyond = PagedKvError::CommitBeyondEnd { requested: 17, num_tokens: 16 };
    assert_eq!(held.commit(&tokens[16..]), Err(beyond));
    drop(held);
    assert_empties(&cache);
}

#[test]
fn a_handle_with_names_is_trimmed_as_one_without() {
    let cache = PagedKvCache::new(16, 4, 1, 1);
    let prompt = cache.prompt(&[7; 30]);
    let (mut held, _) = cache.admit_sequence(&prompt, &AdmitOptions::default()).unwrap();
    assert_eq!(held.apply_streaming_llm(3, 6).unwrap(), 20);
    assert_eq!((held.num_tokens(), held.num_blocks()), (30, 3));
    assert_eq!(held.apply_streaming_llm(3, 6).unwrap(), 0);
    assert_eq!(held.commit(30), Ok(1), "nothing behind a gap is published");
    drop(held);
    assert_empties(&cache);
}

#[test]
fn tokens_are_not_appended_before_those_of_the_prompt() {
    let cache = PagedKvCache::new(16, 4, 1, 1);
    let first_chunk = AdmitOptions::default().first_chunk(4);
    cache.admit_with(s(1), &cache.prompt(&[7; 9]), &first_chunk).unwrap();
    let before = cache.get_sequence(s(1)).unwrap();
    let refused = cache.append_tokens(s(1), &[8]);
    let beyond = PagedKvError::CommitBeyondEnd { requested: 9, num_tokens: 4 };
    assert_eq!(refused.unwrap_err(), beyond);
    assert_eq!(cache.get_sequence(s(1)).unwrap(), before);
    let _ = cache.append(s(1), 5).unwrap();
    assert_eq!(cache.append_tokens(s(1), &[8]).unwrap().new_blocks, 3..3);
    assert_eq!(cache.get_sequence(s(1)).unwrap().num_tokens, 10);
    assert_empties(&cache);
}

#[test]
fn tokens_cut_off_are_forgotten() {
    let cache = PagedKvCache::new(16, 4, 1, 1);
    let tokens: Vec<u32> = (0..13).collect();
    for cut in [12, 9, 8, 7] {
        cache.admit(s(1), &tokens).unwrap();
        cache.truncate(s(1), cut).unwrap();
        // Other tokens take the place of those cut off.
        let others: Vec<u32> = (100..).take(13 - cut).collect();
        let _ = cache.append_tokens(s(1), &others).unwrap();
        let mut now = tokens[..cut].to_vec();
        now.extend(others);
        now.push(0);
        assert_eq!(cache.prefix().probe(&cache.prompt(&now)), 12, "cut at {cut}");
        cache.free(s(1)).unwrap();
        cache.prefix().reset();
    }
    assert_empties(&cache);
}

#[test]
fn of_a_prompt_known_by_its_hashes_those_of_whole_blocks_stay() {
    let cache = PagedKvCache::new(16, 4, 1, 1);
    let prompt = cache.prompt(&[7; 13]);
    for (cut, published) in [(13, 3), (12, 3), (9, 2), (8, 2), (7, 1), (3, 0)] {
        cache
            .admit_with(s(1), &Prompt::from_hashes(prompt.hashes(), 13), &AdmitOptions::default())
            .unwrap();
        cache.truncate(s(1), cut).unwrap();
        assert_eq!(cache.commit(s(1), cut), Ok(published), "cut to {cut}");
        let _ = cache.append(s(1), 4).unwrap();
        let unknown = PagedKvError::HashesUnknown { known: 4 * published, requested: cut + 4 };
        assert_eq!(
            cache.commit(s(1), cut + 4),
            Err(unknown),
            "the hash of a full block is missing"
        );
        cache.free(s(1)).unwrap();
        cache.prefix().reset();
    }
    assert_empties(&cache);
}
