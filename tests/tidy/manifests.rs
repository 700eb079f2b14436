//! The packages of models build the library with its own dependencies and features. Otherwise the models
//! would run on another build than the one that ships.

use std::collections::BTreeMap;

/// Crates that check models. They must not appear in the lock files of users.
const CHECKERS: &[&str] = &["loom", "shuttle"];

/// The one feature that may differ: the models always use waiting, whether or not it is a default of the
/// library.
const DEFAULT: &str = "default";

/// Returns the entries of `[features]` and `[dependencies]` in which the manifest `title` of a package of
/// models differs from the root's.
pub fn faults(title: &str, models: &str, root: &str) -> Vec<String> {
    let mut faults = Vec::new();
    for name in ["features", "dependencies"] {
        let (here, there) = (section(models, name), section(root, name));
        let is_free = |entry: &str| entry == DEFAULT || CHECKERS.contains(&entry);
        let names = here.keys().chain(there.keys().filter(|entry| !here.contains_key(*entry)));
        let differ = names.filter(|entry| !is_free(entry) && here.get(*entry) != there.get(*entry));
        faults.extend(differ.map(|entry| format!("{title}: {entry} is not as in Cargo.toml")));
    }
    faults
}

/// Returns the model checkers that the root's manifest names.
pub fn faults_of_root(root: &str) -> Vec<String> {
    let names = root.lines().filter_map(|line| line.split_once('=')).map(|(name, _)| name.trim());
    let checkers = names.filter(|name| {
        CHECKERS.iter().any(|checker| name.split(['-', '.']).next() == Some(checker))
    });
    checkers.map(|name| format!("Cargo.toml: {name} belongs into a package of models")).collect()
}

/// Returns the entries of a section by their names, each on one line and without spaces.
fn section(manifest: &str, name: &str) -> BTreeMap<String, String> {
    let header = format!("[{name}]");
    let lines = manifest.lines().skip_while(|line| *line != header).skip(1);
    let lines = lines.take_while(|line| !is_header(line)).filter(|line| !line.starts_with('#'));
    let mut entries = BTreeMap::new();
    let mut last = String::new();
    for line in lines {
        if let Some((name, value)) = line.split_once('=').filter(|_| !line.starts_with(' ')) {
            last = name.trim().to_owned();
            entries.insert(last.clone(), without_spaces(value));
        } else if let Some(value) = entries.get_mut(&last) {
            value.push_str(&without_spaces(line));
        }
    }
    entries
}

/// True for a line that begins a section, false for the end of a list.
fn is_header(line: &str) -> bool {
    line.starts_with('[')
}

fn without_spaces(text: &str) -> String {
    text.split_whitespace().collect()
}

#[cfg(test)]
const ROOT: &str = "[package]\nname = \"x\"\n[features]\ndefault = []\na = [\n    \"dep:b\",\n]\n\n\
                    [dependencies]\n# Some words.\nb = { version = \"1\", optional = true }\n";

#[test]
fn a_package_like_the_root_is_clean() {
    let models = ROOT.replace("[]", "[\"a\"]") + "loom = \"0.7\"\n[dev-dependencies]\nc = \"1\"\n";
    assert_eq!(faults("m", &models, ROOT), [""; 0]);
}

#[test]
fn an_entry_that_differs_is_missing_or_is_new_is_found() {
    for (from, to) in
        [("\"1\"", "\"2\""), ("dep:b", "dep:c"), ("b =", "d =\"1\"\nb ="), ("\na =", "\nz =")]
    {
        let models = ROOT.replace(from, to);
        assert!(!faults("m", &models, ROOT).is_empty(), "{to}");
    }
    assert_eq!(faults("m", &ROOT.replace("b = {", "# b = {"), ROOT).len(), 1);
}

#[test]
fn a_model_checker_in_the_root_is_found() {
    assert_eq!(faults_of_root(ROOT), [""; 0]);
    for line in ["loom = \"0.7\"", "shuttle = \"0.9\"", "shuttle-dashmap = { version = \"6\" }"] {
        assert_eq!(faults_of_root(&format!("{ROOT}{line}\n")).len(), 1, "{line}");
    }
}
