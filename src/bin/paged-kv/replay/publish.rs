//! `Publishing`: sends the cache's KV events to routers while a trace is replayed.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use paged_kv::event::{Dialect, EventPublisher, PublisherOptions};

/// Options of publishing KV events.
#[derive(Args, Clone, Debug)]
pub struct PublishArguments {
    /// Publish KV events to ZeroMQ subscribers at this address, tcp://ADDRESS:PORT; prompts are then
    /// made of tokens, derived from the trace's hash ids: without those nothing is published
    #[arg(long, value_name = "ENDPOINT")]
    publish: Option<String>,

    /// Address at which routers ask for events that they missed
    #[arg(long, value_name = "ENDPOINT", requires = "publish")]
    publish_replay: Option<String>,

    /// First frame of every message; llm-d expects kv@POD@MODEL
    #[arg(long, value_name = "TOPIC", default_value = "", requires = "publish")]
    publish_topic: String,

    /// Encoding of events: map (vLLM from June 2026 on, SGLang, Dynamo) or array (earlier vLLM,
    /// AIBrix)
    #[arg(long, value_name = "FORM", default_value = "map", requires = "publish")]
    publish_dialect: Form,

    /// Seconds that routers have to connect before the replay begins
    #[arg(long, value_name = "S", default_value = "0", requires = "publish")]
    publish_wait: u64,

    /// Seconds for which routers can still ask for events after the replay
    #[arg(long, value_name = "S", default_value = "0", requires = "publish")]
    publish_linger: u64,
}

impl PublishArguments {
    pub fn is_asked_for(&self) -> bool {
        self.publish.is_some()
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Form {
    Map,
    Array,
}

/// A running publisher.
pub struct Publishing {
    pub publisher: Arc<EventPublisher>,
    linger: Duration,
}

impl Publishing {
    /// Starts a publisher; returns `None` if none was asked for.
    ///
    /// # Errors
    /// An address is invalid or in use.
    pub fn start(arguments: &PublishArguments) -> Result<Option<Self>> {
        let Some(endpoint) = &arguments.publish else {
            return Ok(None);
        };
        let mut options = PublisherOptions::default()
            .endpoint(endpoint)
            .topic(&arguments.publish_topic)
            .dialect(match arguments.publish_dialect {
                Form::Map => Dialect::Map,
                Form::Array => Dialect::Array,
            });
        if let Some(endpoint) = &arguments.publish_replay {
            options = options.replay_endpoint(endpoint);
        }
        let publisher = EventPublisher::bind(&options)
            .with_context(|| format!("cannot publish at {endpoint}"))?;
        thread::sleep(Duration::from_secs(arguments.publish_wait));
        let linger = Duration::from_secs(arguments.publish_linger);
        Ok(Some(Self { publisher: Arc::new(publisher), linger }))
    }

    /// Sends the remaining events, and writes the counts of all that were sent to `out`.
    ///
    /// # Errors
    /// `out` cannot be written.
    pub fn end(self, out: &mut impl io::Write) -> io::Result<()> {
        self.publisher.flush();
        thread::sleep(self.linger);
        self.publisher.shutdown();
        let stats = self.publisher.stats();
        let (blocks, last, lost) = (stats.blocks, stats.next_sequence - 1, stats.batches_lost);
        writeln!(out, "published {blocks} blocks, up to batch {last}, {lost} lost")
    }
}
