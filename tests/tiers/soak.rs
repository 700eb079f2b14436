//! The soak: several requesters, a mover that has faults, and a cell behind every block and slot. No request may read
//! another content than it asked for, and nothing may leak.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use paged_kv::{BlockHash, Medium, PagedKvCache, Prompt, Tier};

use crate::common::random::Random;
use crate::history::{longest_prompts, setting};
use crate::mirror::Mirror;
use crate::mover::Mover;
use crate::requester::Requester;
use crate::shadow::{Counts, Shadow};
use crate::{BLOCK_SIZE, assert_at_rest};

const NUM_BLOCKS: usize = 44;
const SLOTS: [usize; 2] = [16, 30];
const REQUESTERS: u64 = 3;

#[test]
#[cfg_attr(miri, ignore = "seconds of several threads: hours under an interpreter")]
fn a_mover_with_faults_leads_to_no_wrong_content_and_no_leak() {
    let seconds = setting("PAGED_KV_TIERS_SECONDS", 3);
    let part = Duration::from_secs(seconds) / 3;
    let (host, disk) = (Tier::host(SLOTS[0]), Tier::disk(SLOTS[1]));
    soak("inclusive", [host, disk], 4_000, part);
    soak("exclusive", [host.exclusive(), disk.exclusive()], 4_000, part);
    soak("many resets", [host.from_use(2), disk.exclusive()], 40, part);
}

/// The most time beyond its own that a part takes.
const MOST_EXTRA: Duration = Duration::from_secs(60);

fn soak(name: &str, tiers: [Tier; 2], reset_one_in: usize, time: Duration) {
    let (cache, mirror) = Mirror::cache_of(NUM_BLOCKS, &tiers);
    let shadow = Shadow::new(NUM_BLOCKS, &SLOTS);
    let prompts: Vec<Prompt> = longest_prompts(&cache);
    let seed = Random::new(setting("PAGED_KV_TIERS_SEED", 0)).next();
    let (is_over, end) = (AtomicBool::new(false), Instant::now() + time);
    std::thread::scope(|scope| {
        let (orders, listens) = channel();
        let (cache, shadow, prompts, is_over) = (&cache, &shadow, &prompts, &is_over);
        scope.spawn(move || Mover::new(cache, shadow, seed).serve(&listens));
        for number in 1..=REQUESTERS {
            let (orders, seed) = (orders.clone(), seed.wrapping_add(number));
            scope.spawn(move || {
                let of = (seed, reset_one_in);
                let mut requester = Requester::new(cache, shadow, prompts, orders, of);
                while !is_over.load(SeqCst) {
                    requester.operate();
                }
                requester.end();
            });
        }
        // On a busy machine it takes longer until each of them has happened.
        let is_due = || Instant::now() >= end && all_happened(shadow);
        while !is_due()
            && Instant::now() < end + MOST_EXTRA
            && shadow.counts.wrong.load(SeqCst) == 0
        {
            std::thread::sleep(Duration::from_millis(20));
        }
        is_over.store(true, SeqCst);
    });
    let leaks = cache.used_block_count();
    report(name, &shadow, leaks);
    assert_eq!(shadow.counts.wrong.load(SeqCst), 0, "wrong contents");
    assert_at_rest(&cache);
    mirror.assert_device(&cache, &prompts);
    assert_media(&cache, &mirror, &prompts);
}

/// Checks that the contents of each tier at rest are those that its events have reported.
fn assert_media(cache: &PagedKvCache, mirror: &Mirror, prompts: &[Prompt]) {
    cache.prefix().forget(usize::MAX);
    mirror.assert_device(cache, prompts);
    let hashes: BTreeSet<BlockHash> =
        prompts.iter().flat_map(|prompt| prompt.hashes().iter().copied()).collect();
    let held = mirror.held();
    let [host, disk] = [Medium::Host, Medium::Disk].map(|medium| held.of(medium));
    for hash in hashes {
        // The host is asked first.
        let alone = Prompt::from_hashes(&[hash], BLOCK_SIZE + 1);
        let [_, in_host, in_disk] = cache.tiers().lookup(&alone)[..] else { panic!("two tiers") };
        assert_eq!(in_host > 0, host.contains(&hash));
        assert!(in_host > 0 || (in_disk > 0) == disk.contains(&hash));
    }
    println!("  {} contents in the host and {} on disk as reported", host.len(), disk.len());
}

fn report(name: &str, shadow: &Shadow, leaks: usize) {
    let Counts { operations, hits, loads, stores, overwritten, pending, .. } = &shadow.counts;
    let Counts { failed, corrupted, cancelled, late_writes, checked, wrong, .. } = &shadow.counts;
    let Counts { by_loads, ahead, skipped, lost, .. } = &shadow.counts;
    println!("{name}: {operations:?} operations, {} resets, {hits:?} hits", shadow.num_resets());
    println!(
        "  {loads:?} loads, {stores:?} stores, {overwritten:?} overwritten, {pending:?} pending"
    );
    println!("  {ahead:?} stores ahead, {by_loads:?} overwritten by loads");
    println!(
        "  faults: {failed:?} failed, {corrupted:?} corrupted, {skipped:?} skipped, {lost:?} lost, \
         {cancelled:?} cancelled"
    );
    println!(
        "  {late_writes:?} late writes, {checked:?} cells read, {wrong:?} wrong, {leaks} leaked"
    );
    assert!(all_happened(shadow), "each happens");
}

fn all_happened(shadow: &Shadow) -> bool {
    let Counts { operations, hits, loads, stores, pending, failed, .. } = &shadow.counts;
    let Counts { corrupted, cancelled, late_writes, ahead, by_loads, .. } = &shadow.counts;
    let Counts { skipped, lost, .. } = &shadow.counts;
    let done = [operations, hits, loads, stores, pending, failed, corrupted, cancelled];
    let others = [late_writes, ahead, by_loads, skipped, lost];
    done.iter().chain(&others).all(|count| count.load(SeqCst) > 0)
}
