//! How does a test run the program and give it a trace?

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::Value;

/// A run that takes longer is one that makes no progress.
const PATIENCE: Duration = Duration::from_secs(60);

pub fn replay(arguments: &[&str]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_paged-kv"))
        .arg("replay")
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let begin = Instant::now();
    while child.try_wait().expect("the program can be waited for").is_none() {
        if begin.elapsed() > PATIENCE {
            child.kill().expect("the program can be killed");
            panic!("replay {arguments:?} did not end within {PATIENCE:?}");
        }
        thread::sleep(Duration::from_millis(2));
    }
    child.wait_with_output().expect("the output can be read")
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The report of a run that must succeed and leave nothing behind.
pub fn report(arguments: &[&str]) -> Value {
    let output = replay(&[arguments, &["--json"]].concat());
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", stderr(&output));
    let report: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    assert_eq!(report["leaked_blocks"], 0, "{report}");
    assert_eq!(report["validate"], "ok", "{report}");
    assert_eq!(report["blocks_allocated"], report["blocks_freed"], "{report}");
    let ended = number(&report, "completed") + number(&report, "rejected");
    assert_eq!(ended, number(&report, "requests"), "{report}");
    report
}

pub fn number(report: &Value, field: &str) -> u64 {
    report[field].as_u64().unwrap_or_else(|| panic!("{field} is a count: {report}"))
}

/// The stderr of a run that must stop because of its input, with nothing on stdout.
pub fn refusal(arguments: &[&str]) -> String {
    let output = replay(arguments);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", stderr(&output));
    assert!(output.stdout.is_empty(), "{arguments:?} printed a report");
    stderr(&output)
}

/// A file of this name and content, of this test run only.
pub fn file(name: &str, content: &[u8]) -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("replay");
    fs::create_dir_all(&directory).expect("the test directory can be made");
    let path = directory.join(name);
    fs::write(&path, content).expect("the test file can be written");
    path
}

pub fn compressed(name: &str, content: &[u8]) -> PathBuf {
    let path = file(name, b"");
    let mut encoder = GzEncoder::new(File::create(&path).unwrap(), Compression::fast());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap();
    path
}

pub fn text(path: &Path) -> &str {
    path.to_str().expect("the test directory has a name in UTF-8")
}

/// A Mooncake trace of these prompts and outputs, in tokens.
pub fn mooncake(lengths: impl IntoIterator<Item = (u64, u64)>) -> String {
    let mut lines = String::new();
    for (time, (prompt, output)) in lengths.into_iter().enumerate() {
        let time = time / 3;
        writeln!(
            lines,
            r#"{{"timestamp":{time},"input_length":{prompt},"output_length":{output},"hash_ids":[]}}"#
        )
        .unwrap();
    }
    lines
}
