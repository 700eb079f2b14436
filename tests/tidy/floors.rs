//! The floors of the modules decide which module may import which.
//!
//! Every module has a floor and imports only from floors below. On its own floor it imports only the
//! modules that a row here allows. The root is on no floor: it re-exports, and nothing imports from it.

use crate::rust::{Source, paths};

/// The floor of each module. `x/*` is `x` and everything in its folder. A new file needs a row.
const FLOORS: &[(&str, u8)] = &[
    ("id", 0),
    ("error", 0),
    ("array", 0),
    ("epochs", 0),
    ("sync/*", 0),
    ("counter", 0),
    ("clock", 0),
    ("pool", 1),
    ("pool/state/*", 1),
    ("pool/name", 1),
    ("pool/fence/*", 1),
    ("pool/cached", 1),
    ("pool/run", 1),
    ("pool/handle", 1),
    ("pool/id_counts", 1),
    ("pool/reclaim", 1),
    ("pool/observer", 1),
    ("pool/capacity", 1),
    ("pool/room", 1),
    ("pool/watermark", 1),
    ("pool/waiters/*", 1),
    ("pool/free_list/*", 1),
    ("table/*", 2),
    ("sequence/*", 3),
    ("prefix/*", 3),
    ("cache/*", 4),
    ("batch", 4),
    ("evict", 4),
    ("stats", 4),
    ("export/*", 4),
    ("step", 4),
    ("event/kv_event", 3),
    ("event/tree", 3),
    ("event/kept_tokens", 3),
    ("event/announcer", 3),
    ("event/claimed_sink", 3),
    ("event/delivery", 3),
    ("event/noted", 3),
    ("wait/*", 5),
    ("event/*", 5),
    ("metrics", 5),
    ("loom_api", 6),
];

/// Pairs on one floor of which the first may import the second. Other pairs may not, such as `sequence`
/// and `prefix`.
const NEIGHBOURS: &[(&str, &str)] = &[
    ("error", "id"),
    ("array", "error"),
    ("epochs", "id"),
    ("epochs", "sync/*"),
    ("array", "sync/*"),
    ("counter", "sync/*"),
    ("clock", "sync/*"),
    ("sync/*", "sync/*"),
    ("pool", "pool/state/*"),
    ("pool", "pool/name"),
    ("pool", "pool/handle"),
    ("pool", "pool/fence/*"),
    ("pool", "pool/run"),
    ("pool/fence/*", "pool/fence/*"),
    ("pool/fence/*", "pool/run"),
    ("pool/fence/*", "pool"),
    ("pool/cached", "pool"),
    ("pool/cached", "pool/name"),
    ("pool/cached", "pool/free_list/*"),
    ("pool/run", "pool"),
    ("pool", "pool/id_counts"),
    ("pool", "pool/reclaim"),
    ("pool", "pool/observer"),
    ("pool/observer", "pool"),
    ("pool/handle", "pool"),
    ("pool/room", "pool"),
    ("pool/watermark", "pool"),
    ("pool/room", "pool/waiters/*"),
    ("pool", "pool/waiters/*"),
    ("pool/waiters/*", "pool"),
    ("pool/waiters/*", "pool/waiters/*"),
    ("pool", "pool/capacity"),
    ("pool/name", "pool/state/*"),
    ("pool/state/*", "pool/state/*"),
    ("pool/free_list/*", "pool/name"),
    ("pool/free_list/*", "pool/reclaim"),
    ("pool", "pool/free_list/*"),
    ("pool/free_list/*", "pool/state/*"),
    ("pool/free_list/*", "pool/capacity"),
    ("pool/free_list/*", "pool/free_list/*"),
    ("table/*", "table/*"),
    ("sequence/*", "sequence/*"),
    ("prefix/*", "prefix/*"),
    ("prefix/*", "event/kv_event"),
    ("prefix/*", "event/tree"),
    ("prefix/*", "event/announcer"),
    ("prefix/*", "event/claimed_sink"),
    ("event/announcer", "event/claimed_sink"),
    ("event/announcer", "event/kv_event"),
    ("event/announcer", "event/tree"),
    ("event/claimed_sink", "event/kv_event"),
    ("event/tree", "prefix/*"),
    ("event/tree", "event/kept_tokens"),
    ("event/kv_event", "prefix/*"),
    ("event/announcer", "prefix/*"),
    ("event/delivery", "prefix/*"),
    ("event/noted", "prefix/*"),
    ("cache/*", "cache/*"),
    ("cache/*", "batch"),
    ("cache/*", "evict"),
    ("cache/*", "stats"),
    ("cache/*", "export/*"),
    ("cache/*", "step"),
    ("export/*", "export/*"),
    ("event/*", "event/*"),
    ("wait/*", "wait/*"),
];

/// Files on no floor: the root, and the guide, which is documentation.
const NO_FLOOR: &[&str] = &["lib", "guide"];

/// Returns files without a floor, imports that go up or sideways, and imports from the root.
pub fn faults(library: &[Source]) -> Vec<String> {
    let modules: Vec<&str> = library.iter().map(Source::module).collect();
    let on_floors = library.iter().filter(|source| !NO_FLOOR.contains(&source.module()));
    on_floors.flat_map(|source| faults_of(source, &modules)).collect()
}

fn faults_of(source: &Source, modules: &[&str]) -> Vec<String> {
    let (path, from) = (&source.path, source.module());
    let Some(floor) = floor(from) else {
        return vec![format!("{path}: no floor; add (\"{from}\", floor) to FLOORS in tests/tidy")];
    };
    let mut faults = Vec::new();
    for import in paths(&source.shipped(), from) {
        let [first, names @ ..] = import.as_slice() else {
            continue;
        };
        if first != "crate" {
            continue;
        }
        let shown = import.join("::");
        match target(names, modules) {
            None => faults
                .push(format!("{path}: {shown} is of no file but the root, which nothing imports")),
            Some(to) if may_import(from, to) => {}
            Some(to) => {
                let to_floor = self::floor(to).map_or("no floor".to_owned(), |f| format!("F{f}"));
                faults.push(format!("{path}: {shown}: F{floor} does not import {to} ({to_floor})"));
            }
        }
    }
    faults
}

/// Returns the file that an absolute path leads into.
fn target<'a>(names: &[String], modules: &[&'a str]) -> Option<&'a str> {
    let lead = |len: usize| modules.iter().find(|module| **module == names[..len].join("/"));
    (1..=names.len()).rev().find_map(lead).copied()
}

fn may_import(from: &str, to: &str) -> bool {
    let is_neighbour = |(left, right): &(&str, &str)| matches(left, from) && matches(right, to);
    from == to
        || floor(to) < floor(from) && floor(to).is_some()
        || NEIGHBOURS.iter().any(is_neighbour)
}

fn floor(module: &str) -> Option<u8> {
    FLOORS.iter().find(|(pattern, _)| matches(pattern, module)).map(|&(_, floor)| floor)
}

fn matches(pattern: &str, module: &str) -> bool {
    match pattern.strip_suffix("/*") {
        None => pattern == module,
        Some(folder) => {
            module.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        }
    }
}

/// Returns the faults of one file next to the others of a small library.
#[cfg(test)]
fn faults_in(path: &str, text: &str) -> Vec<String> {
    let house = ["id.rs", "error.rs", "sync/mod.rs", "pool/mod.rs", "pool/state.rs"];
    let upstairs =
        ["pool/capacity.rs", "sequence.rs", "prefix/index.rs", "cache/mod.rs", "evict.rs"];
    let empty = |path: &&str| Source { path: (*path).to_owned(), text: String::new() };
    let mut library: Vec<Source> = house.iter().chain(&upstairs).map(empty).collect();
    library.retain(|source| source.path != path);
    library.push(Source { path: path.to_owned(), text: text.to_owned() });
    faults(&library)
}

#[test]
fn an_import_that_goes_up_is_found_however_it_is_written() {
    for text in [
        "use crate::sequence::Sequence;",
        "use crate::{id::BlockId, sequence::Sequence};",
        "fn f(x: &crate::sequence::Sequence) {}",
        "#[error(\"{most}\", most = crate::cache::MOST)] struct X;",
        "use super::super::sequence;",
        "use super::Pool;",
        "use super::capacity::Room;",
    ] {
        assert_eq!(faults_in("pool/state.rs", text).len(), 1, "{text}");
    }
}

#[test]
fn an_import_that_goes_down_or_is_for_tests_is_none() {
    for text in [
        "use crate::id::BlockId;",
        "use crate::error::{PagedKvError, Result};",
        "use self::inner::X;",
        "use std::sync::Arc;",
        "/// [`Sequence`](crate::sequence::Sequence)\nstruct X;",
        "#[cfg(all(test, not(paged_kv_loom)))] mod tests { use crate::cache::X; use super::*; }",
        "pub(in crate::pool) struct X;",
    ] {
        assert_eq!(faults_in("pool/state.rs", text), [""; 0], "{text}");
    }
}

#[test]
fn sequence_and_prefix_do_not_meet() {
    assert_eq!(faults_in("sequence.rs", "use crate::prefix::index::X;").len(), 1);
    assert_eq!(faults_in("prefix/index.rs", "use crate::sequence::X;").len(), 1);
}

#[test]
fn the_cache_uses_evict_and_not_the_reverse() {
    assert_eq!(faults_in("cache/mod.rs", "use crate::evict::X;"), [""; 0]);
    assert_eq!(faults_in("evict.rs", "use crate::cache::X;").len(), 1);
}

#[test]
fn nothing_imports_from_the_root() {
    for text in ["use crate::BlockId;", "use crate::*;", "use crate::{Result, id::BlockId};"] {
        assert_eq!(faults_in("pool/mod.rs", text).len(), 1, "{text}");
    }
}

#[test]
fn a_file_without_a_floor_is_named() {
    let faults = faults_in("pool/shelf.rs", "");
    assert_eq!(faults.len(), 1);
    assert!(faults[0].contains("add (\"pool/shelf\", floor) to FLOORS"), "{faults:?}");
}
