//! Tests of tiers below the device: their hits beside those of a larger device and of a model of two lists, the copies by
//! policy, and the model of time.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::program::{file, number, refused, replay, report, row, run, stderr, text};
use crate::reuse::families;
use crate::two_levels::{Asked, BLOCK, Hits, TwoLevels};

const ONE_BY_ONE: [&str; 6] = ["--threads", "1", "--live", "1", "--block-size", "64"];

/// Every policy. None of them loses a content for which the tiers have room.
const POLICIES: [&str; 4] = ["lazy", "eager", "eager:1", "cleaner:8"];

/// Returns the turns of conversations, of which several are open at the same time. A turn has the ids of the one before,
/// and new ones; the tokens after its ids are never shared. The order is random and always the same.
fn turns(requests: usize) -> Vec<Asked> {
    let mut state = 7_u64;
    let mut random = |below: u64| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let (mut open, mut next) = (vec![vec![0, 1]; 12], 2);
    let mut turn = || {
        let at = random(12) as usize;
        if open[at].len() > 14 {
            open[at].truncate(2);
        }
        let new = 1 + random(4);
        open[at].extend(next..next + new);
        next += new;
        let ids = open[at].clone();
        let prompt = ids.len() as u64 * BLOCK + 1 + random(BLOCK - 1);
        Asked { ids, prompt, output: 1 + random(3 * BLOCK) }
    };
    (0..requests).map(|_| turn()).collect()
}

/// Writes the requests as a trace.
fn trace(name: &str, requests: &[Asked]) -> PathBuf {
    let line = |asked: &Asked| {
        let row = row(0, asked.prompt, &asked.ids);
        row.replace("\"output_length\":1,", &format!("\"output_length\":{},", asked.output))
    };
    file(name, requests.iter().map(line).collect::<String>().as_bytes())
}

/// Returns the report of a replay of one request at a time.
fn served(trace: &Path, options: &[&str]) -> Value {
    report(&[&[text(trace)][..], &ONE_BY_ONE, options].concat())
}

fn host(report: &Value) -> &Value {
    &report["tiers"]["by_tier"][0]
}

/// Returns the hits of a report, in blocks.
fn hits(report: &Value) -> Hits {
    let blocks = |tokens: u64| {
        assert_eq!(tokens % BLOCK, 0, "{report}");
        tokens / BLOCK
    };
    Hits {
        device: blocks(number(&report["tiers"], "device_tokens")),
        host: blocks(number(host(report), "hit_tokens")),
        stored: number(host(report), "blocks_stored"),
    }
}

#[test]
fn an_endless_host_hits_as_an_endless_device() {
    let requests = turns(400);
    let trace = trace("endless.jsonl", &requests);
    let endless = served(&trace, &["--blocks", "3000"]);
    assert!(endless.get("tiers").is_none(), "{endless}");
    for device in ["24", "60", "100"] {
        let alone = served(&trace, &["--blocks", device]);
        assert!(number(&alone, "hit_blocks") < number(&endless, "hit_blocks"), "{device}");
        for policy in POLICIES {
            for tiers in
                [&["--host-blocks", "3000"][..], &["--host-blocks", "32", "--disk-blocks", "3000"]]
            {
                let options = [&["--blocks", device, "--store", policy], tiers].concat();
                let tiered = served(&trace, &options);
                assert_eq!(
                    tiered["hit_blocks"], endless["hit_blocks"],
                    "{device} {policy} {tiers:?}"
                );
                let all = number(&tiered, "hit_blocks") * BLOCK;
                let by_tier = tiered["tiers"]["by_tier"].as_array().expect("a list");
                let loaded: u64 = by_tier.iter().map(|tier| number(tier, "hit_tokens")).sum();
                assert_eq!(number(&tiered["tiers"], "device_tokens") + loaded, all, "{tiered}");
            }
        }
    }
}

#[test]
fn one_request_at_a_time_hits_as_two_lists_do() {
    let requests = turns(500);
    let trace = trace("two_lists.jsonl", &requests);
    for (device, host) in [(24, 8), (24, 24), (24, 96), (40, 160), (64, 30), (100, 100)] {
        let twice = [false, true].map(|exclusive| {
            let (expected, twice) = TwoLevels::new(device, host, exclusive).serve(&requests);
            let sizes = [device.to_string(), host.to_string()];
            let options = ["--blocks", &sizes[0], "--host-blocks", &sizes[1], "--exclusive"];
            let options = &options[..if exclusive { 5 } else { 4 }];
            let name = format!("{device} and {host} blocks, exclusive: {exclusive}");
            assert_eq!(hits(&served(&trace, options)), expected, "{name}");
            twice
        });
        let [inclusive, exclusive] = twice;
        assert!(inclusive > 2 * exclusive, "contents in both: {twice:?}");
    }
}

/// Prompts come back in turn. Device and host together have room for all of them, but not twice.
#[test]
fn an_exclusive_host_holds_other_contents_than_the_device() {
    let prompt = |number: u64| {
        let ids: Vec<u64> = (0..8).map(|part| number * 100 + part).collect();
        Asked { ids, prompt: 8 * BLOCK + 1, output: 1 }
    };
    let requests: Vec<Asked> = (0..60).map(|at| prompt(at % 6)).collect();
    let trace = trace("exclusive.jsonl", &requests);
    let options = ["--blocks", "25", "--host-blocks", "32"];
    let inclusive = hits(&served(&trace, &options));
    let exclusive = hits(&served(&trace, &[&options[..], &["--exclusive"]].concat()));
    assert_eq!(exclusive.device + exclusive.host, 54 * 8, "all but the first of each");
    assert!(inclusive.device + inclusive.host < 54 * 8, "{inclusive:?}");
    assert!(exclusive.stored >= exclusive.host, "loaded contents are stored again: {exclusive:?}");
}

#[test]
fn each_policy_copies_at_its_time() {
    let requests = turns(300);
    let trace = trace("policies.jsonl", &requests);
    let of = |policy| {
        hits(&served(&trace, &["--blocks", "60", "--host-blocks", "4x", "--store", policy]))
    };
    let [lazy, eager, second, third] = ["lazy", "eager", "eager:2", "eager:3"].map(of);
    assert!(eager.stored > lazy.stored, "all contents, or those that are given up");
    assert!(eager.stored > second.stored && second.stored > third.stored, "{second:?} {third:?}");
    let cleaned = |ahead: &str| {
        let options = ["--blocks", "60", "--host-blocks", "4x", "--store", ahead];
        let report = served(&trace, &options);
        (hits(&report), number(&report["tiers"], "late_stores"))
    };
    let [(few, few_late), (more, more_late)] = ["cleaner:1", "cleaner:30"].map(cleaned);
    assert!(few_late > more_late && more_late == 0, "{few_late} {more_late}");
    for cleaned in [few, more] {
        assert_eq!(cleaned.device, lazy.device, "a look by the cleaner is no use");
        assert!(cleaned.stored >= lazy.stored && cleaned.host.abs_diff(lazy.host) < lazy.host / 20);
    }
    assert!(second.host > 0);
}

#[test]
fn nothing_is_loaded_where_computing_is_faster() {
    let requests = turns(200);
    let trace = trace("slow.jsonl", &requests);
    let sizes = ["--blocks", "24", "--host-blocks", "16", "--disk-blocks", "400"];
    let with = |rates: &[&str]| served(&trace, &[&sizes[..], rates].concat());
    let loaded = |report: &Value| {
        let tier = |number: usize| &report["tiers"]["by_tier"][number];
        [0, 1].map(|at| (number(tier(at), "blocks_loaded") > 0, tier(at)["is_loaded_from"] == true))
    };
    let yes = (true, true);
    let no = (false, false);
    assert_eq!(loaded(&with(&[])), [yes, yes]);
    // 131,072 bytes a token and 10,000 tokens/s: 1.31 GB/s.
    assert_eq!(loaded(&with(&["--disk-gbps", "1.3"])), [yes, no]);
    assert_eq!(loaded(&with(&["--disk-gbps", "1.4"])), [yes, yes]);
    assert_eq!(loaded(&with(&["--load-gbps", "1", "--disk-gbps", "1"])), [no, no]);
    assert_eq!(loaded(&with(&["--compute-tps", "100000"])), [yes, no]);
    assert_eq!(loaded(&with(&["--token-bytes", "1000000", "--disk-gbps", "20"])), [yes, yes]);
    let summary =
        replay(&[&[text(&trace)], &ONE_BY_ONE[..], &sizes, &["--disk-gbps", "1"]].concat());
    let summary = String::from_utf8(summary.stdout).unwrap();
    let line = summary.lines().find(|line| line.contains("disk: ")).expect("a line of the disk");
    assert!(line.contains("nothing is loaded, because loading is slower"), "{line}");
}

#[test]
fn seconds_follow_from_the_rates() {
    let requests = turns(200);
    let trace = trace("seconds.jsonl", &requests);
    let rates = ["--token-bytes", "1000", "--load-gbps", "0.05", "--compute-tps", "1000"];
    let report = served(&trace, &[&["--blocks", "24", "--host-blocks", "4x"], &rates[..]].concat());
    let tiers = &report["tiers"];
    let tokens = number(host(&report), "hit_tokens") as f64;
    let near = |field: &Value, seconds: f64| {
        let found = field.as_f64().expect("seconds");
        assert!((found - seconds).abs() < 1e-6, "{found} and {seconds}: {report}");
    };
    near(&host(&report)["load_seconds"], tokens / 50_000.0);
    near(&tiers["saved_seconds"], tokens / 1_000.0 - tokens / 50_000.0);
    let computed = number(tiers, "computed_tokens") as f64;
    near(&tiers["without_tiers_seconds"], (computed + tokens) / 1_000.0);
    let prompts: u64 = requests.iter().map(|asked| asked.prompt).sum();
    let device = number(tiers, "device_tokens") as f64;
    assert_eq!(device + tokens + computed, prompts as f64);
}

#[test]
fn many_workers_share_tiers_under_shortage() {
    let trace = file("tiers_shortage.jsonl", families(300, 6, 4, 40).as_bytes());
    for policy in ["lazy", "eager", "eager:2", "cleaner"] {
        for more in [&["--exclusive"][..], &["--disk-blocks", "4x"], &["--leave-free", "0"]] {
            let tiers =
                ["--blocks", "60", "--live", "4", "--host-blocks", "100", "--store", policy];
            let options = [&[text(&trace), "--threads", "8"][..], &tiers, more].concat();
            let report = report(&options);
            assert_eq!(number(&report, "completed"), 300, "{options:?}");
        }
    }
}

#[test]
fn a_sweep_has_the_cells_of_replays_with_tiers() {
    let trace = trace("tiers_swept.jsonl", &turns(200));
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("replay");
    let (csv, svg) = (directory.join("tiers.csv"), directory.join("tiers.svg"));
    let files = ["--csv", text(&csv), "--svg", text(&svg)];
    let grid = ["--blocks", "24,48", "--host-blocks", "0,2x,96", "--store", "lazy,eager"];
    let output = run(&[&["sweep", text(&trace)][..], &files, &grid].concat());
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let table = fs::read_to_string(&csv).unwrap();
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split(',').collect()).collect();
    assert_eq!(rows.len(), 1 + 2 + 2 * 2 * 2 + 1, "no tier once, and the ceiling: {table}");
    assert!(rows.iter().all(|row| row.len() == rows[0].len()), "{table}");
    let column = |name: &str| rows[0].iter().position(|title| *title == name).expect("a title");
    let find = |cache: &str, blocks: &str| {
        let mut found =
            rows.iter().filter(|row| row[0] == cache && row[column("blocks")] == blocks);
        found.next().unwrap_or_else(|| panic!("{cache}, {blocks}: {table}"))
    };
    for policy in ["lazy", "eager"] {
        for blocks in ["24", "48"] {
            let options = ["--blocks", blocks, "--host-blocks", "2x", "--store", policy];
            let Hits { device, host, stored } = hits(&served(&trace, &options));
            let cell = find(&format!("host 2x {policy}"), blocks);
            let expected = [device * BLOCK, host * BLOCK, stored, device + host];
            let columns = ["device_tokens", "host_tokens", "host_stored", "hit_blocks"];
            assert_eq!(columns.map(|name| cell[column(name)].parse::<u64>().unwrap()), expected);
        }
    }
    let alone = served(&trace, &["--blocks", "24"]);
    assert_eq!(find("device alone", "24")[column("hit_blocks")], alone["hit_blocks"].to_string());
    let picture = fs::read_to_string(&svg).unwrap();
    for word in ["device alone", "host 2x lazy", "host 96 eager", "64 tokens on the device"] {
        assert!(picture.contains(word), "the picture says nothing of {word}");
    }
}

#[test]
fn malformed_options_of_tiers_are_refused() {
    let trace = trace("tiers_refused.jsonl", &turns(3));
    for options in [
        &["--host-blocks", "4y"][..],
        &["--host-blocks", "-1"],
        &["--host-blocks", "8", "--store", "never"],
        &["--host-blocks", "8", "--store", "eager:0"],
        &["--host-blocks", "8", "--load-gbps", "0"],
        &["--host-blocks", "8", "--groups", "full:16"],
        &["--store", "eager"],
        &["--disk-blocks", "8"],
        &["--exclusive"],
    ] {
        for command in ["replay", "sweep"] {
            let output = run(&[&[command, text(&trace)][..], options].concat());
            refused(&output);
        }
    }
}
