//! Tests of `examples/adapter`: both adapters serve a random load of conversations as a simple sequential
//! manager does.

#[path = "../common/mod.rs"]
mod common;
#[path = "../../examples/adapter/manager.rs"]
mod manager;
mod sequential;

use common::random::Random;
use manager::{BlockManager, ByBlocks, ByHandles};
use sequential::Sequential;

const BLOCK_SIZE: usize = 4;

/// A conversation: its tokens so far, and whether a request of it runs.
struct Conversation {
    tokens: Vec<u32>,
    request: Option<u64>,
}

/// Compares all that two managers show of a request: lengths, and that tokens of one slot are of one content.
fn assert_alike(managers: &[&dyn BlockManager], request: u64, num_tokens: usize) {
    for manager in managers {
        let (table, slots) = (manager.table(request), manager.slots(request, 0..num_tokens));
        assert_eq!(table.len(), num_tokens.div_ceil(BLOCK_SIZE));
        for (at, slot) in slots.into_iter().enumerate() {
            let want = table[at / BLOCK_SIZE] as usize * BLOCK_SIZE + at % BLOCK_SIZE;
            assert_eq!(slot as usize, want);
        }
    }
}

fn run(seed: u64, num_blocks: usize) -> usize {
    let mut managers: [Box<dyn BlockManager>; 3] = [
        Box::new(Sequential::new(num_blocks, BLOCK_SIZE)),
        Box::new(ByHandles::new(num_blocks, BLOCK_SIZE)),
        Box::new(ByBlocks::new(num_blocks, BLOCK_SIZE)),
    ];
    let (mut random, mut next_request, mut next_token) = (Random::new(seed), 0, 1_000_000);
    let mut conversations: Vec<Conversation> = Vec::new();
    let mut hits = 0;
    // Each token of an answer or a question is a new one, so equal contents are equal beginnings.
    let mut fresh = |n: usize| -> Vec<u32> {
        next_token += n as u32;
        (next_token - n as u32..next_token).collect()
    };
    for _ in 0..250 {
        if conversations.len() < 6 {
            let mut tokens: Vec<u32> = (0..[0, 9, 16][random.below(3)]).collect(); // a system prompt
            tokens.extend(fresh(1 + random.below(9)));
            conversations.push(Conversation { tokens, request: None });
        }
        let at = random.below(conversations.len());
        match (conversations[at].request, random.below(10)) {
            (None, 0..8) => {
                let Conversation { tokens, request } = &mut conversations[at];
                let cached = managers.each_mut().map(|manager| manager.admit(next_request, tokens));
                assert!(cached.iter().all(|other| *other == cached[0]), "{cached:?}");
                if let Some(cached) = cached[0] {
                    hits += cached;
                    *request = Some(next_request);
                    next_request += 1;
                }
            }
            (None, _) => drop(conversations.swap_remove(at)),
            (Some(request), 0..7) => {
                for _ in 0..1 + random.below(7) {
                    let token = fresh(1)[0];
                    let copies = managers.each_mut().map(|manager| manager.append(request, token));
                    let counts = copies.map(|copies| copies.map(|copies| copies.len()));
                    assert!(counts.iter().all(|other| *other == counts[0]), "{counts:?}");
                    if counts[0].is_none() {
                        break;
                    }
                    conversations[at].tokens.push(token);
                }
            }
            (Some(request), 7) => {
                managers.iter_mut().for_each(|manager| manager.fork(request, next_request));
                let tokens = conversations[at].tokens.clone();
                conversations.push(Conversation { tokens, request: Some(next_request) });
                next_request += 1;
            }
            (Some(request), how) => {
                let num_blocks = conversations[at].tokens.len().div_ceil(BLOCK_SIZE);
                for manager in &mut managers {
                    match how {
                        8 => manager.free(request),
                        _ => assert_eq!(manager.swap_out(request).len(), num_blocks),
                    }
                }
                conversations[at].request = None;
                conversations[at].tokens.extend(fresh(1 + random.below(5))); // the next question
            }
        }
        let free = managers.each_ref().map(|manager| manager.free_blocks());
        assert!(free.iter().all(|other| *other == free[0]), "{free:?}");
        for Conversation { tokens, request } in &conversations {
            if let Some(request) = *request {
                assert_alike(&managers.each_ref().map(|manager| &**manager), request, tokens.len());
            }
        }
    }
    hits
}

#[test]
fn both_adapters_serve_conversations_as_a_simple_sequential_manager_does() {
    let hits: usize = (0..40).map(|seed| run(seed, 24 + 8 * (seed as usize % 6))).sum();
    assert!(hits > 0, "conversations come back");
}
