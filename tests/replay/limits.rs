//! Tests of limits: the program refuses requests for more than the machine has, with exit code 2.
//!
//! A failed allocation would abort it (134), and a thread that cannot be started would panic (101).

#![cfg(unix)]

use crate::program::{file, refused, row, run, run_within, stderr, text};

/// Address space that suffices for small runs, in KiB.
const KIB: u64 = 1_000_000;

#[test]
fn threads_and_blocks_beyond_the_machine_are_refused() {
    let trace = file("small.jsonl", row(0, 64, &[1, 2, 3, 4]).as_bytes());
    let sweep = ["sweep", text(&trace), "--csv", "/dev/null", "--svg", "/dev/null"];
    let cases: [&[&str]; 9] = [
        &["replay", text(&trace), "--threads", "5000"],
        &["replay", text(&trace), "--blocks", "4000000000"],
        &["replay", text(&trace), "--blocks", "4000000000", "--reclaim", "two-queue"],
        &["replay", "--threads", "18446744073709551615"],
        &["replay", "--requests", "18446744073709551615"],
        &["soak", "--threads", "5000"],
        &["soak", "--blocks", "4000000000"],
        &["soak", "--block-size", "1152921504606846976"],
        &[&sweep[..], &["--blocks", "4,4000000000"]].concat(),
    ];
    for case in cases {
        let error = refused(&run_within(KIB, case));
        assert!(error.contains("cannot be had"), "{case:?}: {error}");
    }
    // The machine does not have this much memory even without a limit.
    for case in [["replay", "--blocks", "4000000000"], ["soak", "--blocks", "4000000000"]] {
        let error = refused(&run(&case));
        assert!(error.contains("cannot be had"), "{case:?}: {error}");
    }
}

/// Around the limit of the memory, every run either completes or is refused. With many threads this does not hold:
/// the C library reserves address space for the memory of each thread, which may be that which was checked for another.
#[test]
fn between_enough_and_too_little_there_is_no_abort() {
    let trace = file("edge.jsonl", row(0, 64, &[1, 2, 3, 4]).as_bytes());
    let mut codes = Vec::new();
    for kib in (20_000..120_000).step_by(5_000) {
        for options in
            [&["--threads", "1", "--blocks", "600000"][..], &["--threads", "4", "--blocks", "1000"]]
        {
            let output = run_within(kib, &[&["replay", text(&trace)], options].concat());
            let code = output.status.code();
            assert!(matches!(code, Some(0 | 2)), "{kib} KiB {options:?}: {}", stderr(&output));
            codes.push(code);
        }
    }
    assert!(codes.contains(&Some(2)), "everything fits");
    assert!(codes.contains(&Some(0)), "nothing fits");
}

#[test]
fn numbers_out_of_range_are_refused() {
    let trace = file("range.jsonl", row(0, 64, &[1, 2, 3, 4]).as_bytes());
    let above = "18446744073709551616";
    for option in ["--threads", "--live", "--blocks", "--block-size", "--id-tokens", "--requests"] {
        for value in ["0", "-1", "1.5", "NaN", "", " 1", above] {
            let error = refused(&run(&["replay", text(&trace), &format!("{option}={value}")]));
            assert!(error.contains(option), "{option}={value}: {error}");
        }
    }
    for (option, values) in [
        ("--threshold", &["NaN", "inf", "-0.1", "1.1", ""][..]),
        ("--strategy", &["streaming:1,18446744073709551616", "streaming:NaN,1", ""]),
        ("--format", &["", "gz"]),
    ] {
        for value in values {
            let error = refused(&run(&["replay", text(&trace), &format!("{option}={value}")]));
            assert!(error.contains(option), "{option}={value}: {error}");
        }
    }
    for value in ["0", "-1", "NaN", "inf", "1e300", ""] {
        refused(&run(&["soak", &format!("--minutes={value}")]));
    }
}

/// The lengths are near the end of their type, in one block of as many tokens.
#[test]
fn the_longest_lengths_are_served_or_refused() {
    let lines = row(0, 1 << 62, &[1]) + &row(1, 1 << 62, &[1]);
    let trace = file("longest.jsonl", lines.as_bytes());
    let id_tokens = (1_u64 << 62).to_string();
    for command in ["replay", "sweep"] {
        for block_size in ["1", "16", "1152921504606846976"] {
            for blocks in ["1", "10", "4294967295"] {
                let mut options = vec![command, text(&trace), "--id-tokens", &id_tokens];
                options.extend(["--block-size", block_size, "--blocks", blocks]);
                if command == "sweep" {
                    options.extend(["--csv", "/dev/null", "--svg", "/dev/null"]);
                }
                let output = run(&options);
                let code = output.status.code();
                assert!(matches!(code, Some(0 | 2)), "{options:?}: {}", stderr(&output));
            }
        }
    }
}
