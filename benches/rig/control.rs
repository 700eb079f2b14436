//! `arithmetic`: a control of pure arithmetic. The ratio of two threads to one is the most that the machine
//! allows any design.
//!
//! On a shared machine, a figure of several threads means nothing without this control.

use std::hint::black_box;
use std::time::Duration;

use super::team::{Burst, Contender, alternate};

/// Two threads on two real cores reach at least this multiple of the rate of one.
pub const QUIET: f64 = 1.8;

const SLICE: Duration = Duration::from_millis(2);

/// Creates a contender of pure arithmetic.
pub fn arithmetic<'a>(threads: usize) -> Contender<'a> {
    arithmetic_for(threads, SLICE)
}

pub fn arithmetic_for<'a>(threads: usize, slice: Duration) -> Contender<'a> {
    Contender::new(threads, slice, |_| burst())
}

/// Returns the rate of `threads` threads over the rate of one: the median of a few slices.
pub fn parallelism(threads: usize) -> f64 {
    let mut ratios = Vec::new();
    alternate(&[arithmetic(1), arithmetic(threads)], |slices| {
        ratios.push(slices[1].rate / slices[0].rate);
        ratios.len() == 5
    });
    ratios.sort_by(f64::total_cmp);
    ratios[ratios.len() / 2]
}

fn burst<'a>() -> Burst<'a> {
    let mut word = 1_u64;
    Box::new(move || {
        for _ in 0..2_000 {
            word ^= word << 13;
            word ^= word >> 7;
            word ^= word << 17;
        }
        black_box(word);
        2_000
    })
}
