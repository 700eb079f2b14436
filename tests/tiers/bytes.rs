//! From end to end with real bytes: a device of blocks and an arena of slots, both plain memory. Keys and values are
//! written, leave the device for host memory, come back to other blocks, and are compared bit by bit.

use paged_kv::{
    BlockHash, BlockId, CachedSequence, CopyOutcome, PagedKvCache, Prompt, Step, StoreTicket, Tier,
};

use crate::common::random::Random;
use crate::{
    BLOCK_SIZE, HOST, admit, assert_at_rest, cache_of, computed, loading, prompt, storing,
};

/// Bytes of the keys and values of one block.
const BLOCK_BYTES: usize = 3 * 1_024 + 8;

const NUM_BLOCKS: usize = 24;
const SLOTS: usize = 64;

/// Blocks or slots in one piece of memory.
struct Memory(Vec<u8>);

impl Memory {
    fn new(blocks: usize) -> Self {
        Self(vec![0xEE; blocks * BLOCK_BYTES])
    }

    fn blocks(&self, first: u32, len: usize) -> &[u8] {
        &self.0[first as usize * BLOCK_BYTES..][..len * BLOCK_BYTES]
    }

    fn blocks_mut(&mut self, first: u32, len: usize) -> &mut [u8] {
        &mut self.0[first as usize * BLOCK_BYTES..][..len * BLOCK_BYTES]
    }
}

/// Returns the bytes that a model would write for a content.
fn bytes_of(hash: BlockHash) -> Vec<u8> {
    let mut random = Random::new(hash.as_u128() as u64);
    (0..BLOCK_BYTES / 8).flat_map(|_| random.next().to_le_bytes()).collect()
}

struct Machine {
    cache: PagedKvCache,
    device: Memory,
    host: Memory,
}

impl Machine {
    fn new(tier: Tier) -> Self {
        let cache = cache_of(NUM_BLOCKS, &[tier]);
        Self { cache, device: Memory::new(NUM_BLOCKS), host: Memory::new(SLOTS) }
    }

    /// Computes a prompt of which nothing is cached.
    fn compute(&mut self, prompt: &Prompt) -> CachedSequence {
        let sequence = computed(&self.cache, prompt);
        for (block, &hash) in sequence.block_ids().iter().zip(prompt.hashes()) {
            self.device.blocks_mut(block.0, 1).copy_from_slice(&bytes_of(hash));
        }
        sequence
    }

    fn copy_out(&mut self, ticket: StoreTicket) {
        for store in ticket.stores() {
            let source = self.device.blocks(store.src.block().unwrap().0, 1);
            self.host.blocks_mut(store.dst.slot, 1).copy_from_slice(source);
        }
        let outcomes = vec![CopyOutcome::Done; ticket.stores().len()];
        assert_eq!(ticket.complete(&outcomes).unwrap(), outcomes.len());
    }

    /// Grows a sequence over all blocks that are free or cached. The contents that it overwrites are stored before.
    fn overwrite_all(&mut self) {
        let blocks = self.cache.free_block_count();
        let mut rows = [(self.cache.allocate_sequence(0).unwrap(), blocks * BLOCK_SIZE)];
        let mut step: Step = self.cache.step(Default::default());
        assert_eq!(step.grow(&mut rows).unwrap().grown_rows, 1);
        if let Some(ticket) = self.cache.tiers().store_overwritten(HOST, &step).unwrap() {
            self.copy_out(ticket);
        }
        for block in rows[0].0.block_ids() {
            self.device.blocks_mut(block.0, 1).fill(0x55);
        }
        step.complete();
    }

    /// Loads a prompt run by run. Returns its sequence and the number of runs.
    fn load(&mut self, prompt: &Prompt) -> (CachedSequence, usize) {
        let ticket = loading(&self.cache, prompt);
        let runs = ticket.runs();
        for (first, len) in &runs {
            let source = self.host.blocks(first.src.slot, *len);
            self.device.blocks_mut(first.dst.0, *len).copy_from_slice(source);
        }
        let outcomes = vec![CopyOutcome::Done; ticket.loads().len()];
        let loaded = ticket.complete(&outcomes).unwrap();
        assert_eq!(loaded.admission.cached_tokens, prompt.hashes().len() * BLOCK_SIZE);
        (loaded.sequence, runs.len())
    }

    fn assert_holds(&self, blocks: &[BlockId], prompt: &Prompt) {
        for (block, &hash) in blocks.iter().zip(prompt.hashes()) {
            assert!(self.device.blocks(block.0, 1) == bytes_of(hash), "{block:?} of {hash}");
        }
    }
}

#[test]
fn bytes_that_left_the_device_come_back_bit_by_bit() {
    for tier in [Tier::host(SLOTS), Tier::host(SLOTS).exclusive()] {
        let mut machine = Machine::new(tier);
        let prompts: Vec<Prompt> =
            (1..=3).map(|name| prompt(&machine.cache, name, 2 + name as usize)).collect();
        for wanted in &prompts {
            drop(machine.compute(wanted));
        }
        machine.overwrite_all();
        // Other blocks than those that were written first.
        let _shift = machine.cache.allocate_sequence(3 * BLOCK_SIZE).unwrap();
        for wanted in prompts.iter().rev() {
            assert_eq!(machine.cache.prefix().probe(wanted), 0);
            let (sequence, runs) = machine.load(wanted);
            assert!(runs <= wanted.hashes().len());
            machine.assert_holds(sequence.block_ids(), wanted);
        }
        // All are on the device now, at once and unharmed.
        for wanted in &prompts {
            let paged_kv::TierAdmission::Ready(sequence, admission) = admit(&machine.cache, wanted)
            else {
                panic!("it is on the device");
            };
            assert_eq!(admission.cached_tokens, wanted.hashes().len() * BLOCK_SIZE);
            machine.assert_holds(sequence.block_ids(), wanted);
        }
    }
}

#[test]
fn bytes_go_down_and_up_many_times() {
    for tier in [Tier::host(SLOTS), Tier::host(SLOTS).exclusive()] {
        let mut machine = Machine::new(tier);
        let wanted = prompt(&machine.cache, 1, 9);
        drop(machine.compute(&wanted));
        for _ in 0..20 {
            machine.overwrite_all();
            let (sequence, _) = machine.load(&wanted);
            machine.assert_holds(sequence.block_ids(), &wanted);
        }
        machine.cache.prefix().forget(usize::MAX);
        assert_at_rest(&machine.cache);
    }
}

/// Neighbouring slots to neighbouring blocks are one copy.
#[test]
fn a_prompt_that_was_stored_in_order_is_loaded_in_few_runs() {
    let mut machine = Machine::new(Tier::host(SLOTS));
    let wanted = prompt(&machine.cache, 1, 12);
    let sequence = machine.compute(&wanted);
    let ticket = storing(&machine.cache, HOST, &wanted);
    machine.copy_out(ticket);
    drop(sequence);
    machine.cache.prefix().forget(usize::MAX);
    let (sequence, runs) = machine.load(&wanted);
    machine.assert_holds(sequence.block_ids(), &wanted);
    println!("{runs} runs for {} blocks", wanted.hashes().len());
    assert!(runs <= 4, "{runs} runs");
}
