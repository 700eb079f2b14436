//! The opening of a file: it states the file's purpose first, and a long file states why it is long.

use crate::rust::Source;

/// The beginning of a long file's excuse.
const EXCUSE: &str = "//! Longer than 450 lines because ";

/// Returns the fault of a file that does not open with a `//!` paragraph.
pub fn faults_of_any(source: &Source, folder: &str) -> Option<String> {
    let path = &source.path;
    first_paragraph(&source.text)
        .is_empty()
        .then(|| format!("{folder}{path}: opens without a //! paragraph that says what it is for"))
}

/// Returns the fault of a file of more than `lines_max` lines without an excuse.
pub fn too_long(source: &Source, lines_max: usize) -> Option<String> {
    let lines = source.text.lines().count();
    let excused = source.text.lines().any(|line| line.starts_with(EXCUSE));
    (lines > lines_max && !excused)
        .then(|| format!("src/{}: {lines} lines; split it, or say `{EXCUSE}..`", source.path))
}

/// Returns the words of the first `//!` paragraph; empty if the file does not open with one.
fn first_paragraph(text: &str) -> String {
    let lines = text.lines().map_while(|line| line.strip_prefix("//!").map(str::trim));
    lines.take_while(|line| !line.is_empty()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
fn source(text: &str) -> Source {
    Source { path: "pool/word.rs".to_owned(), text: text.to_owned() }
}

#[test]
fn a_file_must_open_with_a_paragraph() {
    for text in ["", "use a::b;\n//! Late.\n", "//!\n//! After a blank line.\n", "// Not it.\n"] {
        assert!(faults_of_any(&source(text), "src/").is_some(), "{text}");
    }
    assert_eq!(faults_of_any(&source("//! What it is.\n"), "src/"), None);
}

#[test]
fn a_long_file_must_say_why() {
    let long = |first: &str| source(&format!("{first}\n{}", "//\n".repeat(10)));
    assert!(too_long(&long("//! What?"), 10).is_some());
    assert_eq!(too_long(&long("//! What?"), 11), None);
    assert_eq!(too_long(&long("//! Longer than 450 lines because it is a table."), 10), None);
}
