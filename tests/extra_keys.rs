//! Tests of extra keys: the inputs of a prompt's hashes besides its tokens stay with the sequence,
//! whatever is cut off and appended again.

mod common;

use common::{ALGORITHMS, assert_empties, s};
use paged_kv::{AdmitOptions, ExtraKeys, PagedKvCache};

const TOKENS: [u32; 9] = [1, 2, 3, 4, 5, 6, 7, 8, 9];

fn extras() -> [ExtraKeys; 3] {
    [
        ExtraKeys::default().salt("tenant a"),
        ExtraKeys::default().lora("adapter", "/weights/adapter"),
        ExtraKeys::default().media("image", 0..9),
    ]
}

fn caches() -> Vec<PagedKvCache> {
    let of = |&algorithm| {
        let builder = PagedKvCache::builder().num_blocks(32).block_size(4);
        builder.hash_algorithm(algorithm).build().unwrap()
    };
    ALGORITHMS.iter().map(of).collect()
}

/// Asserts that the blocks of [`TOKENS`] are found with these extra keys, and with no others.
#[track_caller]
fn assert_found_with(cache: &PagedKvCache, extra: &ExtraKeys, said: &str) {
    assert_eq!(cache.prefix().probe(&cache.prompt(&TOKENS)), 0, "{said}: without extra keys");
    for other in extras() {
        let found = if other == *extra { 8 } else { 0 };
        assert_eq!(cache.prefix().probe(&cache.prompt_with(&TOKENS, &other)), found, "{said}");
    }
}

#[test]
fn a_prompt_truncated_to_any_length_keeps_its_extra_keys() {
    for cache in caches() {
        for extra in extras() {
            for kept in 0..=9 {
                let said = format!("{extra:?}, {kept} of 9 tokens kept");
                let prompt = cache.prompt_with(&TOKENS, &extra);
                cache.admit_with(s(1), &prompt, &AdmitOptions::default()).unwrap();
                cache.truncate(s(1), kept).unwrap();
                cache.fork(s(1), s(2)).unwrap();
                drop(cache.append_tokens(s(1), &TOKENS[kept..]).unwrap());
                cache.commit(s(1), 9).unwrap();
                assert_found_with(&cache, &extra, &said);
                cache.free(s(1)).unwrap();
                cache.prefix().reset();
                // A fork made when few tokens were left grows token by token.
                TOKENS[kept..].iter().for_each(|&token| {
                    drop(cache.append(s(2), 1).unwrap());
                    cache.commit(s(2), &[token]).unwrap();
                });
                cache.commit(s(2), 9).unwrap();
                assert_eq!(cache.prefix().probe(&cache.prompt(&TOKENS)), 0, "{said}");
                cache.free(s(2)).unwrap();
                cache.prefix().reset();
            }
        }
        assert_empties(&cache);
    }
}

#[test]
fn a_handle_truncated_to_any_length_keeps_its_extra_keys() {
    for cache in caches() {
        for extra in extras() {
            for kept in 0..=9 {
                let prompt = cache.prompt_with(&TOKENS, &extra);
                let admitted = cache.admit_sequence(&prompt, &AdmitOptions::default());
                let (mut sequence, _) = admitted.unwrap();
                sequence.truncate(kept).unwrap();
                drop(sequence.append(9 - kept).unwrap());
                sequence.commit(&TOKENS[kept..]).unwrap();
                sequence.commit(9).unwrap();
                assert_found_with(&cache, &extra, &format!("{extra:?}, {kept} kept"));
                drop(sequence);
                cache.prefix().reset();
            }
        }
        assert_empties(&cache);
    }
}

#[test]
fn a_salted_admission_by_id_keeps_its_salt_when_it_is_truncated_to_nothing() {
    for cache in caches() {
        let prompt = cache.prompt_with(&TOKENS, &ExtraKeys::default().salt("tenant a"));
        cache.admit_with(s(1), &prompt, &AdmitOptions::default()).unwrap();
        cache.truncate(s(1), 0).unwrap();
        drop(cache.append_tokens(s(1), &TOKENS).unwrap());
        assert_found_with(&cache, &extras()[0], "admit_with");
        let again = cache.admit_with(s(2), &prompt, &AdmitOptions::default()).unwrap();
        assert_eq!(again.cached_tokens, 8);
        assert_eq!(cache.admit(s(3), &TOKENS).unwrap().cached_tokens, 0);
        assert_empties(&cache);
    }
}
