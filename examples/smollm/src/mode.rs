//! `Mode`: one way of serving requests, whose results are compared with those of the requests alone.
//!
//! A further feature of the cache (a tier, a hint) joins as a field of [`Setup`] or an event of
//! [`Chaos`](crate::engine::Chaos), and with a count that shows that it happened.

use std::sync::Arc;

use paged_kv::Result;

use crate::engine::{ByHandle, ById, Counts, Engine, Hold, Ids, Options};
use crate::outcome::Outcome;
use crate::request::{Request, Sample};
use crate::server::{Server, Setup};
use crate::weights::Weights;

/// How an engine holds its sequences.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Held {
    /// By their handles.
    #[default]
    ByHandle,
    /// By their ids; each third one is leased.
    ById,
}

/// One way of serving requests.
#[derive(Clone, Debug, Default)]
pub struct Mode {
    /// The name in the table.
    pub name: String,
    /// The parameters of the caches.
    pub setup: Setup,
    /// The parameters of the engine.
    pub options: Options,
    /// How the engine holds its sequences.
    pub held: Held,
}

/// The results of a mode.
#[derive(Clone, Debug)]
pub struct Served {
    /// All samples.
    pub samples: Vec<Sample>,
    /// All samples, compared.
    pub outcome: Outcome,
    /// How often each thing happened.
    pub counts: Counts,
}

impl Mode {
    /// Serves the requests in caches of their own.
    pub fn serve(&self, weights: &Weights, requests: &[Arc<Request>]) -> Result<Served> {
        let server = Server::new(weights.clone(), &self.setup)?;
        let served = self.serve_on(&server, requests)?;
        server.check_empty()?;
        Ok(served)
    }

    /// Serves the requests in caches that may have contents.
    pub fn serve_on(&self, server: &Server, requests: &[Arc<Request>]) -> Result<Served> {
        match self.held {
            Held::ByHandle => self.serve_as::<ByHandle>(server, requests),
            Held::ById => self.serve_as::<ById>(server, requests),
        }
    }

    fn serve_as<H: Hold>(&self, server: &Server, requests: &[Arc<Request>]) -> Result<Served> {
        let lease_in = if server.groups.len() > 1 { 0 } else { 3 };
        let ids = Ids::of_worker(0, lease_in);
        let mut engine = Engine::<H>::new(server, ids, self.options.clone());
        requests.iter().for_each(|request| engine.add(request));
        engine.run_all()?;
        let samples = engine.take_finished();
        let outcome = Outcome::of(&server.weights, &samples);
        Ok(Served { samples, outcome, counts: engine.counts() })
    }
}
