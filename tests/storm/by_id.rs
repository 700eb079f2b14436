//! Requests by ids that all threads know. Each id has one thread that drives it; all others evict, free,
//! lease and fork its sequence, and admit other requests under the id.
//!
//! A driver's requests have three or more tokens, and all others have fewer. So a driver with a lease
//! recognizes its own.

use paged_kv::export::{Gaps, TableShape};
use paged_kv::{BlockId, Lease, LeaseRow, PagedKvError, Result, SeqId, Step, Worker};

use super::by_handle::fair;
use super::common::random::Random;
use super::shadow::Script;
use super::{BLOCK_SIZE, Storm, id};

pub struct Ids<'a> {
    storm: &'a Storm,
    driver: usize,
    /// The scripts of the driver's requests.
    scripts: [Script; 2],
}

impl<'a> Ids<'a> {
    pub fn new(storm: &'a Storm, driver: usize) -> Self {
        let mut random = Random::new(driver as u64);
        let scripts = std::array::from_fn(|_| Script::random(&mut random));
        Self { storm, driver, scripts }
    }

    /// Admits a request of the driver, or grows one by a step.
    pub fn one(&mut self, random: &mut Random) {
        let (cache, number) = (&self.storm.cache, random.below(2));
        let own = id(self.driver, number);
        match cache.lease(&[own]) {
            Err(PagedKvError::SequenceNotFound(_) | PagedKvError::SequenceEvicted(_)) => {
                self.admit(own, number, random);
            }
            Err(refusal) => panic!("{refusal}"),
            Ok(lease) => {
                // Another thread may have freed it with effect at its release.
                let length = cache.get_sequence(own).map_or(0, |info| info.num_tokens);
                if !(3..=12 * BLOCK_SIZE).contains(&length) {
                    drop(lease);
                    fair(cache.free(own));
                } else {
                    self.step(lease, length, self.scripts[number], random);
                }
            }
        }
    }

    fn admit(&self, own: SeqId, number: usize, random: &mut Random) {
        let (Storm { cache, shadow, .. }, script) = (self.storm, self.scripts[number]);
        let num_tokens = 3 + random.below(8 * BLOCK_SIZE);
        let options = self.storm.options(random).worker(Worker(self.driver as u32 % 3));
        let admitted =
            cache.admit_with(own, &cache.prompt(&script.tokens(0..num_tokens)), &options);
        let Some(admission) = fair(admitted) else { return };
        let Some(lease) = fair(cache.lease(&[own])) else { return };
        // An eviction may have trimmed the sequence before it was leased.
        let blocks = cache.with_sequence(own, |sequence| {
            let at = |block| sequence.block_at(block);
            (sequence.num_tokens(), (0..sequence.num_logical_blocks()).map(at).collect::<Vec<_>>())
        });
        let Some((length, blocks)) = blocks else { return };
        if length >= 3 {
            let hits = admission.cached_tokens / BLOCK_SIZE;
            for (block, id) in blocks.into_iter().enumerate() {
                let Some(id) = id else { continue };
                match block < hits {
                    true => shadow.check(id, script.content(block)),
                    false => shadow.write(id, script.content(block)),
                }
            }
            fair(self.commit(&lease, num_tokens));
        }
        drop(lease);
    }

    /// Commits tokens of the leased sequence, whichever sequence has its id now.
    fn commit(&self, lease: &Lease, num_tokens: usize) -> Result<usize> {
        let mut step = self.storm.cache.step(Default::default());
        let mut row = lease.rows().next().expect("one is leased");
        step.commit(&mut row, num_tokens)?;
        Ok(step.complete().published)
    }

    fn step(&self, lease: Lease, start: usize, script: Script, random: &mut Random) {
        let Storm { cache, shadow, .. } = self.storm;
        let n = 1 + random.below(5);
        let mut step = cache.step(Default::default());
        let mut rows: Vec<_> = lease.rows().map(|row| (row, n)).collect();
        let grown = fair(step.grow(&mut rows));
        // From here on another thread may evict it, and admit another request under its id.
        drop(lease);
        if grown.is_none_or(|grown| grown.grown_rows == 0) {
            fair(cache.evict());
            return;
        }
        if random.below(2) == 0 {
            std::thread::yield_now();
        }
        let mut slots = [-1_i64; 8];
        if fair(step.slots(&rows, Gaps::Show, &mut slots)).is_some() {
            for (at, slot) in slots[..n].iter().enumerate() {
                let block = BlockId((slot / BLOCK_SIZE as i64) as u32);
                shadow.write(block, script.content((start + at) / BLOCK_SIZE));
            }
        } else {
            // The request's blocks are unknown now, so nothing may be published.
            fair(step.accept(0, &mut rows[0].0, &script.tokens(start..start + n)));
            return;
        }
        let accepted = script.tokens(start..start + random.below(n + 1));
        let accept = |step: &mut Step, row: &mut LeaseRow| fair(step.accept(0, row, &accepted));
        match random.below(5) {
            0 => _ = step.abort(&mut rows).expect("a row is passed over if it is gone"),
            1 => {
                // The memory of the aborted step is used again.
                let aborted = step.abort(&mut rows).expect("a row is passed over if it is gone");
                cache.step(aborted.buffers).complete();
            }
            2 => {
                accept(&mut step, &mut rows[0].0);
                drop(step);
            }
            3 => {
                accept(&mut step, &mut rows[0].0);
                fair(step.commit(&mut rows[0].0, start + accepted.len()));
                step.complete();
            }
            _ => {
                accept(&mut step, &mut rows[0].0);
                step.complete();
            }
        }
    }

    /// Changes the requests of other threads.
    pub fn meddle(&self, random: &mut Random) {
        let Storm { cache, threads, .. } = self.storm;
        let other = id(random.below(*threads), random.below(2));
        // Ids of forks and others without a driver.
        let spare = SeqId((1 << 32 | self.driver << 8 | random.below(3)) as u64);
        match random.below(20) {
            0 | 1 => _ = fair(cache.evict()),
            2 => _ = fair(cache.evict_to_threshold(random.below(10) as f64 / 10.0)),
            3 => {
                _ = fair(cache.evict_for(
                    Worker(random.below(3) as u32),
                    1 + random.below(4),
                    &mut Vec::new(),
                ))
            }
            4 => _ = fair(cache.free(other)),
            5 => _ = fair(cache.free_when_released(other)),
            6 => _ = fair(cache.fork(other, spare)),
            7 => _ = fair(cache.fork_n(other, &[spare, SeqId(spare.0 + 4), SeqId(spare.0 + 5)])),
            8 => _ = fair(cache.free(spare)),
            9 => _ = fair(cache.admit(other, &[9, 9][..random.below(3)])),
            10 => _ = fair(cache.allocate(other, random.below(3))),
            11 => _ = fair(cache.append(spare, random.below(6))),
            12 => _ = fair(cache.truncate(spare, random.below(9))),
            13 => _ = fair(cache.apply_streaming_llm(spare, 4, 4)),
            14 => {
                _ = fair(cache.touch(other));
                _ = fair(cache.set_priority(other, random.below(3) as u32));
                _ = fair(cache.set_worker(other, Worker(random.below(3) as u32)));
            }
            15 => {
                _ = cache.with_sequence(other, |sequence| {
                    cache.prefix().probe(&cache.prompt(&[7; 5])) + sequence.num_tokens()
                });
                let looked = std::panic::AssertUnwindSafe(|| {
                    cache
                        .with_sequence(other, |_| std::panic::panic_any(super::listener::OnPurpose))
                });
                _ = std::panic::catch_unwind(looked);
            }
            16 => {
                let mut table = [0_i32; 2 * 64];
                let shape = TableShape { stride: 64, pad: -1, gaps: Gaps::Show };
                if let Some(lease) = fair(cache.lease(&[other, spare])) {
                    _ = fair(lease.block_tables(&mut table, shape));
                }
            }
            17 => {
                if let Some(mut room) = fair(cache.reserve(random.below(4))) {
                    _ = fair(room.append(cache, spare, random.below(5)));
                    _ = fair(room.allocate(cache, spare, random.below(9)));
                    room.shrink_to(random.below(2));
                }
            }
            18 => {
                let stats = cache.stats();
                assert!(stats.total_frees <= stats.total_allocations, "{stats:?}");
                assert!(stats.blocks_used <= stats.blocks_total, "{stats:?}");
                match cache.validate() {
                    Ok(()) | Err(PagedKvError::Busy) => {}
                    Err(fault) => panic!("{fault}"),
                }
            }
            _ => cache.prefix().announce_all(),
        }
    }
}
