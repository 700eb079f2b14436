//! Negative controls: a fault that is made on purpose must show in every sample that it touches.

use super::*;
use smollm::engine::Fault;
use smollm::outcome::Outcome;
use smollm::request::Sample;
use smollm::server::Server;

const MOST_RUNNING: usize = 12;

/// Serves the requests, with `memory` in all slots at the start.
fn serve(fault: Option<Fault>, requests: &[Arc<Request>], memory: f32) -> Served {
    let options = Options { fault, most_running: MOST_RUNNING, ..Options::default() };
    let server = Server::new(SMALL.clone(), &Setup::default()).expect("a cache of that size");
    server.groups.iter().for_each(|group| group.store.fill(memory));
    let mode = Mode { options, ..mode("control") };
    mode.serve_on(&server, requests).expect("the requests are served")
}

/// Returns true if the sample has other logits than alone.
fn differs(sample: &Sample) -> bool {
    Outcome::of(&SMALL, [sample]).samples_differ > 0
}

fn requests(lengths: &[usize], samples: usize) -> Vec<Arc<Request>> {
    let mut workload = Workload::new(&SMALL, 21);
    let prompt =
        |&len: &usize| Arc::new(Request::new(workload.prompt(len), 12).samples(samples, 100, 0.8));
    lengths.iter().map(prompt).collect()
}

#[test]
fn copies_that_are_left_out_show_in_every_sample_that_copies() {
    let requests = requests(&[60, 33, 145], 4);
    for memory in [f32::NAN, 0.25] {
        assert!(serve(None, &requests, memory).outcome.is_equal());
        let served = serve(Some(Fault::NoCopies), &requests, memory);
        println!("| control: copies left out, memory {memory} | {} | |", served.outcome);
        assert_eq!(served.samples.iter().filter(|sample| sample.copied).count(), 9);
        for sample in &served.samples {
            // The last sample of a prompt writes in place.
            assert_eq!(differs(sample), sample.copied);
            assert_eq!(sample.has_nan, sample.copied && memory.is_nan());
        }
    }
}

#[test]
fn swapped_blocks_show_in_every_sample() {
    let requests = requests(&[60, 49, 145, 299], 2);
    assert!(serve(None, &requests, f32::NAN).outcome.is_equal());
    let served = serve(Some(Fault::SwappedBlocks), &requests, f32::NAN);
    println!("| control: two table entries swapped | {} | |", served.outcome);
    assert_eq!((served.outcome.samples, served.outcome.samples_differ), (8, 8));
}
