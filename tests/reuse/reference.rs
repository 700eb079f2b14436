//! What should a cache of contents do? Sets and lists, one operation after the other.
//!
//! Contents are numbers; a prompt is a list of them, each naming everything before it too.

use std::collections::{HashMap, HashSet};

/// The blocks of one sequence: what of them is cached under which content.
struct Table {
    contents: Vec<u64>,
    blocks: usize,
    /// By index: true if the cached copy is this sequence's too.
    shares_cached: Vec<bool>,
    /// True once its contents were offered.
    committed: bool,
}

/// A cache of `free` blocks at first.
pub struct Reference {
    free: usize,
    /// Cached contents and their users.
    cached: HashMap<u64, usize>,
    /// Contents without users, the longest unused first.
    idle: Vec<u64>,
    tables: HashMap<u64, Table>,
}

impl Reference {
    pub fn new(num_blocks: usize) -> Self {
        Self { free: num_blocks, cached: HashMap::new(), idle: Vec::new(), tables: HashMap::new() }
    }

    pub fn probe(&self, contents: &[u64], blocks: usize) -> usize {
        let most = contents.len().min(blocks.saturating_sub(1));
        contents[..most].iter().take_while(|content| self.cached.contains_key(content)).count()
    }

    /// Blocks that hit, or `None` if there is no room. The last of `blocks` is partly filled.
    pub fn admit(&mut self, id: u64, contents: &[u64], blocks: usize) -> Option<usize> {
        let hits = self.probe(contents, blocks);
        let idle_hits =
            contents[..hits].iter().filter(|content| self.cached[*content] == 0).count();
        if blocks - hits + idle_hits > self.free + self.idle.len() {
            return None;
        }
        for content in &contents[..hits] {
            *self.cached.get_mut(content).unwrap() += 1;
        }
        let hit: HashSet<u64> = contents[..hits].iter().copied().collect();
        self.idle.retain(|content| !hit.contains(content));
        for _ in hits..blocks {
            if self.free > 0 {
                self.free -= 1;
            } else {
                self.cached.remove(&self.idle.remove(0));
            }
        }
        let shares_cached = (0..blocks).map(|index| index < hits).collect();
        let contents = contents.to_vec();
        self.tables.insert(id, Table { contents, blocks, shares_cached, committed: false });
        Some(hits)
    }

    pub fn commit(&mut self, id: u64) {
        let table = self.tables.get_mut(&id).unwrap();
        if std::mem::replace(&mut table.committed, true) {
            return;
        }
        // From the end, so that of those that are used the first goes last.
        for (index, content) in table.contents.iter().enumerate().rev() {
            if table.shares_cached[index] {
                continue;
            }
            match self.cached.get(content) {
                None => {
                    self.cached.insert(*content, 1);
                    table.shares_cached[index] = true;
                }
                // Cached elsewhere, which counts as a use of it.
                Some(0) => {
                    self.idle.retain(|other| other != content);
                    self.idle.push(*content);
                }
                Some(_) => {}
            }
        }
    }

    pub fn release(&mut self, id: u64) {
        let table = self.tables.remove(&id).unwrap();
        for index in (0..table.blocks).rev() {
            if !table.shares_cached[index] {
                self.free += 1;
                continue;
            }
            let content = table.contents[index];
            let users = self.cached.get_mut(&content).unwrap();
            *users -= 1;
            if *users == 0 {
                self.idle.push(content);
            }
        }
    }

    pub fn room(&self) -> usize {
        self.free + self.idle.len()
    }

    pub fn idle(&self) -> usize {
        self.idle.len()
    }
}
