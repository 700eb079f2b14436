//! Are the README's pieces of an example still in it?

/// How a code block says which example it is cut from.
const CUT_FROM: &str = "// cut from ";

/// A line that stands for what was left out, whatever it says.
const LEFT_OUT: &str = "// ..";

/// The Rust blocks of a text in Markdown, without their fences.
fn rust_blocks(markdown: &str) -> impl Iterator<Item = &str> {
    let fenced = markdown.split("```").skip(1).step_by(2);
    fenced
        .filter_map(|block| block.split_once('\n'))
        .filter_map(|(language, code)| language.starts_with("rust").then_some(code))
}

/// Pieces that are not in the example they say they are from, one after the other; and, if the second
/// Rust block is no cut at all, that.
pub fn faults(readme: &str, read: impl Fn(&str) -> String) -> Vec<String> {
    let mut faults = Vec::new();
    let second = rust_blocks(readme).nth(1);
    if !second.is_some_and(|block| block.starts_with(CUT_FROM)) {
        faults.push(format!("README.md: its second example does not begin `{CUT_FROM}..`"));
    }
    for block in rust_blocks(readme) {
        let Some((path, code)) = block.strip_prefix(CUT_FROM).and_then(|cut| cut.split_once('\n'))
        else {
            continue;
        };
        let example = read(path);
        let lines: Vec<&str> = example.lines().map(str::trim_start).collect();
        let mut rest = lines.as_slice();
        for piece in pieces(code) {
            let at = rest.windows(piece.len()).position(|window| window == piece);
            match at {
                Some(at) => rest = &rest[at + piece.len()..],
                None => faults.push(format!("README.md: not in {path} so: {}", piece.join("\n"))),
            }
        }
    }
    faults
}

/// What is between the lines that were left out, without indentation.
fn pieces(code: &str) -> Vec<Vec<&str>> {
    let lines: Vec<&str> = code.lines().map(str::trim_start).collect();
    let pieces = lines.split(|line| line.starts_with(LEFT_OUT));
    pieces.filter(|piece| !piece.is_empty()).map(<[&str]>::to_vec).collect()
}

#[cfg(test)]
const EXAMPLE: &str = "fn a() {\n    one();\n    two();\n    three();\n}\n";

#[test]
fn pieces_in_their_order_are_clean() {
    let cut = "```rust\nx\n```\n```rust,ignore\n// cut from e\none();\n// .. and\nthree();\n```\n";
    assert_eq!(faults(cut, |_| EXAMPLE.to_owned()), [""; 0]);
}

#[test]
fn a_piece_that_is_not_there_or_before_its_time_is_found() {
    for code in ["two();\nthree(1);\n", "three();\n// ..\ntwo();\n"] {
        let readme = format!("```rust\nx\n```\n```rust,ignore\n// cut from e\n{code}```\n");
        assert_eq!(faults(&readme, |_| EXAMPLE.to_owned()).len(), 1, "{code}");
    }
    assert_eq!(faults("```rust\nx\n```\n```rust\ny\n```\n", |_| String::new()).len(), 1);
}
