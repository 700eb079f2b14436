//! `Memory`: samples of the resident set, to check that the process does not grow once it is warm.
//!
//! The resident set is read from `/proc/self/statm`, in pages, on systems that have that file. The page size
//! follows from `/proc/self/status`, which has the same number in KiB. The largest sample of the last
//! quarter of a run is compared with the largest of the second quarter. The first quarter is for warming up.

use std::fs;
use std::time::Duration;

use serde::Serialize;

/// Growth that is no leak: memory that an allocator keeps for itself.
const SLACK_KIB: u64 = 16 * 1024;

/// Samples of the resident set, at equal intervals.
#[derive(Debug, Default)]
pub struct Memory {
    kib_a_page: Option<f64>,
    samples: Vec<Sample>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Sample {
    pub seconds: f64,
    pub resident_kib: u64,
}

/// The resident set when warm and at the end, in KiB.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Growth {
    pub warm_kib: u64,
    pub end_kib: u64,
}

impl Memory {
    pub fn new() -> Self {
        let kib_a_page = resident_kib().zip(resident_pages());
        let kib_a_page = kib_a_page.map(|(kib, pages)| nearest_power(kib as f64 / pages as f64));
        Self { kib_a_page, samples: Vec::new() }
    }

    pub fn sample(&mut self, elapsed: Duration) {
        let sample = resident_pages().zip(self.kib_a_page).map(|(pages, kib)| Sample {
            seconds: elapsed.as_secs_f64(),
            resident_kib: (pages as f64 * kib) as u64,
        });
        self.samples.extend(sample);
    }

    /// Returns samples at equal intervals, at most `most`, and the last one.
    pub fn outline(&self, most: usize) -> Vec<Sample> {
        let every = self.samples.len().div_ceil(most).max(1);
        let last = self.samples.len().saturating_sub(1);
        let kept = |&(at, _): &(usize, &Sample)| at % every == 0 || at == last;
        self.samples.iter().enumerate().filter(kept).map(|(_, sample)| *sample).collect()
    }

    /// Returns the growth, or `None` if there are too few samples to compare.
    pub fn growth(&self) -> Option<Growth> {
        let quarter = self.samples.len() / 4;
        let largest = |samples: &[Sample]| samples.iter().map(|sample| sample.resident_kib).max();
        Some(Growth {
            warm_kib: largest(&self.samples[quarter..2 * quarter])?,
            end_kib: largest(&self.samples[self.samples.len() - quarter..])?,
        })
    }
}

impl Growth {
    pub fn is_flat(&self) -> bool {
        self.end_kib <= self.warm_kib + SLACK_KIB.max(self.warm_kib / 10)
    }
}

/// Rounds the size of a page to a power of two, in KiB: the two files are not read at the same moment.
fn nearest_power(kib: f64) -> f64 {
    kib.log2().round().exp2()
}

fn resident_pages() -> Option<u64> {
    fs::read_to_string("/proc/self/statm").ok()?.split(' ').nth(1)?.parse().ok()
}

fn resident_kib() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(samples: &[u64]) -> Memory {
        let sample = |(at, &resident_kib)| Sample { seconds: at as f64, resident_kib };
        Memory { kib_a_page: Some(4.0), samples: samples.iter().enumerate().map(sample).collect() }
    }

    #[test]
    fn the_first_quarter_is_for_warming_up() {
        let growth = of(&[1, 2, 90_000, 90_001, 90_002, 7, 90_003, 90_004]).growth().unwrap();
        assert_eq!(growth, Growth { warm_kib: 90_001, end_kib: 90_004 });
        assert!(growth.is_flat());
    }

    #[test]
    fn growth_beyond_the_slack_is_not_flat() {
        let growth = |end_kib| Growth { warm_kib: 10_000, end_kib };
        assert!(growth(10_000 + SLACK_KIB).is_flat());
        assert!(!growth(10_001 + SLACK_KIB).is_flat());
    }

    #[test]
    fn too_few_samples_are_not_judged() {
        assert_eq!(of(&[]).growth(), None);
        assert_eq!(of(&[1, 2, 3]).growth(), None);
    }

    #[test]
    fn an_outline_ends_with_the_last() {
        let outline = of(&(0..100).collect::<Vec<_>>()).outline(10);
        assert_eq!(outline.len(), 11);
        assert_eq!(outline.last().unwrap().resident_kib, 99);
    }

    #[test]
    fn a_page_is_a_power_of_two() {
        assert_eq!(nearest_power(4.3), 4.0);
        assert_eq!(nearest_power(15.1), 16.0);
    }
}
