//! `Counts`: how often each thing happened. A mode that never happened shows nothing.

use std::fmt;

macro_rules! counts {
    ($($(#[$documentation:meta])* $name:ident,)*) => {
        /// How often each thing happened.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Counts {
            $($(#[$documentation])* pub $name: u64,)*
        }

        impl Counts {
            /// Adds the counts of another engine.
            pub fn join(&mut self, other: Self) {
                $(self.$name += other.$name;)*
            }
        }

        impl fmt::Display for Counts {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let counts = [$((stringify!($name), self.$name)),*];
                let shown = counts.iter().filter(|(_, count)| *count > 0);
                let shown: Vec<_> = shown.map(|(name, count)| format!("{name} {count}")).collect();
                f.write_str(&shown.join(", "))
            }
        }
    };
}

counts! {
    /// Flights run.
    flights,
    /// Flights that were built while an older one had not run.
    overlapping,
    /// Flights that ran before an older one.
    reordered,
    /// Rows of all flights.
    rows,
    /// Tokens computed.
    computed,
    /// Tokens found in the cache.
    hits,
    /// Those of them that a sample had generated itself before it was preempted.
    hits_generated,
    /// Copies on write.
    copies,
    /// Samples that gave up their blocks and were admitted again later.
    preemptions,
    /// Those of them that another thread evicted.
    evicted,
    /// Samples cancelled.
    cancellations,
    /// Samples cancelled, preempted or finished while a flight had their rows.
    left_in_flight,
    /// Drafts accepted.
    accepted,
    /// Drafts rejected.
    rejected,
    /// Forks.
    forks,
    /// Flights aborted after their blocks were exported.
    aborts,
    /// Flights whose steps were dropped before their kernels ran.
    lost,
    /// Rows that a step did not grow, for want of blocks.
    refused_rows,
    /// Chunks committed before their kernels ran.
    early_commits,
    /// Rows whose sample had another row in an older flight.
    pipelined,
    /// Blocks published.
    published,
    /// Prefix caches reset.
    resets,
    /// Tokens whose blocks a window left behind.
    trimmed,
    /// Rows of sequences that had ended, refused by their step.
    stale_rows,
}
