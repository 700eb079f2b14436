//! `Lines`: the lines of a trace, read from a file, a pipe or standard input, with their numbers.
//!
//! One line is in memory at a time, and no line is longer than [`LONGEST_MIB`], so a trace may be
//! larger than memory. Compressed input is recognized by its first bytes, not by its name. Line numbers
//! are those that an editor shows: from 1, blank lines counted although they are skipped. A byte-order
//! mark and CRLF are not part of a line.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::path::Path;

use anyhow::{Context, Error, Result, anyhow};
use flate2::read::MultiGzDecoder;

/// The longest line that is read, in MiB. A prompt of a million tokens with an id for each takes less.
pub const LONGEST_MIB: usize = 16;

const LONGEST: usize = LONGEST_MIB << 20;

const GZIP: [u8; 2] = [0x1F, 0x8B];

const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// The lines of an input that are not blank.
pub struct Lines {
    name: String,
    reader: Box<dyn BufRead>,
    number: u64,
    buffer: Vec<u8>,
}

impl Lines {
    /// Opens a file or a pipe, or standard input for `-`.
    ///
    /// # Errors
    /// The input cannot be opened or read.
    pub fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let opened = if is_standard_input(path) {
            Self::new(name.clone(), io::stdin())
        } else {
            File::open(path).and_then(|file| Self::new(name.clone(), file))
        };
        opened.context(name)
    }

    /// Reads the lines of `input`, which errors call `name`.
    ///
    /// # Errors
    /// The first bytes cannot be read.
    pub fn new(name: String, mut input: impl Read + 'static) -> io::Result<Self> {
        let mut first = Vec::new();
        input.by_ref().take(GZIP.len() as u64).read_to_end(&mut first)?;
        let is_compressed = first == GZIP;
        let whole = BufReader::new(Cursor::new(first).chain(input));
        let reader: Box<dyn BufRead> = if is_compressed {
            Box::new(BufReader::new(MultiGzDecoder::new(whole)))
        } else {
            Box::new(whole)
        };
        Ok(Self { name, reader, number: 0, buffer: Vec::new() })
    }

    /// Returns the next line that is not blank, without its line end; `None` at the end of the file.
    ///
    /// # Errors
    /// The line cannot be read or decompressed, is too long, or is not UTF-8.
    pub fn next(&mut self) -> Result<Option<&str>> {
        loop {
            self.number += 1;
            match self.read() {
                Ok(0) => return Ok(None),
                Ok(_) if self.buffer.len() > LONGEST && !self.buffer.ends_with(b"\n") => {
                    return Err(self.malformed(&format!("longer than {LONGEST_MIB} MiB")));
                }
                Ok(_) if self.content().is_empty() => {}
                Ok(_) => break,
                Err(error) => return Err(self.malformed(&error.to_string())),
            }
        }
        str::from_utf8(self.content()).map(Some).map_err(|error| self.malformed(&error.to_string()))
    }

    fn read(&mut self) -> io::Result<usize> {
        self.buffer.clear();
        let mut bounded = self.reader.by_ref().take(LONGEST as u64 + 1);
        bounded.read_until(b'\n', &mut self.buffer)
    }

    /// Returns the line read last without byte-order mark, line end and surrounding blanks.
    fn content(&self) -> &[u8] {
        let line = match self.number {
            1 => self.buffer.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&self.buffer),
            _ => &self.buffer,
        };
        line.trim_ascii()
    }

    /// Returns the input's name as given.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the number of the line read last.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Returns the error for a fault in the line read last.
    pub fn malformed(&self, reason: &str) -> Error {
        malformed(&self.name, self.number, reason)
    }
}

/// Returns the error for a fault in a line of the input `name`.
pub fn malformed(name: &str, line: u64, reason: &str) -> Error {
    anyhow!("{name}:{line}: {reason}")
}

/// Returns whether `path` stands for standard input.
pub fn is_standard_input(path: &Path) -> bool {
    path.as_os_str() == "-"
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns one byte per read, as a pipe may.
    struct ByteByByte(Cursor<Vec<u8>>);

    impl Read for ByteByByte {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let one = buffer.len().min(1);
            self.0.read(&mut buffer[..one])
        }
    }

    fn lines(input: impl Read + 'static) -> Result<Vec<(u64, String)>> {
        let mut lines = Lines::new("trace".to_owned(), input).unwrap();
        let mut all = Vec::new();
        while let Some(line) = lines.next()? {
            let line = line.to_owned();
            all.push((lines.number(), line));
        }
        Ok(all)
    }

    fn slowly(text: &str) -> ByteByByte {
        ByteByByte(Cursor::new(text.as_bytes().to_vec()))
    }

    #[test]
    fn marks_and_line_ends_belong_to_no_line() {
        let want = vec![(1, "a".to_owned()), (3, "b".to_owned())];
        for text in ["a\n\nb\n", "a\r\n\r\nb\r\n", "\u{FEFF}a\n \nb", "\u{FEFF}a\r\n\t\r\nb\r\n"] {
            assert_eq!(lines(slowly(text)).unwrap(), want, "{text:?}");
        }
        for text in ["", "\n", "\u{FEFF}", "\u{FEFF}\r\n", " \n\n"] {
            assert_eq!(lines(slowly(text)).unwrap(), [], "{text:?}");
        }
    }

    #[test]
    fn the_longest_line_is_read_and_no_longer_one() {
        for (more, is_read) in [(0, true), (1, false)] {
            for end in ["", "\n", "\nb"] {
                let text = "a\n".to_owned() + &"x".repeat(LONGEST + more) + end;
                let read = lines(Cursor::new(text));
                let error = read.as_ref().map_or_else(ToString::to_string, |_| String::new());
                assert_eq!(read.is_ok(), is_read, "{error}");
                assert!(is_read || error.starts_with("trace:2: longer than 16 MiB"), "{error}");
            }
        }
    }
}
