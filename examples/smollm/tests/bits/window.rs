//! A window on every second layer: a second cache, whose blocks before the window are released and written
//! again by others.

use super::*;

const WINDOW: usize = 64;

static WINDOWED: LazyLock<Weights> =
    LazyLock::new(|| seeded::weights(&seeded::windowed(WINDOW), 8));

#[test]
fn a_window_whose_slots_are_overwritten_changes_no_bit() {
    let mut workload = Workload::new(&WINDOWED, 41);
    let long = [Arc::new(Request::new(workload.prompt(291), 40))];
    // With chunks of 16 a sequence has (64 + 16) / 16 + 1 blocks of the window's cache in a step.
    for (window_blocks, chunk) in [(10, 64), (6, 16), (7, 16)] {
        let setup = Setup { window_blocks, ..Setup::default() };
        let options = Options { chunk, ..Options::default() };
        let name = format!("h: window {WINDOW}, {window_blocks} window blocks for 331 tokens");
        let counts = assert_equal(&Mode { setup, options, ..mode(&name) }, &WINDOWED, &long).counts;
        assert!(counts.trimmed >= 16 * 16, "{counts}");
    }
}

#[test]
fn windows_with_drafts_forks_and_preemptions_change_no_bit() {
    let mut workload = Workload::new(&WINDOWED, 42);
    let prompt = |len: usize| Request::new(workload.prompt(len), 40).samples(3, 7, 0.8);
    let requests: Vec<_> = [150, 201, 93].map(prompt).into_iter().map(Arc::new).collect();
    for (held, depth) in [(Held::ByHandle, 1), (Held::ById, 2), (Held::ByHandle, 2)] {
        let chaos =
            Chaos { preempt_in: 5, linger_in: 2, pipeline_in: 2, abort_in: 9, ..Chaos::default() };
        let setup = Setup { num_blocks: 90, window_blocks: 60, ..Setup::default() };
        let options = Options { drafts: 3, chunk: 32, chaos, depth, ..Options::default() };
        let name = format!("h: window, drafts, forks, preemptions, {depth} flights, {held:?}");
        let counts =
            assert_equal(&Mode { setup, options, held, ..mode(&name) }, &WINDOWED, &requests)
                .counts;
        let names = [
            ("preemptions", counts.preemptions),
            ("copies", counts.copies),
            ("forks", counts.forks),
            ("trimmed", counts.trimmed),
            ("aborts", counts.aborts),
        ];
        assert_happened(counts, &names);
    }
}

#[test]
fn windowed_requests_of_all_kinds_change_no_bit() {
    let requests = Workload::new(&WINDOWED, 43).take(24);
    for held in [Held::ByHandle, Held::ById] {
        let setup = Setup { num_blocks: 80, window_blocks: 60, ..Setup::default() };
        let (chaos, drafts) = (Chaos::all(8), 3);
        let options = Options { depth: 2, drafts, chaos, chunk: 32, seed: 3, ..Options::default() };
        let mode = Mode { setup, options, held, ..mode(&format!("h: everything, {held:?}")) };
        let counts = assert_equal(&mode, &WINDOWED, &requests).counts;
        assert_happened(counts, &[("hits", counts.hits), ("trimmed", counts.trimmed)]);
    }
}

/// A flight may reject drafts after the window has moved on for an older flight.
#[test]
fn a_window_keeps_the_blocks_that_rejected_drafts_need() {
    let mut workload = Workload::new(&WINDOWED, 44);
    let period = workload.prompt(9);
    let cycle = |len: usize| Request::new(period.iter().copied().cycle().take(len).collect(), 30);
    let requests: Vec<_> = [90, 130, 201, 167].map(cycle).into_iter().map(Arc::new).collect();
    for (seed, held) in [(1, Held::ByHandle), (2, Held::ById), (3, Held::ByHandle)] {
        let chaos = Chaos { pipeline_in: 1, ..Chaos::default() };
        let setup = Setup { block_size: 8, ..Setup::default() };
        let options =
            Options { depth: 3, drafts: 12, chunk: 30, chaos, seed, ..Options::default() };
        let mode =
            Mode { setup, options, held, ..mode(&format!("h: window, drafts ahead, {held:?}")) };
        let counts = assert_equal(&mode, &WINDOWED, &requests).counts;
        assert_happened(counts, &[("pipelined", counts.pipelined), ("rejected", counts.rejected)]);
    }
}
