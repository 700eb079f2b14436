//! A process that writes a file in a loop is killed at any moment. Each content whose store was settled is found
//! afterwards, unless its slot was written again, and has its bytes.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use paged_kv::tier_store::{SlotStore, TierResets};
use paged_kv::{BlockHash, Tier};

use crate::random::Random;
use crate::world::{NUM_BLOCKS, SLOTS, TempPath, World, bytes_of, cache_of, disk_at};
use crate::{BLOCK_BYTES, FIRST};

const PATH: &str = "PAGED_KV_KILL_PATH";
const SEED: &str = "PAGED_KV_KILL_SEED";

/// Stores prompts until it is killed. Prints `B slot hash` before a store and `S slot hash` after it is settled, and
/// `P name blocks` after all of a prompt is.
#[test]
#[ignore = "runs in a process of its own"]
fn stores_until_it_is_killed() {
    let Some(path) = std::env::var_os(PATH) else { return };
    let seed: u64 = std::env::var(SEED).map_or(0, |seed| seed.parse().expect("a number"));
    let (world, mut random) = (World::disk(Path::new(&path)), Random::new(seed));
    let mut out = std::io::stdout().lock();
    writeln!(out).unwrap();
    loop {
        let (name, blocks) = (random.below(400) as u32, 1 + random.below(NUM_BLOCKS / 4));
        let prompt = world.prompt(name, blocks);
        let sequence = world.compute(&prompt);
        let Some(ticket) = world.cache.tiers().store(FIRST, prompt.hashes()).unwrap() else {
            continue;
        };
        let stores: Vec<_> =
            ticket.stores().iter().map(|store| (store.dst.slot, store.hash)).collect();
        let line = |kind: char, (slot, hash): &(u32, BlockHash)| format!("{kind} {slot} {hash}\n");
        let text: String = stores.iter().map(|store| line('B', store)).collect();
        out.write_all(text.as_bytes()).unwrap();
        out.flush().unwrap();
        world.mover.store(ticket);
        world.wait();
        drop(sequence);
        world.cache.prefix().forget(usize::MAX);
        let ready = world.cache.tiers().lookup(&prompt)[1];
        assert_eq!(ready, blocks * crate::BLOCK_SIZE, "{:?}", world.mover);
        let mut text: String = stores.iter().map(|store| line('S', store)).collect();
        text += &format!("P {name} {blocks}\n");
        out.write_all(text.as_bytes()).unwrap();
        out.flush().unwrap();
    }
}

/// The contents that must be found.
#[derive(Default)]
struct Ledger {
    /// By slot. `None` after a store was begun.
    settled: HashMap<u32, Option<BlockHash>>,
    prompts: Vec<(u32, usize)>,
}

impl Ledger {
    fn read(&mut self, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [kind, first, second] = words.as_slice() else { return };
        let slot = || first.parse::<u32>().expect("a slot");
        match *kind {
            "B" => _ = self.settled.insert(slot(), None),
            "S" => {
                let hash = u128::from_str_radix(second, 16).expect("a hash");
                self.settled.insert(slot(), Some(BlockHash::from_u128(hash)));
            }
            "P" => self.prompts.push((slot(), second.parse().expect("a number"))),
            _ => {}
        }
    }

    fn settled(&self) -> impl Iterator<Item = (u32, BlockHash)> {
        self.settled.iter().filter_map(|(&slot, &hash)| Some((slot, hash?)))
    }
}

/// Runs the process for a while, kills it, and notes all that it has printed.
fn run_and_kill(path: &Path, seed: u64, ledger: &mut Ledger) {
    let program = std::env::current_exe().expect("tests are programs");
    let mut child = Command::new(program)
        .args(["--exact", "killed::stores_until_it_is_killed", "--ignored", "--nocapture"])
        .env(PATH, path)
        .env(SEED, seed.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the program runs");
    let mut lines = BufReader::new(child.stdout.take().expect("it is piped"));
    let mut line = String::new();
    // Its first store has begun.
    while !line.starts_with("B ") {
        line.clear();
        assert!(lines.read_line(&mut line).expect("it prints") > 0, "it ended by itself");
    }
    let milliseconds = Random::new(seed).below(40) as u64;
    let reader = std::thread::spawn(move || {
        let mut all = vec![line];
        loop {
            let mut line = String::new();
            match lines.read_line(&mut line) {
                // A line without its end was not printed in full.
                Ok(n) if n > 0 && line.ends_with('\n') => all.push(line),
                _ => return all,
            }
        }
    });
    std::thread::sleep(Duration::from_millis(milliseconds));
    child.kill().expect("it runs");
    let status = child.wait().expect("it ends");
    assert!(!status.success());
    reader.join().expect("it reads").iter().for_each(|line| ledger.read(line));
}

/// Checks the file by itself.
fn check_file(path: &Path, ledger: &Ledger) -> usize {
    let cache = cache_of(&[Tier::disk(SLOTS)], &TierResets::new());
    let store = disk_at(path, &cache);
    assert!(store.was_kept());
    let mut bytes = vec![0; BLOCK_BYTES];
    let mut checked = 0;
    for (slot, hash) in ledger.settled() {
        let read = store.read(slot, hash.into(), &mut bytes);
        assert!(read.is_ok(), "slot {slot} lost the settled content {hash}: {read:?}");
        assert!(bytes == bytes_of(hash), "slot {slot} has other bytes than those of {hash}");
        checked += 1;
    }
    let mut found = Vec::new();
    store.find(0..SLOTS as u32, &mut found).expect("the headers can be read");
    for found in found {
        // The header is written last, and the operating system lives on.
        store.read(found.slot, found.key, &mut bytes).expect("a whole header has its content");
        assert!(bytes == bytes_of(found.key.hash));
    }
    checked
}

/// Loads all prompts whose contents must be found, as a later process does.
fn check_loads(path: &Path, ledger: &Ledger) -> usize {
    let world = World::disk(path);
    let hashes: Vec<BlockHash> = ledger.settled().map(|(_, hash)| hash).collect();
    let mut loaded = 0;
    for &(name, blocks) in &ledger.prompts {
        let prompt = world.prompt(name, blocks);
        let due = prompt.hashes().iter().take_while(|hash| hashes.contains(hash)).count();
        let ready = world.load(&prompt);
        assert!(ready >= due, "{ready} of {due} settled contents of prompt {name}");
        loaded += ready;
        world.cache.prefix().forget(usize::MAX);
    }
    world.assert_at_rest();
    loaded
}

#[test]
fn settled_contents_survive_kills() {
    let kills: u64 = std::env::var("PAGED_KV_KILLS").map_or(3, |n| n.parse().expect("a number"));
    let (path, mut ledger) = (TempPath::new("killed"), Ledger::default());
    let (mut settled, mut loaded) = (0, 0);
    for kill in 0..kills {
        run_and_kill(&path, kill, &mut ledger);
        settled += check_file(&path, &ledger);
        loaded += check_loads(&path, &ledger);
        ledger.prompts.clear();
    }
    println!("{kills} kills: {settled} settled contents found, {loaded} loaded");
    assert!(settled > 0);
}
