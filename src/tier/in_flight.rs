//! `InFlight`: the contents that tickets copy at the moment, by their keys.
//!
//! A thread that claims a content has the right to copy it. It publishes the content at its destination before it gives
//! the right back. So a thread that misses the content here, after it missed it everywhere else, looks once more.
//!
//! A content is claimed by one exchange of its home place, a word with a mark of its key. If another content has that
//! place, it is claimed in a map. The thread then looks at the home place again, as a thread that has the home place looks
//! at the map: of two that claim one content in both, at most one has the right. Both may be refused, as if a third had it.
//!
//! A mark is a hash of the key under a seed of the table, because callers choose the hashes of their contents. Two contents
//! of one mark, with a chance of 2^-64, count as one: the second waits for the first.

use std::hash::BuildHasher;

use crate::array::array_of;
use crate::error::Result;
use crate::pool::content_key::ContentKey;
use crate::sync::{AtomicU64, AtomicUsize, DashMap, Entry, FastSeed, Ordering};

/// The contents that are being copied.
pub(crate) struct InFlight {
    /// The mark of the content that has this place, 0 for none.
    homes: Box<[AtomicU64]>,
    /// Contents whose home places others had.
    elsewhere: DashMap<u128, (), FastSeed>,
    num_elsewhere: AtomicUsize,
    hasher: FastSeed,
}

/// The right to copy a content, until it is given back.
#[must_use = "a right that is not given back is lost"]
pub(crate) struct Claimed {
    key: ContentKey,
    is_at_home: bool,
}

impl Claimed {
    pub(crate) fn is_of(&self, key: ContentKey) -> bool {
        self.key == key
    }

    #[cfg(feature = "tier-store")]
    pub(crate) fn key(&self) -> ContentKey {
        self.key
    }
}

/// Shards of the map.
const SHARDS: usize = 64;

/// The least and the most home places.
const HOMES: [usize; 2] =
    if cfg!(any(paged_kv_loom, paged_kv_shuttle)) { [1, 1] } else { [1 << 10, 1 << 16] };

impl InFlight {
    /// Creates a table for tiers of so many slots.
    pub(crate) fn new(slots: usize) -> Result<Self> {
        let [least, most] = HOMES;
        let homes = (slots / 4).clamp(least, most);
        let hasher = FastSeed::default();
        Ok(Self {
            homes: array_of(homes, || AtomicU64::new(0))?,
            elsewhere: DashMap::with_capacity_and_hasher_and_shard_amount(
                0,
                hasher.clone(),
                SHARDS,
            ),
            num_elsewhere: AtomicUsize::new(0),
            hasher,
        })
    }

    fn home(&self, key: ContentKey) -> (&AtomicU64, u64) {
        let mark = self.hasher.hash_one(key.bits()).max(1);
        let at = (u128::from(mark) * self.homes.len() as u128) >> 64;
        (&self.homes[at as usize], mark)
    }

    /// Claims the right to copy a content. Returns `None` if another ticket has it, or seems to.
    #[inline]
    pub(crate) fn claim(&self, key: ContentKey) -> Option<Claimed> {
        let (home, mark) = self.home(key);
        // Acquire, for the content that the last copy published, and for the count of contents elsewhere: every change of
        // a home place is an exchange. So of two threads that claim one content, one at home and one elsewhere, the one
        // whose exchange comes second sees the other.
        // Loom: two_claims_of_one_content_never_both_succeed.
        match home.compare_exchange(0, mark, Ordering::AcqRel, Ordering::Relaxed) {
            Ok(_) => {
                // Acquire: pairs with the subtraction in `leave`.
                if self.num_elsewhere.load(Ordering::Acquire) > 0
                    && self.elsewhere.contains_key(&key.bits())
                {
                    home.swap(0, Ordering::AcqRel);
                    return None;
                }
                Some(Claimed { key, is_at_home: true })
            }
            Err(other) if other == mark => None,
            Err(_) => self.claim_elsewhere(key),
        }
    }

    #[cold]
    fn claim_elsewhere(&self, key: ContentKey) -> Option<Claimed> {
        // Relaxed: the exchange of the home place hands it over.
        self.num_elsewhere.fetch_add(1, Ordering::Relaxed);
        let is_new = match self.elsewhere.entry(key.bits()) {
            Entry::Occupied(_) => false,
            Entry::Vacant(vacant) => {
                vacant.insert(());
                true
            }
        };
        let (home, mark) = self.home(key);
        // An exchange, as in `claim`, that changes nothing.
        if is_new && home.fetch_or(0, Ordering::AcqRel) != mark {
            return Some(Claimed { key, is_at_home: false });
        }
        if is_new {
            self.elsewhere.remove_if(&key.bits(), |_, ()| true);
        }
        // Release: as in `leave`.
        self.num_elsewhere.fetch_sub(1, Ordering::Release);
        None
    }

    /// Gives the right back, after the content was published or was not copied.
    #[inline]
    pub(crate) fn leave(&self, Claimed { key, is_at_home }: Claimed) {
        if is_at_home {
            // AcqRel: as in `claim`.
            self.home(key).0.swap(0, Ordering::AcqRel);
        } else {
            self.elsewhere.remove_if(&key.bits(), |_, ()| true);
            // Release: pairs with the load in `claim`.
            self.num_elsewhere.fetch_sub(1, Ordering::Release);
        }
    }

    /// Returns true if a ticket copies the content.
    pub(crate) fn has(&self, key: ContentKey) -> bool {
        let (home, mark) = self.home(key);
        // Acquire: pairs with `leave`, as in `claim`.
        home.load(Ordering::Acquire) == mark
            || self.num_elsewhere.load(Ordering::Acquire) > 0
                && self.elsewhere.contains_key(&key.bits())
    }

    pub(crate) fn len(&self) -> usize {
        // Relaxed: a statistic.
        let homes = self.homes.iter().filter(|home| home.load(Ordering::Relaxed) != 0);
        homes.count() + self.elsewhere.iter().count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns keys of one home place, and one of another place.
    fn keys(in_flight: &InFlight) -> [ContentKey; 3] {
        let home = |key: &ContentKey| std::ptr::from_ref(in_flight.home(*key).0);
        let keys = || (0..100_000_u128).map(|n| ContentKey::new(n << 64));
        let first = keys().next().expect("there are many");
        let same = keys().skip(1).find(|key| home(key) == home(&first));
        let other = keys().skip(1).find(|key| home(key) != home(&first));
        [first, same.expect("of 100,000"), other.expect("of 100,000")]
    }

    #[test]
    fn a_content_is_claimed_once_at_home_or_elsewhere() {
        let in_flight = InFlight::new(0).unwrap();
        let [one, other, third] = keys(&in_flight);
        let claims = [one, other, third].map(|key| in_flight.claim(key).expect("it is new"));
        assert_eq!(claims.each_ref().map(|claimed| claimed.is_at_home), [true, false, true]);
        for known in [one, other, third] {
            assert!(in_flight.has(known) && in_flight.claim(known).is_none());
        }
        assert_eq!(in_flight.len(), 3);
        let [first, second, last] = claims;
        in_flight.leave(first);
        assert!(!in_flight.has(one) && in_flight.has(other));
        assert!(in_flight.claim(other).is_none(), "it is elsewhere still");
        in_flight.leave(second);
        let again = in_flight.claim(other).expect("it was given back");
        assert!(again.is_at_home);
        in_flight.leave(again);
        in_flight.leave(last);
        assert_eq!((in_flight.len(), in_flight.num_elsewhere.load(Ordering::Relaxed)), (0, 0));
    }

    /// Callers may number their contents, in either half of a hash.
    #[test]
    fn contents_with_hashes_in_a_row_are_told_apart() {
        for shift in [0, 32, 64, 96] {
            let in_flight = InFlight::new(4_096).unwrap();
            let keys = (0..5_000_u128).map(|n| ContentKey::new(n << shift));
            let claims: Vec<Claimed> =
                keys.map(|key| in_flight.claim(key).expect("it is new")).collect();
            assert_eq!(in_flight.len(), claims.len());
            claims.into_iter().for_each(|claimed| in_flight.leave(claimed));
            assert_eq!(in_flight.len(), 0);
        }
    }
}
