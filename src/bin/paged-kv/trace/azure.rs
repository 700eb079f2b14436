//! `row`: parses a line of an Azure trace.
//!
//! A line is `2023-11-16 18:17:03.9799600,4808,10` under the header
//! `TIMESTAMP,ContextTokens,GeneratedTokens`: the format of the Azure LLM inference traces. No field is
//! ever quoted. Times are compared and never subtracted, so no calendar is needed: a 31st of February is
//! accepted.

use anyhow::{Result, bail};

use super::Row;
use super::lines::Lines;

const HEADER: &str = "TIMESTAMP,ContextTokens,GeneratedTokens";

/// Year, month, day, hour, minute, second, nanosecond: the larger unit first, for comparison.
type Time = [u32; 7];

/// Reads the first line, which must be the header.
///
/// # Errors
/// There is no first line, or it is not the header.
pub fn expect_header(lines: &mut Lines) -> Result<()> {
    match lines.next()? {
        Some(HEADER) => Ok(()),
        Some(line) => {
            let found: String = line.chars().take(2 * HEADER.len()).collect();
            bail!(lines.malformed(&format!("expected the header {HEADER}, found {found:?}")))
        }
        None => bail!(lines.malformed(&format!("no requests: expected the header {HEADER}"))),
    }
}

/// Reads one line after the header.
///
/// # Errors
/// The reason for which the line is not a request.
pub fn row(line: &str) -> Result<Row<Time>, String> {
    let fields: Vec<&str> = line.split(',').collect();
    let [timestamp, context, generated] = fields[..] else {
        return Err(format!("expected 3 fields, found {}", fields.len()));
    };
    let Some(time) = time(timestamp) else {
        return Err(format!("TIMESTAMP {timestamp:?} is not a time like 2023-11-16 18:17:03.97"));
    };
    let prompt_tokens = tokens("ContextTokens", context)?;
    let output_tokens = tokens("GeneratedTokens", generated)?;
    let (ids, arrival_us, session) = (Vec::new(), None, None);
    Ok(Row { time, prompt_tokens, output_tokens, ids, arrival_us, session })
}

fn tokens(column: &str, field: &str) -> Result<u64, String> {
    digits(field)
        .and_then(|field| field.parse().ok())
        .ok_or_else(|| format!("{column} {field:?} is not a number of tokens"))
}

/// Parses a timestamp. The 2024 traces write the offset `+00:00` after the time; no other offset is in use.
fn time(text: &str) -> Option<Time> {
    let (date, clock) = text.strip_suffix("+00:00").unwrap_or(text).split_once(' ')?;
    let [year, month, day] = numbers(date, '-')?;
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, "0"));
    let [hour, minute, second] = numbers(clock, ':')?;
    let sound = (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && hour < 24
        && minute < 60
        && second <= 60;
    sound.then_some([year, month, day, hour, minute, second, nanoseconds(fraction)?])
}

fn numbers(text: &str, separator: char) -> Option<[u32; 3]> {
    let mut parts = text.split(separator).map(|part| digits(part)?.parse().ok());
    let three = [parts.next()??, parts.next()??, parts.next()??];
    parts.next().is_none().then_some(three)
}

fn nanoseconds(fraction: &str) -> Option<u32> {
    let fraction = digits(fraction).filter(|digits| digits.len() <= 9)?;
    format!("{fraction:0<9}").parse().ok()
}

/// Returns `text` if it consists of digits only. It refuses the sign that `parse` would accept.
fn digits(text: &str) -> Option<&str> {
    (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_two_lengths_at_a_time() {
        let row = row("2023-11-16 18:17:03.9799600,4808,10").unwrap();
        assert_eq!(row.time, [2023, 11, 16, 18, 17, 3, 979_960_000]);
        assert_eq!(row.prompt_tokens, 4808);
        assert_eq!(row.output_tokens, 10);
    }

    #[test]
    fn times_compare_as_times() {
        let ordered = [
            "2023-11-16 18:17:03",
            "2023-11-16 18:17:03.09",
            "2023-11-16 18:17:03.1",
            "2023-11-16 18:17:03.100000001+00:00",
            "2023-11-16 18:17:04",
            "2023-12-01 00:00:00",
            "2024-01-01 00:00:00",
        ];
        assert!(ordered.map(|text| time(text).unwrap()).is_sorted_by(|a, b| a < b));
    }

    #[test]
    fn a_malformed_line_is_refused_with_the_reason() {
        let day = "2023-11-16";
        for (line, reason) in [
            (format!("{day} 18:17:03,1"), "expected 3 fields, found 2"),
            (format!("{day} 18:17:03,1,2,3"), "expected 3 fields, found 4"),
            (format!("{day} 18:17:03,-1,2"), "ContextTokens \"-1\" is not"),
            (format!("{day} 18:17:03,+1,2"), "ContextTokens \"+1\" is not"),
            (format!("{day} 18:17:03,1,2.5"), "GeneratedTokens \"2.5\" is not"),
            (format!("{day} 18:17:03,1,"), "GeneratedTokens \"\" is not"),
            (format!("{day} 18:17:03,18446744073709551616,1"), "is not a number"),
            (format!("{day},1,2"), "TIMESTAMP"),
            (format!("{day} 24:00:00,1,2"), "TIMESTAMP"),
            (format!("{day} 18:17,1,2"), "TIMESTAMP"),
            (format!("{day} 18:17:03.,1,2"), "TIMESTAMP"),
            (format!("{day} 18:17:03.1234567890,1,2"), "TIMESTAMP"),
            ("2023-13-16 18:17:03,1,2".to_owned(), "TIMESTAMP"),
        ] {
            let error = row(&line).map(|_| ()).unwrap_err();
            assert!(error.contains(reason), "{line}: {error}");
        }
    }
}
