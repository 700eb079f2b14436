//! The same rules, after threads have done all this at once.
