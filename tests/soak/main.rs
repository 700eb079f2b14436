//! Tests of `paged-kv soak`: it ends by itself, finds nothing, and reports that.
//!
//! Each test runs the program that was built. The short runs here find little: the tests check that the
//! program runs, and that its report is complete.

#![cfg(feature = "cli")]

use std::process::{Command, Output};

use serde_json::Value;

fn soak(arguments: &[&str]) -> Output {
    let program = env!("CARGO_BIN_EXE_paged-kv");
    Command::new(program).arg("soak").args(arguments).output().expect("the program runs")
}

/// Returns the report of a run that must find nothing.
fn report(arguments: &[&str]) -> Value {
    let output = soak(&[arguments, &["--json"]].concat());
    let errors = String::from_utf8_lossy(&output.stderr);
    let report = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {errors}{report}");
    let report: Value = serde_json::from_str(&report).expect("one JSON object");
    assert_eq!(report["findings"], 0, "{report}");
    assert_eq!(report["leaked_blocks"], 0, "{report}");
    assert_eq!(report["validate"], "ok", "{report}");
    assert_eq!(report["blocks_allocated"], report["blocks_freed"], "{report}");
    report
}

fn assert_some(report: &Value, fields: &[&str]) {
    for field in fields {
        assert!(report[field].as_u64().is_some_and(|count| count > 0), "no {field}: {report}");
    }
}

#[test]
fn a_short_soak_does_everything_and_finds_nothing() {
    let done = ["operations", "refusals", "admissions", "hit_blocks", "reclaimed_blocks", "forks"];
    let rare = ["evicted_sequences", "audits", "injected_panics"];
    let are_some = |report: &Value| {
        done.iter().chain(&rare).all(|field| report[field].as_u64().is_some_and(|count| count > 0))
    };
    // A busy machine may complete few operations in a short time.
    let mut last = Value::Null;
    for minutes in ["0.04", "0.2", "1"] {
        last = report(&["--minutes", minutes, "--threads", "4"]);
        if are_some(&last) {
            break;
        }
    }
    assert_some(&last, &done);
    assert_some(&last, &rare);
    assert!(last["wall_seconds"].as_f64().is_some_and(|seconds| seconds >= 2.4), "{last}");
}

#[test]
fn a_pool_that_is_far_too_small_holds_its_promises() {
    let size = ["--threads", "3", "--blocks", "24", "--block-size", "1", "--seed", "7"];
    assert_some(&report(&[&["--minutes", "0.02"], &size[..]].concat()), &["operations"]);
    report(&["--minutes", "0.005", "--threads", "1", "--blocks", "1"]);
}

#[test]
fn the_memory_is_told_where_the_system_tells_it() {
    let report = report(&["--minutes", "0.02", "--threads", "2"]);
    let tells = std::fs::exists("/proc/self/statm").is_ok_and(|exists| exists);
    let samples = report["resident_samples"].as_array().expect("a list");
    assert_eq!(!samples.is_empty(), tells, "{report}");
    assert_eq!(report["resident"].is_object(), tells, "{report}");
}

#[test]
fn senseless_arguments_are_refused() {
    for arguments in [["--minutes", "0"], ["--threads", "0"], ["--blocks", "none"]] {
        let output = soak(&arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(output.stdout.is_empty(), "{arguments:?} printed a report");
    }
}
