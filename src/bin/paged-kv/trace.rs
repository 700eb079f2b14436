//! `Trace`: the requests of a file, in the order of its lines.
//!
//! That must be the order of their timestamps: a trace that goes back in time is refused, as is any line
//! that its format does not allow. The error gives file, line number and reason. Timestamps are used further by
//! `sweep --overlap` and for hints: otherwise requests are served as fast as possible.

mod azure;
pub mod contents;
mod hints;
mod ids;
mod lines;
mod mooncake;
pub mod request;

use std::num::NonZeroUsize;
use std::path::Path;

use anyhow::{Error, Result, bail};

use self::contents::Contents;
use self::request::Request;
pub use ids::{check_ids, id_tokens};
pub use lines::{LONGEST_MIB, Lines, is_standard_input};

/// The fields of one line.
struct Row<Time> {
    time: Time,
    prompt_tokens: u64,
    output_tokens: u64,
    /// Hash ids of equally long parts of the prompt; empty if the format has none.
    ids: Vec<u64>,
    /// The time since the beginning of the trace, in microseconds, if the format gives times so.
    arrival_us: Option<u64>,
    /// The session of which it is a turn, if the format has sessions.
    session: Option<u64>,
}

/// The format of the lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Mooncake,
    Azure,
}

/// The requests of a trace, of which there is at least one.
#[derive(Debug)]
pub struct Trace {
    pub name: String,
    pub requests: Vec<Request>,
    format: Format,
    /// The line of each request.
    lines: Vec<u64>,
    /// The session of each request, if it has one.
    sessions: Vec<Option<u64>>,
}

impl Format {
    /// Returns the format for a file's name: `.jsonl` is Mooncake's, `.csv` is Azure's, with or without
    /// `.gz` after it.
    fn of(name: &str) -> Result<Self> {
        let plain = name.strip_suffix(".gz").unwrap_or(name);
        if plain.ends_with(".jsonl") {
            Ok(Self::Mooncake)
        } else if plain.ends_with(".csv") {
            Ok(Self::Azure)
        } else {
            bail!(
                "{name}: unknown kind of trace: expected .jsonl, .jsonl.gz, .csv or .csv.gz, or \
                 --format jsonl or csv"
            )
        }
    }
}

/// Reads the first `limit` requests of a trace, or all of them. If `format` is not given, the file's name
/// decides.
///
/// The whole file is read before the first request is served. So a malformed line stops a replay before it
/// has begun, and no measurement includes parsing.
///
/// # Errors
/// `FILE:LINE: reason` for a line; the file's name and the reason where there is no line to name.
pub fn load(path: &Path, format: Option<Format>, limit: Option<NonZeroUsize>) -> Result<Trace> {
    let format = format.map_or_else(|| Format::of(&path.to_string_lossy()), Ok)?;
    read(format, Lines::open(path)?, limit.map_or(usize::MAX, NonZeroUsize::get))
}

/// Reads the first `limit` requests from `lines`; see [`load`].
pub fn read(format: Format, mut lines: Lines, limit: usize) -> Result<Trace> {
    match format {
        Format::Mooncake => collect(format, lines, limit, mooncake::row),
        Format::Azure => {
            azure::expect_header(&mut lines)?;
            collect(format, lines, limit, azure::row)
        }
    }
}

fn collect<Time: PartialOrd>(
    format: Format,
    mut lines: Lines,
    limit: usize,
    row: impl Fn(&str) -> Result<Row<Time>, String>,
) -> Result<Trace> {
    let name = lines.name().to_owned();
    let (requests, lines_of, sessions) = (Vec::new(), Vec::new(), Vec::new());
    let mut trace = Trace { name, requests, format, lines: lines_of, sessions };
    let mut contents = Contents::default();
    let mut latest: Option<Time> = None;
    let mut tokens = 0_u64;
    while trace.requests.len() < limit {
        let Some(line) = lines.next()? else { break };
        let row = row(line).map_err(|reason| lines.malformed(&reason))?;
        if latest.is_some_and(|latest| row.time < latest) {
            bail!(lines.malformed("timestamp goes backwards"));
        }
        let (prompt, output) = (row.prompt_tokens, row.output_tokens);
        let Some(total) = tokens.checked_add(prompt).and_then(|sum| sum.checked_add(output)) else {
            bail!(lines.malformed(&format!(
                "{prompt} + {output} tokens, and {tokens} before them, are too many to count"
            )));
        };
        let request = request(prompt, output).map_err(|reason| lines.malformed(&reason))?;
        let named = contents.chain(&row.ids).and_then(|contents| {
            trace.requests.try_reserve(1)?;
            trace.lines.try_reserve(1)?;
            Ok(contents)
        });
        let named = named.map_err(|reason| lines.malformed(&reason.to_string()))?;
        trace.requests.push(request.with_contents(named).arrives_at(row.arrival_us));
        trace.lines.push(lines.number());
        trace.sessions.push(row.session);
        (latest, tokens) = (Some(row.time), total);
    }
    if trace.requests.is_empty() {
        bail!("{}: no requests", trace.name);
    }
    hints::give(&mut trace.requests, &trace.sessions);
    Ok(trace)
}

impl Trace {
    /// Returns the error for a fault in the line of request `at`.
    fn malformed(&self, at: usize, reason: &str) -> Error {
        lines::malformed(&self.name, self.lines[at], reason)
    }
}

/// Creates the request of two lengths of a trace.
fn request(prompt_tokens: u64, output_tokens: u64) -> Result<Request, String> {
    let lengths = usize::try_from(prompt_tokens).ok().zip(usize::try_from(output_tokens).ok());
    lengths
        .and_then(|(prompt, output)| Request::new(prompt, output))
        .ok_or_else(|| format!("{prompt_tokens} + {output_tokens} tokens are too many to count"))
}
