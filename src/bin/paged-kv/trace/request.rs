//! `Request`: the lengths of a prompt and an output, in tokens. The cache never sees their text.
//!
//! The sum of the two lengths fits a `usize`. If the trace has hash ids, the request has the contents of
//! its prompt. Its index in the list of requests is its place in the order of arrival.

use paged_kv::{BlockHash, ReuseHint};

use super::contents::Content;

/// A prompt to admit and an output to append to it, in tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    prompt_tokens: usize,
    output_tokens: usize,
    /// Contents of the prompt's parts, in order. All parts are equally long, but the last may be shorter.
    /// Tokens after the last part have no content.
    contents: Box<[Content]>,
    arrival_us: Option<u64>,
    hint: ReuseHint,
}

impl Request {
    /// Returns `None` if prompt and output together are more tokens than can be counted.
    pub fn new(prompt_tokens: usize, output_tokens: usize) -> Option<Self> {
        prompt_tokens.checked_add(output_tokens)?;
        let (contents, arrival_us, hint) = (Box::default(), None, ReuseHint::Unknown);
        Some(Self { prompt_tokens, output_tokens, contents, arrival_us, hint })
    }

    /// Returns the request with the contents of its prompt.
    pub fn with_contents(self, contents: Box<[Content]>) -> Self {
        Self { contents, ..self }
    }

    /// Returns the request with its time, in microseconds.
    pub fn arrives_at(self, arrival_us: Option<u64>) -> Self {
        Self { arrival_us, ..self }
    }

    /// Returns the time since the beginning of the trace, in microseconds, if the trace has one.
    pub fn arrival_us(&self) -> Option<u64> {
        self.arrival_us
    }

    /// Sets the hint with which the request is released.
    pub fn set_hint(&mut self, hint: ReuseHint) {
        self.hint = hint;
    }

    pub fn hint(&self) -> ReuseHint {
        self.hint
    }

    pub fn contents(&self) -> &[Content] {
        &self.contents
    }

    /// Returns how many full blocks of `block_size` tokens have a content. A content is `id_tokens` long, a
    /// multiple of `block_size`. No other block is ever shared.
    pub fn named_blocks(&self, block_size: usize, id_tokens: usize) -> usize {
        let named_tokens = self.contents.len().saturating_mul(id_tokens);
        named_tokens.min(self.prompt_tokens) / block_size
    }

    /// Returns the hashes of the [`named_blocks`](Self::named_blocks).
    pub fn hashes(&self, block_size: usize, id_tokens: usize) -> Vec<BlockHash> {
        let parts = id_tokens / block_size;
        let hashes = self.contents.iter().flat_map(|content| (0..parts).map(|at| content.hash(at)));
        hashes.take(self.named_blocks(block_size, id_tokens)).collect()
    }

    /// Returns the first `count` tokens of prompt and output, where a content is `id_tokens` long. The tokens
    /// after the last content are `own`: no other request has it.
    pub fn tokens(&self, id_tokens: usize, own: u32, count: usize) -> Vec<u32> {
        let of_content = |content: &Content| std::iter::repeat_n(content.token(), id_tokens);
        let mut tokens = Vec::with_capacity(count);
        let named = count.min(self.prompt_tokens);
        tokens.extend(self.contents.iter().flat_map(of_content).take(named));
        tokens.resize(count, own);
        tokens
    }

    pub fn prompt_tokens(&self) -> usize {
        self.prompt_tokens
    }

    pub fn output_tokens(&self) -> usize {
        self.output_tokens
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::contents::Contents;

    const OWN: u32 = u32::MAX;

    fn named(prompt_tokens: usize, ids: &[u64]) -> Request {
        named_by(&mut Contents::default(), prompt_tokens, ids)
    }

    fn named_by(contents: &mut Contents, prompt_tokens: usize, ids: &[u64]) -> Request {
        Request::new(prompt_tokens, 1).unwrap().with_contents(contents.chain(ids).unwrap())
    }

    #[test]
    fn an_id_of_several_blocks_names_each_of_them() {
        let request = named(100, &[7, 9]);
        assert_eq!(request.hashes(64, 64).len(), 1, "the second is not full");
        let split = request.hashes(16, 64);
        assert_eq!(split.len(), 6);
        assert!(split.windows(2).all(|pair| pair[0] != pair[1]));
        assert_eq!(Request::new(100, 1).unwrap().hashes(16, 64), []);
    }

    /// Checks that any two requests have as many equal leading tokens as equal leading hashes of one-token
    /// blocks.
    #[test]
    fn tokens_are_equal_exactly_where_hashes_are() {
        let mut contents = Contents::default();
        let ids: [&[u64]; 8] =
            [&[7, 9], &[7, 8], &[8, 9], &[9, 7], &[7], &[7 + (1 << 44)], &[0], &[u64::MAX, 9]];
        let requests = ids.map(|ids| named_by(&mut contents, 100, ids));
        for (one, other) in
            requests.iter().flat_map(|one| requests.iter().map(move |two| (one, two)))
        {
            let (tokens, hashes) = (
                (one.tokens(48, OWN, 100), other.tokens(48, OWN, 100)),
                [one, other].map(|r| r.hashes(1, 48)),
            );
            let common = hashes[0].iter().zip(&hashes[1]).take_while(|(a, b)| a == b).count();
            let named = one.named_blocks(1, 48).min(other.named_blocks(1, 48));
            let same = tokens.0.iter().zip(&tokens.1).take_while(|(a, b)| a == b).count();
            assert_eq!((tokens.0.len(), same.min(named)), (100, common));
        }
    }

    #[test]
    fn only_blocks_that_an_id_covers_are_named() {
        let request = named(1000, &[7]);
        assert_eq!(request.named_blocks(16, 512), 32);
        assert_eq!(request.hashes(16, 512).len(), 32);
        assert!(request.tokens(512, OWN, 1001)[512..].iter().all(|&token| token == OWN));
        assert_eq!(named(usize::MAX - 1, &[7, 8]).named_blocks(1, usize::MAX), usize::MAX - 1);
    }

    #[test]
    fn a_sum_that_overflows_is_no_request() {
        assert_eq!(Request::new(usize::MAX, 1), None);
        assert!(Request::new(usize::MAX, 0).is_some());
    }
}
