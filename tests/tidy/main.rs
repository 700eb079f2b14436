//! Checks that the source keeps the rules of the house.
//!
//! Each rule is a function over text that returns its faults. It has two tests: one finds no fault in
//! this repository, and one finds faults in a bad text. A rule that cannot fail is no rule.

mod blocks;
mod floors;
mod manifests;
mod names;
mod opening;
mod persons;
mod root;
mod rust;
mod stages;
mod types;
mod words;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use rust::Source;

/// The longest file that needs no excuse, in lines.
const LINES_MAX: usize = 450;

/// Documents of the repository. `README.md` and the guide have Rust blocks that are tests.
const DOCUMENTS: &[&str] = &[
    "README.md",
    "BENCHMARKS.md",
    "VERIFICATION.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "docs/experiments.md",
    "src/guide/surface.md",
    "src/guide/groups.md",
    "src/guide/lifecycle.md",
    "src/guide/glossary.md",
    "src/guide/operations.md",
    "src/guide/steps.md",
    "src/guide/retention.md",
    "src/guide/tiers.md",
    "src/guide/waiting.md",
    "src/guide/events.md",
    "src/guide/replacing.md",
    "src/guide/metrics.md",
    "src/guide/blocking.md",
    "src/guide/panics.md",
    "src/guide/errors.md",
    "src/guide/stability.md",
    "src/guide/internals.md",
    "examples/README.md",
    "RELEASING.md",
    "SECURITY.md",
];

/// Folders with Rust files.
const FOLDERS: &[&str] = &["src", "tests", "benches", "examples", "loom-tests", "fuzz"];

#[test]
fn imports_only_go_down_the_floors() {
    assert_clean(floors::faults(&library()));
}

#[test]
fn no_type_name_is_declared_twice() {
    assert_clean(types::repeated(&library()));
}

#[test]
fn lib_rs_holds_documentation_and_exports_only() {
    assert_clean(root::faults(&read("src/lib.rs")));
}

#[test]
fn every_file_opens_with_a_statement_of_its_purpose() {
    let mut faults = Vec::new();
    for folder in FOLDERS {
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
fn rust_blocks_of_documents_are_tests() {
    let faults = DOCUMENTS.iter().flat_map(|title| blocks::faults(title, &read(title)));
    assert_clean(faults.collect());
}

#[test]
fn every_page_of_the_guide_is_checked() {
    let pages = fs::read_dir(repository().join("src/guide")).expect("the guide's folder");
    let titles = pages.map(|page| page.expect("an entry that can be read").file_name());
    let missing = titles.map(|name| format!("src/guide/{}", name.display()));
    assert_clean(missing.filter(|title| !DOCUMENTS.contains(&title.as_str())).collect());
}

#[test]
fn mutants_and_models_that_are_named_exist() {
    let known = names::known(&everything());
    let mut faults = names::faults_of_mutants(&read(".cargo/mutants.toml"), &known);
    let models = names::known(&sources("loom-tests"));
    faults
        .extend(sources("src").iter().flat_map(|source| names::faults_of_models(source, &models)));
    assert_clean(faults);
}

#[test]
fn names_in_documents_exist() {
    const TITLES: &[&str] = &[
        "VERIFICATION.md",
        "CONTRIBUTING.md",
        "src/guide/blocking.md",
        "src/guide/internals.md",
        "src/guide/groups.md",
        "src/guide/lifecycle.md",
        "src/guide/operations.md",
        "src/guide/panics.md",
        "src/guide/steps.md",
        "src/guide/tiers.md",
    ];
    let mut known = names::known(&everything());
    known.extend(FOLDERS.iter().map(|folder| folder.to_string()));
    let faults =
        TITLES.iter().flat_map(|title| names::faults_of_document(title, &read(title), &known));
    assert_clean(faults.collect());
}

#[test]
fn paths_and_targets_in_scripts_and_documents_exist() {
    let mut faults = Vec::new();
    let scripts = [
        ".ci/run",
        ".ci/mutants",
        "loom-tests/mutants",
        "loom-tests/run",
        "loom-tests/run-shuttle",
    ];
    for title in scripts.iter().chain(DOCUMENTS) {
        let folder = Path::new(title).parent().expect("a path of a file");
        let manifest = read("Cargo.toml") + &read("loom-tests/Cargo.toml");
        let exists = |path: &str| {
            let is_in = |top: &Path| repository().join(top).join(path).exists();
            let is_named = path.starts_with("name = ") && manifest.contains(path);
            let is_model = is_in(Path::new("loom-tests/shuttle"));
            is_in(Path::new("")) || is_in(folder) || is_model || is_named
        };
        faults.extend(names::faults_of_paths(title, &read(title), exists));
    }
    assert_clean(faults);
}

#[test]
fn models_are_built_with_the_dependencies_and_features_that_ship() {
    let root = read("Cargo.toml");
    let mut faults = manifests::faults_of_root(&root);
    for title in ["loom-tests/Cargo.toml", "loom-tests/shuttle/Cargo.toml"] {
        faults.extend(manifests::faults(title, &read(title), &root));
    }
    assert_clean(faults);
}

#[test]
fn comments_name_the_actor() {
    let mut faults = Vec::new();
    for (folder, sources) in by_folder() {
        let texts = sources.iter().map(|source| &source.text);
        let found = texts.clone().map(|text| persons::in_comments(text)).sum();
        let words = texts.map(|text| persons::words_of_comments(text)).sum();
        faults.extend(persons::fault(&folder, found, words));
    }
    for title in DOCUMENTS {
        let text = read(title);
        faults.extend(persons::fault(
            title,
            persons::in_prose(&text),
            persons::words_of_prose(&text),
        ));
    }
    assert_clean(faults);
}

fn assert_clean(faults: Vec<String>) {
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// Returns the library's files: `src` without the program and without files of tests.
fn library() -> Vec<Source> {
    let mut sources = sources("src");
    sources.retain(|source| !source.path.starts_with("bin/") && !source.is_tests());
    sources
}

/// Returns every Rust file of the repository.
fn everything() -> Vec<Source> {
    FOLDERS.iter().flat_map(|folder| sources(folder)).collect()
}

/// Returns every Rust file by its folder: each folder below `src` apart, the other folders whole.
fn by_folder() -> BTreeMap<String, Vec<Source>> {
    let mut folders: BTreeMap<String, Vec<Source>> = BTreeMap::new();
    for folder in FOLDERS {
        for source in sources(folder) {
            let inside = source.path.split_once('/').filter(|_| *folder == "src");
            let name =
                inside.map_or(folder.to_string(), |(inside, _)| format!("{folder}/{inside}"));
            folders.entry(name).or_default().push(source);
        }
    }
    folders
}

/// Returns every Rust file under a folder of the repository, by its path inside that folder.
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
