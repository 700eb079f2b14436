//! Modes of one engine over one cache.

use super::*;

#[test]
fn block_sizes_and_orders_of_ids_change_no_bit() {
    for (block_size, shuffle) in
        [(16, None), (16, Some(3)), (8, Some(4)), (32, Some(5)), (1, Some(6))]
    {
        let order = if shuffle.is_some() { "shuffled" } else { "in order" };
        let setup = Setup { block_size, shuffle, num_blocks: 1600, ..Setup::default() };
        let alone = Options { most_running: 1, ..Options::default() };
        let name = format!("b: blocks of {block_size} {order}, one at a time");
        assert_equal(
            &Mode { setup: setup.clone(), options: alone, ..mode(&name) },
            &SMALL,
            &PROMPTS,
        );
        let name = format!("b: blocks of {block_size} {order}, batched");
        let served = assert_equal(&Mode { setup, ..mode(&name) }, &SMALL, &PROMPTS);
        assert!(served.counts.rows > 2 * served.counts.flights, "rows are batched");
    }
}

#[test]
fn kernels_split_over_threads_change_no_bit() {
    let setup = Setup { split: smollm::panel::Split::Rayon, ..Setup::default() };
    assert_equal(&Mode { setup, ..mode("b: kernels split over threads") }, &SMALL, &PROMPTS);
}

#[test]
fn chunks_change_no_bit() {
    for chunk in [1, 7, 16, 33, 64, 100, 299] {
        let options = Options { chunk, budget: chunk + 8, ..Options::default() };
        let mode = Mode { options, ..mode(&format!("g: chunks of {chunk}")) };
        assert_equal(&mode, &SMALL, &PROMPTS);
    }
}

#[test]
fn samples_with_copies_change_no_bit() {
    let mut workload = Workload::new(&SMALL, 13);
    let prompt = |len: usize| Request::new(workload.prompt(len), 20).samples(4, 100, 0.8);
    let requests: Vec<_> = [60, 33, 145].map(prompt).into_iter().map(Arc::new).collect();
    // With a budget of 3 tokens only some of the samples of a prompt are in a step.
    let runs = [
        (0, 128, Held::ByHandle),
        (0, 128, Held::ById),
        (3, 128, Held::ByHandle),
        (0, 3, Held::ByHandle),
        (0, 3, Held::ById),
    ];
    for (drafts, budget, held) in runs {
        let options = Options { drafts, budget, most_running: 12, ..Options::default() };
        let name = format!("d: 4 samples, {drafts} drafts, {budget} tokens a step, {held:?}");
        let served = assert_equal(&Mode { options, held, ..mode(&name) }, &SMALL, &requests);
        assert_eq!(served.counts.copies, 9, "all but one sample of a prompt copy its tail");
        assert_eq!(served.counts.forks, 9);
    }
}

#[test]
fn preemption_and_resumption_change_no_bit() {
    let mut workload = Workload::new(&SMALL, 14);
    let prompts = [150, 149, 151, 148].map(|len| Request::new(workload.prompt(len), 40));
    let requests: Vec<_> = prompts.into_iter().map(Arc::new).collect();
    for chunk in [256, 48] {
        let setup = Setup { num_blocks: 40, ..Setup::default() };
        let options = Options { chunk, budget: 300, is_eager: true, ..Options::default() };
        let name = format!("e: 40 blocks, chunks of {chunk}");
        let served = assert_equal(&Mode { setup, options, ..mode(&name) }, &SMALL, &requests);
        assert_happened(
            served.counts,
            &[("preemptions", served.counts.preemptions), ("hits", served.counts.hits)],
        );
    }
    for reset_in in [0, 3] {
        let chaos = Chaos { preempt_in: 3, reset_in, ..Chaos::default() };
        let name = format!("e: by hand every third turn, resets every {reset_in}");
        let options = Options { chaos, ..Options::default() };
        let counts = assert_equal(&Mode { options, ..mode(&name) }, &SMALL, &requests).counts;
        assert_happened(counts, &[("preemptions", counts.preemptions)]);
        assert!(reset_in == 0 || counts.resets > 0);
        assert!(reset_in > 0 || counts.hits_generated > 0, "{counts}");
    }
}

#[test]
fn drafts_that_are_rejected_leave_no_bit_behind() {
    let mut workload = Workload::new(&SMALL, 15);
    let period = workload.prompt(7);
    let cycle = period.iter().copied().cycle().take(90).collect();
    let requests = [
        Request::new(cycle, 60),
        Request::new(workload.prompt(40), 80),
        Request::new(period.repeat(5), 40).samples(3, 9, 0.6),
    ];
    let requests = requests.map(Arc::new);
    for (drafts, held) in [(3, Held::ByHandle), (5, Held::ById), (17, Held::ByHandle)] {
        let options = Options { drafts, ..Options::default() };
        let name = format!("f: {drafts} drafts, {held:?}");
        let counts = assert_equal(&Mode { options, held, ..mode(&name) }, &SMALL, &requests).counts;
        assert_happened(counts, &[("accepted", counts.accepted), ("rejected", counts.rejected)]);
    }
}

#[test]
fn steps_in_flight_change_no_bit() {
    for (held, seed) in [(Held::ByHandle, 1), (Held::ById, 2)] {
        let chaos = Chaos {
            commit_early_in: 2,
            linger_in: 2,
            pipeline_in: 2,
            abort_in: 5,
            ..Chaos::default()
        };
        let options = Options { depth: 2, chaos, chunk: 24, seed, ..Options::default() };
        let name = format!("i: two flights, early commits, late ends, aborts, {held:?}");
        let counts = assert_equal(&Mode { options, held, ..mode(&name) }, &SMALL, &MIXED).counts;
        let names = [
            ("overlapping", counts.overlapping),
            ("reordered", counts.reordered),
            ("aborts", counts.aborts),
            ("early commits", counts.early_commits),
            ("pipelined", counts.pipelined),
            ("hits", counts.hits),
        ];
        assert_happened(counts, &names);
    }
}

#[test]
fn everything_at_once_changes_no_bit() {
    for (seed, held) in [(1, Held::ByHandle), (2, Held::ById), (3, Held::ByHandle), (4, Held::ById)]
    {
        let setup = Setup { num_blocks: 60, two_queues: seed > 2, ..Setup::default() };
        let (chaos, drafts, depth) = (Chaos::all(6), 3, 2 + seed as usize / 3);
        let options = Options { depth, drafts, chaos, seed, chunk: 40, ..Options::default() };
        let name = format!("k: everything, 60 blocks, {held:?}, seed {seed}");
        let mode = Mode { setup, options, held, ..mode(&name) };
        let counts = assert_equal(&mode, &SMALL, &MIXED).counts;
        let names = [
            ("preemptions", counts.preemptions),
            ("cancellations", counts.cancellations),
            ("left in flight", counts.left_in_flight),
            ("copies", counts.copies),
            ("accepted", counts.accepted),
            ("rejected", counts.rejected),
            ("resets", counts.resets),
        ];
        assert_happened(counts, &names);
        if held == Held::ById {
            assert_happened(counts, &[("evicted", counts.evicted), ("stale", counts.stale_rows)]);
        }
    }
}

/// A lost flight ends before an older one that has rows of the same samples: their blocks stay until the older
/// one has run.
#[test]
fn flights_that_are_lost_change_no_bit() {
    let mut counts = Counts::default();
    for (seed, held) in (0..12).zip([Held::ByHandle, Held::ById].into_iter().cycle()) {
        let chaos = Chaos { lose_in: 3, pipeline_in: 1, commit_early_in: 2, ..Chaos::default() };
        let setup = Setup { num_blocks: 40, ..Setup::default() };
        let options = Options { depth: 3, chaos, chunk: 40, seed, ..Options::default() };
        let mode = Mode { setup, options, held, ..mode(&format!("i: flights are lost, {held:?}")) };
        counts.join(assert_equal(&mode, &SMALL, &MIXED).counts);
    }
    assert_happened(counts, &[("lost", counts.lost), ("pipelined", counts.pipelined)]);
}
