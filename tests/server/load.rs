//! Tests of the server's traces: prompts are equal as far as their ids are, and bad lines are refused.

use std::path::Path;
use std::{fs, io};

use crate::client::Ask;
use crate::trace::{Cut, read};

fn asks(name: &str, rows: &[(usize, &[u64])], longest: usize) -> io::Result<Vec<Ask>> {
    let line = |(length, ids): &(usize, &[u64])| {
        format!("\r\n{{\"input_length\":{length},\"output_length\":0,\"hash_ids\":{ids:?}}}\r\n")
    };
    let text: String = rows.iter().map(line).collect();
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::write(&path, format!("\u{FEFF}{text}"))?;
    read(path.to_str().expect("UTF-8"), &Cut { requests: 10, longest, id_tokens: 4 })
}

fn common(one: &Ask, other: &Ask) -> usize {
    one.prompt.iter().zip(&other.prompt).take_while(|(a, b)| a == b).count()
}

#[test]
fn prompts_are_equal_as_far_as_their_ids_are() {
    let far = 1 << 44;
    let rows: [(usize, &[u64]); 7] = [
        (10, &[1, 2]),
        (10, &[1, 2]),
        (10, &[1 + far, 2]),
        (8, &[2, 1]),
        (8, &[1, 3]),
        (10, &[]),
        (10, &[]),
    ];
    let asks = asks("load.jsonl", &rows, 100).unwrap();
    let lengths: Vec<usize> = asks.iter().map(|ask| ask.prompt.len()).collect();
    assert_eq!(lengths, rows.map(|(length, _)| length));
    let with_first: Vec<usize> = asks.iter().map(|ask| common(&asks[0], ask)).collect();
    assert_eq!(with_first, [10, 8, 0, 0, 4, 0, 0]);
    assert_eq!(common(&asks[5], &asks[6]), 0, "no id names what is in them");
}

#[test]
fn bad_lines_are_refused_by_their_number() {
    for row in [(10, &[1][..]), (10, &[1, 2, 3, 4]), (0, &[1]), (usize::MAX, &[1])] {
        let error = asks("load_bad.jsonl", &[(4, &[1]), row], 100).unwrap_err().to_string();
        assert!(error.contains("load_bad.jsonl:4: "), "{error}");
    }
    assert!(asks("load_none.jsonl", &[], 100).unwrap_err().to_string().contains("no requests"));
    let cut = asks("load_long.jsonl", &[(usize::MAX, &[])], 100).unwrap();
    assert_eq!((cut[0].prompt.len(), cut[0].max_tokens), (100, 1));
}
