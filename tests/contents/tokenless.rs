//! Tests of events for contents that were admitted by hashes, whose tokens the cache does not know yet.

use super::*;
use crate::common::{assert_empties, s};
use paged_kv::{AdmitOptions, BlockHash, ExtraKeys, Prompt};

fn heard(num_blocks: usize) -> (PagedKvCache, Arc<Mirror>) {
    let mut caches = caches(num_blocks);
    let at = caches.iter().position(|(_, mirror)| mirror.is_some()).unwrap();
    let (cache, mirror) = caches.swap_remove(at);
    (cache, mirror.unwrap())
}

fn tokens(blocks: usize) -> Vec<u32> {
    (0..(blocks * BLOCK_SIZE) as u32).collect()
}

/// Admits and commits by the hashes of these tokens, and frees.
fn serve_hashed(cache: &PagedKvCache, id: u64, tokens: &[u32]) {
    let hashes = cache.prompt(tokens).hashes().to_vec();
    cache
        .admit_with(s(id), &Prompt::from_hashes(&hashes, tokens.len()), &AdmitOptions::default())
        .unwrap();
    cache.commit(s(id), tokens.len()).unwrap();
    cache.free(s(id)).unwrap();
}

#[track_caller]
fn assert_announced(cache: &PagedKvCache, mirror: &Mirror, tokens: &[u32]) {
    let (held, prompt) = (mirror.held(), cache.prompt(tokens));
    assert_eq!(held.contents.len(), prompt.hashes().len());
    let mut parent = None;
    for (&hash, tokens) in prompt.hashes().iter().zip(tokens.chunks(BLOCK_SIZE)) {
        assert_eq!(held.contents.get(&hash), Some(&(parent, tokens.to_vec())));
        parent = Some(hash);
    }
}

#[test]
fn contents_of_hashes_only_are_neither_announced_nor_reported_as_removed() {
    let (cache, mirror) = heard(8);
    serve_hashed(&cache, 1, &tokens(3));
    assert_eq!(cache.prefix().probe(&cache.prompt(&[tokens(3), vec![0]].concat())), 12);
    cache.allocate(s(2), 8 * BLOCK_SIZE).unwrap();
    let held = mirror.held();
    assert_eq!((held.stored, held.removed, held.cleared), (0, 0, 0));
}

/// The matched content is emitted with its tokens, and so its child has a parent that the sink knows.
#[test]
fn a_request_with_tokens_emits_the_contents_it_matches() {
    for by_handle in [false, true] {
        let (cache, mirror) = heard(16);
        serve_hashed(&cache, 1, &tokens(3));
        let longer = tokens(5);
        if by_handle {
            let prompt = cache.prompt(&longer);
            let admitted = cache.admit_sequence(&prompt, &AdmitOptions::default()).unwrap();
            assert_eq!(admitted.1.cached_tokens, 12);
            assert_announced(&cache, &mirror, &longer[..12]);
            let mut rows = [(admitted.0, 0)];
            let mut step = cache.step(Default::default());
            step.join(&mut rows[0].0).unwrap();
            assert_eq!(step.commit(&mut rows[0].0, 20), Ok(2));
            assert_eq!(step.complete().published, 2);
        } else {
            assert_eq!(cache.admit(s(2), &longer).unwrap().cached_tokens, 12);
            assert_announced(&cache, &mirror, &longer[..12]);
            assert_eq!(cache.commit(s(2), 20), Ok(2));
        }
        assert_announced(&cache, &mirror, &longer);
        cache.allocate(s(9), cache.free_block_count() * BLOCK_SIZE).unwrap();
        drop(cache);
        let held = mirror.held();
        assert_eq!(held.stored, 5);
    }
}

/// The second request computed the blocks itself, because the first had not published its blocks yet.
#[test]
fn a_later_publisher_that_knows_the_tokens_tells_them() {
    for first_tells in [false, true] {
        let (cache, mirror) = heard(16);
        let (tokens, hashes) = (tokens(3), cache.prompt(&tokens(3)).hashes().to_vec());
        cache
            .admit_with(s(1), &Prompt::from_hashes(&hashes, 12), &AdmitOptions::default())
            .unwrap();
        cache.admit(s(2), &tokens).unwrap();
        let order = if first_tells { [2, 1] } else { [1, 2] };
        for id in order {
            cache.commit(s(id), 12).unwrap();
        }
        assert_announced(&cache, &mirror, &tokens);
        assert_eq!(mirror.held().stored, 3);
        // Its block is reclaimed, and the block of the other request stays.
        cache.free(s(2)).unwrap();
        cache.allocate(s(9), cache.free_block_count() * BLOCK_SIZE).unwrap();
        assert_announced(&cache, &mirror, &tokens);
        cache.free(s(1)).unwrap();
        cache.free(s(9)).unwrap();
        cache.allocate(s(9), 16 * BLOCK_SIZE).unwrap();
        assert_eq!(mirror.held().counts(), (3, 3));
        assert_empties(&cache);
    }
}

/// Contents after an unreported content are hidden until that one is reported. Then they are emitted
/// after it.
#[test]
fn children_of_a_tokenless_content_are_announced_after_it() {
    let (cache, mirror) = heard(16);
    let tokens = tokens(4);
    // A request that knows the tokens computes the blocks. The first two are lost, and computed again by
    // hashes.
    let prompt = cache.prompt(&tokens);
    let (mut sequence, _) = cache.admit_sequence(&prompt, &AdmitOptions::default()).unwrap();
    sequence.commit(16).unwrap();
    assert_announced(&cache, &mirror, &tokens);
    sequence.apply_streaming_llm(0, 8).unwrap();
    cache.allocate(s(9), 14 * BLOCK_SIZE).unwrap();
    assert_eq!(mirror.held().contents.len(), 0);
    cache.free(s(9)).unwrap();
    serve_hashed(&cache, 1, &tokens[..8]);
    assert_eq!(cache.prefix().probe(&cache.prompt(&[&tokens[..], &[0]].concat())), 16);
    assert_eq!(mirror.held().contents.len(), 0, "those behind are known, those in front are not");
    cache.prefix().announce_all();
    assert_eq!(mirror.held().len_and_cleared(), (0, 1));
    cache.admit(s(2), &tokens[..5]).unwrap(); // knows the first content
    assert_announced(&cache, &mirror, &tokens[..4]);
    cache.admit(s(3), &tokens[..9]).unwrap();
    assert_announced(&cache, &mirror, &tokens);
    cache.prefix().announce_all();
    assert_announced(&cache, &mirror, &tokens);
    drop(sequence);
    assert_empties(&cache);
}

#[test]
fn a_reset_forgets_the_contents_not_yet_emitted() {
    let (cache, mirror) = heard(16);
    serve_hashed(&cache, 1, &tokens(3));
    cache.prefix().reset();
    let sequence = cache.admit(s(2), &tokens(3)).unwrap();
    assert_eq!(sequence.cached_tokens, 0);
    assert_eq!(mirror.held().stored, 0);
    cache.commit(s(2), 12).unwrap();
    assert_announced(&cache, &mirror, &tokens(3));
}

/// A caller that hashes itself may start anywhere in a prompt. The event gives the content's parent in
/// the prompt of the request that knows its tokens.
#[test]
fn a_content_is_announced_where_it_is_in_the_prompt_of_the_one_that_knows_its_tokens() {
    let (cache, mirror) = heard(16);
    let extra = ExtraKeys::default().salt("tenant");
    let tokens = tokens(3);
    let prompt = cache.prompt_with(&tokens, &extra);
    let middle = Prompt::from_hashes(&prompt.hashes()[1..2], 4);
    cache.admit_with(s(1), &middle, &AdmitOptions::default()).unwrap();
    cache.commit(s(1), 4).unwrap();
    let (mut sequence, _) = cache.admit_sequence(&prompt, &AdmitOptions::default()).unwrap();
    sequence.commit(12).unwrap();
    let hashes: Vec<BlockHash> = prompt.hashes().to_vec();
    let held = mirror.held();
    assert_eq!(held.contents[&hashes[0]], (None, tokens[..4].to_vec()));
    assert_eq!(held.contents[&hashes[1]], (Some(hashes[0]), tokens[4..8].to_vec()));
    assert_eq!(held.contents[&hashes[2]], (Some(hashes[1]), tokens[8..].to_vec()));
}

/// When a content is removed, contents after it that were never reported are not reported as removed.
#[test]
fn a_tokenless_child_of_an_announced_content_ends_in_silence() {
    let (cache, mirror) = heard(16);
    let tokens = tokens(3);
    cache.admit(s(1), &tokens[..4]).unwrap();
    cache.commit(s(1), 4).unwrap();
    cache.free(s(1)).unwrap();
    let hashed = Prompt::from_hashes(cache.prompt(&tokens).hashes(), 12);
    let (mut sequence, admission) =
        cache.admit_sequence(&hashed, &AdmitOptions::default()).unwrap();
    assert_eq!((admission.cached_tokens, sequence.commit(12)), (4, Ok(2)));
    assert_announced(&cache, &mirror, &tokens[..4]);
    sequence.apply_streaming_llm(0, 8).unwrap(); // keeps the two unreported blocks
    cache.allocate(s(9), 14 * BLOCK_SIZE).unwrap();
    assert_eq!(mirror.held().counts(), (1, 1));
    cache.free(s(9)).unwrap();
    drop(sequence);
    cache.allocate(s(9), 16 * BLOCK_SIZE).unwrap();
    assert_eq!(mirror.held().counts(), (1, 1));
}
