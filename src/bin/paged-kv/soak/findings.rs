//! `Findings`: the faults that a soak has found.
//!
//! Any thread may add a finding, also one that is unwinding: nothing here panics. The first few are kept
//! as text and the rest are counted, so a broken cache does not fill the memory with text.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Findings kept as text.
const KEPT: usize = 16;

#[derive(Debug, Default)]
pub struct Findings {
    count: AtomicU64,
    first: Mutex<Vec<String>>,
}

impl Findings {
    pub fn add(&self, finding: String) {
        self.count.fetch_add(1, Ordering::Relaxed);
        let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        if first.len() < KEPT {
            first.push(finding);
        }
    }

    /// Adds the text of `finding` unless `holds`.
    pub fn expect(&self, holds: bool, finding: impl FnOnce() -> String) {
        if !holds {
            self.add(finding());
        }
    }

    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    pub fn first(&self) -> Vec<String> {
        self.first.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_counted_and_the_first_are_kept() {
        let findings = Findings::default();
        findings.expect(true, || unreachable!("it holds"));
        for number in 0..100 {
            findings.expect(false, || number.to_string());
        }
        assert_eq!(findings.count(), 100);
        assert_eq!(findings.first().len(), KEPT);
        assert_eq!(findings.first()[0], "0");
    }
}
