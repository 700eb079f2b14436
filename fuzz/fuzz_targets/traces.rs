//! Checks that no trace file makes the parsers panic. The first byte chooses the format; the rest is the
//! file, compressed or not.
#![no_main]

/// The program's own files, unchanged.
#[allow(dead_code, unused_imports)] // the parsers use only a part of the requests
#[path = "../../src/bin/paged-kv"]
mod program {
    pub mod trace;
}

use std::io::Cursor;
use std::num::NonZeroUsize;

use libfuzzer_sys::fuzz_target;

use program::trace::request::Request;
use program::trace::{Format, Lines, id_tokens, read};

/// The most requests of an input: a few bytes of compressed text can be many lines.
const REQUESTS_MOST: usize = 10_000;

const BLOCK_SIZE: NonZeroUsize = NonZeroUsize::new(16).unwrap();

fuzz_target!(|bytes: &[u8]| {
    let [first, file @ ..] = bytes else { return };
    let format = if first & 1 == 0 { Format::Mooncake } else { Format::Azure };
    let lines = Lines::new("trace".to_owned(), Cursor::new(file.to_owned()));
    match read(format, lines.expect("bytes can be read"), REQUESTS_MOST) {
        Ok(trace) => {
            let tokens = |request: &Request| (request.prompt_tokens(), request.output_tokens());
            let sum =
                trace.requests.iter().map(tokens).try_fold(0_usize, |sum, (prompt, output)| {
                    sum.checked_add(prompt)?.checked_add(output)
                });
            sum.expect("all tokens can be counted");
            _ = id_tokens(&trace, BLOCK_SIZE, None);
            _ = id_tokens(&trace, BLOCK_SIZE, Some(BLOCK_SIZE));
        }
        Err(error) => assert!(error.to_string().starts_with("trace"), "{error} names no file"),
    }
});
