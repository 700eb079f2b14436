//! Two adapters of an engine's block manager to this crate: `cargo run --example adapter`
//!
//! [`BlockManager`] has the calls that engines have. [`ByHandles`] serves them with owned sequences.
//! [`ByBlocks`] serves an engine that keeps its own tables and hashes: it matches, takes and publishes blocks.
//! `tests/adapter` runs both beside a simple sequential manager.

#[path = "adapter/manager.rs"]
mod manager;

use manager::{BlockManager, ByBlocks, ByHandles};

fn main() {
    let managers: [(&str, Box<dyn BlockManager>); 2] = [
        ("by handles", Box::new(ByHandles::new(64, 16))),
        ("by blocks", Box::new(ByBlocks::new(64, 16))),
    ];
    for (name, mut manager) in managers {
        let question: Vec<u32> = (0..40).collect();
        manager.admit(1, &question).expect("64 blocks are free");
        let answer: Vec<u32> = (100..130).collect();
        let copied: usize = answer
            .iter()
            .map(|&token| manager.append(1, token).expect("there is room").len())
            .sum();
        println!("{name}: table {:?}, {copied} copies", manager.table(1));
        println!("{name}: the last token's slot is {}", manager.slots(1, 69..70)[0]);
        manager.fork(1, 3);
        let copies = manager.append(3, 7).expect("there is room");
        println!("{name}: the fork's first token copies {copies:?}");
        manager.free(3);
        let blocks = manager.swap_out(1);
        println!(
            "{name}: {} blocks to copy to the host, {} are free",
            blocks.len(),
            manager.free_blocks()
        );
        let next_turn = [question, answer, vec![7; 9]].concat();
        let cached = manager.admit(2, &next_turn).expect("the conversation fits");
        println!("{name}: {cached} of {} tokens of the next turn are cached", next_turn.len());
        manager.free(2);
    }
}
