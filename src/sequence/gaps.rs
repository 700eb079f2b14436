//! `TrimmedBlocks`: the gaps that streaming trims leave in a sequence's logical blocks.
//!
//! A *logical* block is a block's worth of positions counted from the start of the sequence. A *resident*
//! index counts only blocks that the sequence still owns. Invariant: gaps are sorted, not empty and do not
//! touch each other. With no gap no memory is used. Each look-up walks the gaps; there is one for each
//! distinct sink that was ever requested.

use std::ops::Range;

/// Sorted, disjoint, non-touching ranges of logical blocks that are not resident.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TrimmedBlocks(Vec<Range<usize>>);

impl TrimmedBlocks {
    pub(crate) fn as_slice(&self) -> &[Range<usize>] {
        &self.0
    }

    /// Returns the resident index of `logical`, or `None` inside a gap.
    pub(crate) fn resident(&self, logical: usize) -> Option<usize> {
        let inside = self.0.iter().any(|gap| gap.contains(&logical));
        (!inside).then(|| self.resident_before(logical))
    }

    /// Returns how many of the logical blocks before `logical` are resident.
    pub(crate) fn resident_before(&self, logical: usize) -> usize {
        let missing: usize =
            self.0.iter().map(|gap| gap.end.min(logical) - gap.start.min(logical)).sum();
        logical - missing
    }

    /// Adds `range`, and joins it with the gaps that it overlaps or touches.
    pub(crate) fn insert(&mut self, range: Range<usize>) {
        let first = self.0.partition_point(|gap| gap.end < range.start);
        let last = self.0.partition_point(|gap| gap.start <= range.end);
        let start =
            self.0[first..last].first().map_or(range.start, |gap| gap.start.min(range.start));
        let end = self.0[first..last].last().map_or(range.end, |gap| gap.end.max(range.end));
        self.0.splice(first..last, std::iter::once(start..end));
    }

    /// Forgets all gaps from logical block `end` on.
    pub(crate) fn truncate(&mut self, end: usize) {
        self.0.retain(|gap| gap.start < end);
        if let Some(last) = self.0.last_mut() {
            last.end = last.end.min(end);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Inserts three ranges below 7 in every way, and compares with a set of numbers.
    #[test]
    fn gaps_are_the_set_of_blocks_inserted() {
        let ranges: Vec<Range<usize>> =
            (0..7).flat_map(|start| (start + 1..=7).map(move |end| start..end)).collect();
        for a in &ranges {
            for b in &ranges {
                for c in &ranges {
                    let mut gaps = TrimmedBlocks::default();
                    let mut model = BTreeSet::new();
                    for range in [a, b, c] {
                        gaps.insert(range.clone());
                        model.extend(range.clone());
                    }
                    assert_matches_model(&gaps, &model);
                    gaps.truncate(4);
                    model.retain(|&block| block < 4);
                    assert_matches_model(&gaps, &model);
                }
            }
        }
    }

    fn assert_matches_model(gaps: &TrimmedBlocks, model: &BTreeSet<usize>) {
        let blocks: BTreeSet<usize> = gaps.as_slice().iter().cloned().flatten().collect();
        assert_eq!(&blocks, model);
        assert!(gaps.as_slice().iter().all(|gap| !gap.is_empty()), "{gaps:?}");
        assert!(gaps.as_slice().windows(2).all(|pair| pair[0].end < pair[1].start), "{gaps:?}");
        for logical in 0..8 {
            let before = (0..logical).filter(|block| !model.contains(block)).count();
            assert_eq!(gaps.resident_before(logical), before);
            let resident = (!model.contains(&logical)).then_some(before);
            assert_eq!(gaps.resident(logical), resident);
        }
    }
}
