//! `Counted`: the transfers of logical threads that take turns, an operation each.

use paged_kv::census::{self, Place, Transfers};

use crate::rig::requests::Dice;

/// The work of one logical thread: does its next operation and returns how many units of work that ends.
pub type Turn<'a> = Box<dyn FnMut() -> u64 + 'a>;

/// The transfers of all logical threads, and the units of work that they did.
pub struct Counted {
    pub units: u64,
    pub transfers: Vec<Transfers>,
}

impl Counted {
    /// Returns the transfers a unit of work in places for which `is_meant` returns true.
    pub fn a_unit(&self, is_meant: impl Fn(Place) -> bool) -> f64 {
        let meant = self.transfers.iter().filter(|transfers| is_meant(transfers.place));
        meant.map(|transfers| transfers.count).sum::<u64>() as f64 / self.units as f64
    }

    /// Prints the call sites of most transfers.
    pub fn print_sites(&self, most: usize) {
        for transfers in &self.transfers[..most.min(self.transfers.len())] {
            let a_unit = transfers.count as f64 / self.units as f64;
            println!("| {a_unit:.2} | {:?} | {} |", transfers.place, transfers.site);
        }
    }
}

/// Runs `warm_up` units of work of each logical thread, and then counts the transfers of `units` more.
pub fn count(mut turns: Vec<Turn<'_>>, warm_up: u64, units: u64) -> Counted {
    let threads = turns.len() as u64;
    run(&mut turns, warm_up * threads);
    census::take_transfers();
    let units = run(&mut turns, units * threads);
    let counted = Counted { units, transfers: census::take_transfers() };
    census::end();
    counted
}

/// A thread misses one round in this many.
const MISSED: usize = 8;

/// Runs rounds of one operation a logical thread until they have done `units` units of work.
///
/// The order changes from round to round, and a thread misses one round in [`MISSED`], in the same way in each
/// run. In lockstep, threads that do equal work would find their own batches in the queues again.
pub fn run(turns: &mut [Turn<'_>], units: u64) -> u64 {
    let (mut order, mut dice): (Vec<usize>, _) = ((0..turns.len()).collect(), Dice::new(1));
    let mut done = 0;
    while done < units {
        for left in (1..order.len()).rev() {
            order.swap(left, dice.below(left + 1));
        }
        for &thread in &order {
            if dice.below(MISSED) == 0 {
                continue;
            }
            census::run_as(thread);
            done += turns[thread]();
        }
    }
    done
}

/// Sets up the work of each logical thread.
pub fn of_threads<'a>(threads: usize, make: impl Fn(usize) -> Turn<'a>) -> Vec<Turn<'a>> {
    let make = |thread| {
        census::run_as(thread);
        make(thread)
    };
    (0..threads).map(make).collect()
}
