//! `requests`: a synthetic workload of chat requests, used when there is no trace.
//!
//! Several open conversations take their turns interleaved. A conversation starts with a system prompt.
//! Each later prompt is the whole conversation so far and a new question, so prompts grow while questions
//! and answers keep their mean lengths. Lengths are exponentially distributed: most are short, a few are
//! long. The seed determines the workload.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::trace::request::Request;

/// Conversations that are open at the same time.
const CONVERSATIONS: usize = 64;

/// Lengths of the system prompts in use, in tokens.
const SYSTEM_PROMPTS: [usize; 3] = [64, 512, 1536];

/// Mean lengths, in tokens.
const QUESTION_MEAN: f64 = 180.0;
const ANSWER_MEAN: f64 = 220.0;

/// A conversation ends before its prompt gets longer than this, in tokens.
const CONTEXT_LIMIT: usize = 8192;

/// A turn is the last of its conversation with a probability of one in this number.
const MEAN_TURNS: u32 = 8;

/// Returns the first `count` requests of the workload with this seed.
pub fn requests(seed: u64, count: usize) -> Vec<Request> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut open: Vec<_> = (0..CONVERSATIONS).map(|_| begin(&mut random)).collect();
    (0..count)
        .map(|_| {
            let said = &mut open[random.random_range(0..CONVERSATIONS)];
            turn(said, &mut random)
        })
        .collect()
}

/// Returns the tokens of a conversation before its first question: a system prompt.
fn begin(random: &mut ChaCha8Rng) -> usize {
    SYSTEM_PROMPTS[random.random_range(0..SYSTEM_PROMPTS.len())]
}

fn turn(said: &mut usize, random: &mut ChaCha8Rng) -> Request {
    let question = length(QUESTION_MEAN, random);
    if *said + question > CONTEXT_LIMIT || random.random_ratio(1, MEAN_TURNS) {
        *said = begin(random);
    }
    let prompt = (*said + question).min(CONTEXT_LIMIT);
    let answer = length(ANSWER_MEAN, random);
    *said = prompt + answer;
    Request::new(prompt, answer).expect("a context and an answer are few tokens")
}

/// Returns a length drawn from an exponential distribution with this mean, at least one token.
///
/// The logarithm is the one step that machines may round differently. Only the whole part of the product
/// is kept, so a difference would show in one length of many billions.
fn length(mean: f64, random: &mut ChaCha8Rng) -> usize {
    let uniform: f64 = random.random();
    1 + (-mean * (1.0 - uniform).ln()) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_is_one_workload() {
        assert_eq!(requests(7, 100), requests(7, 100));
        assert_ne!(requests(7, 100), requests(8, 100));
        assert_eq!(requests(7, 100)[..50], requests(7, 50));
    }

    #[test]
    fn prompts_grow_and_stay_within_the_context() {
        let requests = requests(0, 5000);
        let prompts: Vec<_> = requests.iter().map(|request| request.prompt_tokens()).collect();
        assert!(prompts.iter().all(|&prompt| (65..=CONTEXT_LIMIT).contains(&prompt)));
        let long = prompts.iter().filter(|&&prompt| prompt > 3000).count();
        assert!((500..2500).contains(&long), "{long} of 5000 prompts are long");
    }
}
