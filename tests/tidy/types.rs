//! The types of the library: each name is declared once, so that it means one thing.

use std::collections::BTreeMap;

use crate::rust::{Source, code};

/// Folders whose types have the names of the types that they stand in for.
const STAND_INS: &str = "sync/";

/// Returns every name that two declarations outside functions have.
pub fn repeated(library: &[Source]) -> Vec<String> {
    let mut declared: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for source in library.iter().filter(|source| !source.path.starts_with(STAND_INS)) {
        for line in code(&source.text).lines() {
            if let Some(name) = declared_in(line) {
                declared.entry(name.to_owned()).or_default().push(&source.path);
            }
        }
    }
    let repeated = declared.into_iter().filter(|(_, paths)| paths.len() > 1);
    repeated.map(|(name, paths)| format!("{name}: declared in {}", paths.join(", "))).collect()
}

/// Returns the type that a line declares, if it begins with the declaration.
fn declared_in(line: &str) -> Option<&str> {
    let words =
        line.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty());
    let is_visibility = |word: &&str| ["pub", "crate", "super", "self", "in"].contains(word);
    let mut words = words.skip_while(|word| {
        is_visibility(word) || word.chars().all(char::is_lowercase) && !is_keyword(word)
    });
    let is_at_start = line.starts_with(|c: char| c.is_lowercase());
    (is_at_start && words.next().is_some_and(is_keyword)).then(|| words.next()).flatten()
}

fn is_keyword(word: &str) -> bool {
    ["struct", "enum", "trait", "type"].contains(&word)
}

#[test]
fn a_name_that_is_declared_twice_is_found() {
    let source = |path: &str, text: &str| Source { path: path.to_owned(), text: text.to_owned() };
    let library = [
        source("a.rs", "pub(in crate::pool) struct Batch(u32);\nfn f() {\n    struct Inner;\n}\n"),
        source("b.rs", "enum Batch {}\nimpl X {\n    type Item = u32;\n}\nuse c::Inner;\n"),
        source("c.rs", "pub struct Inner;\nimpl Y {\n    type Item = u8;\n}\n"),
        source("sync/d.rs", "pub(crate) struct Inner;\n"),
    ];
    assert_eq!(repeated(&library), ["Batch: declared in a.rs, b.rs"]);
}
