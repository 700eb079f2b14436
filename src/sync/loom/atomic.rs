//! Atomics and fences under the model checker, with the orderings of the source or those that a run sets.
//!
//! Environment variables, read once:
//! - `PAGED_KV_LOOM_SC=1`: every load and store is a read-modify-write of the newest value, with the ordering
//!   of the source. loom remembers one access of a kind for each atomic. So it misses interleavings of a load
//!   with an exchange; it misses none of exchanges.
//! - `PAGED_KV_DEMOTE=src/pool/word/block_words.rs:61`: the operations on that line are `Relaxed`, or the ordering
//!   in `PAGED_KV_DEMOTE_TO` (`acquire`, `release`, `acqrel`). A `Relaxed` fence has no effect.
//! - `PAGED_KV_LIST_SITES=FILE`: each line with an atomic operation that is not `Relaxed` is appended to the
//!   file: place, operation, ordering.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::panic::Location;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, OnceLock};

/// Defines an atomic with the operations that every atomic has.
macro_rules! atomic {
    ($name:ident, $value:ty, $read:expr) => {
        #[derive(Debug)]
        pub(crate) struct $name(loom::sync::atomic::$name);

        #[allow(dead_code, reason = "every atomic has them, not every one is asked for all")]
        impl $name {
            #[track_caller]
            pub(crate) fn new(value: $value) -> Self {
                Self(loom::sync::atomic::$name::new(value))
            }

            #[track_caller]
            pub(crate) fn load(&self, order: Ordering) -> $value {
                let order = as_run(order, "load");
                if every_access_is_an_exchange() {
                    let read: fn(&loom::sync::atomic::$name, Ordering) -> $value = $read;
                    return read(&self.0, order);
                }
                self.0.load(order)
            }

            #[track_caller]
            pub(crate) fn store(&self, value: $value, order: Ordering) {
                let order = as_run(order, "store");
                if every_access_is_an_exchange() {
                    self.0.swap(value, order);
                } else {
                    self.0.store(value, order);
                }
            }

            #[track_caller]
            pub(crate) fn compare_exchange(
                &self,
                current: $value,
                new: $value,
                order: Ordering,
                failure: Ordering,
            ) -> Result<$value, $value> {
                let order = as_run(order, "compare_exchange");
                let failure = match failure {
                    Ordering::Relaxed => failure,
                    _ => as_run(failure, "compare_exchange that fails"),
                };
                self.0.compare_exchange(current, new, order, failure)
            }

            #[track_caller]
            pub(crate) fn compare_exchange_weak(
                &self,
                current: $value,
                new: $value,
                order: Ordering,
                failure: Ordering,
            ) -> Result<$value, $value> {
                self.compare_exchange(current, new, order, failure)
            }
        }
    };
}

/// Defines an atomic number with its further operations.
macro_rules! atomic_number {
    ($name:ident, $value:ty) => {
        atomic!($name, $value, |atomic, order| atomic.fetch_or(0, order));

        #[allow(dead_code, reason = "every atomic has them, not every one is asked for all")]
        impl $name {
            #[track_caller]
            pub(crate) fn swap(&self, value: $value, order: Ordering) -> $value {
                self.0.swap(value, as_run(order, "swap"))
            }

            #[track_caller]
            pub(crate) fn fetch_add(&self, value: $value, order: Ordering) -> $value {
                self.0.fetch_add(value, as_run(order, "fetch_add"))
            }

            #[track_caller]
            pub(crate) fn fetch_update(
                &self,
                order: Ordering,
                failure: Ordering,
                mut step: impl FnMut($value) -> Option<$value>,
            ) -> Result<$value, $value> {
                let mut seen = self.load(failure);
                while let Some(next) = step(seen) {
                    match self.compare_exchange(seen, next, order, failure) {
                        Ok(_) => return Ok(seen),
                        Err(now) => seen = now,
                    }
                }
                Err(seen)
            }

            #[track_caller]
            pub(crate) fn fetch_sub(&self, value: $value, order: Ordering) -> $value {
                self.0.fetch_sub(value, as_run(order, "fetch_sub"))
            }

            #[track_caller]
            pub(crate) fn fetch_or(&self, value: $value, order: Ordering) -> $value {
                self.0.fetch_or(value, as_run(order, "fetch_or"))
            }

            #[track_caller]
            pub(crate) fn fetch_and(&self, value: $value, order: Ordering) -> $value {
                self.0.fetch_and(value, as_run(order, "fetch_and"))
            }

            #[track_caller]
            pub(crate) fn fetch_max(&self, value: $value, order: Ordering) -> $value {
                self.0.fetch_max(value, as_run(order, "fetch_max"))
            }
        }
    };
}

atomic!(AtomicBool, bool, |atomic, order| atomic.fetch_or(false, order));
atomic_number!(AtomicU8, u8);
atomic_number!(AtomicU32, u32);
atomic_number!(AtomicU64, u64);
atomic_number!(AtomicUsize, usize);

/// A fence, unless the run removes it.
#[track_caller]
pub(crate) fn fence(order: Ordering) {
    match as_run(order, "fence") {
        Ordering::Relaxed => {}
        order => loom::sync::atomic::fence(order),
    }
}

/// Returns the ordering that this run gives to an operation with `order` at the caller's line.
#[track_caller]
fn as_run(order: Ordering, operation: &str) -> Ordering {
    static RUN: OnceLock<ModelOptions> = OnceLock::new();
    let run = RUN.get_or_init(ModelOptions::from_environment);
    if order != Ordering::Relaxed
        && let Some(sites) = &run.sites
    {
        let place = Location::caller();
        sites.note(&format!("{}:{}\t{operation}\t{order:?}", place.file(), place.line()));
    }
    match &run.demoted {
        Some(line) if line.is(Location::caller()) => demotion(run.demoted_to, operation),
        _ => order,
    }
}

/// Returns the demoted ordering. A load cannot release and a store cannot acquire, so both become `Relaxed`.
fn demotion(to: Ordering, operation: &str) -> Ordering {
    match operation {
        "load" | "store" | "compare_exchange that fails" => Ordering::Relaxed,
        _ => to,
    }
}

pub(crate) fn every_access_is_an_exchange() -> bool {
    static SC: OnceLock<bool> = OnceLock::new();
    *SC.get_or_init(|| std::env::var_os("PAGED_KV_LOOM_SC").is_some_and(|value| value == "1"))
}

/// The settings of this run from the environment.
struct ModelOptions {
    demoted: Option<Line>,
    demoted_to: Ordering,
    sites: Option<Sites>,
}

impl ModelOptions {
    fn from_environment() -> Self {
        let demoted_to = match std::env::var("PAGED_KV_DEMOTE_TO").as_deref() {
            Ok("acquire") => Ordering::Acquire,
            Ok("release") => Ordering::Release,
            Ok("acqrel") => Ordering::AcqRel,
            Ok("relaxed") | Err(_) => Ordering::Relaxed,
            Ok(other) => panic!("PAGED_KV_DEMOTE_TO is no ordering: {other}"),
        };
        Self {
            demoted: std::env::var("PAGED_KV_DEMOTE").ok().map(|line| Line::parse(&line)),
            demoted_to,
            sites: std::env::var_os("PAGED_KV_LIST_SITES").map(|path| Sites::append_to(&path)),
        }
    }
}

/// A line of the source.
struct Line {
    file: String,
    number: u32,
}

impl Line {
    fn parse(line: &str) -> Self {
        let parsed = line.rsplit_once(':').and_then(|(file, number)| {
            Some(Self { file: file.to_owned(), number: number.parse().ok()? })
        });
        parsed.unwrap_or_else(|| panic!("PAGED_KV_DEMOTE is FILE:LINE, not {line}"))
    }

    fn is(&self, location: &Location<'_>) -> bool {
        self.number == location.line() && location.file().ends_with(&self.file)
    }
}

/// The lines with atomic operations so far, and the file that lists them.
struct Sites(Mutex<(BTreeSet<String>, File)>);

impl Sites {
    fn append_to(path: &std::ffi::OsStr) -> Self {
        let file = File::options().create(true).append(true).open(path);
        Self(Mutex::new((BTreeSet::new(), file.expect("the list of sites can be written"))))
    }

    fn note(&self, site: &str) {
        let (seen, file) = &mut *self.0.lock().expect("writing a line does not panic");
        if seen.insert(site.to_owned()) {
            writeln!(file, "{site}").expect("the list of sites can be written");
        }
    }
}
