//! `ClaimedSink`: an event sink that one cache has claimed.
//!
//! A sink cannot distinguish the events of two caches: each cache would end the contents of the other. So a
//! cache claims its sink. It releases the claim when nothing is left that can emit an event: the cache and
//! every table and sequence of it.
//!
//! Invariant: for one `Arc` of a sink there is at most one claim in the process. Sinks are identified by the
//! address of their value. That address belongs to one allocation as long as a pointer to it is held, also for
//! a type of size 0. A sink that forwards events to another sink counts as a sink of its own.

use crate::prefix::kv_event::EventSink;
use crate::sync::{PlainArc, PlainMutex, PlainWeak};

/// Sinks that are or were claimed, as long as they live.
static CLAIMS: PlainMutex<Vec<SinkClaim>> = PlainMutex::new(Vec::new());

struct SinkClaim {
    /// Keeps the address from being reused.
    sink: PlainWeak<dyn EventSink>,
    is_held: bool,
    /// True after a cache began to emit events to it.
    has_begun: bool,
}

impl SinkClaim {
    fn is_of(&self, sink: &PlainArc<dyn EventSink>) -> bool {
        self.sink.as_ptr().cast::<()>() == PlainArc::as_ptr(sink).cast::<()>()
    }
}

/// A sink that is claimed until this is dropped.
pub(crate) struct ClaimedSink(PlainArc<dyn EventSink>);

impl ClaimedSink {
    /// Claims `sink`. Returns `None` while another claim of it is held.
    pub(crate) fn claim(sink: PlainArc<dyn EventSink>) -> Option<Self> {
        let mut claims = CLAIMS.lock();
        claims.retain(|claim| claim.is_held || claim.sink.strong_count() > 0);
        match claims.iter_mut().find(|claim| claim.is_of(&sink)) {
            Some(claim) if claim.is_held => return None,
            Some(claim) => claim.is_held = true,
            None => {
                let sink = PlainArc::downgrade(&sink);
                claims.push(SinkClaim { sink, is_held: true, has_begun: false });
            }
        }
        Some(Self(sink))
    }

    /// Notes that events may be emitted from now on. Returns true if an earlier claim emitted events already.
    pub(crate) fn begin(&self) -> bool {
        self.change_claim(|claim| std::mem::replace(&mut claim.has_begun, true))
    }

    /// Returns the sink.
    pub(crate) fn sink(&self) -> &dyn EventSink {
        &*self.0
    }

    fn change_claim<R>(&self, change: impl FnOnce(&mut SinkClaim) -> R) -> R {
        let mut claims = CLAIMS.lock();
        let claim = claims.iter_mut().find(|claim| claim.is_of(&self.0));
        change(claim.expect("a claim is noted until it is dropped"))
    }
}

impl Drop for ClaimedSink {
    fn drop(&mut self) {
        // The sink itself is dropped after this, outside of the lock.
        self.change_claim(|claim| claim.is_held = false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prefix::kv_event::KvEvent;

    /// A type of size 0, of which several values could share an address.
    struct Deaf;

    impl EventSink for Deaf {
        fn on_event(&self, _: &KvEvent<'_>) {}
    }

    #[test]
    fn a_sink_is_claimed_once_at_a_time_by_whatever_pointer() {
        let sinks: Vec<PlainArc<Deaf>> = (0..100).map(|_| PlainArc::new(Deaf)).collect();
        let claims: Vec<_> =
            sinks.iter().map(|sink| ClaimedSink::claim(sink.clone()).expect("its first")).collect();
        assert!(sinks.iter().all(|sink| ClaimedSink::claim(sink.clone()).is_none()));
        drop(claims);
        assert!(sinks.iter().all(|sink| ClaimedSink::claim(sink.clone()).is_some()));
    }

    #[test]
    fn a_sink_that_has_listened_is_known_and_one_that_was_only_claimed_is_new() {
        let sink: PlainArc<dyn EventSink> = PlainArc::new(Deaf);
        let claim = || ClaimedSink::claim(sink.clone()).expect("nobody has it");
        drop(claim());
        assert!(!claim().begin());
        assert!(claim().begin() && claim().begin());
    }

    #[test]
    fn sinks_that_are_gone_are_forgotten() {
        let forgotten = PlainArc::downgrade(&PlainArc::new(Deaf));
        drop(forgotten);
        let sink = PlainArc::new(Deaf);
        let address = PlainArc::as_ptr(&sink).cast::<()>();
        drop(ClaimedSink::claim(sink));
        let other = ClaimedSink::claim(PlainArc::new(Deaf)).expect("a new one");
        let noted =
            CLAIMS.lock().iter().filter(|claim| claim.sink.as_ptr().cast() == address).count();
        let is_other = PlainArc::as_ptr(&other.0).cast::<()>() == address;
        assert_eq!(noted, usize::from(is_other));
    }
}
