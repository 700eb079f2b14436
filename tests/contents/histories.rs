//! Random histories: after every operation, prompts find exactly the contents that some block holds. The
//! sink holds exactly those that should have been emitted.

use std::collections::{BTreeSet, HashSet};

use paged_kv::{AdmitOptions, Prompt};

use super::*;
use crate::common::random::Random;
use crate::common::{assert_empties, s};
use crate::reference::Reference;

/// Returns the token at a position of a prompt: few families with a common beginning and few branches.
fn token(family: usize, branch: usize, at: usize) -> u32 {
    let branch = if at < 2 * BLOCK_SIZE { 0 } else { branch };
    (family * 10_000 + branch * 1_000 + at) as u32
}

struct History {
    cache: PagedKvCache,
    mirror: Option<Arc<Mirror>>,
    reference: Reference,
    random: Random,
    /// All prompts so far, each with one token more.
    prompts: BTreeSet<Vec<u32>>,
    next: u64,
}

impl History {
    fn one_of_those(&mut self) -> Option<u64> {
        let mut ids: Vec<u64> = self.reference.sequences.keys().copied().collect();
        ids.sort_unstable();
        (!ids.is_empty()).then(|| ids[self.random.below(ids.len())])
    }

    fn admit(&mut self) {
        let (family, branch) = (self.random.below(2), self.random.below(2));
        let most = if self.random.below(2) == 0 { 2 } else { 4 };
        let len = 1 + self.random.below(most * BLOCK_SIZE);
        let tokens: Vec<u32> = (0..len).map(|at| token(family, branch, at)).collect();
        let is_hashed = self.random.below(5) == 0;
        self.next += 1;
        let id = s(self.next);
        let admitted = if is_hashed {
            let hashes = self.cache.prompt(&tokens).hashes().to_vec();
            self.cache.admit_with(id, &Prompt::from_hashes(&hashes, len), &AdmitOptions::default())
        } else {
            self.cache.admit(id, &tokens)
        };
        if admitted.is_ok() {
            self.reference.admit(&self.cache, self.next, &tokens, is_hashed);
            self.prompts.insert(tokens);
        }
    }

    fn append(&mut self, id: u64) {
        let sequence = &self.reference.sequences[&id];
        if sequence.is_hashed {
            return;
        }
        let (len, branch) = (sequence.tokens.len(), self.random.below(2));
        let family = sequence.tokens.first().map_or(0, |token| token / 10_000) as usize;
        let more = 1 + self.random.below(5);
        let tokens: Vec<u32> = (len..len + more).map(|at| token(family, branch, at)).collect();
        if let Ok(append) = self.cache.append_tokens(s(id), &tokens) {
            self.reference.append(&self.cache, id, &tokens);
            self.prompts.insert(self.reference.sequences[&id].tokens.clone());
            drop(append);
        }
    }

    /// Takes blocks that no sequence uses, and frees them immediately.
    fn press(&mut self) {
        let blocks = self.random.below(self.cache.free_block_count() + 1);
        self.cache.allocate(s(0), blocks * BLOCK_SIZE).unwrap();
        self.reference.take(&self.cache.get_sequence(s(0)).unwrap().block_ids);
        self.cache.free(s(0)).unwrap();
    }

    fn make_step(&mut self) {
        let kind = self.random.below(32);
        let Some(id) = self.one_of_those() else { return self.admit() };
        let len = self.reference.sequences[&id].tokens.len();
        match kind {
            0..=9 => self.admit(),
            10..=17 => {
                let num_tokens = if kind < 14 { len } else { self.random.below(len + 1) };
                let new = self.cache.commit(s(id), num_tokens).unwrap();
                assert_eq!(new, self.reference.commit(id, num_tokens), "what can be matched now");
            }
            18..=20 => self.append(id),
            21..=25 => {
                self.cache.free(s(id)).unwrap();
                self.reference.free(id);
            }
            26 => {
                self.next += 1;
                self.cache.fork(s(id), s(self.next)).unwrap();
                self.reference.fork(id, self.next);
            }
            27 => {
                let num_tokens = self.random.below(len + 1);
                self.cache.truncate(s(id), num_tokens).unwrap();
                self.reference.truncate(&self.cache, id, num_tokens);
            }
            28 | 29 => self.press(),
            30 => self.cache.prefix().announce_all(),
            _ if self.random.below(4) == 0 => {
                self.cache.prefix().reset();
                self.reference.reset();
            }
            _ => {
                let too_many = (self.cache.free_block_count() + 1) * BLOCK_SIZE;
                assert!(self.cache.allocate(s(0), too_many).is_err());
            }
        }
    }

    fn check(&self) {
        let mut told = HashSet::new();
        for tokens in &self.prompts {
            let longer = [&tokens[..], &[0]].concat();
            let prompt = self.cache.prompt(&longer);
            let found = self.cache.prefix().probe(&prompt) / BLOCK_SIZE;
            assert_eq!(found, self.reference.find(prompt.hashes()), "{tokens:?}");
            told.extend(&prompt.hashes()[..self.reference.told(prompt.hashes())]);
        }
        if let Some(mirror) = &self.mirror {
            assert_eq!(mirror.held().hashes(), told);
        }
    }
}

#[test]
fn exactly_the_contents_in_blocks_are_found_and_emitted() {
    let histories = if cfg!(debug_assertions) { 6 } else { 60 };
    for seed in 0..histories {
        for num_blocks in [3, 5, 8, 12, 20, 40] {
            for (cache, mirror) in caches(num_blocks) {
                let (reference, random) = (Reference::default(), Random::new(seed * 100 + 7));
                let prompts = BTreeSet::new();
                let mut history = History { cache, mirror, reference, random, prompts, next: 0 };
                for _ in 0..150 {
                    history.make_step();
                    history.check();
                }
                assert_empties(&history.cache);
            }
        }
    }
}
