//! What is one request, to a cache that never sees its text?
//!
//! Two lengths, whose sum fits a `usize`. When it came and from whom is told by its place in the
//! list of requests and by nothing else.

/// A prompt to admit and an output to append to it, in tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    prompt_tokens: usize,
    output_tokens: usize,
}

impl Request {
    /// `None` if prompt and output together are more tokens than can be counted.
    pub fn new(prompt_tokens: usize, output_tokens: usize) -> Option<Self> {
        prompt_tokens.checked_add(output_tokens)?;
        Some(Self { prompt_tokens, output_tokens })
    }

    pub fn prompt_tokens(self) -> usize {
        self.prompt_tokens
    }

    pub fn output_tokens(self) -> usize {
        self.output_tokens
    }

    /// Blocks it holds with its last token written.
    ///
    /// Trimming (`StreamingLLM`) is not counted on: a request is trimmed only when others need
    /// its room, and the oldest request, which must be able to end, is never trimmed.
    pub fn blocks_needed(self, block_size: usize) -> usize {
        (self.prompt_tokens + self.output_tokens).div_ceil(block_size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partly_filled_block_is_a_block() {
        let blocks = |prompt, output| Request::new(prompt, output).unwrap().blocks_needed(16);
        assert_eq!(blocks(0, 0), 0);
        assert_eq!(blocks(0, 1), 1);
        assert_eq!(blocks(15, 1), 1);
        assert_eq!(blocks(16, 1), 2);
    }

    #[test]
    fn a_sum_that_overflows_is_no_request() {
        assert_eq!(Request::new(usize::MAX, 1), None);
        assert!(Request::new(usize::MAX, 0).is_some());
    }
}
