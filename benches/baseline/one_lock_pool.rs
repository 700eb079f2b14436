//! `OneLockPool`: a free list and an owner count per block, under one lock.

use parking_lot::Mutex;

/// Free ids and owner counts, for one thread at a time.
///
/// The free ids are the first `free_len` of a fixed array, not a `Vec` that could grow. A release writes
/// its id whether or not it was the last owner, so there is no branch to mispredict.
pub struct Blocks {
    free: Box<[u32]>,
    free_len: usize,
    owners: Box<[u32]>,
}

impl Blocks {
    pub fn new(num_blocks: usize) -> Self {
        // One extra place, for the write of a release by an owner that is not the last.
        let free = (0..num_blocks as u32).rev().chain([0]).collect();
        Self { free, free_len: num_blocks, owners: vec![0; num_blocks].into() }
    }

    pub fn free_blocks(&self) -> usize {
        self.free_len
    }

    pub fn owners(&self, id: u32) -> u32 {
        self.owners[id as usize]
    }

    /// Appends `n` blocks to `out`. Returns false and changes nothing if fewer are free.
    #[inline]
    pub fn allocate(&mut self, n: usize, out: &mut Vec<u32>) -> bool {
        let Some(rest) = self.free_len.checked_sub(n) else {
            return false;
        };
        let ids = &self.free[rest..self.free_len];
        for &id in ids {
            self.owners[id as usize] = 1;
        }
        out.extend_from_slice(ids);
        self.free_len = rest;
        true
    }

    #[inline]
    pub fn retain(&mut self, ids: &[u32]) {
        for &id in ids {
            self.owners[id as usize] += 1;
        }
    }

    #[inline]
    pub fn release(&mut self, ids: &[u32]) {
        let mut len = self.free_len;
        for &id in ids {
            let owners = &mut self.owners[id as usize];
            *owners -= 1;
            self.free[len] = id;
            len += usize::from(*owners == 0);
        }
        self.free_len = len;
    }
}

/// A pool of blocks for many threads.
pub struct OneLockPool(Mutex<Blocks>);

impl OneLockPool {
    pub fn new(num_blocks: usize) -> Self {
        Self(Mutex::new(Blocks::new(num_blocks)))
    }

    pub fn free_blocks(&self) -> usize {
        self.0.lock().free_blocks()
    }

    pub fn allocate(&self, n: usize, out: &mut Vec<u32>) -> bool {
        self.0.lock().allocate(n, out)
    }

    pub fn retain(&self, ids: &[u32]) {
        self.0.lock().retain(ids);
    }

    pub fn release(&self, ids: &[u32]) {
        self.0.lock().release(ids);
    }
}
