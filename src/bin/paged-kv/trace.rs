//! Which requests does a trace file hold, and in what order?
//!
//! The order of the lines, which must be the order of their timestamps: a trace that goes back
//! in time is refused, as is any line its format does not allow, by file, line number and
//! reason. Beyond their order the timestamps mean nothing here: requests are served as fast as
//! possible.

mod azure;
mod lines;
mod mooncake;

use std::num::NonZeroUsize;
use std::path::Path;

use anyhow::{Result, bail};

use crate::request::Request;
pub use lines::Lines;

/// What one line says: when, and how long.
struct Row<Time> {
    time: Time,
    request: Request,
}

/// Whose lines they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Mooncake,
    Azure,
}

impl Format {
    /// Told by the file's name: `.jsonl` is Mooncake's, `.csv` is Azure's, `.gz` after either is
    /// compressed.
    fn of(name: &str) -> Result<Self> {
        let plain = name.strip_suffix(".gz").unwrap_or(name);
        if plain.ends_with(".jsonl") {
            Ok(Self::Mooncake)
        } else if plain.ends_with(".csv") {
            Ok(Self::Azure)
        } else {
            bail!("{name}: unknown kind of trace: expected .jsonl, .jsonl.gz, .csv or .csv.gz")
        }
    }
}

/// Reads the first `limit` requests of a trace, or all of them.
///
/// The whole file is read before anything is served, so that a malformed line stops a replay
/// before it has begun, and so that parsing is in no measurement.
///
/// # Errors
/// `FILE:LINE: reason` for a line; the file's name and the reason where there is no line to name.
pub fn load(path: &Path, limit: Option<usize>) -> Result<Vec<Request>> {
    let format = Format::of(&path.to_string_lossy())?;
    read(format, Lines::open(path)?, limit.unwrap_or(usize::MAX))
}

/// [`load`], of lines from anywhere.
pub fn read(format: Format, mut lines: Lines, limit: usize) -> Result<Vec<Request>> {
    match format {
        Format::Mooncake => collect(lines, limit, mooncake::row),
        Format::Azure => {
            azure::expect_header(&mut lines)?;
            collect(lines, limit, azure::row)
        }
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

/// Tokens that a content id of these requests names: as given, or told by the lengths of the prompts.
/// `None` if they have no content ids.
///
/// # Errors
/// There is no such number, or blocks of `block_size` do not divide it.
pub fn id_tokens(
    requests: &[Request],
    block_size: NonZeroUsize,
    given: Option<NonZeroUsize>,
) -> Result<Option<usize>> {
    if requests.iter().all(|request| request.content_ids().is_empty()) {
        return Ok(None);
    }
    let given = given.map(NonZeroUsize::get);
    let Some(id_tokens) = given.or_else(|| tokens_of_an_id(requests, block_size.get())) else {
        bail!("the prompts' lengths do not tell how many tokens a hash id names: give --id-tokens");
    };
    if !id_tokens.is_multiple_of(block_size.get()) {
        bail!(
            "a hash id of this trace names {id_tokens} tokens, which blocks of {block_size} do not \
             divide: give another --block-size, or --reuse off"
        );
    }
    Ok(Some(id_tokens))
}

/// Tokens that a content id of these requests names: the power of two by which every prompt has an id
/// for each full part, or also one for the rest; of several the first that is a multiple of
/// `block_size`, if one is. `None` if there are no ids, or no such number.
fn tokens_of_an_id(requests: &[Request], block_size: usize) -> Option<usize> {
    let fits = |request: &Request, tokens: usize| {
        let (prompt, ids) = (request.prompt_tokens(), request.content_ids().len());
        ids == prompt / tokens || ids == prompt.div_ceil(tokens)
    };
    if requests.iter().all(|request| request.content_ids().is_empty()) {
        return None;
    }
    let mut fitting =
        (0..20).map(|power| 1 << power).filter(|&id| requests.iter().all(|one| fits(one, id)));
    let first = fitting.next()?;
    let divided = |tokens: &usize| tokens.is_multiple_of(block_size);
    Some(std::iter::once(first).chain(fitting).find(divided).unwrap_or(first))
}

/// The request of two lengths as a trace gives them.
fn request(prompt_tokens: u64, output_tokens: u64) -> Result<Request, String> {
    let lengths = usize::try_from(prompt_tokens).ok().zip(usize::try_from(output_tokens).ok());
    lengths
        .and_then(|(prompt, output)| Request::new(prompt, output))
        .ok_or_else(|| format!("{prompt_tokens} + {output_tokens} tokens are too many to count"))
}
