//! `Outcome`: samples compared with their expected results, and a row of the table of modes.

use std::fmt;

use crate::request::Sample;
use crate::weights::Weights;

/// The number of samples and logits vectors that were compared, and of those that differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Samples compared.
    pub samples: usize,
    /// Logits vectors compared.
    pub logits: usize,
    /// Samples with another token or other bits.
    pub samples_differ: usize,
    /// Samples that read a slot that was never written.
    pub samples_nan: usize,
    /// Logits vectors with other bits, up to the first other token of each sample.
    pub logits_differ: usize,
}

impl Outcome {
    /// Compares samples, also those that ended early.
    pub fn of<'s>(weights: &Weights, samples: impl IntoIterator<Item = &'s Sample>) -> Self {
        let mut outcome = Self::default();
        for sample in samples {
            outcome.add(weights, sample);
        }
        outcome
    }

    /// Compares one more sample. Returns true if it is equal and without NaN.
    pub fn add(&mut self, weights: &Weights, sample: &Sample) -> bool {
        let expected = sample.request.expected(weights, sample.number);
        let tokens = &sample.tokens[sample.request.prompt.len()..];
        let mut differ = 0;
        for ((expected, token), digest) in expected.iter().zip(tokens).zip(&sample.digests) {
            self.logits += 1;
            differ += usize::from(expected.digest != *digest);
            if expected.token != *token {
                // Later logits are of other tokens.
                differ = differ.max(1);
                break;
            }
        }
        self.samples += 1;
        self.samples_differ += usize::from(differ > 0);
        self.samples_nan += usize::from(sample.has_nan);
        self.logits_differ += differ;
        differ == 0 && !sample.has_nan
    }

    /// Adds the numbers of another outcome.
    pub fn join(&mut self, other: Self) {
        self.samples += other.samples;
        self.logits += other.logits;
        self.samples_differ += other.samples_differ;
        self.samples_nan += other.samples_nan;
        self.logits_differ += other.logits_differ;
    }

    /// Returns true if a sample differs from its expected result, or has read a NaN.
    pub fn is_faulty(&self) -> bool {
        self.samples_differ > 0 || self.samples_nan > 0
    }

    /// Returns true if something was compared, and all of it is equal and without NaN.
    pub fn is_equal(&self) -> bool {
        self.logits > 0 && !self.is_faulty()
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { samples, logits, samples_differ, samples_nan, .. } = self;
        write!(f, "{samples} | {logits} | ")?;
        match (samples, logits) {
            _ if self.is_faulty() => {
                write!(f, "{samples_differ} samples differ, {samples_nan} have NaN")
            }
            (0, _) => f.write_str("not run"),
            (_, 0) => f.write_str("nothing to compare"),
            _ => f.write_str("equal"),
        }
    }
}
