//! The Rust blocks of documents are tests: none is excluded from them.

/// Attributes by which a Rust block is neither compiled nor run.
const EXCLUDED: &[&str] = &["ignore", "compile_fail", "should_panic"];

/// Returns the Rust blocks of a document that no test runs.
pub fn faults(title: &str, markdown: &str) -> Vec<String> {
    let fences = markdown.split("```").skip(1).step_by(2);
    let languages = fences.filter_map(|block| block.lines().next());
    let excluded =
        languages.filter(|language| language.split(',').any(|a| EXCLUDED.contains(&a.trim())));
    excluded.map(|language| format!("{title}: a block ```{language} is no test")).collect()
}

#[test]
fn a_block_that_no_test_runs_is_found() {
    assert_eq!(faults("a.md", "```rust,ignore\nx\n```\n```ignore\ny\n```\n").len(), 2);
    assert_eq!(faults("a.md", "```rust\nx\n```\n```sh\nignore\n```\n```no_run\nz\n```\n"), [""; 0]);
}
