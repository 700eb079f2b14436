//! `Step`: the operations of the reuse model test, made on the cache and on the reference. The choice of
//! the steps is not made here.

use paged_kv::{AdmitOptions, BlockHash, PagedKvCache, PagedKvError, Prompt, SeqId};

use crate::reference::Reference;

pub const BLOCK_SIZE: usize = 4;

#[derive(Clone, Debug)]
pub enum Step {
    /// A prompt of a family, with its number of full blocks.
    Admit {
        family: u64,
        branch: usize,
        full: usize,
        tail: usize,
    },
    Commit(usize),
    Free(usize),
}

/// The cache and the reference.
pub struct Both {
    cache: PagedKvCache,
    reference: Reference,
    /// Requests with their lengths.
    live: Vec<(u64, usize)>,
    next: u64,
}

impl Both {
    pub fn new(num_blocks: usize) -> Self {
        let builder = PagedKvCache::builder().num_blocks(num_blocks).block_size(BLOCK_SIZE);
        let cache = builder.build().expect("the parameters make sense");
        Self { cache, reference: Reference::new(num_blocks), live: Vec::new(), next: 0 }
    }

    /// Makes a step on both, and asserts equal hits, refusals and available blocks.
    pub fn make(&mut self, step: &Step) {
        match *step {
            Step::Admit { family, branch, full, tail } => {
                self.admit(&contents(family, branch, full), full * BLOCK_SIZE + tail);
            }
            Step::Commit(index) if !self.live.is_empty() => {
                let (id, num_tokens) = self.live[index % self.live.len()];
                let new = self.cache.commit(SeqId(id), num_tokens).expect("it is there");
                assert_eq!(new, self.reference.commit(id));
            }
            Step::Free(index) if !self.live.is_empty() => {
                let (id, _) = self.live.remove(index % self.live.len());
                self.cache.free(SeqId(id)).expect("it is there");
                self.reference.release(id);
            }
            Step::Commit(_) | Step::Free(_) => {}
        }
        assert_eq!(self.cache.free_block_count(), self.reference.room());
        assert_eq!(self.cache.stats().blocks_idle, self.reference.idle());
    }

    fn admit(&mut self, contents: &[u64], num_tokens: usize) {
        let blocks = num_tokens.div_ceil(BLOCK_SIZE);
        let hash = |&content: &u64| BlockHash::from_u128(content.into());
        let hashes: Vec<BlockHash> = contents.iter().map(hash).collect();
        self.next += 1;
        let (id, room) = (SeqId(self.next), self.reference.room());
        let refused = self.reference.refuses(contents, blocks);
        match self.cache.admit_with(
            id,
            &Prompt::from_hashes(&hashes, num_tokens),
            &AdmitOptions::default(),
        ) {
            Ok(admission) => {
                assert_ne!(refused, Some(true));
                let info = self.cache.get_sequence(id).expect("it was just admitted");
                let blocks: Vec<usize> = info.block_ids.iter().map(|id| id.0 as usize).collect();
                let hits = admission.cached_tokens / BLOCK_SIZE;
                self.reference.admit(self.next, contents, &blocks, hits);
                self.live.push((self.next, num_tokens));
            }
            Err(PagedKvError::OutOfMemory { requested, available }) => {
                assert_ne!(refused, Some(false));
                assert!(available == room && available < requested);
            }
            Err(refusal) => panic!("refused with {refusal}"),
        }
    }

    /// Checks the cache, and leaves it to the caller, which empties it.
    pub fn end(self) -> PagedKvCache {
        self.cache.validate().expect("a cache at rest is consistent");
        self.cache
    }
}

/// Returns the contents of a prompt: those of its family, and its own from `branch` on.
fn contents(family: u64, branch: usize, full: usize) -> Vec<u64> {
    let content = |index: usize| match index < branch {
        true => 1_000_000 + family * 1_000 + index as u64,
        false => 2_000_000 + (family * 10 + branch as u64) * 1_000 + index as u64,
    };
    (0..full).map(content).collect()
}
