//! To which cache does an event sink listen? `ClaimedSink`, a sink that one cache has.
//!
//! What two caches tell one sink cannot be told apart there: each would end the contents of the other.
//! So a cache claims its sink, and gives the claim up when nothing is left that may tell an event: the
//! cache, and every table and sequence of it.
//!
//! Invariant: of one `Arc` of a sink there is one claim at a time in the process. Sinks are told apart by
//! the address of their value, which is one allocation's own as long as somebody holds it, also for a
//! type without size. A sink that hands events on to another one is another sink.

use super::kv_event::EventSink;
use crate::sync::{PlainArc, PlainMutex, PlainWeak};

/// Sinks that listen or have listened, as long as they live.
static CLAIMS: PlainMutex<Vec<Claim>> = PlainMutex::new(Vec::new());

struct Claim {
    /// Keeps the address from being used again.
    sink: PlainWeak<dyn EventSink>,
    is_held: bool,
    /// A cache began to tell it events.
    has_begun: bool,
}

impl Claim {
    fn is_of(&self, sink: &PlainArc<dyn EventSink>) -> bool {
        self.sink.as_ptr().cast::<()>() == PlainArc::as_ptr(sink).cast::<()>()
    }
}

/// A sink, claimed until this is dropped.
pub(crate) struct ClaimedSink(PlainArc<dyn EventSink>);

impl ClaimedSink {
    /// Claims `sink`. `None` while another claim of it is held.
    pub(crate) fn claim(sink: PlainArc<dyn EventSink>) -> Option<Self> {
        let mut claims = CLAIMS.lock();
        claims.retain(|claim| claim.is_held || claim.sink.strong_count() > 0);
        match claims.iter_mut().find(|claim| claim.is_of(&sink)) {
            Some(claim) if claim.is_held => return None,
            Some(claim) => claim.is_held = true,
            None => {
                let sink = PlainArc::downgrade(&sink);
                claims.push(Claim { sink, is_held: true, has_begun: false });
            }
        }
        Some(Self(sink))
    }

    /// Says that events may come from now on. True if they came under an earlier claim.
    pub(crate) fn begin(&self) -> bool {
        self.change_claim(|claim| std::mem::replace(&mut claim.has_begun, true))
    }

    /// The sink, to be told events.
    pub(crate) fn sink(&self) -> &dyn EventSink {
        &*self.0
    }

    fn change_claim<R>(&self, change: impl FnOnce(&mut Claim) -> R) -> R {
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
    use crate::event::kv_event::KvEvent;

    /// Without size, as several of one may be thought to share an address.
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
