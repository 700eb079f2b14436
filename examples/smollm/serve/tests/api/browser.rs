//! Test of the live page in headless Chromium. It is skipped, with a line that says so, where that is not installed.

use std::process::Command;

use serde_json::{Value, json};
use serving::client::get;
use serving::shared::Config;

use crate::{COMPLETIONS, answer, metric, page, small, start, watched};

/// The flags of a browser that shows one page and contacts no other host.
const FLAGS: &[&str] = &[
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--virtual-time-budget=4000",
    "--dump-dom",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_loads_without_errors_and_shows_the_numbers_of_the_metrics() {
    let browser = std::env::var("PAGED_KV_CHROMIUM").unwrap_or_else(|_| "chromium".to_owned());
    if !Command::new(&browser).arg("--version").output().is_ok_and(|output| output.status.success())
    {
        println!("skipped: `{browser} --version` fails; set PAGED_KV_CHROMIUM");
        return;
    }
    watched(async {
        let server = start(small()).await;
        for prompt in ["the first prompt of all", "the first prompt, again and again"] {
            let body = json!({ "prompt": prompt, "max_tokens": 30, "n": 2 });
            answer(&server, COMPLETIONS, &body).await;
        }
        let address = format!("http://{}/", server.address());
        let profile = concat!(env!("CARGO_TARGET_TMPDIR"), "/browser");
        let run = move || {
            let profile = format!("--user-data-dir={profile}");
            Command::new(browser).args(FLAGS).args([profile, address]).output()
        };
        let output = tokio::task::spawn_blocking(run).await.unwrap().expect("the browser runs");
        let (shown, log) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let console: Vec<&str> = log.lines().filter(|line| line.contains("CONSOLE")).collect();
        assert!(console.is_empty(), "{console:?}");
        let (_, metrics) = page(&server, "/metrics").await;
        for (id, name) in [
            ("blocks", "paged_kv_blocks"),
            ("used", "paged_kv_blocks_used"),
            ("idle", "paged_kv_blocks_idle"),
            ("hit", "paged_kv_prompt_tokens_hit_total"),
            ("forks", "paged_kv_forks_total"),
            ("generated", "vllm:generation_tokens_total"),
            ("running", "vllm:num_requests_running"),
            ("waiting", "vllm:num_requests_waiting"),
            ("copied", "serve_copies_total"),
            ("preemptions", "serve_preemptions_total"),
        ] {
            let text = shown.split(&format!("<b id=\"{id}\">")).nth(1);
            let text = text.and_then(|rest| rest.split('<').next()).unwrap_or("nothing");
            assert_eq!(text.parse().ok(), Some(metric(&metrics, name)), "{id} shows {text}");
        }
        assert!(
            shown.contains("map of the blocks:"),
            "the map has a text for readers without eyes"
        );
        server.shut_down().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frame_has_a_byte_for_each_block_and_is_quick_at_65536_blocks() {
    watched(async {
        let server = start(Config { num_blocks: 65_536, ..small() }).await;
        assert!(!server.shared().picture.is_watched(), "no page looks yet");
        let begun = std::time::Instant::now();
        let (status, frame) = get(server.address(), "/picture").await.unwrap();
        assert!(begun.elapsed().as_millis() < 500, "two frames a second: {:?}", begun.elapsed());
        assert!(server.shared().picture.is_watched());
        let length = u32::from_le_bytes(*frame.first_chunk().unwrap()) as usize;
        let head: Value = serde_json::from_slice(&frame[4..4 + length]).unwrap();
        assert_eq!((status, frame.len() - 4 - length), (200, 65_536));
        assert_eq!((head["blocks"].as_u64(), head["used"].as_u64()), (Some(65_536), Some(0)));
        server.shut_down().await;
    })
    .await;
}
