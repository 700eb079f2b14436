//! [`record`]: a small subscriber that keeps the events of `paged_kv` that a closure causes.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// One event: its level, its message and its numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    pub level: String,
    pub message: String,
    pub fields: BTreeMap<String, u64>,
}

impl Told {
    pub fn new(level: &str, message: &str, fields: &[(&str, u64)]) -> Self {
        let fields = fields.iter().map(|&(name, value)| (name.to_owned(), value)).collect();
        Self { level: level.to_owned(), message: message.to_owned(), fields }
    }
}

impl Visit for Told {
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.fields.insert(field.name().to_owned(), value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        assert_eq!(field.name(), "message", "all other fields are numbers");
        self.message = format!("{value:?}");
    }
}

/// Keeps the events, and calls a hook at each.
struct Recorder<F> {
    told: Arc<Mutex<Vec<Told>>>,
    hook: F,
}

impl<F: Fn() + Send + Sync + 'static> Subscriber for Recorder<F> {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "paged_kv"
    }

    fn event(&self, event: &Event<'_>) {
        let level = event.metadata().level().to_string();
        let mut told = Told { level, ..Told::default() };
        event.record(&mut told);
        lock(&self.told).push(told);
        (self.hook)();
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

/// Returns the events that this thread emitted while `operation` ran, and its outcome.
pub fn record<R>(operation: impl FnOnce() -> R) -> (Vec<Told>, R) {
    let told = Arc::default();
    let recorder = Recorder { told: Arc::clone(&told), hook: || () };
    let outcome = tracing::subscriber::with_default(recorder, operation);
    let told = lock(&told).clone();
    (told, outcome)
}

/// Calls `hook` at each event of `operation`, in the thread that emits it. Returns the number of events.
pub fn with_hook(hook: impl Fn() + Send + Sync + 'static, operation: impl FnOnce()) -> usize {
    let told = Arc::default();
    let recorder = Recorder { told: Arc::clone(&told), hook };
    tracing::subscriber::with_default(recorder, operation);
    lock(&told).len()
}

/// Returns the events that all threads emitted while `operation` ran. Only one test may call it: it sets the
/// subscriber of the process.
#[cfg_attr(not(feature = "events"), allow(dead_code, reason = "publishers have threads"))]
pub fn record_all_threads<R>(operation: impl FnOnce() -> R) -> (Vec<Told>, R) {
    let told = Arc::default();
    let recorder = Recorder { told: Arc::clone(&told), hook: || () };
    tracing::subscriber::set_global_default(recorder).expect("it is set once");
    let outcome = operation();
    let only_batches = |told: &&Told| told.fields.contains_key("batches");
    let told = lock(&told).iter().filter(only_batches).cloned().collect();
    (told, outcome)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
