//! `EvictionStrategy`: the order in which sequences are evicted.
//!
//! The choice of a victim is a pure function. A strategy makes a key from the data of a sequence, and the
//! sequence with the smallest key is evicted first. The cache collects the candidates and evicts the victim.

use std::fmt;

use crate::id::{AdmissionEpoch, SeqId, Worker};

/// The rule that selects the sequence to evict first.
///
/// ```
/// use paged_kv::EvictionStrategy;
///
/// assert_eq!(EvictionStrategy::default(), EvictionStrategy::LRU);
/// let streaming = EvictionStrategy::StreamingLLM { sink_tokens: 4, window_tokens: 512 };
/// assert_eq!(streaming.to_string(), "StreamingLLM(sink=4, window=512)");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[allow(clippy::upper_case_acronyms)] // the field's own spelling
pub enum EvictionStrategy {
    /// The least recently used sequence: allocate, append and touch are uses.
    #[default]
    LRU,
    /// The least often used sequence; among equals the least recently used.
    LFU,
    /// The sequence with the most tokens; among equals the least recently used.
    LongestFirst,
    /// The sequence with the lowest priority number. Values of `levels` and above count as `levels - 1`. Among
    /// equals the least recently used.
    Priority {
        /// Number of distinct priorities, at least 1.
        levels: usize,
    },
    /// [`evict_to_threshold`](crate::PagedKvCache::evict_to_threshold) first trims sequences to their first and
    /// last tokens. Whole sequences are evicted as under [`LRU`](Self::LRU).
    StreamingLLM {
        /// Tokens kept at the start of each sequence.
        sink_tokens: usize,
        /// Tokens kept at the end of each sequence.
        window_tokens: usize,
    },
}

impl fmt::Display for EvictionStrategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LRU => f.write_str("LRU"),
            Self::LFU => f.write_str("LFU"),
            Self::LongestFirst => f.write_str("LongestFirst"),
            Self::Priority { levels } => write!(f, "Priority(levels={levels})"),
            Self::StreamingLLM { sink_tokens, window_tokens } => {
                write!(f, "StreamingLLM(sink={sink_tokens}, window={window_tokens})")
            }
        }
    }
}

/// The data of a sequence that a strategy may read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidate {
    pub(crate) seq_id: SeqId,
    pub(crate) num_tokens: usize,
    pub(crate) access_count: u64,
    pub(crate) last_access: u64,
    pub(crate) priority: u32,
    pub(crate) worker: Option<Worker>,
    pub(crate) epoch: AdmissionEpoch,
}

/// The order of eviction: the sequence with the smallest key is first. No two sequences have the same key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct EvictionKey {
    rank: u64,
    last_access: u64,
    pub(crate) seq_id: SeqId,
    /// Does not affect the order: ids differ before it is compared.
    pub(crate) worker: Option<Worker>,
    /// The sequence that was read: another sequence under the same id must not be evicted for it.
    pub(crate) epoch: AdmissionEpoch,
}

impl EvictionStrategy {
    pub(crate) fn key(&self, candidate: &Candidate) -> EvictionKey {
        let rank = match *self {
            Self::LRU | Self::StreamingLLM { .. } => 0,
            Self::LFU => candidate.access_count,
            Self::LongestFirst => u64::MAX - candidate.num_tokens as u64,
            Self::Priority { levels } => {
                u64::from(candidate.priority).min(levels.saturating_sub(1) as u64)
            }
        };
        let &Candidate { seq_id, last_access, worker, epoch, .. } = candidate;
        EvictionKey { rank, last_access, seq_id, worker, epoch }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Candidate = Candidate {
        seq_id: SeqId(1),
        num_tokens: 10,
        access_count: 5,
        last_access: 1,
        priority: 9,
        worker: None,
        epoch: AdmissionEpoch(1),
    };

    fn goes_first(strategy: EvictionStrategy, other: Candidate) -> bool {
        let other = Candidate { seq_id: SeqId(2), last_access: 2, ..other };
        strategy.key(&other) < strategy.key(&FIRST)
    }

    #[test]
    fn each_strategy_looks_at_its_own_field_before_recency() {
        use EvictionStrategy::*;
        let streaming = StreamingLLM { sink_tokens: 1, window_tokens: 1 };
        let rarely = Candidate { access_count: 4, ..FIRST };
        let long = Candidate { num_tokens: 11, ..FIRST };
        let humble = Candidate { priority: 8, ..FIRST };
        let ten = Priority { levels: 10 };
        for (strategy, expected) in [
            (LRU, [false, false, false]),
            (streaming, [false, false, false]),
            (LFU, [true, false, false]),
            (LongestFirst, [false, true, false]),
            (ten, [false, false, true]),
        ] {
            assert_eq!([rarely, long, humble].map(|c| goes_first(strategy, c)), expected);
        }
    }

    #[test]
    fn priorities_beyond_the_levels_count_as_the_highest() {
        let humbler = Candidate { priority: 8, ..FIRST };
        assert!(!goes_first(EvictionStrategy::Priority { levels: 9 }, humbler));
        assert!(goes_first(EvictionStrategy::Priority { levels: 10 }, humbler));
    }

    #[test]
    fn equal_stamps_are_told_apart_by_id() {
        let key = |id| EvictionStrategy::LRU.key(&Candidate { seq_id: SeqId(id), ..FIRST });
        assert!(key(3) < key(4));
    }
}
