//! Test with the `openai` client for Python. It is skipped, with a line that says so, where that is not installed.

use std::process::Command;

use crate::{all_back, small, start, watched};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_openai_client_reads_answers_streams_and_errors() {
    let python = std::env::var("PAGED_KV_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let has_client = Command::new(&python).args(["-c", "import openai"]).output();
    if !has_client.is_ok_and(|output| output.status.success()) {
        println!("skipped: `{python} -c 'import openai'` fails; set PAGED_KV_PYTHON");
        return;
    }
    watched(async {
        let server = start(small()).await;
        let base = format!("http://{}/v1", server.address());
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/client.py");
        let run = move || Command::new(python).args([script, &base]).output();
        let output = tokio::task::spawn_blocking(run).await.unwrap().expect("python runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && text.contains("all passed"), "{text}\n{errors}");
        all_back(&server).await;
        server.shut_down().await;
    })
    .await;
}
