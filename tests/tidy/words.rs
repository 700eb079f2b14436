//! The words that the library does without, and the crates that only one module may name.

use crate::rust::{Source, paths};

/// Macros that are left over from writing, or that print where a library should not.
const MACROS: &[&str] = &["todo", "unimplemented", "dbg", "print", "println", "eprint", "eprintln"];

/// Path prefixes and the one module that may name them. All other modules take atomics, locks and maps
/// from `sync`, so that models can replace them.
const HOMES: &[(&str, &str)] = &[
    ("std::sync", "sync"),
    ("core::sync", "sync"),
    ("alloc::sync", "sync"),
    ("crossbeam", "sync"),
    ("parking_lot", "sync"),
    ("loom", "sync"),
    ("dashmap", "sync"),
    ("shuttle", "sync"),
    ("shuttle_dashmap", "sync"),
];

/// Returns each `unsafe`, and each of the macros above.
pub fn forbidden_words(source: &Source) -> Vec<String> {
    let tokens = source.shipped();
    let is_call = |at: usize| tokens.get(at + 1).is_some_and(|token| token == "!");
    let is_forbidden =
        |at: usize| tokens[at] == "unsafe" || MACROS.contains(&tokens[at].as_str()) && is_call(at);
    let found = (0..tokens.len()).filter(|&at| is_forbidden(at));
    found.map(|at| format!("src/{}: {}", source.path, tokens[at])).collect()
}

/// Returns the crates that are named outside their module.
pub fn strayed_crates(source: &Source) -> Vec<String> {
    let module = source.module();
    let mut faults = Vec::new();
    for path in paths(&source.shipped(), module) {
        let path = path.join("::");
        for (prefix, home) in HOMES {
            if within(&path, prefix, "::") && !within(module, home, "/") {
                faults.push(format!("src/{}: {path} is named in {home} only", source.path));
            }
        }
    }
    faults
}

/// True if `path` is `prefix` or continues it after a separator.
fn within(path: &str, prefix: &str, separator: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with(separator))
}

#[cfg(test)]
fn source(path: &str, text: &str) -> Source {
    Source { path: path.to_owned(), text: text.to_owned() }
}

#[test]
fn each_forbidden_word_is_found() {
    for text in [
        "unsafe { f() }",
        "fn f() { todo!() }",
        "fn f() { unimplemented!(\"x\") }",
        "fn f() { dbg!(1); }",
        "fn f() { println!(); }",
        "fn f() { eprintln!(); }",
    ] {
        assert_eq!(forbidden_words(&source("evict.rs", text)).len(), 1, "{text}");
    }
}

#[test]
fn a_word_in_a_comment_a_literal_or_a_test_is_none() {
    let text = "#![forbid(unsafe_code)] // unsafe, todo!()\nconst A: &str = \"println!\";\n\
                fn f(print: u8) {}\n#[cfg(test)] mod tests { fn f() { println!() } }";
    assert_eq!(forbidden_words(&source("evict.rs", text)), [""; 0]);
}

#[test]
fn a_crate_away_from_home_is_found() {
    for text in [
        "use std::sync::Arc;",
        "use std::{fmt, sync::{atomic::AtomicU32}};",
        "static A: core::sync::atomic::AtomicU32 = B;",
        "use loom::thread;",
        "fn f(x: parking_lot::Mutex<u8>) {}",
        "use crossbeam::queue::ArrayQueue;",
        "use dashmap::DashMap;",
        "use shuttle::sync::Mutex;",
    ] {
        assert_eq!(strayed_crates(&source("pool/word.rs", text)).len(), 1, "{text}");
    }
}

#[test]
fn a_crate_at_home_is_not() {
    let text = "use std::sync::Arc; use loom::x; use dashmap::DashMap;";
    assert_eq!(strayed_crates(&source("sync/shipped.rs", text)), [""; 0]);
    assert_eq!(strayed_crates(&source("pool/word.rs", "use crate::sync::Arc;")), [""; 0]);
}
