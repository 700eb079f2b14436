//! The guide: one page for each subject, compiled with the documentation only.
//!
//! | page | subject |
//! |---|---|
//! | [`surface`] | every public name, and the ones that are planned |
//! | [`lifecycle`] | a block from its allocation to its reuse; copy-on-write; runs of forks |
//! | [`glossary`] | the words of this crate beside those of vLLM, SGLang and kvbm |
//! | [`operations`] | every operation with its cost |
//! | [`steps`] | a step of the scheduler while the device is still busy with the one before |
//! | [`groups`] | one pool for models whose layers keep different tokens |
//! | [`retention`] | levels, hints, pins: which contents stay cached |
//! | [`waiting`] | requests that wait for room |
//! | [`events`] | events for routers |
//! | [`replacing`] | the calls of four engines beside ours, and a complete adapter |
//! | [`metrics`] | metrics and trace events for operators |
//! | [`blocking`] | which thread can wait for which |
//! | [`panics`] | which functions may panic, and the state after a panic |
//! | [`errors`] | the kinds of refusals, and whether to retry |
//! | [`stability`] | the changes that each kind of version may bring |
//! | [`internals`] | the design, and why each part of it is correct |
//!
//! The Markdown files are in `src/guide`. Their Rust blocks, and those of `README.md`, are tests.

/// The README, whose Rust blocks are tests.
#[cfg(doctest)]
pub mod readme {
    #![doc = include_str!("../README.md")]
}

pub mod surface {
    #![doc = include_str!("guide/surface.md")]
}

pub mod lifecycle {
    #![doc = include_str!("guide/lifecycle.md")]
}

pub mod glossary {
    #![doc = include_str!("guide/glossary.md")]
}

pub mod operations {
    #![doc = include_str!("guide/operations.md")]
}

pub mod steps {
    #![doc = include_str!("guide/steps.md")]
}

pub mod groups {
    #![doc = include_str!("guide/groups.md")]
}

pub mod tiers {
    #![doc = include_str!("guide/tiers.md")]
}

pub mod retention {
    #![doc = include_str!("guide/retention.md")]
}

pub mod waiting {
    #![doc = include_str!("guide/waiting.md")]
}

pub mod events {
    #![doc = include_str!("guide/events.md")]
}

pub mod replacing {
    #![doc = include_str!("guide/replacing.md")]
}

pub mod metrics {
    #![doc = include_str!("guide/metrics.md")]
}

pub mod blocking {
    #![doc = include_str!("guide/blocking.md")]
}

pub mod panics {
    #![doc = include_str!("guide/panics.md")]
}

pub mod errors {
    #![doc = include_str!("guide/errors.md")]
}

pub mod stability {
    #![doc = include_str!("guide/stability.md")]
}

pub mod internals {
    #![doc = include_str!("guide/internals.md")]
}
