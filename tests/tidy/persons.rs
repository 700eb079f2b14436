//! The rule against persons in comments: words such as `who` and `nobody` hide which thread, caller or sequence acts.
//! Each folder has a budget of such words, which only falls.

use crate::rust::comments;

/// Words that stand for an actor without naming it.
const PERSONS: &[&str] = &["what", "who", "whoever", "nobody", "somebody", "everybody", "anybody"];

/// The number of such words that a folder's comments, or a document, may have.
pub const BUDGETS: &[(&str, usize)] = &[
    ("benches", 0),
    ("examples", 0),
    ("fuzz", 0),
    ("loom-tests", 0),
    ("src", 0),
    ("src/bin", 0),
    ("src/cache", 0),
    ("src/event", 0),
    ("src/export", 0),
    ("src/pool", 0),
    ("src/prefix", 0),
    ("src/sequence", 0),
    ("src/sync", 0),
    ("src/table", 0),
    ("src/wait", 0),
    ("tests", 0),
];

/// Counts such words in the comments of a Rust file, without code and questions.
pub fn in_comments(text: &str) -> usize {
    in_prose(&comments(text))
}

/// Counts such words in a document.
pub fn in_prose(text: &str) -> usize {
    let prose = without_code(text);
    prose
        .split_inclusive(['.', '?', '!'])
        .filter(|sentence| !sentence.ends_with('?'))
        .map(count)
        .sum()
}

/// Counts the words of a Rust file's comments, without code.
pub fn words_of_comments(text: &str) -> usize {
    words_of_prose(&comments(text))
}

/// Counts the words of a document, without code.
pub fn words_of_prose(text: &str) -> usize {
    without_code(text).split_whitespace().filter(|word| word.contains(char::is_alphabetic)).count()
}

/// Returns a fault if the count differs from the budget: above it the text must be mended, below it the
/// budget must fall.
pub fn fault(folder: &str, found: usize, words: usize) -> Option<String> {
    let budget = BUDGETS.iter().find(|(name, _)| *name == folder).map_or(0, |(_, budget)| *budget);
    let share = found as f64 * 1000.0 / words.max(1) as f64;
    let figures = format!("{found} of {PERSONS:?} in {words} words ({share:.1} in 1,000)");
    match found.cmp(&budget) {
        std::cmp::Ordering::Equal => None,
        std::cmp::Ordering::Greater => {
            Some(format!("{folder}: {figures}, {budget} allowed; name the actor"))
        }
        std::cmp::Ordering::Less => {
            Some(format!("{folder}: {figures}; lower its budget from {budget} to {found}"))
        }
    }
}

fn count(sentence: &str) -> usize {
    let words = sentence.split(|c: char| !c.is_alphanumeric());
    words.filter(|word| PERSONS.contains(&word.to_lowercase().as_str())).count()
}

/// Returns `text` without code blocks and without the text between backticks.
fn without_code(text: &str) -> String {
    let prose: String = text.split("```").step_by(2).collect();
    prose.split('`').step_by(2).collect::<Vec<_>>().join(" ")
}

#[test]
fn persons_are_counted_and_questions_are_not() {
    let text =
        "// Whoever waits, and nobody else. Who is it? `what`\nlet who = \"who\"; // What a state.";
    assert_eq!(in_comments(text), 3);
    assert_eq!(in_prose("Who asks? What is told.\n```sh\nwho\n```\n"), 1);
}

#[test]
fn a_count_above_or_below_the_budget_is_a_fault() {
    assert_eq!(fault("nowhere", 0, 100), None);
    assert!(fault("nowhere", 1, 100).is_some());
    let (folder, budget) = BUDGETS[0];
    assert_eq!(fault(folder, budget, 100), None);
    assert!(fault(folder, budget + 1, 100).is_some());
    assert!(budget == 0 || fault(folder, budget - 1, 100).is_some());
}
