//! Is there a trace file that makes the parsers panic? The first byte chooses the format and whether
//! it is compressed; the rest is the file.
#![no_main]

/// The program's own files, as they are.
#[allow(dead_code)] // of the requests only what the parsers use
#[path = "../../src/bin/paged-kv"]
mod program {
    pub mod request;
    pub mod trace;
}

use std::io::Cursor;
use std::num::NonZeroUsize;

use libfuzzer_sys::fuzz_target;

use program::request;
use program::trace::{Format, Lines, id_tokens, read};

/// A few bytes of compressed text can be many lines.
const REQUESTS_MOST: usize = 10_000;

const BLOCK_SIZE: NonZeroUsize = NonZeroUsize::new(16).unwrap();

fuzz_target!(|bytes: &[u8]| {
    let [first, file @ ..] = bytes else { return };
    let format = if first & 1 == 0 { Format::Mooncake } else { Format::Azure };
    let name = if first & 2 == 0 { "trace" } else { "trace.gz" };
    let lines = Lines::new(name.to_owned(), Cursor::new(file.to_owned()));
    match read(format, lines, REQUESTS_MOST) {
        Ok(requests) => {
            for request in &requests {
                let tokens = request.prompt_tokens().checked_add(request.output_tokens());
                tokens.expect("a request's tokens can be counted");
            }
            _ = id_tokens(&requests, BLOCK_SIZE, None);
        }
        Err(error) => assert!(error.to_string().starts_with("trace"), "{error} names no file"),
    }
});
