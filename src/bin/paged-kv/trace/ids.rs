//! `id_tokens` and `check_ids`: the number of tokens that a trace's hash ids name, checked on each line.
//!
//! A line has an id for each full part of its prompt, and may have one more for the rest.

use std::num::NonZeroUsize;
use std::ops::RangeInclusive;

use anyhow::{Error, Result, bail};

use super::request::Request;
use super::{Format, Trace};

/// The largest size that is tried if none is given, as a power of two. All smaller powers are tried too.
const LARGEST_LOG2: u32 = 19;

/// Returns the tokens that an id of this trace names: as given, or inferred from the lengths of the
/// prompts. Returns `None` if the trace has no ids.
///
/// # Errors
/// A line has too few or too many ids, no size explains all lines, or blocks of `block_size` do not
/// divide an id.
pub fn id_tokens(
    trace: &Trace,
    block_size: NonZeroUsize,
    given: Option<NonZeroUsize>,
) -> Result<Option<usize>> {
    if let Some(id_tokens) = given {
        check_ids(trace, id_tokens)?;
    }
    if trace.requests.iter().all(|request| request.contents().is_empty()) {
        return Ok(None);
    }
    let id_tokens = match given {
        Some(id_tokens) => id_tokens.get(),
        None => inferred(trace, block_size.get())?,
    };
    if !id_tokens.is_multiple_of(block_size.get()) {
        bail!(
            "a hash id of this trace names {id_tokens} tokens, which blocks of {block_size} do not \
             divide: give another --block-size or --groups, or --reuse off"
        );
    }
    Ok(Some(id_tokens))
}

/// Checks that every line has as many ids as its prompt needs, if an id names `id_tokens` tokens. A
/// format without ids passes.
///
/// # Errors
/// A line has too few or too many ids.
pub fn check_ids(trace: &Trace, id_tokens: NonZeroUsize) -> Result<()> {
    if trace.format == Format::Azure {
        return Ok(());
    }
    let misfit = trace.requests.iter().position(|one| !fits(one, id_tokens.get()));
    misfit.map_or(Ok(()), |at| Err(refusal(trace, at, id_tokens.get(), "")))
}

/// Returns a power of two that explains every line. Of several, it is the smallest multiple of
/// `block_size`, or the smallest of all if none is a multiple.
fn inferred(trace: &Trace, block_size: usize) -> Result<usize> {
    let explained = |tokens: usize| {
        let misfit = trace.requests.iter().position(|one| !fits(one, tokens));
        (misfit.unwrap_or(trace.requests.len()), tokens)
    };
    let sizes = (0..=LARGEST_LOG2).map(|power| explained(1 << power));
    let sizes: Vec<_> = sizes.collect();
    let all = sizes.iter().filter(|&&(lines, _)| lines == trace.requests.len());
    let all: Vec<usize> = all.map(|&(_, tokens)| tokens).collect();
    let divided = all.iter().find(|tokens| tokens.is_multiple_of(block_size));
    if let Some(&tokens) = divided.or(all.first()) {
        return Ok(tokens);
    }
    // The smallest of the sizes that explain the most lines: the error names its first misfit.
    let best = sizes.into_iter().rev().max_by_key(|&(lines, _)| lines);
    let (at, tokens) = best.expect("there are sizes to try");
    let hint = ", as the lengths of most lines tell: give --id-tokens";
    Err(refusal(trace, at, tokens, hint))
}

fn refusal(trace: &Trace, at: usize, id_tokens: usize, hint: &str) -> Error {
    let request = &trace.requests[at];
    let (ids, tokens) = (request.contents().len(), request.prompt_tokens());
    let (few, many) = expected(request, id_tokens).into_inner();
    let wanted = if few == many { few.to_string() } else { format!("{few} or {many}") };
    trace.malformed(
        at,
        &format!(
            "{ids} hash ids for an input_length of {tokens}, expected {wanted} where an id names \
             {id_tokens} tokens{hint}"
        ),
    )
}

fn fits(request: &Request, id_tokens: usize) -> bool {
    expected(request, id_tokens).contains(&request.contents().len())
}

/// Returns how many ids a line may have: one for each full part of the prompt, or also one for the
/// rest.
fn expected(request: &Request, id_tokens: usize) -> RangeInclusive<usize> {
    let prompt = request.prompt_tokens();
    prompt / id_tokens..=prompt.div_ceil(id_tokens)
}
