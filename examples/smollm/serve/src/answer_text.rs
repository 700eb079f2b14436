//! `AnswerText`: the text of one sample as its tokens come: whole characters, up to a stop text.

/// The text of a sample.
#[derive(Debug, Default)]
pub struct AnswerText {
    /// Bytes that are no whole character yet.
    bytes: Vec<u8>,
    /// Text that may be the beginning of a stop text.
    held: String,
    stops: Vec<String>,
    is_stopped: bool,
}

impl AnswerText {
    /// Creates the text of a sample that ends before the first of `stops`.
    pub fn new(stops: &[String]) -> Self {
        Self { stops: stops.to_vec(), ..Self::default() }
    }

    /// Returns true if a stop text was found.
    pub fn is_stopped(&self) -> bool {
        self.is_stopped
    }

    /// Adds the bytes of a token. Returns the text that is certain now.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        if self.is_stopped {
            return String::new();
        }
        self.bytes.extend_from_slice(bytes);
        self.take_characters(false);
        let found = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min();
        if let Some(at) = found {
            self.is_stopped = true;
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        let is_certain = |at: &usize| {
            let rest = &self.held[*at..];
            !self.stops.iter().any(|stop| stop.starts_with(rest))
        };
        let starts = self.held.char_indices().map(|(at, _)| at);
        let certain = starts.clone().find(|at| !is_certain(at)).unwrap_or(self.held.len());
        let rest = self.held.split_off(certain);
        std::mem::replace(&mut self.held, rest)
    }

    /// Returns the rest of the text of a sample that has ended.
    pub fn end(&mut self) -> String {
        if self.is_stopped {
            return String::new();
        }
        self.take_characters(true);
        std::mem::take(&mut self.held)
    }

    /// Moves whole characters to the text; with `all` also the bytes of a half one.
    fn take_characters(&mut self, all: bool) {
        let mut is_half = false;
        let mut taken = 0;
        for chunk in self.bytes.utf8_chunks() {
            self.held.push_str(chunk.valid());
            taken += chunk.valid().len();
            let end = taken + chunk.invalid().len();
            // At the end, up to three bytes may wait for the rest of their character.
            is_half = end == self.bytes.len() && (1..4).contains(&chunk.invalid().len()) && !all;
            if is_half {
                break;
            }
            if !chunk.invalid().is_empty() {
                self.held.push(char::REPLACEMENT_CHARACTER);
            }
            taken = end;
        }
        debug_assert!(is_half || taken == self.bytes.len());
        self.bytes.drain(..taken);
    }
}

#[test]
fn a_text_ends_before_a_stop_text_however_the_tokens_cut_it() {
    for cut in 1..9 {
        let mut text = AnswerText::new(&["END".to_owned(), "\n\n".to_owned()]);
        let all = "one\nE two EN END three".as_bytes();
        let parts: String = all.chunks(cut).map(|part| text.push(part)).collect();
        assert_eq!(parts + &text.end(), "one\nE two EN ");
        assert!(text.is_stopped());
    }
}

#[test]
fn characters_are_whole() {
    let mut text = AnswerText::new(&[]);
    let parts: Vec<String> = "日本".as_bytes().chunks(2).map(|part| text.push(part)).collect();
    assert_eq!(parts, ["", "日", "本"]);
    assert_eq!((text.push(&[0xE6, 0x97]), text.end()), (String::new(), "\u{FFFD}".to_owned()));
    assert_eq!(text.push(&[b'a', 0xFF, b'b']), "a\u{FFFD}b");
}
