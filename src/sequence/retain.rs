//! `Retain`: the level of a range of a prompt's tokens, and [`RetainedRanges`], all that a caller says of one prompt.

use std::ops::Range;
use std::time::Duration;

use crate::pool::{Level, LevelNote};

/// Gives a range of a prompt's tokens a level: how long their contents stay cached after their release.
///
/// A block belongs to the range that its first token is in. See
/// [`AdmitOptions::retain`](crate::AdmitOptions::retain) and [`Retained::set`](crate::Retained::set).
///
/// ```
/// use std::time::Duration;
///
/// use paged_kv::{Level, Retain};
///
/// let system_prompt = Retain::new(0..128, Level::Highest);
/// let document = Retain::new(128..4_096, Level::High).ttl(Duration::from_secs(300));
/// assert!(system_prompt.range.end <= document.range.start);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Retain {
    /// The positions of the tokens; half-open. An end after the prompt is the prompt's end: tokens that are generated have
    /// a level of their own ([`retain_generated`](crate::AdmitOptions::retain_generated)).
    pub range: Range<usize>,
    /// How long the contents stay, compared with others.
    pub level: Level,
    /// The time after which the level ends, or `None` if it stays, as for a time beyond 70 years. It begins anew at each
    /// release.
    pub ttl: Option<Duration>,
}

impl Retain {
    /// Gives the tokens of `range` a level that stays.
    ///
    /// ```
    /// use paged_kv::{Level, Retain};
    ///
    /// assert_eq!(Retain::new(0..16, Level::Low).ttl, None);
    /// ```
    pub fn new(range: Range<usize>, level: Level) -> Self {
        Self { range, level, ttl: None }
    }

    /// Ends the level so long after each release: the contents then are the most recently released of the default level.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use paged_kv::{Level, Retain};
    ///
    /// let minute = Duration::from_secs(60);
    /// assert_eq!(Retain::new(0..16, Level::High).ttl(minute).ttl, Some(minute));
    /// ```
    pub fn ttl(self, ttl: Duration) -> Self {
        Self { ttl: Some(ttl), ..self }
    }

    pub(crate) fn note(&self) -> LevelNote {
        LevelNote::new(self.level, self.ttl)
    }
}

/// The levels of a prompt's tokens, and of those that are generated after them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RetainedRanges {
    ranges: Vec<Retain>,
    generated: Option<LevelNote>,
}

impl RetainedRanges {
    pub(crate) fn add(&mut self, retain: Retain) {
        self.ranges.push(retain);
    }

    pub(crate) fn set_generated(&mut self, note: LevelNote) {
        self.generated = Some(note);
    }

    /// Returns the level of the block whose first token is at `position`, after a prompt of `prompt_tokens` tokens. The
    /// earliest range that was added decides.
    pub(super) fn note_at(&self, position: usize, prompt_tokens: usize) -> Option<LevelNote> {
        if position >= prompt_tokens {
            return self.generated;
        }
        self.ranges.iter().find(|retain| retain.range.contains(&position)).map(Retain::note)
    }
}
