//! The names that configuration, comments and documents mention exist. Otherwise a renamed function would
//! silently switch off a mutant, a model or a claim.

use std::collections::BTreeSet;

use crate::rust::{Source, code, tokens};

/// Words of a description that cargo-mutants writes, and of a regular expression.
const NOT_NAMES: &[&str] = &["replace", "with", "in", "match", "guard", "delete", "w"];

/// Returns every name that the code of `sources` uses, and every file's and folder's name.
pub fn known(sources: &[Source]) -> BTreeSet<String> {
    let mut known = BTreeSet::new();
    for source in sources {
        known.extend(tokens(&code(&source.text)));
        known.extend(source.module().split('/').map(str::to_owned));
    }
    known
}

/// Returns the names in the patterns of `.cargo/mutants.toml` that `known` does not have.
pub fn faults_of_mutants(config: &str, known: &BTreeSet<String>) -> Vec<String> {
    let patterns = config.lines().filter(|line| line.trim_start().starts_with('\''));
    let mut faults = Vec::new();
    for pattern in patterns {
        for name in words(&pattern.replace("\\w", "")) {
            if !NOT_NAMES.contains(&name) && !known.contains(name) {
                faults.push(format!(".cargo/mutants.toml: {name} is no name of the source"));
            }
        }
    }
    faults
}

/// Returns the models that a comment of `source` names after "Loom: " and that `models` does not have.
pub fn faults_of_models(source: &Source, models: &BTreeSet<String>) -> Vec<String> {
    let comments = joined_comments(&source.text);
    let mut faults = Vec::new();
    for after in comments.split("Loom: ").skip(1) {
        let named = after.split('.').next().unwrap_or_default();
        let missing = words(named).filter(|name| *name != "and" && !models.contains(*name));
        faults.extend(missing.map(|name| format!("src/{}: no model {name}", source.path)));
    }
    faults
}

/// Returns the names in backticks in a document that `known` does not have, each part of a path by
/// itself.
pub fn faults_of_document(title: &str, text: &str, known: &BTreeSet<String>) -> Vec<String> {
    let mut faults = Vec::new();
    for quoted in spans(text) {
        let is_path = !quoted.is_empty() && quoted.chars().all(|c| is_name(c) || c == ':');
        for name in words(quoted).filter(|_| is_path) {
            if !known.contains(name) {
                faults.push(format!("{title}: `{quoted}` is no name of the source"));
            }
        }
    }
    faults
}

/// Returns the paths of the repository, and the targets after `--test`, `--bench` and `--example`, that
/// `exists` denies. `exists` is also called with `name = "target"`, a line of a manifest.
pub fn faults_of_paths(title: &str, text: &str, exists: impl Fn(&str) -> bool) -> Vec<String> {
    const FOLDERS: &[&str] = &["src", "tests", "benches", "examples", "loom-tests", "fuzz", ".ci"];
    const TARGETS: &[(&str, &str)] =
        &[("--test", "tests"), ("--bench", "benches"), ("--example", "examples")];
    let is_separator = |c: char| !(is_name(c) || "-./".contains(c));
    let mut faults = Vec::new();
    let is_target = |folder: &str, name: &str| {
        [format!("{folder}/{name}.rs"), format!("{folder}/{name}"), format!("name = \"{name}\"")]
            .iter()
            .any(|place| exists(place))
    };
    for line in text.lines() {
        let found: Vec<&str> = line.split(is_separator).filter(|word| !word.is_empty()).collect();
        for (at, word) in found.iter().enumerate() {
            let word = word.trim_end_matches(['.', '/']);
            let inside = word.trim_start_matches("./").split_once('/');
            let is_here = inside.is_some_and(|(folder, _)| FOLDERS.contains(&folder));
            let path = word.trim_start_matches("./");
            if is_here && !exists(path) && !exists(&format!("{path}.rs")) {
                faults.push(format!("{title}: there is no {word}"));
            }
            let target = TARGETS.iter().find(|(option, _)| **option == *word);
            if let (Some((_, folder)), Some(name)) = (target, found.get(at + 1)) {
                let is_name = name.len() > 1 && line.contains(&format!("{word} {name}"));
                if is_name && !is_target(folder, name) {
                    faults.push(format!("{title}: there is no target {word} {name}"));
                }
            }
        }
    }
    faults
}

/// Returns the comments of `text`, joined in their order.
fn joined_comments(text: &str) -> String {
    let lines = text.lines().map(str::trim_start).filter(|line| line.starts_with("//"));
    lines.map(|line| line.trim_start_matches(['/', '!']).trim()).collect::<Vec<_>>().join(" ")
}

/// Returns the text between single backticks, outside code blocks.
fn spans(markdown: &str) -> impl Iterator<Item = &str> {
    let outside = markdown.split("```").step_by(2);
    outside.flat_map(|text| text.split('`').skip(1).step_by(2))
}

/// Returns the names of two letters or more.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !is_name(c))
        .filter(|word| word.len() > 1 && !word.starts_with(|c: char| c.is_ascii_digit()))
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

#[cfg(test)]
fn source(text: &str) -> Source {
    Source { path: "pool/word.rs".to_owned(), text: text.to_owned() }
}

#[test]
fn a_mutant_of_a_function_that_is_gone_is_found() {
    let known = known(&[source("impl Fences { fn close(&self) {} } // gone_too")]);
    let config = "# any words\n    'replace < with <= in Fences::close',\n    'in Fences::\\w+',\n    \
                  'gone_too -> ()',\n";
    assert_eq!(faults_of_mutants(config, &known).len(), 1);
}

#[test]
fn a_model_that_is_gone_is_found_over_the_end_of_a_line() {
    let models = known(&[source("fn a_model_runs() {} fn another() {}")]);
    let text = "// Acquire. Loom: a_model_runs,\n    // another.\n";
    assert_eq!(faults_of_models(&source(text), &models), [""; 0]);
    let text = "// Acquire. Loom: a_model_runs,\n    // a_third.\n";
    assert_eq!(faults_of_models(&source(text), &models).len(), 1);
}

#[test]
fn a_name_in_a_document_that_is_gone_is_found() {
    let known = known(&[source("impl Lease { fn rows() {} }")]);
    assert_eq!(
        faults_of_document("a.md", "`Lease::rows`, `a b`, `--x`\n```\n`y`\n```", &known),
        [""; 0]
    );
    assert_eq!(faults_of_document("a.md", "`Lease::exports`", &known).len(), 1);
}

#[test]
fn a_path_or_target_that_is_gone_is_found() {
    let exists = |path: &str| ["src/pool", "tests/storm", "name = \"own\""].contains(&path);
    let faults = |text| faults_of_paths("run", text, exists).len();
    assert_eq!(faults("(cd ./src/pool && cargo test --test storm --test own)"), 0);
    assert_eq!(faults("src/pool/**, --test \"$name\""), 0);
    assert_eq!(faults("src/poll"), 1);
    assert_eq!(faults("cargo test --test storms"), 1);
}
