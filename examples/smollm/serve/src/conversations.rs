//! `Conversations`: the hashed prompts of recent answers, so that the next prompt of a conversation hashes its new
//! tokens only.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use paged_kv::{ExtraKeys, PagedKvCache, Prompt};

/// Answers that are kept.
const KEPT: usize = 64;

/// The hashed tokens of an answer, and the key that separates its hashes.
struct Kept {
    salt: Option<String>,
    tokens: Vec<u32>,
    prompt: Prompt,
}

/// Recent answers.
#[derive(Default)]
pub struct Conversations(Mutex<VecDeque<Kept>>);

impl Conversations {
    /// Returns the hashed form of a prompt. If it begins with a kept conversation, that one's hashes are extended.
    pub fn prompt(&self, cache: &PagedKvCache, tokens: &[u32], salt: Option<&str>) -> Prompt {
        let begun = {
            let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let fits =
                |kept: &&Kept| kept.salt.as_deref() == salt && tokens.starts_with(&kept.tokens);
            let longest = kept.iter().filter(fits).max_by_key(|kept| kept.tokens.len());
            longest.map(|kept| kept.prompt.clone())
        };
        let keys = salt.map_or(ExtraKeys::default(), |salt| ExtraKeys::default().salt(salt));
        let mut prompt = begun.unwrap_or_else(|| cache.prompt_with(&[], &keys));
        let new_tokens = &tokens[prompt.num_tokens()..];
        prompt.extend(new_tokens).expect("the cache hashes its tokens");
        prompt
    }

    /// Keeps the tokens of an answer, the first of which are hashed.
    pub fn keep(&self, salt: Option<&str>, tokens: Vec<u32>, mut prompt: Prompt) {
        prompt.extend(&tokens[prompt.num_tokens()..]).expect("the cache hashes its tokens");
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.truncate(KEPT - 1);
        kept.push_front(Kept { salt: salt.map(str::to_owned), tokens, prompt });
    }
}
