//! `admit`: admits a request to the cache. The request waits for its turn in its own task. Its id then
//! selects the worker that gets it.

use std::sync::Arc;

use paged_kv::AdmitOptions;

use super::job::{Event, Sample};
use super::worker::Admitted;
use super::{Model, Shared};

/// Admits a sample, new or evicted, when there is room for its tokens so far.
pub fn admit<M: Model>(shared: Arc<Shared<M>>, mut sample: Sample) {
    tokio::spawn(async move {
        let id = shared.next_id();
        let mut prompt = sample.hashed.take().unwrap_or_else(|| shared.cache.prompt(&[]));
        let new_tokens = &sample.tokens[prompt.num_tokens()..];
        prompt.extend(new_tokens).expect("the cache hashes its tokens");
        sample.hashed = Some(prompt.clone());
        let options = AdmitOptions::default();
        let job = Arc::clone(&sample.job);
        let admission = tokio::select! {
            admission = shared.cache.waiting().admit(id, &prompt, &options) => admission,
            () = job.events.closed() => return,
        };
        let admission = match admission {
            Ok(admission) => admission,
            Err(refusal) => {
                let _ = job.events.send(Event::Refused { refusal });
                return;
            }
        };
        job.came_in(id);
        if job.is_abandoned() {
            job.abandon(&shared);
            return;
        }
        shared.metrics.admissions.inc();
        let worker = &shared.workers[id.0 as usize % shared.workers.len()];
        let admitted = Admitted::Sample { id, sample, computed: admission.cached_tokens };
        if worker.send(admitted).is_err() {
            job.abandon(&shared);
        }
    });
}
