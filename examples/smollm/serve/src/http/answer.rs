//! `Answer`: the answer of a request, as one body or as server-sent events.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::body::Body;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_stream::Stream;

use super::error::ApiError;
use crate::answer_text::AnswerText;
use crate::job::{Event, Job};
use crate::shared::Shared;

/// The shape of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// That of `/v1/completions`.
    Text,
    /// That of `/v1/chat/completions`.
    Chat,
}

/// How the client wants the answer.
pub(super) struct Form {
    pub(super) stops: Vec<String>,
    pub(super) streams: bool,
    pub(super) has_usage: bool,
}

/// One sample of an answer.
struct Choice {
    text: AnswerText,
    /// The whole text, of an answer that is not streamed.
    whole: String,
    /// The reason for which it ended.
    reason: Option<&'static str>,
}

/// An answer on its way. If it is dropped before its end, the client has left, and its samples end.
pub(super) struct Answer {
    events: UnboundedReceiver<Event>,
    shared: Arc<Shared>,
    job: Arc<Job>,
    kind: Kind,
    form: Form,
    choices: Vec<Choice>,
    cached: Option<usize>,
    completion_tokens: usize,
    created: u64,
    deadline: Pin<Box<Sleep>>,
    /// Parts that are to be sent.
    parts: VecDeque<String>,
    is_over: bool,
}

/// A part of an answer.
enum Piece {
    Text(usize, String),
    /// A sample has ended with its last text.
    End(usize, String),
}

impl Answer {
    pub(super) fn new(
        shared: Arc<Shared>,
        job: Arc<Job>,
        events: UnboundedReceiver<Event>,
        kind: Kind,
        form: Form,
    ) -> Self {
        let choice =
            |_| Choice { text: AnswerText::new(&form.stops), whole: String::new(), reason: None };
        let choices = (0..job.parameters.samples).map(choice).collect();
        let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        let deadline = Instant::now() + shared.config.limits.answer_time;
        Self {
            events,
            shared,
            job,
            kind,
            form,
            choices,
            cached: None,
            completion_tokens: 0,
            created,
            deadline: Box::pin(sleep_until(deadline)),
            parts: VecDeque::new(),
            is_over: false,
        }
    }

    /// Returns the answer, or its first part.
    pub(super) async fn respond(mut self) -> Result<Response, ApiError> {
        if !self.form.streams {
            while !self.is_ended() {
                let event = tokio::select! {
                    event = self.events.recv() => event,
                    () = &mut self.deadline => return Err(ApiError::timeout()),
                };
                if let Some(Piece::Text(sample, text) | Piece::End(sample, text)) =
                    self.take(event)?
                {
                    self.choices[sample].whole.push_str(&text);
                }
            }
            return Ok(Json(self.whole()).into_response());
        }
        if self.kind == Kind::Chat {
            for index in 0..self.choices.len() {
                let delta = json!({ "role": "assistant", "content": "" });
                let part = self.part(json!([self.choice(index, delta, None)]));
                self.parts.push_back(part.to_string());
            }
        }
        let headers =
            [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-cache")];
        Ok((headers, Body::from_stream(self)).into_response())
    }

    /// Takes an event. Returns new text.
    fn take(&mut self, event: Option<Event>) -> Result<Option<Piece>, ApiError> {
        let lost = || {
            let status = StatusCode::INTERNAL_SERVER_ERROR;
            ApiError::new(status, "server_error", "the request was lost")
        };
        match event.ok_or_else(lost)? {
            Event::Admitted { cached } => {
                self.cached.get_or_insert(cached);
                Ok(None)
            }
            Event::Token { sample, token } => {
                let choice = &mut self.choices[sample];
                if choice.reason.is_some() {
                    return Ok(None);
                }
                self.completion_tokens += 1;
                let text = choice.text.push(&self.shared.loaded.text.bytes_of(token));
                if choice.text.is_stopped() {
                    choice.reason = Some("stop");
                    self.job.stop(sample);
                    return Ok(Some(Piece::End(sample, text)));
                }
                Ok((!text.is_empty()).then_some(Piece::Text(sample, text)))
            }
            Event::Finished { sample, is_end } => {
                let choice = &mut self.choices[sample];
                if choice.reason.is_some() {
                    return Ok(None);
                }
                choice.reason = Some(if is_end { "stop" } else { "length" });
                Ok(Some(Piece::End(sample, choice.text.end())))
            }
            Event::Refused { refusal } => Err(ApiError::of(&refusal)),
        }
    }

    fn is_ended(&self) -> bool {
        self.choices.iter().all(|choice| choice.reason.is_some())
    }

    fn whole(&self) -> Value {
        let choice = |(index, choice): (usize, &Choice)| {
            let text = match self.kind {
                Kind::Text => json!(choice.whole),
                Kind::Chat => json!({ "role": "assistant", "content": choice.whole }),
            };
            self.choice(index, text, choice.reason)
        };
        let mut body = self.part(self.choices.iter().enumerate().map(choice).collect());
        body["usage"] = self.usage();
        body
    }

    fn choice(&self, index: usize, text: Value, reason: Option<&str>) -> Value {
        let name = match self.kind {
            Kind::Text => "text",
            Kind::Chat if self.form.streams => "delta",
            Kind::Chat => "message",
        };
        json!({ "index": index, name: text, "logprobs": null, "finish_reason": reason })
    }

    fn part(&self, choices: Value) -> Value {
        let (prefix, object) = match self.kind {
            Kind::Text => ("cmpl", "text_completion"),
            Kind::Chat if self.form.streams => ("chatcmpl", "chat.completion.chunk"),
            Kind::Chat => ("chatcmpl", "chat.completion"),
        };
        json!({ "id": format!("{prefix}-{}", self.job.number), "object": object,
                "created": self.created, "model": self.shared.loaded.name, "choices": choices })
    }

    fn usage(&self) -> Value {
        let (prompt, completion) = (self.job.prompt_tokens, self.completion_tokens);
        json!({ "prompt_tokens": prompt, "completion_tokens": completion,
                "total_tokens": prompt + completion,
                "prompt_tokens_details": { "cached_tokens": self.cached.unwrap_or(0) } })
    }

    /// Queues the parts of new text.
    fn push(&mut self, piece: Piece) {
        let (Piece::Text(index, text) | Piece::End(index, text)) = &piece;
        let delta = |text: &str| match self.kind {
            Kind::Text => json!(text),
            Kind::Chat => json!({ "content": text }),
        };
        let mut parts = Vec::new();
        if !text.is_empty() {
            parts.push(self.part(json!([self.choice(*index, delta(text), None)])));
        }
        if let Piece::End(index, _) = piece {
            let empty = if self.kind == Kind::Chat { json!({}) } else { json!("") };
            let reason = self.choices[index].reason;
            parts.push(self.part(json!([self.choice(index, empty, reason)])));
        }
        self.parts.extend(parts.iter().map(Value::to_string));
        if self.is_ended() {
            if self.form.has_usage {
                let mut part = self.part(json!([]));
                part["usage"] = self.usage();
                self.parts.push_back(part.to_string());
            }
            self.end();
        }
    }

    fn end(&mut self) {
        self.parts.push_back("[DONE]".to_owned());
        self.is_over = true;
    }

    fn fail(&mut self, error: &ApiError) {
        self.parts.push_back(error.body().to_string());
        self.end();
    }
}

impl Stream for Answer {
    type Item = Result<String, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if !self.parts.is_empty() {
                let parts = self.parts.drain(..).map(|part| format!("data: {part}\n\n"));
                return Poll::Ready(Some(Ok(parts.collect())));
            }
            if self.is_over {
                return Poll::Ready(None);
            }
            if self.deadline.as_mut().poll(context).is_ready() {
                self.fail(&ApiError::timeout());
                continue;
            }
            let Poll::Ready(event) = self.events.poll_recv(context) else {
                return Poll::Pending;
            };
            match self.take(event) {
                Ok(Some(piece)) => self.push(piece),
                Ok(None) => {}
                Err(error) => self.fail(&error),
            }
        }
    }
}
