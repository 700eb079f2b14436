//! `thread_local`: variables of which each logical thread has its own.

use std::cell::RefCell;
use std::mem::ManuallyDrop;
use std::thread::{AccessError, LocalKey};

use super::coherence::logical_thread;

/// The values of the logical threads of one thread, in the order of their numbers. They are never dropped.
pub(crate) type OfThreads<T> = ManuallyDrop<RefCell<Vec<Option<&'static T>>>>;

/// A variable of which each logical thread has its own.
pub(crate) struct Local<T: 'static> {
    of_threads: &'static LocalKey<OfThreads<T>>,
    make: fn() -> T,
}

impl<T> Local<T> {
    pub(crate) const fn new(of_threads: &'static LocalKey<OfThreads<T>>, make: fn() -> T) -> Self {
        Self { of_threads, make }
    }

    pub(crate) fn with<R>(&'static self, look: impl FnOnce(&T) -> R) -> R {
        let thread = logical_thread().unwrap_or(0);
        let value = self.of_threads.with(|values| {
            let mut values = values.borrow_mut();
            if values.len() <= thread {
                values.resize(thread + 1, None);
            }
            *values[thread].get_or_insert_with(|| Box::leak(Box::new((self.make)())))
        });
        look(value)
    }

    /// Does as [`with`](Self::with), which cannot fail.
    pub(crate) fn try_with<R>(&'static self, look: impl FnOnce(&T) -> R) -> Result<R, AccessError> {
        Ok(self.with(look))
    }
}

/// Defines variables as `std::thread_local!` does, with values for each logical thread.
macro_rules! thread_locals {
    ($($(#[$attribute:meta])* $visible:vis static $name:ident: $type:ty = const $make:block;)*) => {$(
        $(#[$attribute])*
        $visible static $name: $crate::sync::census::Local<$type> = {
            std::thread_local! {
                static OF_THREADS: $crate::sync::census::OfThreads<$type> =
                    const { std::mem::ManuallyDrop::new(std::cell::RefCell::new(Vec::new())) };
            }
            $crate::sync::census::Local::new(&OF_THREADS, || $make)
        };
    )*};
}

pub(crate) use thread_locals as thread_local;
