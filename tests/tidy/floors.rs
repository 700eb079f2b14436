//! The floors of the modules decide which module may import which. Inside a module no files import each other in
//! a circle.
//!
//! Every module of the root has a floor and imports only from floors below. The root is on no floor: it
//! re-exports, and nothing imports from it. A file may import from a file whose folder it is in (its parent), as
//! `use super::..` does; such an import makes no circle.

use std::collections::BTreeMap;

use crate::rust::{Source, paths};

/// The floor of each module of the root, from below. A new module needs a row.
const FLOORS: &[(&str, u8)] = &[
    ("id", 0),
    ("sync", 0),
    ("error", 1),
    ("epochs", 1),
    ("counter", 1),
    ("clock", 1),
    ("lease_count", 1),
    ("stats", 1),
    ("trace", 1),
    ("array", 2),
    ("groups", 2),
    ("pool", 3),
    ("table", 4),
    ("sequence", 5),
    ("prefix", 5),
    ("export", 6),
    ("tier", 6),
    ("event", 6),
    ("cache", 7),
    ("metrics", 8),
    ("tier_store", 8),
    ("wait", 8),
    ("loom_api", 9),
];

/// Files on no floor: the root, and the guide, which is documentation.
const NO_FLOOR: &[&str] = &["lib", "guide"];

/// Returns modules without a floor, imports that go up or sideways, imports from the root, and circles.
pub fn faults(library: &[Source]) -> Vec<String> {
    let modules: Vec<&str> = library.iter().map(Source::module).collect();
    let on_floors: Vec<_> =
        library.iter().filter(|source| !NO_FLOOR.contains(&source.module())).collect();
    let mut faults: Vec<String> =
        on_floors.iter().flat_map(|source| faults_of(source, &modules)).collect();
    faults.extend(circles(&on_floors, &modules));
    faults
}

fn faults_of(source: &Source, modules: &[&str]) -> Vec<String> {
    let (path, from) = (&source.path, source.module());
    let Some(floor) = floor(from) else {
        let module = root_of(from);
        return vec![format!(
            "{path}: no floor; add (\"{module}\", floor) to FLOORS in tests/tidy"
        )];
    };
    let mut faults = Vec::new();
    for (import, to) in imports(source, modules) {
        match to {
            None => faults.push(format!(
                "{path}: {import} is of no file but the root, which nothing imports"
            )),
            Some(to) if root_of(to) == root_of(from) || self::floor(to) < Some(floor) => {}
            Some(to) => {
                let to_floor = self::floor(to).map_or("no floor".to_owned(), |f| format!("F{f}"));
                faults
                    .push(format!("{path}: {import}: F{floor} does not import {to} ({to_floor})"));
            }
        }
    }
    faults
}

/// Returns the paths into the crate that a file names outside its tests, each with the file it leads into.
fn imports<'a>(source: &Source, modules: &[&'a str]) -> Vec<(String, Option<&'a str>)> {
    let all = paths(&source.shipped(), source.module());
    let of_crate = all.iter().filter_map(|import| match import.as_slice() {
        [first, names @ ..] if first == "crate" => {
            Some((import.join("::"), target(names, modules)))
        }
        _ => None,
    });
    of_crate.collect()
}

/// Returns the file that an absolute path leads into.
fn target<'a>(names: &[String], modules: &[&'a str]) -> Option<&'a str> {
    let lead = |len: usize| modules.iter().find(|module| **module == names[..len].join("/"));
    (1..=names.len()).rev().find_map(lead).copied()
}

fn root_of(module: &str) -> &str {
    module.split('/').next().unwrap_or(module)
}

fn floor(module: &str) -> Option<u8> {
    FLOORS.iter().find(|(name, _)| *name == root_of(module)).map(|&(_, floor)| floor)
}

/// Returns every file from which imports lead back to it, with the way.
fn circles(library: &[&Source], modules: &[&str]) -> Vec<String> {
    let shipped = library.iter().filter(|source| !source.is_tests());
    let edges_of = |source: &&&Source| {
        let from = source.module();
        let is_inside =
            |to: &&str| from.strip_prefix(*to).is_some_and(|rest| rest.starts_with('/'));
        let targets = imports(source, modules).into_iter().filter_map(|(_, to)| to);
        targets.filter(|to| *to != from && !is_inside(to)).collect::<Vec<_>>()
    };
    let edges: BTreeMap<&str, Vec<&str>> =
        shipped.map(|source| (source.module(), edges_of(&source))).collect();
    let back = |from: &&&str| way(from, from, &edges, &mut Vec::new());
    edges.keys().filter_map(|from| back(&from)).map(|way| format!("circle: {way}")).collect()
}

/// Returns a way along `edges` from a file to `end`, which is not among `seen`.
fn way<'a>(
    from: &'a str,
    end: &str,
    edges: &BTreeMap<&'a str, Vec<&'a str>>,
    seen: &mut Vec<&'a str>,
) -> Option<String> {
    for to in edges.get(from)? {
        if *to == end {
            return Some(format!("{from} -> {to}"));
        }
        if !seen.contains(to) {
            seen.push(to);
            if let Some(rest) = way(to, end, edges, seen) {
                return Some(format!("{from} -> {rest}"));
            }
        }
    }
    None
}

/// Returns the faults of some files next to the others of a small library.
#[cfg(test)]
fn faults_in(files: &[(&str, &str)]) -> Vec<String> {
    let others = [
        "id.rs",
        "error.rs",
        "sync/mod.rs",
        "pool/mod.rs",
        "pool/word.rs",
        "sequence.rs",
        "prefix/index.rs",
        "cache/mod.rs",
        "export.rs",
    ];
    let empty = |path: &&str| Source { path: (*path).to_owned(), text: String::new() };
    let mut library: Vec<Source> = others.iter().map(empty).collect();
    library.retain(|source| files.iter().all(|(path, _)| source.path != *path));
    let given = files.iter();
    library.extend(
        given.map(|(path, text)| Source { path: (*path).to_owned(), text: (*text).to_owned() }),
    );
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
    ] {
        assert_eq!(faults_in(&[("pool/word.rs", text)]).len(), 1, "{text}");
    }
}

#[test]
fn an_import_that_goes_down_or_is_for_tests_is_none() {
    for text in [
        "use crate::id::BlockId;",
        "use crate::error::{PagedKvError, Result};",
        "use super::Blocks;",
        "use self::inner::X;",
        "use std::sync::Arc;",
        "/// [`Sequence`](crate::sequence::Sequence)\nstruct X;",
        "#[cfg(all(test, not(paged_kv_loom)))] mod tests { use crate::cache::X; use super::*; }",
        "pub(in crate::pool) struct X;",
    ] {
        assert_eq!(faults_in(&[("pool/word.rs", text)]), [""; 0], "{text}");
    }
}

#[test]
fn sequence_and_prefix_do_not_meet() {
    assert_eq!(faults_in(&[("sequence.rs", "use crate::prefix::index::X;")]).len(), 1);
    assert_eq!(faults_in(&[("prefix/index.rs", "use crate::sequence::X;")]).len(), 1);
}

#[test]
fn the_cache_uses_exports_and_not_the_reverse() {
    assert_eq!(faults_in(&[("cache/mod.rs", "use crate::export::X;")]), [""; 0]);
    assert_eq!(faults_in(&[("export.rs", "use crate::cache::X;")]).len(), 1);
}

#[test]
fn nothing_imports_from_the_root() {
    for text in ["use crate::BlockId;", "use crate::*;", "use crate::{Result, id::BlockId};"] {
        assert_eq!(faults_in(&[("pool/mod.rs", text)]).len(), 1, "{text}");
    }
}

#[test]
fn a_module_without_a_floor_is_named() {
    let faults = faults_in(&[("shelf/box.rs", "")]);
    assert_eq!(faults.len(), 1);
    assert!(faults[0].contains("add (\"shelf\", floor) to FLOORS"), "{faults:?}");
}

#[test]
fn a_circle_is_found_at_each_of_its_files() {
    let there = ("pool/list.rs", "use super::idle::X;");
    let on = ("pool/idle.rs", "use super::shard::X;");
    let back = ("pool/shard.rs", "use crate::pool::list::X;");
    assert_eq!(faults_in(&[there, on, back]).len(), 3);
    assert_eq!(faults_in(&[there, on]).len(), 0);
}

#[test]
fn an_import_from_the_own_parent_makes_no_circle() {
    let parent = ("pool/list.rs", "use self::shard::X;");
    let child = ("pool/list/shard.rs", "use super::Y; use crate::pool::Z;");
    assert_eq!(faults_in(&[parent, child]), [""; 0]);
}
