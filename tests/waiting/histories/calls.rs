//! The operations of a history: all public ones that take, release, change or wait.

use std::time::Duration;

use paged_kv::{AdmitOptions, AppendBatch, BlockId, PagedKvError, SeqId, Worker};

use super::super::HANG;
use super::super::common::row_if_there;
use super::world::{IDS, Kind, Outcome, World, prompt};

impl World<'_> {
    /// Makes one random operation.
    pub fn operate(&mut self) {
        let operation = self.random.below(40);
        let id = self.base + self.random.below(IDS as usize) as u64;
        let n = self.random.below(10);
        self.log.push(format!("operation {operation}, {id}, {n}"));
        match operation {
            0..8 => self.begin_to_wait(id, n),
            8..16 => self.change_map(id, n),
            16..22 => self.change_sequence(id, n),
            22..28 => self.handle(n),
            28..33 => self.step(id, n),
            33..36 => self.reserve(id, n),
            36 => drop(self.take_any(|world| &mut world.appends)),
            37 => self.lease(id, n),
            _ => self.meddle(n),
        }
        self.note_gone();
    }

    fn patience(&mut self) -> Duration {
        match self.random.below(12) {
            0 => Duration::ZERO,
            1 => Duration::MAX, // no deadline
            _ => HANG,
        }
    }

    fn options(&mut self) -> (AdmitOptions, Option<usize>) {
        let chunk = [None, None, Some(0), Some(4)][self.random.below(4)];
        let options = AdmitOptions::default();
        (chunk.map_or(options.clone(), |chunk| options.first_chunk(chunk)), chunk)
    }

    fn begin_to_wait(&mut self, id: u64, n: usize) {
        let (cache, seq_id, patience) = (self.cache, SeqId(id), self.patience());
        match self.random.below(6) {
            0 => {
                let kind = Kind::Reserve { blocks: n };
                let wait = cache.waiting().reserve(n).timeout(patience);
                self.wait(kind, Box::pin(async { Ok(Outcome::Room(wait.await?)) }));
            }
            1 => {
                let tokens = 2 * n;
                let wait = cache.waiting().allocate(seq_id, tokens).timeout(patience);
                let wait = async { wait.await.map(|()| Outcome::Nothing) };
                self.wait(Kind::Allocate { id, tokens }, Box::pin(wait));
            }
            2 => {
                let (options, chunk) = self.options();
                let tokens = cache.prompt(&prompt(n));
                let wait = cache.waiting().admit(seq_id, &tokens, &options).timeout(patience);
                let wait = async { wait.await.map(|_| Outcome::Nothing) };
                self.wait(Kind::Admit { id, prompt: n % 4, chunk }, Box::pin(wait));
            }
            _ => {
                let Some(admission) = self.admission(id) else {
                    return;
                };
                let wait = cache.waiting().append(seq_id, n).timeout(patience);
                let wait = async { Ok(Outcome::Grown(wait.await?)) };
                self.wait(Kind::Append { id, admission, tokens: n }, Box::pin(wait));
            }
        }
    }

    fn change_map(&mut self, id: u64, n: usize) {
        let (cache, seq_id) = (self.cache, SeqId(id));
        let after = |by: u64| self.base + (id - self.base + by) % IDS;
        let others = [1, 2].map(|by| after(by + n as u64 % (IDS - 2)));
        let other = others[0];
        match self.random.below(14) {
            0 | 1 if cache.allocate(seq_id, 2 * n).is_ok() => self.admitted(id),
            2 => {
                let result = cache.allocate(seq_id, 0);
                assert!(!matches!(result, Err(PagedKvError::OutOfMemory { .. })));
                if result.is_ok() {
                    self.admitted(id);
                }
            }
            3 | 4 => {
                let tokens = cache.prompt(&prompt(n));
                if cache.admit_with(seq_id, &tokens, &self.options().0).is_ok() {
                    self.admitted(id);
                }
            }
            5 if cache.fork(seq_id, SeqId(other)).is_ok() => self.admitted(other),
            6 => {
                let dsts = others.map(SeqId);
                if cache.fork_n(seq_id, &dsts).is_ok() {
                    dsts.iter().for_each(|dst| self.admitted(dst.0));
                }
            }
            7 | 8 => _ = cache.free(seq_id),
            9 => self.free_when_released(id),
            10 => _ = cache.evict(),
            11 => _ = cache.evict_to_threshold(n as f64 / 10.0),
            12 => _ = cache.evict_for(Worker(n as u32 % 2), n, &mut Vec::new()),
            13 => _ = cache.set_worker(seq_id, Worker(n as u32 % 2)),
            _ => {}
        }
    }

    fn free_when_released(&mut self, id: u64) {
        let is_leased = self.leases.iter().any(|lease| lease.ids().any(|leased| leased.0 == id));
        if self.cache.free_when_released(SeqId(id)).is_ok() {
            self.freed_leased |= is_leased;
        }
    }

    fn change_sequence(&mut self, id: u64, n: usize) {
        let (cache, seq_id) = (self.cache, SeqId(id));
        let num_tokens = cache.with_sequence(seq_id, |sequence| sequence.num_tokens()).unwrap_or(0);
        match self.random.below(11) {
            0 | 1 => {
                if let Ok(append) = cache.append(seq_id, n) {
                    self.keep(append);
                }
            }
            2 | 3 => _ = cache.truncate(seq_id, num_tokens.saturating_sub(n)),
            4 => _ = cache.truncate(seq_id, 0),
            5 => _ = cache.apply_streaming_llm(seq_id, 4 * (n % 2), 4 * (n / 5)),
            6 | 7 => _ = cache.commit(seq_id, num_tokens.saturating_sub(n % 3)),
            8 => _ = cache.commit(seq_id, &vec![7; n % 4]),
            9 => {
                if let Ok(append) = cache.append_tokens(seq_id, &vec![7; n % 5]) {
                    self.keep(append);
                }
            }
            _ => {
                cache.touch(seq_id).and_then(|()| cache.set_priority(seq_id, n as u32)).ok();
            }
        }
    }

    /// Keeps some of the sources of copies for a while.
    fn keep(&mut self, append: paged_kv::Append) {
        if append.copy.is_some() && self.random.below(2) == 0 {
            self.appends.push(append);
        }
    }

    fn handle(&mut self, n: usize) {
        let cache = self.cache;
        match self.random.below(11) {
            0 => self.handles.extend(cache.allocate_sequence(2 * n)),
            1 | 2 => {
                let options = self.options().0;
                let admitted = cache.admit_sequence(&cache.prompt(&prompt(n)), &options);
                self.named.extend(admitted.map(|(sequence, _)| sequence));
            }
            3 => {
                let fork = self.handles.last_mut().map(|handle| handle.fork().unwrap());
                self.handles.extend(fork);
            }
            4 => drop(self.take_any(|world| &mut world.handles)),
            5 => drop(self.take_any(|world| &mut world.named)),
            6 => {
                if let Some(named) = self.named.last_mut() {
                    named.commit(named.num_tokens()).unwrap();
                }
            }
            7 => {
                if let Some(named) = self.named.last_mut() {
                    named.truncate(named.num_tokens().saturating_sub(n)).ok();
                }
            }
            8 => {
                if let Some(Ok(append)) = self.handles.last_mut().map(|handle| handle.append(n)) {
                    self.keep(append);
                }
            }
            9 => {
                if let Some(named) = self.named.last_mut() {
                    named.apply_streaming_llm(0, 4 * (n % 2)).unwrap();
                }
            }
            _ => {
                if let Some(named) = self.named.last_mut() {
                    let fork = named.fork().unwrap();
                    self.named.push(fork);
                }
            }
        }
    }

    fn step(&mut self, id: u64, n: usize) {
        let (cache, seq_id) = (self.cache, SeqId(id));
        if self.steps.is_empty() || self.steps.len() < 3 && n == 0 {
            self.steps.push((cache.step(Default::default()), Vec::new()));
            return;
        }
        let at = self.random.below(self.steps.len());
        let (step, rows) = &mut self.steps[at];
        let row = || row_if_there(cache, seq_id);
        match self.random.below(8) {
            0 => _ = row().and_then(|mut row| step.join(&mut row)),
            1 | 2 => {
                let mut row: Vec<_> = row().into_iter().map(|row| (row, n)).collect();
                if step.grow(&mut row).is_ok_and(|grown| grown.grown_rows == 1) {
                    rows.append(&mut row);
                }
            }
            3 => {
                let num_tokens = cache.with_sequence(seq_id, |sequence| sequence.num_tokens());
                _ = row().and_then(|mut row| step.commit(&mut row, num_tokens.unwrap_or(0)));
            }
            4 => {
                let number = rows.len().saturating_sub(1);
                if let Some((row, grown)) = rows.last_mut() {
                    _ = step.accept(number, row, &vec![7; n.min(*grown)]);
                }
            }
            5 => {
                let (step, mut rows) = self.steps.remove(at);
                _ = step.abort(&mut rows);
            }
            6 => _ = self.steps.remove(at).0.complete(),
            _ => drop(self.steps.remove(at)),
        }
    }

    fn reserve(&mut self, id: u64, n: usize) {
        let (cache, seq_id) = (self.cache, SeqId(id));
        assert_eq!(cache.reserve(0).unwrap().num_blocks(), 0);
        let Some(mut room) = self.take_any(|world| &mut world.rooms) else {
            self.rooms.extend(cache.reserve(n));
            return;
        };
        match self.random.below(6) {
            0 => return drop(room),
            1 => room.shrink_to(n / 2),
            2 => {
                if room.allocate(cache, seq_id, n).is_ok() {
                    self.admitted(id);
                }
            }
            3 => {
                let options = self.options().0;
                if room.admit(cache, seq_id, &cache.prompt(&prompt(n)), &options).is_ok() {
                    self.admitted(id);
                }
            }
            4 => {
                if let Ok(append) = room.append(cache, seq_id, n) {
                    self.keep(append);
                }
            }
            _ => self.handles.extend(room.allocate_sequence(n)),
        }
        self.rooms.push(room);
    }

    fn lease(&mut self, id: u64, n: usize) {
        let (cache, seq_id) = (self.cache, SeqId(id));
        match self.random.below(5) {
            0 | 1 => self.leases.extend(cache.lease(&[seq_id])),
            2 => {
                if let Some(lease) = self.leases.last_mut() {
                    let mut batch = AppendBatch::default();
                    lease.append_batch(&vec![n % 5; lease.len()], &mut batch).ok();
                }
            }
            3 => {
                if let Some(lease) = self.leases.last_mut() {
                    lease.release(seq_id).ok();
                }
            }
            _ => drop(self.take_any(|world| &mut world.leases)),
        }
        self.freed_leased &= !self.leases.is_empty();
    }

    /// Cancels a task, polls one unwoken, resets, or counts blocks by id.
    fn meddle(&mut self, n: usize) {
        match self.random.below(5) {
            0 | 1 => drop(self.take_any(|world| &mut world.tasks)),
            2 => {
                if !self.tasks.is_empty() && self.is_alone {
                    let at = n % self.tasks.len();
                    self.poll_unwoken(at);
                }
            }
            3 => self.cache.prefix().reset(),
            // A block that another thread may release must not be counted by id.
            _ if !self.is_alone => {}
            _ => {
                let (pool, id) = (self.cache.pool(), BlockId(n as u32));
                if pool.retain(id).is_ok() {
                    pool.release(id).unwrap();
                }
            }
        }
    }

    fn take_any<T>(&mut self, of: impl FnOnce(&mut Self) -> &mut Vec<T>) -> Option<T> {
        let n = self.random.below(100);
        let all = of(self);
        (!all.is_empty()).then(|| all.remove(n % all.len()))
    }
}
