//! The test commands of the README are those that `.ci/run` runs.

/// Returns the test commands on one side only, or a fault if there are none at all.
pub fn faults(readme: &str, script: &str) -> Vec<String> {
    let blocks = fenced(readme);
    let told = test_commands(&blocks);
    let run = test_commands(script);
    let mut faults = Vec::new();
    if told.is_empty() {
        faults.push("README.md: no line `cargo test ..` in a code block".to_owned());
    }
    let not_run = told.iter().filter(|command| !run.contains(command));
    faults
        .extend(not_run.map(|command| format!(".ci/run: does not run `{command}` of the README")));
    let not_told = run.iter().filter(|command| !told.contains(command));
    faults
        .extend(not_told.map(|command| format!("README.md: does not name `{command}` of .ci/run")));
    faults
}

/// Returns the lines that are a `cargo test` in the repository's root.
fn test_commands(text: &str) -> Vec<&str> {
    text.lines().map(str::trim).filter(|line| line.starts_with("cargo test")).collect()
}

/// Returns the lines inside code blocks.
fn fenced(markdown: &str) -> String {
    markdown.split("```").skip(1).step_by(2).collect::<Vec<_>>().join("\n")
}

#[test]
fn one_command_on_both_sides_is_clean() {
    let readme = "Run `cargo test`:\n```sh\ncargo test --features x\n```\nThen read on.\n";
    assert_eq!(faults(readme, "set -e\ncargo test --features x\n"), [""; 0]);
}

#[test]
fn a_command_on_one_side_is_found() {
    let readme = "```sh\ncargo test\n```\n";
    assert_eq!(faults(readme, "cargo test --release\n").len(), 2);
    assert_eq!(faults(readme, "").len(), 1);
    assert_eq!(faults("cargo test\n", "cargo test\n").len(), 2, "not in a code block");
}
