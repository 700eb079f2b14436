//! The fields of requests, as OpenAI names them, and their limits.

use serde::Deserialize;

use super::answer::{Form, Kind};
use super::error::ApiError;
use crate::job::Parameters;
use crate::loaded::Loaded;
use crate::shared::Shared;
use crate::text::Message;

/// The most samples of a request.
const MOST_SAMPLES: usize = 16;
/// The most stop texts, and the most bytes of one.
const MOST_STOPS: usize = 4;
const STOP_BYTES: usize = 256;
/// The highest temperature.
const HOTTEST: f32 = 2.0;
/// Tokens of a completion without `max_tokens`.
const DEFAULT_TOKENS: usize = 16;

/// A request of `/v1/completions`.
#[derive(Deserialize)]
pub(super) struct Completion {
    pub(super) prompt: PromptField,
    #[serde(flatten)]
    pub(super) options: Options,
}

/// A request of `/v1/chat/completions`.
#[derive(Deserialize)]
pub(super) struct Chat {
    pub(super) messages: Vec<ChatMessage>,
    #[serde(flatten)]
    pub(super) options: Options,
}

/// The fields that both have. Other fields are ignored.
#[derive(Deserialize)]
pub(super) struct Options {
    model: Option<String>,
    max_tokens: Option<usize>,
    max_completion_tokens: Option<usize>,
    n: Option<usize>,
    seed: Option<i64>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    stop: Option<Stop>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    cache_salt: Option<String>,
    priority: Option<i64>,
    ignore_eos: Option<bool>,
}

#[derive(Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Stop {
    One(String),
    Many(Vec<String>),
}

/// A text, or its tokens.
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum PromptField {
    Text(String),
    Tokens(Vec<u32>),
    Texts(Vec<String>),
}

/// A message, whose text may be in parts.
#[derive(Deserialize)]
pub(super) struct ChatMessage {
    role: String,
    content: Option<Content>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Deserialize)]
struct Part {
    #[serde(default)]
    text: String,
}

impl PromptField {
    /// Returns the tokens.
    pub(super) fn tokens(self, loaded: &Loaded) -> Result<Vec<u32>, ApiError> {
        let refused = |reason: &str| ApiError::bad_request("prompt", reason);
        let text = match self {
            Self::Text(text) => text,
            Self::Texts(texts) if texts.len() == 1 => texts.concat(),
            Self::Texts(_) => return Err(refused("one prompt a request")),
            Self::Tokens(tokens) => {
                let vocabulary = loaded.model.dims().vocab as u32;
                return match tokens.iter().all(|&token| token < vocabulary) {
                    true => Ok(tokens),
                    false => Err(refused(&format!("tokens are below {vocabulary}"))),
                };
            }
        };
        loaded.text.encode(&text).map_err(|error| refused(&error.to_string()))
    }
}

impl ChatMessage {
    pub(super) fn message(self) -> Message {
        let content = match self.content {
            Some(Content::Text(text)) => text,
            Some(Content::Parts(parts)) => parts.into_iter().map(|part| part.text).collect(),
            None => String::new(),
        };
        Message { role: self.role, content }
    }
}

impl Options {
    /// Returns the parameters of a request, or the reason for which it can never be served.
    pub(super) fn check(
        self,
        shared: &Shared,
        kind: Kind,
        number: u64,
        prompt: usize,
    ) -> Result<(Parameters, Form), ApiError> {
        let (loaded, config) = (&shared.loaded, &shared.config);
        let refuse = |field, reason: String| Err(ApiError::bad_request(field, &reason));
        if self.model.as_ref().is_some_and(|model| *model != loaded.name) {
            let message = format!("this server has the model `{}` only", loaded.name);
            return Err(ApiError::not_found(&message));
        }
        // A cache of few blocks limits a sequence too.
        let most = config.num_blocks * 9 / 10 * config.block_size;
        let most = most.min(loaded.context_len);
        if prompt == 0 || prompt >= most {
            let reason = format!("{prompt} tokens; a prompt has 1 to {} tokens", most - 1);
            return refuse("prompt", reason);
        }
        let default = match kind {
            Kind::Text => DEFAULT_TOKENS.min(most - prompt),
            Kind::Chat => most - prompt,
        };
        let max_tokens = self.max_completion_tokens.or(self.max_tokens).unwrap_or(default);
        if !(1..=most - prompt).contains(&max_tokens) {
            let reason = format!("{max_tokens}; after this prompt 1 to {}", most - prompt);
            return refuse("max_tokens", reason);
        }
        let samples = self.n.unwrap_or(1);
        if !(1..=MOST_SAMPLES).contains(&samples) {
            return refuse("n", format!("{samples}; 1 to {MOST_SAMPLES} samples"));
        }
        let (temperature, top_p) = (self.temperature.unwrap_or(1.0), self.top_p.unwrap_or(1.0));
        if !(0.0..=HOTTEST).contains(&temperature) {
            return refuse("temperature", format!("{temperature}; 0 to {HOTTEST}"));
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return refuse("top_p", format!("{top_p}; above 0, at most 1"));
        }
        let stops = match self.stop {
            None => Vec::new(),
            Some(Stop::One(stop)) => vec![stop],
            Some(Stop::Many(stops)) => stops,
        };
        let is_stop = |stop: &String| (1..=STOP_BYTES).contains(&stop.len());
        if stops.len() > MOST_STOPS || !stops.iter().all(is_stop) {
            let reason = format!("at most {MOST_STOPS} texts of 1 to {STOP_BYTES} bytes");
            return refuse("stop", reason);
        }
        if shared.queue.len() >= config.most_waiting {
            return Err(ApiError::overloaded("too many requests wait"));
        }
        let parameters = Parameters {
            max_tokens,
            samples,
            // Without a seed each request has noise of its own.
            seed: self.seed.map_or(number.wrapping_mul(0x9E37_79B9), |seed| seed as u64),
            temperature,
            top_p,
            priority: self.priority.unwrap_or(0),
            end: loaded.end.filter(|_| !self.ignore_eos.unwrap_or(false)),
            salt: self.cache_salt,
        };
        let form = Form {
            stops,
            streams: self.stream.unwrap_or(false),
            has_usage: self.stream_options.is_some_and(|options| options.include_usage),
        };
        Ok((parameters, form))
    }
}
