//! `quiet`, `on_time`, `median`: which rounds of a comparison count, and the figure of those that do.

use super::control::QUIET;
use super::team::Slice;

/// A slice does not count if a thread was ready but not running for more than this share of it.
pub const WAITED_MAX: f64 = 0.05;

/// Returns whether the machine gave two threads two cores.
pub fn quiet(single: Slice, double: Slice) -> bool {
    double.rate >= QUIET * single.rate && on_time(&[single, double])
}

/// Returns whether no thread was kept waiting for a core.
pub fn on_time(slices: &[Slice]) -> bool {
    slices.iter().all(|slice| slice.waited <= WAITED_MAX)
}

/// Returns the median, or NaN if there are no values.
pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
