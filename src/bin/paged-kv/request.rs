//! What is one request, to a cache that never sees its text?
//!
//! Two lengths, whose sum fits a `usize`, and names of the prompt's contents, where the trace gives
//! them. When it came and from whom is told by its place in the list of requests and by nothing else.

use paged_kv::BlockHash;

/// A prompt to admit and an output to append to it, in tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    prompt_tokens: usize,
    output_tokens: usize,
    /// Of equal parts of the prompt, each a name of all tokens up to its end.
    content_ids: Box<[u64]>,
}

impl Request {
    /// `None` if prompt and output together are more tokens than can be counted.
    pub fn new(prompt_tokens: usize, output_tokens: usize) -> Option<Self> {
        prompt_tokens.checked_add(output_tokens)?;
        Some(Self { prompt_tokens, output_tokens, content_ids: Box::default() })
    }

    /// With names of its contents.
    pub fn with_content_ids(self, content_ids: Box<[u64]>) -> Self {
        Self { content_ids, ..self }
    }

    pub fn content_ids(&self) -> &[u64] {
        &self.content_ids
    }

    /// The hashes of the full blocks of `block_size` tokens, if an id names `id_tokens`, a multiple of
    /// them: as many chained hashes of each id.
    pub fn hashes(&self, block_size: usize, id_tokens: usize) -> Vec<BlockHash> {
        let parts = id_tokens / block_size;
        let part_of_id = |&id: &u64| {
            let hash = move |part: usize| u128::from(id) << 64 | part as u128;
            (0..parts).map(move |part| BlockHash::from_u128(hash(part)))
        };
        let full = self.prompt_tokens / block_size;
        self.content_ids.iter().flat_map(part_of_id).take(full).collect()
    }

    /// The tokens of the prompt, if an id names `id_tokens` of them: the same for the same id, and
    /// behind the last id those of none.
    pub fn tokens(&self, id_tokens: usize) -> Vec<u32> {
        let of_id = |&id: &u64| (0..id_tokens as u64).map(move |at| token(id, at));
        let mut tokens: Vec<u32> =
            self.content_ids.iter().flat_map(of_id).take(self.prompt_tokens).collect();
        tokens.resize(self.prompt_tokens, 0);
        tokens
    }

    pub fn prompt_tokens(&self) -> usize {
        self.prompt_tokens
    }

    pub fn output_tokens(&self) -> usize {
        self.output_tokens
    }

    /// Blocks it holds with its last token written.
    ///
    /// Trimming (`StreamingLLM`) is not counted on: a request is trimmed only when others need
    /// its room, and the oldest request, which must be able to end, is never trimmed.
    pub fn blocks_needed(&self, block_size: usize) -> usize {
        (self.prompt_tokens + self.output_tokens).div_ceil(block_size)
    }
}

/// One of the tokens that `id` stands for, of a vocabulary of 2^17.
fn token(id: u64, at: u64) -> u32 {
    let mixed = (id << 20 ^ at).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    ((mixed ^ mixed >> 32).wrapping_mul(0xD6E8_FEB8_6659_FD93) >> 47) as u32
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
    fn an_id_of_several_blocks_names_each_of_them() {
        let request = Request::new(100, 1).unwrap().with_content_ids([7, 9].into());
        assert_eq!(request.hashes(64, 64).len(), 1, "the second is not full");
        let split = request.hashes(16, 64);
        assert_eq!(split.len(), 6);
        assert!(split.windows(2).all(|pair| pair[0] != pair[1]));
        assert_eq!(Request::new(100, 1).unwrap().hashes(16, 64), []);
    }

    #[test]
    fn equal_ids_are_equal_tokens() {
        let tokens =
            |ids: &[u64]| Request::new(100, 1).unwrap().with_content_ids(ids.into()).tokens(48);
        assert_eq!(tokens(&[7, 9]).len(), 100);
        assert_eq!(tokens(&[7, 9])[..48], tokens(&[7, 8])[..48]);
        assert_ne!(tokens(&[7, 9])[48..96], tokens(&[7, 8])[48..96]);
    }

    #[test]
    fn a_sum_that_overflows_is_no_request() {
        assert_eq!(Request::new(usize::MAX, 1), None);
        assert!(Request::new(usize::MAX, 0).is_some());
    }
}
