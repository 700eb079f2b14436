//! Requests served without steps: appends that return their copies, commits at once, by handle and by id;
//! answers that are cut off and given otherwise.

use super::*;
use paged_kv::export::{Gaps, TableShape, block_tables, slots};
use paged_kv::{Append, CachedSequence, Computed, PagedKvCache, SeqId, Sequence};
use smollm::batch::{Batch, GroupBatch};
use smollm::outcome::Outcome;
use smollm::request::Sample;
use smollm::sampling::{digest, sample};
use smollm::server::Server;

const NO_APPEND: Append = Append { new_blocks: 0..0, copy: None };

fn server() -> Server {
    Server::new(SMALL.clone(), &Setup::default()).expect("a cache of that size")
}

/// Makes the copy of an append, and computes the last tokens of a sequence. Returns the logits of the last
/// one.
fn compute(server: &Server, append: Append, sequence: &Sequence, tokens: &[u32]) -> Vec<f32> {
    let (end, stride) = (sequence.num_tokens(), sequence.num_logical_blocks());
    let start = end - tokens.len();
    let mut group = GroupBatch { stride, ..GroupBatch::default() };
    group.slots.resize(tokens.len(), -1);
    group.table.resize(stride, -1);
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

/// Takes the next token of a sample.
fn take_token(running: &mut Sample, logits: &[f32]) {
    let sampling = running.request.sampling(running.number);
    running.tokens.push(sample(logits, sampling, running.tokens.len()));
    running.digests.push(digest(logits));
}

fn siblings(request: &Arc<Request>) -> Vec<Sample> {
    let first = Sample::first(request);
    (0..request.samples).map(|number| Sample { number, ..first.clone() }).collect()
}

/// Computes the rest of a prompt and takes the first token.
fn begin(server: &Server, running: &mut Sample) -> CachedSequence {
    let prompt = server.cache().prompt(&running.tokens);
    let options = Default::default();
    let (mut sequence, admission) = server.cache().admit_sequence(&prompt, &options).expect("room");
    let rest = &running.tokens[admission.cached_tokens..];
    let logits = compute(server, NO_APPEND, &sequence, rest);
    sequence.commit(running.tokens.len()).expect("they are computed");
    take_token(running, &logits);
    sequence
}

/// Computes the last token of a sample, and takes the next one. Returns true if a block was copied.
fn go_on(server: &Server, sequence: &mut CachedSequence, running: &mut Sample) -> bool {
    let token = *running.tokens.last().expect("a prompt has tokens");
    let append = sequence.append(1).expect("room");
    let copies = append.copy.is_some();
    let logits = compute(server, append, sequence, &[token]);
    sequence.commit(Computed::Named(&[token])).expect("it is computed");
    take_token(running, &logits);
    copies
}

#[track_caller]
fn assert_samples_equal(name: &str, samples: &[Sample], copies: usize) {
    let outcome = Outcome::of(&SMALL, samples);
    println!("| {name} | {outcome} | copies {copies} |");
    assert!(outcome.is_equal(), "{name}: {outcome}");
}

#[test]
fn appends_and_commits_by_handle_change_no_bit() {
    let (server, prompt) = (server(), Workload::new(&SMALL, 51).prompt(90));
    for seed in 0..2 {
        let request = Arc::new(Request::new(prompt.clone(), 24).samples(3, seed, 0.7));
        let mut first = Sample::first(&request);
        let sequence = begin(&server, &mut first);
        let mut sequences = [Some(sequence), None, None];
        let source = sequences[0].as_mut().expect("it was admitted");
        let forks = source.fork_n(2).expect("few owners");
        sequences[1..].iter_mut().zip(forks).for_each(|(place, fork)| *place = Some(fork));
        let mut samples = siblings(&request);
        // The siblings compute the last token of the prompt again, in blocks of their own.
        let mut copies = 0;
        samples[0] = first;
        for (sequence, running) in sequences.iter_mut().flatten().zip(&mut samples).skip(1) {
            sequence.truncate(running.tokens.len() - 1).expect("nothing is trimmed");
            copies += usize::from(go_on(&server, sequence, running));
        }
        while samples.iter().any(|sample| sample.missing() > 0) {
            for (sequence, running) in sequences.iter_mut().flatten().zip(&mut samples) {
                if running.missing() > 0 {
                    // Three drafts, all of them wrong.
                    let (token, end) =
                        (*running.tokens.last().expect("it began"), sequence.num_tokens());
                    let append = sequence.append(3).expect("room");
                    copies += usize::from(append.copy.is_some());
                    compute(&server, append, sequence, &[token ^ 1, 1, 2]);
                    sequence.truncate(end).expect("nothing is trimmed");
                    copies += usize::from(go_on(&server, sequence, running));
                }
            }
        }
        assert_samples_equal("l: appends by handle, all drafts wrong", &samples, copies);
        assert_eq!(copies, 2);
    }
    server.check_empty().expect("all requests have ended");
}

#[test]
fn appends_and_commits_by_id_change_no_bit() {
    let server = server();
    let cache = server.cache();
    let prompt = Workload::new(&SMALL, 52).prompt(75);
    let request = Arc::new(Request::new(prompt, 40).samples(4, 3, 0.7));
    cache.admit(SeqId(0), &request.prompt).expect("room");
    let logits = compute_by_id(&server, cache, SeqId(0), NO_APPEND, &request.prompt);
    cache.commit(SeqId(0), 75).expect("they are computed");
    cache.fork_n(SeqId(0), &[SeqId(1), SeqId(2), SeqId(3)]).expect("few owners");
    let mut samples = siblings(&request);
    samples.iter_mut().for_each(|running| take_token(running, &logits));
    let mut copies = 0;
    while samples[0].missing() > 0 {
        for (id, running) in (0..).map(SeqId).zip(&mut samples) {
            let token = *running.tokens.last().expect("it began");
            let append = cache.append(id, 1).expect("room");
            copies += usize::from(append.copy.is_some());
            let logits = compute_by_id(&server, cache, id, append, &[token]);
            cache.commit(id, &[token]).expect("it is computed");
            take_token(running, &logits);
        }
    }
    (0..4).for_each(|id| cache.free(SeqId(id)).expect("it is there"));
    assert_samples_equal("l: appends by id", &samples, copies);
    assert_eq!(copies, 3);
    server.check_empty().expect("all requests have ended");
}

fn compute_by_id(
    server: &Server,
    cache: &PagedKvCache,
    id: SeqId,
    append: Append,
    tokens: &[u32],
) -> Vec<f32> {
    cache
        .with_sequence(id, |sequence| compute(server, append, sequence, tokens))
        .expect("it is there")
}

/// An answer is cut at each place around the bounds of its blocks, which are published, and given otherwise.
/// Later prompts match both answers.
#[test]
fn an_answer_that_is_cut_and_given_otherwise_changes_no_bit() {
    let mut workload = Workload::new(&SMALL, 53);
    let prompt = workload.prompt(75);
    for (cut, forks) in
        [(90, true), (90, false), (96, true), (97, false), (81, true), (80, false), (112, true)]
    {
        let server = server();
        let request = Arc::new(Request::new(prompt.clone(), 40));
        let mut first = Sample::first(&request);
        let mut sequence = begin(&server, &mut first);
        // With 112 computed tokens every block is full and published.
        while sequence.num_tokens() < 112 {
            go_on(&server, &mut sequence, &mut first);
        }
        let kept = forks.then(|| sequence.fork().expect("few owners"));
        let other = Arc::new(Request::new(first.tokens[..cut].to_vec(), 30).samples(1, 9, 0.9));
        let mut second = Sample::first(&other);
        sequence.truncate(cut - 1).expect("nothing is trimmed");
        let mut copies = 0;
        while second.missing() > 0 {
            copies += usize::from(go_on(&server, &mut sequence, &mut second));
        }
        drop((sequence, kept));
        assert_samples_equal(&format!("l: cut to {cut} of 112"), &[first, second], copies);
        let conversations = [&request, &other].map(|request| {
            let mut conversation = request.conversation(&SMALL);
            conversation.push(5);
            Arc::new(Request::new(conversation, 8))
        });
        let mode = mode(&format!("l: after both answers, cut to {cut}"));
        let served = mode.serve_on(&server, &conversations).expect("the requests are served");
        println!("| {} | {} | {} |", mode.name, served.outcome, served.counts);
        assert!(served.outcome.is_equal(), "{}", served.outcome);
        assert_eq!(copies, usize::from((cut - 1) % 16 > 0), "the block of the cut is published");
        let blocks = 112 / 16 + (cut + 29) / 16;
        assert_eq!(served.counts.hits, 16 * blocks as u64);
        server.check_empty().expect("all requests have ended");
    }
}
