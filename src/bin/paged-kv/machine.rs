//! `Memory`: the memory that a command is about to need, checked against the memory of the machine.
//!
//! An allocation that fails ends the program without an error to report. So each command adds up its
//! needs before it allocates, and refuses to start if they cannot be met. It checks the address space
//! (`ulimit -v`), and, where the system reports it, the available memory. Estimates count only memory
//! that is sure to be used, so that no command is refused that would have run.

use std::fs;

use anyhow::{Result, bail};
use paged_kv::ReclaimPolicy;

use crate::grouped::grouped;
use crate::tiers::TierSetup;

/// Stack of each thread that serves, in bytes.
pub const STACK_BYTES: usize = 2 << 20;

/// Memory of a thread's allocator and histogram, in bytes.
pub const THREAD_BYTES: usize = 1 << 20;

/// Memory of a slot of a tier, in bytes.
const SLOT_BYTES: usize = 80;

/// Memory that every command takes, in bytes.
const BASE_BYTES: u128 = 8 << 20;

/// Bytes that a command needs. Sums and products saturate: no machine has the maximum.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// Address space.
    reserved: u128,
    /// The part of it that is written, and so needs memory.
    used: u128,
}

impl Memory {
    pub fn new() -> Self {
        Self { reserved: BASE_BYTES, used: BASE_BYTES }
    }

    /// Adds the product of `factors`, of which the last is a number of bytes.
    pub fn with(self, factors: &[usize]) -> Self {
        let more =
            factors.iter().fold(1, |product: u128, &one| product.saturating_mul(one as u128));
        Self { reserved: self.reserved.saturating_add(more), used: self.used.saturating_add(more) }
    }

    /// Adds `count` threads. Their stacks count as address space only: little of them is used.
    pub fn with_threads(self, count: usize) -> Self {
        let stacks = count.saturating_mul(STACK_BYTES);
        self.with(&[count, THREAD_BYTES]).with_address_space(stacks)
    }

    /// Adds bytes that are reserved and hardly used.
    pub fn with_address_space(self, bytes: usize) -> Self {
        Self { reserved: self.reserved.saturating_add(bytes as u128), ..self }
    }

    /// Adds a cache of `blocks` blocks that keeps contents.
    pub fn with_cache(self, blocks: usize, reclaim: ReclaimPolicy) -> Self {
        let bytes = match reclaim {
            ReclaimPolicy::TwoQueue => 96,
            ReclaimPolicy::HitDensity => 100,
            _ => 92,
        };
        self.with(&[blocks, bytes])
    }

    /// Adds the slots of tiers.
    pub fn with_tiers(self, tiers: Option<&TierSetup>) -> Self {
        self.with(&[tiers.map_or(0, TierSetup::slots), SLOT_BYTES])
    }

    /// Checks that the machine has all of it now.
    ///
    /// # Errors
    /// Names the amount that cannot be had, and `what_for`.
    pub fn check(self, what_for: &str) -> Result<()> {
        let bytes = usize::try_from(self.reserved).unwrap_or(usize::MAX);
        if !has_room(bytes) {
            bail!("{} MiB of address space for {what_for} cannot be had", mebibytes(self.reserved));
        }
        match available() {
            Some(available) if self.used > u128::from(available) => bail!(
                "{} MiB of memory for {what_for} cannot be had: {} MiB are available",
                mebibytes(self.used),
                mebibytes(available.into()),
            ),
            _ => Ok(()),
        }
    }
}

/// Returns whether `bytes` bytes of address space can be had now.
pub fn has_room(bytes: usize) -> bool {
    Vec::<u8>::new().try_reserve_exact(bytes).is_ok()
}

fn mebibytes(bytes: u128) -> String {
    grouped(u64::try_from(bytes.div_ceil(1 << 20)).unwrap_or(u64::MAX))
}

/// Returns the bytes that the system can give without taking them from other processes. `None` if it
/// does not report them.
fn available() -> Option<u64> {
    let machine = in_meminfo(&fs::read_to_string("/proc/meminfo").ok()?)?;
    Some(limit_of_group().map_or(machine, |limit| limit.min(machine)))
}

/// Reads the memory available and the free swap from `/proc/meminfo`.
fn in_meminfo(text: &str) -> Option<u64> {
    let field = |name: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        value.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    };
    Some((field("MemAvailable")? + field("SwapFree").unwrap_or(0)) * 1024)
}

/// Reads the memory limit of the container of which this process is the root group, if there is one.
fn limit_of_group() -> Option<u64> {
    let limit = fs::read_to_string("/sys/fs/cgroup/memory.max");
    let limit =
        limit.or_else(|_| fs::read_to_string("/sys/fs/cgroup/memory/memory.limit_in_bytes"));
    limit.ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_memory_is_refused_and_a_little_is_accepted() {
        Memory::new().with(&[1 << 20]).with_threads(1).check("a test").unwrap();
        for memory in [
            Memory::new().with(&[usize::MAX; 4]),
            Memory::new().with(&[1 << 30, 1 << 30]),
            Memory::new().with_threads(usize::MAX),
        ] {
            let error = memory.check("a test").unwrap_err().to_string();
            assert!(error.contains("for a test cannot be had"), "{error}");
        }
    }

    #[test]
    fn the_available_memory_includes_swap() {
        let text = "MemTotal: 9 kB\nMemAvailable:     4 kB\nSwapTotal: 3 kB\nSwapFree:   2 kB\n";
        assert_eq!(in_meminfo(text), Some(6 * 1024));
        assert_eq!(in_meminfo("MemTotal: 9 kB\n"), None);
    }
}
