//! The root of the library: `lib.rs` only documents and re-exports.

use crate::rust::{attribute_end, code, tokens};

/// The beginnings that an item of the root may have.
const ALLOWED: &[&[&str]] = &[&["mod"], &["pub", "mod"], &["pub", "use"]];

/// Returns every item that is neither a module nor a `pub use`.
pub fn faults(text: &str) -> Vec<String> {
    let tokens = tokens(&code(text));
    let mut items = vec![Vec::new()];
    let mut at = 0;
    while at < tokens.len() {
        let end = attribute_end(&tokens, at);
        if end > at {
            at = end;
            continue;
        }
        if tokens[at] == ";" {
            items.push(Vec::new());
        } else {
            items.last_mut().expect("begins with one").push(tokens[at].as_str());
        }
        at += 1;
    }
    let faulty = items.iter().filter(|item| !item.is_empty() && !is_allowed(item));
    faulty
        .map(|item| format!("src/lib.rs: only mod and pub use, not: {}", item.join(" ")))
        .collect()
}

fn is_allowed(item: &[&str]) -> bool {
    let is_use = item.contains(&"use");
    ALLOWED.iter().any(|start| item.starts_with(start)) && (is_use || !item.contains(&"{"))
}

#[test]
fn documentation_modules_and_exports_may_stand_in_the_root() {
    let text = "//! Words.\n#![forbid(unsafe_code)]\nmod a;\n/// B.\npub mod b;\n\
                #[cfg(doc)] pub mod guide;\npub use a::{C, d::E};\n";
    assert_eq!(faults(text), [""; 0]);
}

#[test]
fn anything_else_may_not() {
    for text in [
        "fn f() {}",
        "use a::B;",
        "mod a { fn f() {} }",
        "pub struct X;",
        "mod a; const B: u8 = 1;",
    ] {
        assert_eq!(faults(text).len(), 1, "{text}");
    }
}
