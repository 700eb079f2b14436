//! Which requests does a trace file hold, and in what order?
//!
//! The order of the lines, which must be the order of their timestamps: a trace that goes back
//! in time is refused, as is any line its format does not allow, by file, line number and
//! reason. Beyond their order the timestamps mean nothing here: requests are served as fast as
//! possible. Block hashes are checked and dropped, for this program shares no prefixes.

mod azure;
mod lines;
mod mooncake;

use std::path::Path;

use anyhow::{Result, bail};

use crate::request::Request;
use lines::Lines;

/// What one line says: when, and how long.
struct Row<Time> {
    time: Time,
    request: Request,
}

/// Reads the first `limit` requests of a trace, or all of them.
///
/// The format is told by the name: `.jsonl` is Mooncake's, `.csv` is Azure's, `.gz` after either
/// is compressed. The whole file is read before anything is served, so that a malformed line
/// stops a replay before it has begun, and so that parsing is in no measurement.
///
/// # Errors
/// `FILE:LINE: reason` for a line; the file's name and the reason where there is no line to name.
pub fn load(path: &Path, limit: Option<usize>) -> Result<Vec<Request>> {
    let name = path.to_string_lossy();
    let plain = name.strip_suffix(".gz").unwrap_or(&name);
    let limit = limit.unwrap_or(usize::MAX);
    if plain.ends_with(".jsonl") {
        collect(Lines::open(path)?, limit, mooncake::row)
    } else if plain.ends_with(".csv") {
        let mut lines = Lines::open(path)?;
        azure::expect_header(&mut lines)?;
        collect(lines, limit, azure::row)
    } else {
        bail!("{name}: unknown kind of trace: expected .jsonl, .jsonl.gz, .csv or .csv.gz")
    }
}

fn collect<Time: PartialOrd>(
    mut lines: Lines,
    limit: usize,
    row: impl Fn(&str) -> Result<Row<Time>, String>,
) -> Result<Vec<Request>> {
    let mut requests = Vec::new();
    let mut latest: Option<Time> = None;
    while requests.len() < limit {
        let Some(line) = lines.next()? else { break };
        let Row { time, request } = row(line).map_err(|reason| lines.malformed(&reason))?;
        if latest.is_some_and(|latest| time < latest) {
            bail!(lines.malformed("timestamp goes backwards"));
        }
        latest = Some(time);
        requests.push(request);
    }
    Ok(requests)
}

/// The request of two lengths as a trace gives them.
fn request(prompt_tokens: u64, output_tokens: u64) -> Result<Request, String> {
    let lengths = usize::try_from(prompt_tokens).ok().zip(usize::try_from(output_tokens).ok());
    lengths
        .and_then(|(prompt, output)| Request::new(prompt, output))
        .ok_or_else(|| format!("{prompt_tokens} + {output_tokens} tokens are too many to count"))
}
