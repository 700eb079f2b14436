//! `FaultyStore`: a store that fails, hangs, holds writes back and damages contents.

use std::fs::OpenOptions;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Duration;

use paged_kv::tier_store::{DiskStore, FoundSlot, SlotError, SlotKey, SlotStore, SlotWrite};

use crate::random::Random;

/// A fault of one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The operating system's error of that number.
    Io(i32),
    Panic,
    /// The operation takes so many milliseconds.
    Slow(u64),
    /// A write is reported as done and made after a later one.
    Later,
    /// A write is reported as done and never made.
    Never,
    /// A byte of the file is changed.
    Damage,
}

pub const ENOSPC: i32 = 28;
pub const EIO: i32 = 5;
pub const EPERM: i32 = 1;

/// A write that was held back.
struct LateWrite {
    slot: u32,
    key: SlotKey,
    epoch: u64,
    bytes: Vec<u8>,
}

#[derive(Default)]
struct Plan {
    /// The fault of each operation.
    always: Option<Fault>,
    /// Random faults, in percent of the operations.
    random: Option<(Random, usize)>,
    late: Vec<LateWrite>,
    faults: usize,
}

pub struct FaultyStore {
    store: DiskStore,
    plan: Mutex<Plan>,
    /// Held by a test that stops all writes.
    gate: Mutex<()>,
    waiting: Mutex<usize>,
    arrived: Condvar,
}

impl FaultyStore {
    pub fn new(store: DiskStore) -> Self {
        Self {
            store,
            plan: Mutex::default(),
            gate: Mutex::default(),
            waiting: Mutex::default(),
            arrived: Condvar::new(),
        }
    }

    /// Lets each operation fail.
    pub fn fail(&self, fault: Fault) {
        self.plan.lock().unwrap().always = Some(fault);
    }

    /// Lets so many percent of the operations fail.
    pub fn fail_at_random(&self, seed: u64, percent: usize) {
        self.plan.lock().unwrap().random = Some((Random::new(seed), percent));
    }

    pub fn heal(&self) {
        let mut plan = self.plan.lock().unwrap();
        (plan.always, plan.random) = (None, None);
    }

    pub fn faults(&self) -> usize {
        self.plan.lock().unwrap().faults
    }

    /// Stops all writes until the guard is dropped.
    pub fn hold(&self) -> MutexGuard<'_, ()> {
        self.gate.lock().unwrap()
    }

    /// Waits until a write is stopped.
    pub fn wait_until_held(&self) {
        let waiting = self.waiting.lock().unwrap();
        drop(self.arrived.wait_while(waiting, |waiting| *waiting == 0).unwrap());
    }

    fn pass_gate(&self) {
        *self.waiting.lock().unwrap() += 1;
        self.arrived.notify_all();
        drop(self.gate.lock());
        *self.waiting.lock().unwrap() -= 1;
    }

    /// Returns the fault of the next operation.
    fn next(&self) -> Option<Fault> {
        let mut plan = self.plan.lock().unwrap();
        let always = plan.always;
        let random = plan.random.as_mut().and_then(|(random, percent)| {
            const ALL: [Fault; 8] = [
                Fault::Io(ENOSPC),
                Fault::Io(EIO),
                Fault::Io(EPERM),
                Fault::Panic,
                Fault::Slow(3),
                Fault::Later,
                Fault::Never,
                Fault::Damage,
            ];
            (random.below(100) < *percent).then(|| ALL[random.below(ALL.len())])
        });
        let fault = always.or(random);
        plan.faults += usize::from(fault.is_some());
        fault
    }

    /// Lets a fault act before an operation.
    fn suffer(&self, fault: Option<Fault>) -> Result<(), SlotError> {
        match fault {
            Some(Fault::Io(number)) => Err(io::Error::from_raw_os_error(number).into()),
            Some(Fault::Panic) => panic!("a fault of the medium"),
            Some(Fault::Slow(milliseconds)) => {
                std::thread::sleep(Duration::from_millis(milliseconds));
                Ok(())
            }
            Some(Fault::Damage) => {
                self.damage();
                Ok(())
            }
            Some(Fault::Later | Fault::Never) | None => Ok(()),
        }
    }

    /// Changes a byte of the file, behind its header.
    fn damage(&self) {
        let Ok(file) = OpenOptions::new().read(true).write(true).open(self.store.path()) else {
            return;
        };
        let len = file.metadata().map_or(0, |file| file.len()) as usize;
        let mut plan = self.plan.lock().unwrap();
        let Some((random, _)) = &mut plan.random else { return };
        let (at, mut byte) = (4_096 + random.below(len - 4_096), [0]);
        let _ = file.read_exact_at(&mut byte, at as u64);
        let _ = file.write_all_at(&[!byte[0]], at as u64);
    }

    /// Makes the writes that were held back, the last one first.
    fn write_late(&self) {
        let late = std::mem::take(&mut self.plan.lock().unwrap().late);
        for LateWrite { slot, key, epoch, bytes } in late.into_iter().rev() {
            let _ = self.store.write(&SlotWrite { slot, key, epoch, bytes: &bytes });
        }
    }
}

impl SlotStore for FaultyStore {
    fn slots(&self) -> usize {
        self.store.slots()
    }

    fn block_bytes(&self) -> usize {
        self.store.block_bytes()
    }

    fn write(&self, write: &SlotWrite<'_>) -> Result<(), SlotError> {
        self.pass_gate();
        let fault = self.next();
        self.suffer(fault)?;
        match fault {
            Some(Fault::Later) => {
                let SlotWrite { slot, key, epoch, bytes } = *write;
                let late = LateWrite { slot, key, epoch, bytes: bytes.to_vec() };
                self.plan.lock().unwrap().late.push(late);
                return Ok(());
            }
            Some(Fault::Never) => return Ok(()),
            _ => {}
        }
        self.store.write(write)?;
        self.write_late();
        Ok(())
    }

    fn read(&self, slot: u32, key: SlotKey, into: &mut [u8]) -> Result<(), SlotError> {
        self.suffer(self.next())?;
        self.store.read(slot, key, into)
    }

    fn find(&self, slots: Range<u32>, found: &mut Vec<FoundSlot>) -> Result<(), SlotError> {
        self.suffer(self.next())?;
        self.store.find(slots, found)
    }

    fn epoch(&self) -> u64 {
        self.store.epoch()
    }

    fn reset(&self, epoch: u64) -> Result<(), SlotError> {
        self.suffer(self.next())?;
        self.store.reset(epoch)
    }
}
