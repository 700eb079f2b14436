//! `read`: the requests of a trace in Mooncake's format, as prompts of tokens.
//!
//! Two prompts are equal as far as their ids are: a content is an id together with all ids before it.
//! Tokens that no id names occur in no other prompt. An error gives the number of its line.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};

use serde::Deserialize;

use crate::client::Ask;

/// The longest line that is read, in bytes.
const LINE_BYTES: usize = 16 << 20;

/// The part of a trace that is read.
pub struct Cut {
    /// The most requests.
    pub requests: usize,
    /// The most tokens of a prompt, and of an answer.
    pub longest: usize,
    /// Tokens that an id names.
    pub id_tokens: usize,
}

#[derive(Deserialize)]
struct Row {
    input_length: usize,
    output_length: usize,
    #[serde(default)]
    hash_ids: Vec<u64>,
}

/// Numbers of the contents so far. A content is an id and the content before it.
#[derive(Default)]
struct Contents {
    known: HashMap<(Option<u32>, u64), u32>,
    next: u32,
}

/// Reads a file, or standard input for `-`.
///
/// # Errors
/// The file cannot be read, a line is not a request or has too few or too many ids, or there is no request.
pub fn read(path: &str, cut: &Cut) -> io::Result<Vec<Ask>> {
    let input: Box<dyn Read> = match path {
        "-" => Box::new(io::stdin()),
        path => Box::new(File::open(path)?),
    };
    let (mut input, mut contents) = (BufReader::new(input), Contents::default());
    let (mut asks, mut line) = (Vec::new(), Vec::new());
    for number in 1.. {
        line.clear();
        let read = input.by_ref().take(LINE_BYTES as u64).read_until(b'\n', &mut line)?;
        let text = line.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(&line).trim_ascii();
        if read == 0 || asks.len() == cut.requests {
            break;
        }
        let wrong = |what: String| io::Error::other(format!("{path}:{number}: {what}"));
        if read == LINE_BYTES && !line.ends_with(b"\n") {
            return Err(wrong(format!("longer than {LINE_BYTES} bytes")));
        }
        if !text.is_empty() {
            let row = serde_json::from_slice(text).map_err(|error| wrong(error.to_string()))?;
            asks.push(ask(row, cut, &mut contents).map_err(wrong)?);
        }
    }
    if asks.is_empty() { Err(io::Error::other(format!("{path}: no requests"))) } else { Ok(asks) }
}

fn ask(row: Row, cut: &Cut, contents: &mut Contents) -> Result<Ask, String> {
    let Row { input_length, output_length, hash_ids } = row;
    let expected = input_length / cut.id_tokens..=input_length.div_ceil(cut.id_tokens);
    if !hash_ids.is_empty() && !expected.contains(&hash_ids.len()) {
        let (ids, tokens) = (hash_ids.len(), cut.id_tokens);
        return Err(format!(
            "{ids} hash ids for an input_length of {input_length}, where an id names {tokens} tokens"
        ));
    }
    let mut before = None;
    let mut prompt = Vec::new();
    let length = input_length.clamp(1, cut.longest);
    for id in hash_ids.iter().take(length.div_ceil(cut.id_tokens)) {
        let content = contents.number((before, *id))?;
        before = Some(content);
        prompt.resize(length.min(prompt.len() + cut.id_tokens), content);
    }
    prompt.resize(length, contents.fresh()?);
    let max_tokens = output_length.clamp(1, cut.longest);
    Ok(Ask { prompt, max_tokens, samples: 1, stream: true, leave_after: None })
}

impl Contents {
    fn number(&mut self, content: (Option<u32>, u64)) -> Result<u32, String> {
        match self.known.get(&content) {
            Some(&number) => Ok(number),
            None => {
                let number = self.fresh()?;
                self.known.insert(content, number);
                Ok(number)
            }
        }
    }

    fn fresh(&mut self) -> Result<u32, String> {
        let number = self.next;
        self.next = number.checked_add(1).ok_or("more contents than there are tokens")?;
        Ok(number)
    }
}
