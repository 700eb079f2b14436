//! Which line of the file is this?
//!
//! One line is in memory at a time, so a trace may be larger than memory. Line numbers are those
//! an editor shows: from 1, blank lines counted although they are skipped. What a line means is
//! not known here.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use anyhow::{Context, Error, Result, anyhow};
use flate2::read::MultiGzDecoder;

/// The lines of a file that are not blank, decompressed if its name ends in `.gz`.
pub struct Lines {
    name: String,
    reader: Box<dyn BufRead>,
    number: u64,
    buffer: Vec<u8>,
}

impl Lines {
    /// # Errors
    /// The file cannot be opened.
    pub fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let file = File::open(path).with_context(|| name.clone())?;
        Ok(Self::new(name, file))
    }

    /// The lines of `file`, of which only the name is known.
    pub fn new(name: String, file: impl Read + 'static) -> Self {
        let reader: Box<dyn BufRead> = if name.ends_with(".gz") {
            Box::new(BufReader::new(MultiGzDecoder::new(BufReader::new(file))))
        } else {
            Box::new(BufReader::new(file))
        };
        Self { name, reader, number: 0, buffer: Vec::new() }
    }

    /// The next line that is not blank, without its line end; `None` at the end of the file.
    ///
    /// # Errors
    /// The line cannot be read or decompressed, or is not UTF-8.
    pub fn next(&mut self) -> Result<Option<&str>> {
        loop {
            self.number += 1;
            match self.read() {
                Ok(0) => return Ok(None),
                Ok(_) if self.buffer.trim_ascii().is_empty() => {}
                Ok(_) => break,
                Err(error) => return Err(self.malformed(&error.to_string())),
            }
        }
        match str::from_utf8(self.buffer.trim_ascii()) {
            Ok(line) => Ok(Some(line)),
            Err(error) => Err(self.malformed(&error.to_string())),
        }
    }

    fn read(&mut self) -> io::Result<usize> {
        self.buffer.clear();
        self.reader.read_until(b'\n', &mut self.buffer)
    }

    /// The error that says what is wrong with the line read last.
    pub fn malformed(&self, reason: &str) -> Error {
        anyhow!("{}:{}: {reason}", self.name, self.number)
    }
}
