//! `row`: parses a line of a Mooncake trace.
//!
//! A line is `{"timestamp": ms, "input_length": tokens, "output_length": tokens, "hash_ids": [..]}`: the
//! format of the Mooncake FAST'25 traces. All four fields must be present and hold numbers that are not
//! negative; `session_id` may be a number; other fields are ignored. The traces in use differ in the number of tokens that a hash id
//! names, so `ids` checks the number of ids against the length.

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::Row;

#[derive(Deserialize)]
struct Record {
    timestamp: f64,
    input_length: u64,
    output_length: u64,
    hash_ids: Vec<u64>,
    session_id: Option<Session>,
}

/// A session by its number. One that is named otherwise is not used.
#[derive(Deserialize)]
#[serde(untagged)]
enum Session {
    Number(u64),
    Other(IgnoredAny),
}

/// Reads one line; the time is in milliseconds.
///
/// # Errors
/// The reason for which the line is not a request.
pub fn row(line: &str) -> Result<Row<f64>, String> {
    let record: Record = serde_json::from_str(line).map_err(|error| reason(&error))?;
    if record.timestamp < 0.0 {
        return Err(format!("timestamp {} is negative", record.timestamp));
    }
    Ok(Row {
        time: record.timestamp,
        prompt_tokens: record.input_length,
        output_tokens: record.output_length,
        ids: record.hash_ids,
        arrival_us: Some((record.timestamp * 1e3).round() as u64),
        session: match record.session_id {
            Some(Session::Number(number)) => Some(number),
            Some(Session::Other(_)) | None => None,
        },
    })
}

/// Returns serde_json's error text without its line number: the parser was given one line only.
fn reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    match text.strip_suffix(&place) {
        Some(reason) => format!("{reason} (column {})", error.column()),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_two_lengths_at_a_time() {
        let line = r#"{"timestamp": 27, "input_length": 6758, "output_length": 500,
                       "hash_ids": [0, 1, 18446744073709551615], "session_id": "ignored"}"#;
        let row = row(line).unwrap();
        assert_eq!((row.time, &row.ids[..]), (27.0, &[0, 1, u64::MAX][..]));
        assert_eq!(row.prompt_tokens, 6758);
        assert_eq!(row.output_tokens, 500);
    }

    #[test]
    fn nothing_may_be_zero_tokens_long() {
        let line = r#"{"timestamp":0,"input_length":0,"output_length":0,"hash_ids":[]}"#;
        assert_eq!(row(line).unwrap().prompt_tokens, 0);
    }

    #[test]
    fn a_malformed_line_is_refused_with_the_reason() {
        let with = |input, output, ids| {
            format!(r#"{{"timestamp":0,"input_length":{input},"output_length":{output}{ids}}}"#)
        };
        let ids = r#","hash_ids":[1]"#;
        for (line, reason) in [
            ("not json".to_owned(), "expected ident (column 2)"),
            ("{\"timestamp\":0".to_owned(), "EOF while parsing"),
            (with("1", "1", ""), "missing field `hash_ids`"),
            (with("1", "1", r#","hash_ids":null"#), "invalid type: null"),
            (with("1", "1", r#","hash_ids":[1,"2"]"#), "invalid type: string"),
            (with("1", "1", r#","hash_ids":[1.5]"#), "invalid type: floating point"),
            (with("-1", "1", ids), "invalid value: integer `-1`"),
            (with("1", "-2", ids), "invalid value: integer `-2`"),
            (with("1.5", "1", ids), "invalid type: floating point"),
            (with("1", "\"1\"", ids), "invalid type: string"),
            (with("18446744073709551616", "1", ids), "invalid type: floating point"),
            (with("1", "1", r#","hash_ids":[18446744073709551616]"#), "floating point"),
            (with("NaN", "1", ids), "expected value"),
            (with("\0", "1", ids), "expected value"),
            (with("1", "1", r#","hash_ids":[1],"hash_ids":[2]"#), "duplicate field `hash_ids`"),
            (with("1", "1", ids).replace("\"timestamp\":0", "\"timestamp\":1e999"), "out of range"),
            (with("1", "1", ids) + "{}", "trailing characters"),
            (with("1", "1", ids).replace("\"timestamp\":0", "\"timestamp\":-1"), "negative"),
            (with("1", "1", ids).replace("\"timestamp\":0,", ""), "missing field `timestamp`"),
        ] {
            let error = row(&line).map(|_| ()).unwrap_err();
            assert!(error.contains(reason), "{line}: {error}");
            assert!(!error.contains("line 1"), "{line}: {error}");
        }
    }
}
