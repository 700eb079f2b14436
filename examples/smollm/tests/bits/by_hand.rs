//! Requests served without steps: appends that return their copies, commits at once, by handle and by id.

use super::*;
use paged_kv::export::{Gaps, TableShape, block_tables, slots};
use paged_kv::{Append, CachedSequence, Computed, SeqId, Sequence};
use smollm::batch::{Batch, GroupBatch};
use smollm::request::Sample;
use smollm::sampling::{digest, sample};
use smollm::server::Server;

const BLOCK_SIZE: usize = 16;

/// Makes the copy of an append, and computes the tokens from `start` on. Returns the logits of the last one.
fn compute(
    server: &Server,
    append: Append,
    sequence: &Sequence,
    start: usize,
    tokens: &[u32],
) -> Vec<f32> {
    let (end, stride) = (start + tokens.len(), sequence.num_logical_blocks());
    let mut group = GroupBatch {
        slots: vec![-1; tokens.len()],
        table: vec![-1; stride],
        stride,
        ..GroupBatch::default()
    };
    slots(sequence, start..end, Gaps::Show, &mut group.slots).expect("the tokens have slots");
    let shape = TableShape { stride, pad: -1, gaps: Gaps::Show };
    block_tables([sequence], &mut group.table, shape).expect("the table has room");
    group.copies.extend(append.copy.iter().map(|copy| [copy.src.0, copy.dst.0]));
    let batch = Batch {
        tokens: tokens.to_vec(),
        positions: (start..end).collect(),
        rows: vec![0; tokens.len()],
        variants: vec![0; tokens.len()],
        wanted: vec![tokens.len() - 1],
        groups: vec![group],
    };
    let mut open = [server.groups[0].store.open(&batch.groups[0])];
    server.model.forward(&batch, &mut open).of(0).to_vec()
}

fn take_token(running: &mut Sample, logits: &[f32]) {
    let sampling = running.request.sampling(running.number);
    let token = sample(logits, sampling, running.tokens.len());
    running.tokens.push(token);
    running.digests.push(digest(logits));
}

fn siblings(request: &Arc<Request>) -> Vec<Sample> {
    let first = Sample::first(request);
    (0..request.samples).map(|number| Sample { number, ..first.clone() }).collect()
}

#[test]
fn appends_and_commits_by_handle_change_no_bit() {
    let mut workload = Workload::new(&SMALL, 51);
    let server = Server::new(SMALL.clone(), &Setup::default()).expect("a cache of that size");
    let prompt = workload.prompt(90);
    for round in 0..2 {
        let request = Arc::new(Request::new(prompt.clone(), 24).samples(3, round, 0.7));
        let prompt = server.cache().prompt(&request.prompt);
        let (mut sequence, admission) =
            server.cache().admit_sequence(&prompt, &Default::default()).expect("room");
        assert_eq!(admission.cached_tokens, 80 * round as usize);
        let start = admission.cached_tokens;
        let none = Append { new_blocks: 0..0, copy: None };
        let logits = compute(&server, none, &sequence, start, &request.prompt[start..]);
        sequence.commit(90).expect("they are computed");
        let mut forks: Vec<CachedSequence> = sequence.fork_n(2).expect("few owners");
        forks.push(sequence);
        let mut samples = siblings(&request);
        samples.iter_mut().for_each(|sample| take_token(sample, &logits));
        let mut copies = 0;
        while samples[0].missing() > 0 {
            for (sequence, sample) in forks.iter_mut().zip(&mut samples) {
                // Two drafts, which are cut off again.
                let start = sequence.num_tokens();
                let append = sequence.append(3).expect("room");
                copies += usize::from(append.copy.is_some());
                let token = *sample.tokens.last().expect("a token was taken");
                let logits = compute(&server, append, sequence, start, &[token, 1, 2]);
                drop(logits);
                sequence.truncate(start).expect("nothing is trimmed");
                let append = sequence.append(1).expect("room");
                copies += usize::from(append.copy.is_some());
                let logits = compute(&server, append, sequence, start, &[token]);
                sequence.commit(Computed::Named(&[token])).expect("it is computed");
                take_token(sample, &logits);
            }
        }
        let outcome = smollm::outcome::Outcome::of(&SMALL, &samples);
        println!("| l: appends by handle | {outcome} | copies {copies} |");
        assert!(outcome.is_equal() && copies == 2, "{outcome}, {copies} copies");
    }
    server.check_empty().expect("all requests have ended");
}

#[test]
fn appends_and_commits_by_id_change_no_bit() {
    let mut workload = Workload::new(&SMALL, 52);
    let server = Server::new(SMALL.clone(), &Setup::default()).expect("a cache of that size");
    let cache = server.cache();
    let request = Arc::new(Request::new(workload.prompt(75), 40).samples(4, 3, 0.7));
    let with = |id, read: &mut dyn FnMut(&Sequence)| {
        cache.with_sequence(id, |s| read(s)).expect("it is there")
    };
    cache.admit(SeqId(0), &request.prompt).expect("room");
    let none = Append { new_blocks: 0..0, copy: None };
    let mut logits = Vec::new();
    let mut none = Some(none);
    with(SeqId(0), &mut |sequence| {
        logits = compute(&server, none.take().expect("one call"), sequence, 0, &request.prompt);
    });
    cache.commit(SeqId(0), 75).expect("they are computed");
    cache.fork_n(SeqId(0), &[SeqId(1), SeqId(2), SeqId(3)]).expect("few owners");
    let mut samples = siblings(&request);
    samples.iter_mut().for_each(|sample| take_token(sample, &logits));
    let mut copies = 0;
    while samples[0].missing() > 0 {
        for (id, sample) in (0..).map(SeqId).zip(&mut samples) {
            let token = *sample.tokens.last().expect("a token was taken");
            let start = sample.tokens.len() - 1;
            let append = cache.append(id, 1).expect("room");
            copies += usize::from(append.copy.is_some());
            let mut append = Some(append);
            with(id, &mut |sequence| {
                logits =
                    compute(&server, append.take().expect("one call"), sequence, start, &[token]);
            });
            cache.commit(id, &[token]).expect("it is computed");
            take_token(sample, &logits);
        }
    }
    (0..4).for_each(|id| cache.free(SeqId(id)).expect("it is there"));
    let outcome = smollm::outcome::Outcome::of(&SMALL, &samples);
    println!("| l: appends by id | {outcome} | copies {copies} |");
    assert!(outcome.is_equal() && copies == 3, "{outcome}, {copies} copies");
    assert_eq!(BLOCK_SIZE, cache.block_size());
    server.check_empty().expect("all requests have ended");
}
