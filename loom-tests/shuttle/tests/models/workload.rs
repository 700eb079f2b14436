//! Model of all operations together: random operations of all kinds on few ids. The whole cache is
//! checked in between and at the end.

use paged_kv::{AppendBatch, PagedKvCache, PagedKvError, SeqId};
use shuttle::rand::{Rng, thread_rng};
use shuttle::thread::scope;

use crate::explore::explore;
use crate::{Contents, assert_all_free_at_end, cache};

const IDS: u64 = 4;
const BLOCKS: usize = 7;

/// Returns the value of a call, or none after a refusal that a race explains. Panics at any other
/// refusal.
#[track_caller]
fn met<T>(result: Result<T, PagedKvError>) -> Option<T> {
    use PagedKvError as E;
    match result {
        Ok(value) => return Some(value),
        Err(E::OutOfMemory { requested, available }) => assert!(available < requested),
        Err(E::SequenceNotFound(_) | E::SequenceExists(_) | E::SequenceLeased(_)) => {}
        Err(E::NothingToEvict | E::TruncateBeyondEnd { .. } | E::CommitBeyondEnd { .. }) => {}
        Err(E::TokensTrimmed { .. } | E::Busy) => {}
        Err(refusal) => panic!("refused with {refusal}"),
    }
    None
}

/// Makes one random operation.
fn operate(cache: &PagedKvCache, contents: &Contents, holder: u64) {
    let mut random = thread_rng();
    let mut id = || SeqId(random.gen_range(0..IDS));
    let (a, b) = (id(), id());
    let tokens = random.gen_range(0..6);
    let prompt = vec![random.gen_range(0..2); 5];
    match random.gen_range(0..18) {
        0 | 1 => drop(met(cache.allocate(a, tokens))),
        2 | 3 => drop(met(cache.append(a, tokens % 3))),
        4 => drop(met(cache.fork(a, b))),
        5 => drop(met(cache.free(a))),
        6 => drop(met(cache.truncate(a, tokens))),
        7 => drop(met(cache.apply_streaming_llm(a, 2, 2))),
        8 => drop(met(cache.evict())),
        9 => drop(met(cache.evict_to_threshold(0.5))),
        10 | 11 => drop(met(cache.admit(a, &prompt))),
        12 => drop(met(cache.commit(a, tokens))),
        13 => drop(met(cache.free_when_released(a))),
        14 => drop(met(cache.validate())),
        15 if a != b => {
            let mut batch = AppendBatch::default();
            let _ = met(cache.append_batch(&[(a, 1), (b, 1)], &mut batch));
        }
        16 => {
            let Some(lease) = met(cache.lease(&[a])) else { return };
            drop(met(cache.append(a, 1)));
            drop(lease);
        }
        _ => hold(cache, contents, holder, tokens),
    }
}

/// The blocks that a handle holds are its own for as long as it holds them.
fn hold(cache: &PagedKvCache, contents: &Contents, holder: u64, tokens: usize) {
    let Some(sequence) = met(cache.allocate_sequence(tokens)) else { return };
    sequence.block_ids().iter().for_each(|&block| contents.write(block, holder));
    let _ = cache.stats();
    for &block in sequence.block_ids() {
        assert_eq!(contents.read(block), holder, "{block} is in two hands");
    }
}

#[test]
fn random_operations_leave_everything_accounted_for() {
    explore(|| {
        let (cache, contents) = (cache(BLOCKS), Contents::new(BLOCKS));
        scope(|scope| {
            for holder in 1..=2 {
                let (cache, contents) = (&cache, &contents);
                scope.spawn(move || (0..6).for_each(|_| operate(cache, contents, holder)));
            }
            (0..6).for_each(|_| operate(&cache, &contents, 3));
        });
        assert_eq!(cache.validate(), Ok(()));
        assert_all_free_at_end(&cache);
    });
}
