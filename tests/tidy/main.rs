//! Does the source keep the rules of the house?
//!
//! Each rule is a function over text that returns its faults, a test that finds none in this
//! repository, and a test that finds some in a bad text: a rule that cannot fail is no rule.

mod cuts;
mod floors;
mod opening;
mod root;
mod rust;
mod stages;
mod words;

use std::fs;
use std::path::{Path, PathBuf};

use rust::Source;

/// The longest file that needs no excuse, in lines.
const LINES_MAX: usize = 450;

#[test]
fn imports_only_go_down_the_floors() {
    assert_clean(floors::faults(&library()));
}

#[test]
fn lib_rs_holds_documentation_and_exports_only() {
    assert_clean(root::faults(&read("src/lib.rs")));
}

#[test]
fn every_file_opens_by_saying_what_it_is_for() {
    let mut faults = Vec::new();
    for folder in ["src", "tests", "benches", "examples", "loom-tests", "fuzz"] {
        for source in sources(folder) {
            faults.extend(opening::faults_of_any(&source, &format!("{folder}/")));
        }
    }
    assert_clean(faults);
}

#[test]
fn long_files_say_why() {
    let faults = sources("src");
    assert_clean(faults.iter().filter_map(|source| opening::too_long(source, LINES_MAX)).collect());
}

#[test]
fn the_library_has_no_unsafe_no_leftovers_and_no_prints() {
    assert_clean(library().iter().flat_map(words::forbidden_words).collect());
}

#[test]
fn atomics_locks_queues_and_maps_come_through_sync() {
    assert_clean(library().iter().flat_map(words::strayed_crates).collect());
}

#[test]
fn the_readme_and_ci_run_the_same_tests() {
    assert_clean(stages::faults(&read("README.md"), &read(".ci/run")));
}

#[test]
fn what_the_readme_cuts_from_an_example_is_in_it() {
    assert_clean(cuts::faults(&read("README.md"), read));
}

fn assert_clean(faults: Vec<String>) {
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// The library's files: `src` without the program and without files of tests.
fn library() -> Vec<Source> {
    let mut sources = sources("src");
    sources.retain(|source| !source.path.starts_with("bin/") && !source.is_tests());
    sources
}

/// Every Rust file under a folder of the repository, by its path inside that folder.
fn sources(folder: &str) -> Vec<Source> {
    let top = repository().join(folder);
    let mut sources = Vec::new();
    let mut folders = vec![top.clone()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else {
            continue;
        };
        for entry in entries {
            let path = entry.expect("an entry that can be read").path();
            let is_rust = path.extension().is_some_and(|extension| extension == "rs");
            if path.is_dir() && !path.ends_with("target") {
                folders.push(path);
            } else if is_rust {
                let name = path.strip_prefix(&top).expect("found below the top").display();
                let name = name.to_string().replace('\\', "/");
                sources.push(Source { path: name, text: text_of(&path) });
            }
        }
    }
    sources.sort_by(|left, right| left.path.cmp(&right.path));
    sources
}

fn read(path: &str) -> String {
    text_of(&repository().join(path))
}

fn text_of(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn the_library_is_found() {
    let found = |path: &str| library().iter().any(|source| source.path == path);
    assert!(found("lib.rs") && found("pool/mod.rs") && found("export.rs"));
    assert!(!library().iter().any(|source| source.path.starts_with("bin/")));
}
