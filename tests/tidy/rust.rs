//! `Source`: a Rust file as tokens, without comments and literals.
//!
//! The reading is rough, and suffices for the rules here. It gives tokens, the items that are built for
//! tests, and the paths with `::` in them, with use trees taken apart. Macros are read like other code.

/// A file and its text.
#[derive(Debug, Clone)]
pub struct Source {
    /// The path inside the folder that was searched, with `/`.
    pub path: String,
    pub text: String,
}

impl Source {
    /// Returns the module of the file: `pool/word` for `pool/word.rs`, `pool` for `pool/mod.rs`.
    pub fn module(&self) -> &str {
        let path = self.path.strip_suffix(".rs").unwrap_or(&self.path);
        path.strip_suffix("/mod").unwrap_or(path)
    }

    /// True if the whole file is tests, declared as `#[cfg(test)] mod tests;` or below that.
    pub fn is_tests(&self) -> bool {
        self.module().split('/').any(|name| name == "tests")
    }

    /// Returns the tokens that are built into the library.
    pub fn shipped(&self) -> Vec<String> {
        without_tests(&tokens(&code(&self.text)))
    }
}

/// Returns `text` with comments removed, and with literals of characters and strings empty.
pub fn code(text: &str) -> String {
    let mut code = String::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let skipped = comment(rest).or_else(|| string(rest)).or_else(|| character(rest));
        match skipped {
            Some(len) => {
                code.push(' ');
                rest = &rest[len..];
            }
            None => {
                // A name is taken whole, so that the r of `for"` does not open a raw string.
                let name = rest.find(|c: char| !is_name(c)).unwrap_or(rest.len());
                let len = name.max(first.len_utf8());
                code.push_str(&rest[..len]);
                rest = &rest[len..];
            }
        }
    }
    code
}

/// Returns the comments of `text`, without their slashes, one a line.
pub fn comments(text: &str) -> String {
    let mut comments = String::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let comment = comment(rest);
        if let Some(len) = comment {
            comments.push_str(rest[..len].trim_start_matches(['/', '!', '*']).trim());
            comments.push('\n');
        }
        let literal = || string(rest).or_else(|| character(rest));
        let name = rest.find(|c: char| !is_name(c)).unwrap_or(rest.len());
        let len = comment.or_else(literal).unwrap_or(name.max(first.len_utf8()));
        rest = &rest[len..];
    }
    comments
}

/// Returns the length of the comment that `text` begins with.
fn comment(text: &str) -> Option<usize> {
    if text.starts_with("//") {
        return Some(text.find('\n').unwrap_or(text.len()));
    }
    if !text.starts_with("/*") {
        return None;
    }
    let mut depth = 0;
    for (at, _) in text.char_indices() {
        let before = &text[..at];
        if text[at..].starts_with("/*") {
            depth += 1;
        } else if before.ends_with("*/") && at > 3 {
            depth -= 1;
            if depth == 0 {
                return Some(at);
            }
        }
    }
    Some(text.len())
}

/// Returns the length of the string literal that `text` begins with.
fn string(text: &str) -> Option<usize> {
    let prefix = ["br", "cr", "b", "c", "r", ""].into_iter().find(|prefix| {
        let quoted = text.strip_prefix(*prefix).unwrap_or_default();
        quoted.starts_with('"')
            || prefix.ends_with('r') && quoted.trim_start_matches('#').starts_with('"')
    })?;
    let hashes = text[prefix.len()..].find('"')?;
    let start = prefix.len() + hashes + 1;
    if prefix.ends_with('r') {
        let end = format!("\"{}", "#".repeat(hashes));
        return Some(text[start..].find(&end).map_or(text.len(), |at| start + at + end.len()));
    }
    Some(start + closing(&text[start..], '"')?)
}

/// Returns the length of the character literal that `text` begins with; a lifetime is none.
fn character(text: &str) -> Option<usize> {
    let text_in = text.strip_prefix('\'')?;
    let mut chars = text_in.chars();
    let first = chars.next()?;
    (first == '\\' || chars.next() == Some('\''))
        .then(|| closing(text_in, '\'').map(|at| at + 1))?
}

/// Returns the length of `text` up to and with the first `quote` that is not escaped.
fn closing(text: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return Some(at + 1),
            _ => {}
        }
    }
    None
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Returns names, `::`, and every other character that is not space by itself.
pub fn tokens(code: &str) -> Vec<String> {
    let mut tokens = Vec::new();
    let mut rest = code.trim_start();
    while let Some(first) = rest.chars().next() {
        let name = rest.find(|c: char| !is_name(c)).unwrap_or(rest.len());
        let len = match name {
            0 if rest.starts_with("::") => 2,
            0 => first.len_utf8(),
            name => name,
        };
        tokens.push(rest[..len].to_owned());
        rest = rest[len..].trim_start();
    }
    tokens
}

/// Returns the tokens that are left when every item under a `cfg` of `test` is removed.
pub fn without_tests(tokens: &[String]) -> Vec<String> {
    let mut left = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let end = attribute_end(tokens, at);
        if end > at && is_cfg_test(&tokens[at..end]) {
            at = item_end(tokens, end);
        } else {
            left.extend_from_slice(&tokens[at..end.max(at + 1)]);
            at = end.max(at + 1);
        }
    }
    left
}

/// Returns one past the outer attribute at `at`; `at` if there is none.
pub fn attribute_end(tokens: &[String], at: usize) -> usize {
    let is = |offset: usize, token: &str| tokens.get(at + offset).is_some_and(|t| t == token);
    if !is(0, "#") {
        return at;
    }
    if is(1, "[") {
        return group_end(tokens, at + 1);
    }
    if is(1, "!") && is(2, "[") {
        return group_end(tokens, at + 2);
    }
    at
}

fn is_cfg_test(attribute: &[String]) -> bool {
    let is_cfg = attribute.get(2).is_some_and(|name| name == "cfg");
    let negated = |at: usize| at >= 2 && attribute[at - 2] == "not";
    is_cfg && (0..attribute.len()).any(|at| attribute[at] == "test" && !negated(at))
}

/// Returns one past the item that begins at `at`, with its further attributes.
fn item_end(tokens: &[String], mut at: usize) -> usize {
    while attribute_end(tokens, at) > at {
        at = attribute_end(tokens, at);
    }
    while at < tokens.len() {
        match tokens[at].as_str() {
            ";" => return at + 1,
            "{" => return group_end(tokens, at),
            "(" | "[" => at = group_end(tokens, at),
            _ => at += 1,
        }
    }
    at
}

/// Returns one past the bracket that closes the one at `at`.
fn group_end(tokens: &[String], at: usize) -> usize {
    let mut depth = 0_usize;
    for (offset, token) in tokens[at..].iter().enumerate() {
        match token.as_str() {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at + offset + 1;
        }
    }
    tokens.len()
}

/// Returns every path of two names or more, as absolute as `module` makes it: `crate`, `self` and `super`
/// are resolved into a first segment `crate`.
pub fn paths(tokens: &[String], module: &str) -> Vec<Vec<String>> {
    let mut here: Vec<String> = module.split('/').map(str::to_owned).collect();
    let mut closings = Vec::new();
    let mut depth = 0_usize;
    let mut paths = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        match tokens[at].as_str() {
            "{" => depth += 1,
            "}" => {
                depth = depth.saturating_sub(1);
                if closings.last() == Some(&depth) {
                    closings.pop();
                    here.pop();
                }
            }
            "mod" if tokens.get(at + 2).is_some_and(|token| token == "{") => {
                closings.push(depth);
                here.push(tokens[at + 1].clone());
            }
            _ if begins_path(tokens, at) => {
                let mut found = Vec::new();
                at = tree(tokens, at, Vec::new(), &mut found);
                paths.extend(found.into_iter().map(|path| absolute(path, &here)));
                continue;
            }
            _ => {}
        }
        at += 1;
    }
    paths
}

/// True if a path begins at `at`, other than the one in `pub(in ..)`.
fn begins_path(tokens: &[String], at: usize) -> bool {
    let is_name_at = |at: usize| tokens.get(at).is_some_and(|token| token.starts_with(is_name));
    let before = at.checked_sub(1).map_or("", |before| tokens[before].as_str());
    is_name_at(at)
        && tokens.get(at + 1).is_some_and(|token| token == "::")
        && before != "::"
        && !(before == "in" && at >= 2 && tokens[at - 2] == "(")
}

/// Takes the use tree at `at` apart; returns its end.
fn tree(tokens: &[String], at: usize, prefix: Vec<String>, found: &mut Vec<Vec<String>>) -> usize {
    let token = tokens.get(at).map_or("", String::as_str);
    if token == "{" {
        let end = group_end(tokens, at);
        let mut at = at + 1;
        while at + 1 < end {
            let is_branch =
                tokens[at] == "*" || tokens[at] == "{" || tokens[at].starts_with(is_name);
            at = if is_branch { tree(tokens, at, prefix.clone(), found) } else { at + 1 };
            if tokens.get(at).is_some_and(|token| token == "as") {
                at += 2;
            }
        }
        return end;
    }
    let mut path = prefix;
    if token != "self" || path.is_empty() {
        path.push(token.to_owned());
    }
    let next = tokens.get(at + 2).map_or("", String::as_str);
    let goes_on = next == "{" || next == "*" || next.starts_with(is_name);
    if goes_on && tokens[at + 1] == "::" {
        return tree(tokens, at + 2, path, found);
    }
    found.push(path);
    at + 1
}

/// Returns `path` with `self` and `super` resolved from the module `here`.
fn absolute(path: Vec<String>, here: &[String]) -> Vec<String> {
    let supers = path.iter().take_while(|name| *name == "super").count();
    let (base, rest) = match path[0].as_str() {
        "self" => (here, &path[1..]),
        "super" => (&here[..here.len().saturating_sub(supers)], &path[supers..]),
        _ => return path,
    };
    let mut absolute = vec!["crate".to_owned()];
    absolute.extend(base.iter().chain(rest).filter(|name| *name != "self").cloned());
    absolute
}

#[test]
fn comments_and_literals_are_no_code() {
    let text = r##"
        a // crate::b
        /* crate::c /* d */ e */ f("crate::g\"h", r#"i"j"#, 'k', '"', '\'', b"l"), for<'m> n::<'o>
    "##;
    let left = tokens(&code(text)).join(" ");
    assert_eq!(left, "a f ( , , , , , ) , for < ' m > n :: < ' o >");
}

#[test]
fn comments_are_taken_without_code_and_literals() {
    let text = "//! One.\nlet a = \"// b\"; // Two.\n    /// Three.\nfn c() {}";
    assert_eq!(comments(text), "One.\nTwo.\nThree.\n");
}

#[test]
fn items_for_tests_are_taken_out_whole() {
    let text = "
        use a::b;
        #[cfg(all(test, not(loom)))] #[allow(x)] mod tests { fn f() { {} } }
        #[cfg(test)] fn g(x: [u8; 2]) -> u8 { 1 }
        #[cfg(test)] mod tests;
        #[cfg(not(test))] fn kept() {}
        #[cfg(loom)] mod also_kept;";
    let left = without_tests(&tokens(&code(text))).join(" ");
    let kept = "use a :: b ; # [ cfg ( not ( test ) ) ] fn kept ( ) { } \
                # [ cfg ( loom ) ] mod also_kept ;";
    assert_eq!(left, kept);
}

#[test]
fn paths_are_taken_apart_and_made_absolute() {
    let text = "
        use crate::{a::B, c::{self, D as E, f::*}};
        pub(in crate::pool) fn g(x: super::h::I) { std::mem::swap::<u8>(); }
        mod inner { use super::J; mod deep { use super::super::K; } }
        use self::l::M;
        fn n() { O::<u8>::new() }";
    let paths = paths(&tokens(&code(text)), "pool/state");
    let paths: Vec<String> = paths.iter().map(|path| path.join("::")).collect();
    let expected = [
        "crate::a::B",
        "crate::c",
        "crate::c::D",
        "crate::c::f::*",
        "crate::pool::h::I",
        "std::mem::swap",
        "crate::pool::state::J",
        "crate::pool::state::K",
        "crate::pool::state::l::M",
        "O",
    ];
    assert_eq!(paths, [&expected[..2], &expected[2..]].concat());
}
