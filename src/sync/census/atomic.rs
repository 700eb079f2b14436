//! Counted atomics: those of the standard library, whose accesses count for the file of the caller.

use std::panic::Location;

use super::coherence::{Access, access};
use super::{Ordering, count_shared, count_store, place_of_caller, shipped};

/// Defines a counted atomic with the methods that every atomic has.
macro_rules! counted {
    ($name:ident, $value:ty, { $($arithmetic:tt)* }) => {
        /// An atomic whose accesses are counted.
        pub(crate) struct $name(shipped::$name);

        impl $name {
            pub(crate) const fn new(value: $value) -> Self {
                Self(shipped::$name::new(value))
            }

            #[track_caller]
            pub(crate) fn load(&self, order: Ordering) -> $value {
                access(self, Access::Read, Location::caller());
                self.0.load(order)
            }

            #[track_caller]
            pub(crate) fn store(&self, value: $value, order: Ordering) {
                count_store(place_of_caller(Location::caller()));
                access(self, Access::Write, Location::caller());
                self.0.store(value, order);
            }

            $($arithmetic)*
        }
    };
}

/// Defines a counted method of the same name.
macro_rules! forward {
    ($method:ident($($arg:ident: $of:ty),*) -> $returned:ty) => {
        #[track_caller]
        pub(crate) fn $method(&self, $($arg: $of),*) -> $returned {
            count_shared(place_of_caller(Location::caller()), 1);
            access(self, Access::Write, Location::caller());
            self.0.$method($($arg),*)
        }
    };
}

counted!(AtomicBool, bool, {
    forward!(compare_exchange(
        seen: bool,
        next: bool,
        success: Ordering,
        failure: Ordering
    ) -> Result<bool, bool>);
});

counted!(AtomicU8, u8, {});

counted!(AtomicU32, u32, {
    forward!(fetch_add(value: u32, order: Ordering) -> u32);
    forward!(fetch_sub(value: u32, order: Ordering) -> u32);
    forward!(fetch_or(value: u32, order: Ordering) -> u32);
    forward!(compare_exchange_weak(
        seen: u32,
        next: u32,
        success: Ordering,
        failure: Ordering
    ) -> Result<u32, u32>);

    /// Counts once: repeated exchanges are not visible here.
    #[track_caller]
    pub(crate) fn fetch_update(
        &self,
        success: Ordering,
        failure: Ordering,
        step: impl FnMut(u32) -> Option<u32>,
    ) -> Result<u32, u32> {
        count_shared(place_of_caller(Location::caller()), 1);
        access(self, Access::Read, Location::caller());
        access(self, Access::Write, Location::caller());
        self.0.fetch_update(success, failure, step)
    }
});

counted!(AtomicU64, u64, {
    forward!(fetch_add(value: u64, order: Ordering) -> u64);
    forward!(fetch_max(value: u64, order: Ordering) -> u64);
    forward!(fetch_or(value: u64, order: Ordering) -> u64);
    forward!(swap(value: u64, order: Ordering) -> u64);
    forward!(compare_exchange(
        seen: u64,
        next: u64,
        success: Ordering,
        failure: Ordering
    ) -> Result<u64, u64>);

    /// Counts once: repeated exchanges are not visible here.
    #[track_caller]
    pub(crate) fn fetch_update(
        &self,
        success: Ordering,
        failure: Ordering,
        step: impl FnMut(u64) -> Option<u64>,
    ) -> Result<u64, u64> {
        count_shared(place_of_caller(Location::caller()), 1);
        access(self, Access::Read, Location::caller());
        access(self, Access::Write, Location::caller());
        self.0.fetch_update(success, failure, step)
    }
});

counted!(AtomicUsize, usize, {
    forward!(fetch_add(value: usize, order: Ordering) -> usize);
    forward!(fetch_sub(value: usize, order: Ordering) -> usize);
    forward!(fetch_max(value: usize, order: Ordering) -> usize);
});
