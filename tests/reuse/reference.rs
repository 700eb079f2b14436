//! `Reference`: a sequential model of a cache of contents, made of sets and lists.
//!
//! Contents are numbers. A prompt is a list of contents, each of which names all contents before it too.
//! The reference reads from the cache which of several copies is matched and which blocks are taken. It
//! then checks the rules:
//!
//! - A hit is a block that holds the content.
//! - Blocks are reclaimed only when none is free, spare copies first and then the least recently used.

use std::collections::HashMap;

/// The most blocks that are cached under one content.
const MOST_COPIES: usize = 4;

#[derive(Clone, Default)]
struct Block {
    users: usize,
    /// The content that the block is cached under.
    content: Option<u64>,
    /// True if the block was cached while another block had the same content, and has not been requested
    /// since. `None` if the reference cannot know that.
    is_spare: Option<bool>,
    /// When its last owner released it. `None` if the reference cannot know that.
    left: Option<u64>,
}

impl Block {
    fn is_idle(&self) -> bool {
        self.users == 0 && self.content.is_some()
    }

    fn is_free(&self) -> bool {
        self.users == 0 && self.content.is_none()
    }
}

struct Table {
    contents: Vec<u64>,
    blocks: Vec<usize>,
    /// True after its contents were offered.
    committed: bool,
}

/// A cache in which all blocks are free at first.
pub struct Reference {
    blocks: Vec<Block>,
    tables: HashMap<u64, Table>,
    now: u64,
}

impl Reference {
    pub fn new(num_blocks: usize) -> Self {
        Self { blocks: vec![Block::default(); num_blocks], tables: HashMap::new(), now: 0 }
    }

    fn copies(&self, content: u64) -> impl Iterator<Item = usize> {
        let holds = move |(_, block): &(usize, &Block)| block.content == Some(content);
        self.blocks.iter().enumerate().filter(holds).map(|(at, _)| at)
    }

    fn count(&self, is_meant: impl Fn(&Block) -> bool) -> usize {
        self.blocks.iter().filter(|block| is_meant(block)).count()
    }

    pub fn probe(&self, contents: &[u64], blocks: usize) -> usize {
        let most = contents.len().min(blocks.saturating_sub(1));
        contents[..most]
            .iter()
            .take_while(|&&content| self.copies(content).next().is_some())
            .count()
    }

    /// True if an admission is refused; `None` if that depends on which copies are matched.
    pub fn refuses(&self, contents: &[u64], blocks: usize) -> Option<bool> {
        let hits = self.probe(contents, blocks);
        let idle = |&content: &u64| self.copies(content).filter(|&at| self.blocks[at].is_idle());
        let all_idle = |content: &&u64| idle(content).count() == self.copies(**content).count();
        let least = contents[..hits].iter().filter(all_idle).count();
        let most = contents[..hits].iter().filter(|&content| idle(content).count() > 0).count();
        let (new, room) = (blocks - hits, self.room());
        let (at_least, at_most) = (new + least > room, new + most > room);
        (at_least == at_most).then_some(at_least)
    }

    /// Notes an admission that got `blocks`, of which `hits` were matched. The last block is partly
    /// filled.
    pub fn admit(&mut self, id: u64, contents: &[u64], blocks: &[usize], hits: usize) {
        assert_eq!(hits, self.probe(contents, blocks.len()), "what is cached hits");
        for (&at, &content) in blocks.iter().zip(&contents[..hits]) {
            let block = &mut self.blocks[at];
            assert_eq!(block.content, Some(content), "block {at} holds what it is matched for");
            block.users += 1;
            block.is_spare = Some(false);
        }
        let new = &blocks[hits..];
        let reclaimed: Vec<usize> =
            new.iter().copied().filter(|&at| self.blocks[at].is_idle()).collect();
        for &at in new {
            assert_eq!(self.blocks[at].users, 0, "block {at} is nobody's");
        }
        let before: Vec<Block> = reclaimed.iter().map(|&at| self.blocks[at].clone()).collect();
        new.iter().for_each(|&at| self.blocks[at] = Block { users: 1, ..Block::default() });
        self.judge(&before);
        let (contents, blocks) = (contents.to_vec(), blocks.to_vec());
        self.tables.insert(id, Table { contents, blocks, committed: false });
    }

    /// Asserts the order in which contents are reclaimed.
    fn judge(&self, reclaimed: &[Block]) {
        if reclaimed.is_empty() {
            return;
        }
        assert_eq!(self.count(Block::is_free), 0, "free blocks go first");
        let stays_spare = self.count(|block| block.is_idle() && block.is_spare == Some(true));
        let others = reclaimed.iter().filter(|block| block.is_spare == Some(false));
        let newest = others.clone().filter_map(|block| block.left).max();
        assert!(others.count() == 0 || stays_spare == 0, "spare copies go before others");
        let stays = self.blocks.iter();
        let stays = stays.filter(|block| block.is_idle() && block.is_spare == Some(false));
        let oldest = stays.filter_map(|block| block.left).min();
        if let (Some(newest), Some(oldest)) = (newest, oldest) {
            assert!(newest < oldest, "the longest unused goes first");
        }
    }

    /// Returns how many contents can be matched now and could not before.
    pub fn commit(&mut self, id: u64) -> usize {
        let table = self.tables.get_mut(&id).unwrap();
        if std::mem::replace(&mut table.committed, true) {
            return 0;
        }
        let offered: Vec<_> =
            table.contents.iter().copied().zip(table.blocks.iter().copied()).collect();
        let mut new = 0;
        // Offers the blocks from the end, so that of the idle copies used the first block's is reclaimed
        // last.
        for (content, at) in offered.into_iter().rev() {
            if self.blocks[at].content.is_some() {
                continue;
            }
            let copies: Vec<usize> = self.copies(content).collect();
            self.use_one_of(&copies);
            if copies.len() < MOST_COPIES {
                let block = &mut self.blocks[at];
                (block.content, block.is_spare) = (Some(content), Some(!copies.is_empty()));
            }
            new += usize::from(copies.is_empty());
        }
        new
    }

    /// Notes that a content was computed again. That counts as a use of the copy that would be matched,
    /// if no sequence owns it. The reference does not know which copy that is.
    fn use_one_of(&mut self, copies: &[usize]) {
        self.now += 1;
        for &at in copies {
            let block = &mut self.blocks[at];
            match copies.len() {
                _ if !block.is_idle() => {}
                1 => (block.left, block.is_spare) = (Some(self.now), Some(false)),
                _ => (block.left, block.is_spare) = (None, None),
            }
        }
    }

    pub fn release(&mut self, id: u64) {
        let table = self.tables.remove(&id).unwrap();
        for &at in table.blocks.iter().rev() {
            let block = &mut self.blocks[at];
            block.users -= 1;
            self.now += 1;
            block.left = Some(self.now);
        }
    }

    /// Returns the number of blocks without an owner, which an admission can take.
    pub fn room(&self) -> usize {
        self.count(|block| block.users == 0)
    }

    pub fn idle(&self) -> usize {
        self.count(Block::is_idle)
    }
}
