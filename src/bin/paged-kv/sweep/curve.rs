//! `Curve`: the caches of one curve of a sweep: their policy, and their groups of layers or their tiers.
//!
//! With groups there is a curve for each retention, and one of full attention: caches of the same bytes for the same
//! layers, if all of them attended to all tokens. All hits are counted in tokens of the trace's prompts, so the curves
//! are comparable.

use anyhow::{Context, Result};
use paged_kv::{GroupRetention, PagedKvCache, ReclaimPolicy};

use super::Trace;
use crate::args::SweepArguments;
use crate::layer_groups::retention_name;
use crate::serve::needs::Needs;
use crate::tiers::TierSetup;
use crate::tiers::options::TierCurve;

/// The caches of one curve.
#[derive(Clone, Debug, PartialEq)]
pub struct Curve {
    pub name: String,
    pub reclaim: ReclaimPolicy,
    /// Whether requests are released with the hints of the trace.
    pub gives_hints: bool,
    layers: Layers,
    pub tiers: Option<TierCurve>,
}

/// The layers of the model.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Layers {
    /// There are no groups.
    Any,
    /// The layers of the groups, as if all attended to all tokens.
    AllFull,
    Grouped(GroupRetention),
}

impl Curve {
    /// Returns the curves that are asked for.
    pub fn all(arguments: &SweepArguments) -> Vec<Self> {
        let mut policies = arguments.reclaim();
        policies.sort_by_key(|policy| policy.to_string());
        let layers: Vec<Layers> = match arguments.groups.groups {
            None => vec![Layers::Any],
            Some(_) => {
                let grouped = arguments.group_retention.iter().copied().map(Layers::Grouped);
                grouped.chain([Layers::AllFull]).collect()
            }
        };
        let is_one = policies.len() == 1;
        let tiers = arguments.tiers.curves();
        if !tiers.is_empty() {
            let has_policies = arguments.tiers.has_policies();
            let curve = |&reclaim: &_| {
                let named = |tiers| (name_of_tiers(tiers, has_policies), tiers);
                tiers.iter().copied().map(named).map(move |(name, tiers)| Self {
                    name: if is_one { name } else { format!("{name} {reclaim}") },
                    reclaim,
                    gives_hints: false,
                    layers: Layers::Any,
                    tiers,
                })
            };
            return policies.iter().flat_map(curve).collect();
        }
        let curve = |(reclaim, layers)| {
            let name = name(reclaim, layers, is_one);
            Self { name, reclaim, gives_hints: false, layers, tiers: None }
        };
        let of_policy = |&reclaim: &_| layers.iter().map(move |&layers| (reclaim, layers));
        let mut curves: Vec<Self> = policies.iter().flat_map(of_policy).map(curve).collect();
        if arguments.hints {
            let learned = curves.iter().filter(|curve| curve.reclaim == ReclaimPolicy::HitDensity);
            let hinted = learned.map(|curve| Self {
                name: format!("{} hints", curve.name),
                gives_hints: true,
                ..curve.clone()
            });
            curves.extend(hinted.collect::<Vec<_>>());
        }
        curves
    }

    /// Returns true if the caches have groups of layers.
    pub fn is_grouped(&self) -> bool {
        matches!(self.layers, Layers::Grouped(_))
    }

    /// Returns the blocks of the cache that has the bytes of `blocks` blocks of the pool, at least one.
    pub fn cache_blocks(&self, trace: &Trace, blocks: usize) -> usize {
        match (self.layers, &trace.groups) {
            (Layers::AllFull, Some(groups)) => groups.full_attention_blocks(blocks).max(1),
            _ => blocks,
        }
    }

    /// Returns the tiers below a cache of `blocks` blocks.
    pub fn setup(&self, blocks: usize) -> Option<TierSetup> {
        self.tiers.map(|tiers| tiers.setup(blocks))
    }

    /// Returns the needs of requests in these caches.
    pub fn needs<'a>(&self, trace: &'a Trace) -> &'a Needs {
        if self.is_grouped() { &trace.needs } else { &trace.needs_of_full }
    }

    /// Creates the cache that has the bytes of `blocks` blocks of the pool.
    ///
    /// # Errors
    /// The cache cannot be built.
    pub fn cache(&self, trace: &Trace, blocks: usize) -> Result<PagedKvCache> {
        let blocks = self.cache_blocks(trace, blocks);
        let builder = PagedKvCache::builder().num_blocks(blocks).reclaim_policy(self.reclaim);
        let builder = match self.setup(blocks) {
            Some(tiers) => tiers.build_into(builder),
            None => builder,
        };
        let builder = match (self.layers, &trace.groups) {
            (Layers::Grouped(retention), Some(groups)) => groups.build_into(builder, retention),
            _ => builder.block_size(trace.needs.unit()),
        };
        builder.build().with_context(|| format!("cannot build a cache of {blocks} blocks"))
    }
}

fn name(reclaim: ReclaimPolicy, layers: Layers, is_one_policy: bool) -> String {
    let layers = match layers {
        Layers::Any => return reclaim.to_string(),
        Layers::AllFull => "all full attention".to_owned(),
        Layers::Grouped(retention) => format!("groups {}", retention_name(retention)),
    };
    if is_one_policy { layers } else { format!("{layers} {reclaim}") }
}

fn name_of_tiers(tiers: Option<TierCurve>, has_policies: bool) -> String {
    match tiers {
        None => "device alone".to_owned(),
        Some(tiers) if has_policies => format!("{} {}", tiers.name(), tiers.store),
        Some(tiers) => tiers.name(),
    }
}
