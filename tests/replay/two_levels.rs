//! `TwoLevels`: a device and a host tier as lists, for one request at a time: each gives up its least recently used content
//! first, and of contents that were released together the last one.
//!
//! Contents that leave the device go to the host (lazy): for the blocks that are loaded into, then for the rest of the
//! prompt, then for each block of the output. A content that is loaded stays in the host, or leaves it (exclusive).

use std::collections::HashSet;

/// Tokens of a block, and of a hash id.
pub const BLOCK: u64 = 64;

/// One memory: free blocks, and idle contents from the oldest to the youngest.
#[derive(Default)]
struct Level {
    free: usize,
    idle: Vec<u64>,
}

impl Level {
    fn has(&self, id: u64) -> bool {
        self.idle.contains(&id)
    }

    fn remove(&mut self, ids: &[u64]) {
        self.idle.retain(|id| !ids.contains(id));
    }

    /// Releases contents, the last one first.
    fn release(&mut self, ids: &[u64]) {
        self.idle.extend(ids.iter().rev());
    }

    /// Takes so many blocks. Returns the contents that are lost, the oldest first.
    fn take(&mut self, blocks: usize) -> Vec<u64> {
        let of_free = blocks.min(self.free);
        self.free -= of_free;
        self.idle.drain(..blocks - of_free).collect()
    }
}

/// A request: the ids of its full blocks, and its tokens. The last token of the prompt is in no named block.
#[derive(Clone)]
pub struct Asked {
    pub ids: Vec<u64>,
    pub prompt: u64,
    pub output: u64,
}

/// Blocks of prompts that hit in each memory, and blocks that were stored in the host.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Hits {
    pub device: u64,
    pub host: u64,
    pub stored: u64,
}

pub struct TwoLevels {
    device: Level,
    host: Level,
    exclusive: bool,
    hits: Hits,
    /// The contents that are on the device and in the host at the end of a request, added up over all requests.
    twice: usize,
}

impl TwoLevels {
    pub fn new(device: usize, host: usize, exclusive: bool) -> Self {
        let level = |free| Level { free, idle: Vec::new() };
        let (device, host) = (level(device), level(host));
        Self { device, host, exclusive, hits: Hits::default(), twice: 0 }
    }

    /// Serves all requests, one after another. Returns the hits, and how many contents were in both memories at the ends of
    /// requests.
    pub fn serve(mut self, requests: &[Asked]) -> (Hits, usize) {
        requests.iter().for_each(|request| self.serve_one(request));
        (self.hits, self.twice)
    }

    fn serve_one(&mut self, request: &Asked) {
        let ids = &request.ids;
        let on_device = ids.iter().take_while(|&&id| self.device.has(id)).count();
        let rest = &ids[on_device..];
        let loaded = rest.iter().take_while(|&&id| self.host.has(id)).count();
        let loaded = &rest[..loaded];
        self.hits.device += on_device as u64;
        self.hits.host += loaded.len() as u64;
        self.device.remove(&ids[..on_device]);
        self.host.remove(loaded);
        let of_prompt = request.prompt.div_ceil(BLOCK) as usize;
        let lost = self.device.take(loaded.len());
        self.store(lost, loaded);
        match self.exclusive {
            true => self.host.free += loaded.len(),
            false => self.host.release(loaded),
        }
        let lost = self.device.take(of_prompt - on_device - loaded.len());
        self.store(lost, &[]);
        let in_all = (request.prompt + request.output).div_ceil(BLOCK) as usize;
        for _ in of_prompt..in_all {
            let lost = self.device.take(1);
            self.store(lost, &[]);
        }
        self.device.release(ids);
        self.device.free += in_all - ids.len();
        let host: HashSet<u64> = self.host.idle.iter().copied().collect();
        self.twice += self.device.idle.iter().filter(|&id| host.contains(id)).count();
    }

    /// Stores contents in the host, from the youngest on. None is given up for another of them, nor one that is `pinned`.
    fn store(&mut self, mut lost: Vec<u64>, pinned: &[u64]) {
        lost.reverse();
        let (kept, new): (Vec<u64>, Vec<u64>) =
            lost.into_iter().partition(|&id| self.host.has(id) || pinned.contains(&id));
        let kept: Vec<u64> = kept.into_iter().filter(|id| !pinned.contains(id)).collect();
        self.host.remove(&kept);
        let has_room = new.len() <= self.host.free + self.host.idle.len();
        if has_room {
            self.host.take(new.len());
        }
        self.host.release(&kept);
        if has_room {
            self.hits.stored += new.len() as u64;
            self.host.release(&new);
        }
    }
}
