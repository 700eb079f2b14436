//! `LayerGroups`: the groups of layers that `--groups` names, and the options that belong to it.
//!
//! A list such as `full:16,window:16:1024` names each group with its block size. A preset names a model, whose layers
//! [`GroupPlan`] puts into groups. Every value that parses is one that the cache accepts.

use std::num::NonZeroUsize;

use clap::Args;
use paged_kv::{GroupPlan, GroupRetention, Layer, LayerGroup, PagedKvCache, PagedKvCacheBuilder};

/// Tokens of a block of a preset.
const PRESET_BLOCK_SIZE: usize = 16;

/// Bytes of a number of a preset.
const PRESET_ELEMENT_BYTES: usize = 2;

/// The groups of a cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerGroups {
    name: String,
    kinds: Box<[LayerGroup]>,
    /// Bytes of a block, if the groups are those of a model.
    block_bytes: Option<usize>,
    full_attention: Ratio,
}

/// Blocks of the pool for `tokens` tokens of a sequence, if all layers attended to all tokens: a fraction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ratio {
    blocks: u128,
    of: u128,
    tokens: u128,
}

/// Options of groups.
#[derive(Args, Clone, Debug)]
pub struct GroupArguments {
    /// Groups of layers that share the pool: full:B, window:B:W, chunked:B:C, state:B or sink:B:S:W, separated by
    /// commas, where B is the tokens of a block; or the groups of a model: gemma-3-27b or gpt-oss-20b
    #[arg(long, value_name = "SPEC", value_parser = LayerGroups::parse, conflicts_with = "block_size")]
    pub groups: Option<LayerGroups>,

    /// Tokens of a prompt that are computed at a time in a cache with groups, rounded up to blocks of all groups:
    /// windows release blocks between two chunks, and states are kept at the end of each
    #[arg(long, value_name = "TOKENS", default_value = "2048", requires = "groups")]
    pub prefill_chunk: NonZeroUsize,
}

impl GroupArguments {
    /// Returns the tokens that one hash of a prompt covers.
    pub fn unit(&self, block_size: NonZeroUsize) -> NonZeroUsize {
        let unit = self.groups.as_ref().and_then(|groups| NonZeroUsize::new(groups.unit()));
        unit.unwrap_or(block_size)
    }
}

impl LayerGroups {
    /// Parses the value of `--groups`.
    ///
    /// # Errors
    /// Says which part is malformed, or why the cache does not accept the groups.
    pub fn parse(text: &str) -> Result<Self, String> {
        let layers = match text {
            "gemma-3-27b" => Layer::gemma_3_27b(PRESET_ELEMENT_BYTES),
            "gpt-oss-20b" => Layer::gpt_oss_20b(PRESET_ELEMENT_BYTES),
            _ => return Self::listed(text),
        };
        let plan =
            GroupPlan::new(&layers, PRESET_BLOCK_SIZE).map_err(|refusal| refusal.to_string())?;
        let full_attention = Ratio {
            blocks: plan.full_attention_bytes(PRESET_BLOCK_SIZE) as u128,
            of: plan.block_bytes() as u128,
            tokens: PRESET_BLOCK_SIZE as u128,
        };
        Ok(Self {
            name: text.to_owned(),
            kinds: plan.groups().into(),
            block_bytes: Some(plan.block_bytes()),
            full_attention,
        })
    }

    fn listed(text: &str) -> Result<Self, String> {
        let kinds = text.split(',').map(group).collect::<Result<Box<[_]>, _>>()?;
        let cache = PagedKvCache::builder().num_blocks(1).groups(&kinds).build();
        cache.map_err(|refusal| refusal.to_string())?;
        let tokens = alignment(&kinds);
        let blocks = kinds.iter().map(|kind| (tokens / kind.block_size()) as u128).sum();
        let full_attention = Ratio { blocks, of: 1, tokens: tokens as u128 };
        Ok(Self { name: text.to_owned(), kinds, block_bytes: None, full_attention })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn kinds(&self) -> &[LayerGroup] {
        &self.kinds
    }

    /// Returns the bytes of a block, if the groups are those of a model.
    pub fn block_bytes(&self) -> Option<usize> {
        self.block_bytes
    }

    /// Returns the tokens that one hash of a prompt covers: the greatest common divisor of the block sizes.
    pub fn unit(&self) -> usize {
        self.kinds.iter().map(|kind| kind.block_size()).fold(0, greatest_common_divisor)
    }

    /// Returns the tokens of which hits are multiples: the least common multiple of the block sizes.
    pub fn alignment(&self) -> usize {
        alignment(&self.kinds)
    }

    pub fn has_states(&self) -> bool {
        self.kinds.iter().any(|kind| matches!(kind, LayerGroup::State { .. }))
    }

    /// Returns the blocks of [`unit`](Self::unit) tokens that have the bytes of `blocks` blocks of the pool, in a cache
    /// of the same layers in which all attend to all tokens. A state counts as a layer whose blocks are as large.
    pub fn full_attention_blocks(&self, blocks: usize) -> usize {
        let Ratio { blocks: needed, of, tokens } = self.full_attention;
        let units = blocks as u128 * of * tokens / (needed * self.unit() as u128);
        usize::try_from(units).unwrap_or(usize::MAX)
    }

    /// Returns the blocks of the pool that have the bytes of `units` blocks of full attention.
    pub fn pool_blocks(&self, units: usize) -> usize {
        let Ratio { blocks: needed, of, tokens } = self.full_attention;
        let blocks = (units as u128 * needed * self.unit() as u128).div_ceil(of * tokens);
        usize::try_from(blocks).unwrap_or(usize::MAX)
    }

    /// Sets the groups of a cache.
    pub fn build_into(
        &self,
        builder: PagedKvCacheBuilder,
        retention: GroupRetention,
    ) -> PagedKvCacheBuilder {
        builder.groups(&self.kinds).group_retention(retention)
    }
}

/// Returns a group in the form in which `--groups` takes it.
pub fn group_name(kind: LayerGroup) -> String {
    match kind {
        LayerGroup::Full { block_size } => format!("full:{block_size}"),
        LayerGroup::SlidingWindow { block_size, window } => format!("window:{block_size}:{window}"),
        LayerGroup::Chunked { block_size, chunk } => format!("chunked:{block_size}:{chunk}"),
        LayerGroup::State { block_size } => format!("state:{block_size}"),
        LayerGroup::SinkWindow { block_size, sink, window } => {
            format!("sink:{block_size}:{sink}:{window}")
        }
        other => format!("{other:?}"),
    }
}

/// Parses the value of `--group-retention`.
pub fn retention(text: &str) -> Result<GroupRetention, String> {
    let every = || text.strip_prefix("every:")?.parse::<NonZeroUsize>().ok();
    match text {
        "dense" => Ok(GroupRetention::Dense),
        "prompt-end" => Ok(GroupRetention::PromptEnd),
        _ => every()
            .map(|tokens| GroupRetention::Every(tokens.get()))
            .ok_or_else(|| "expected dense, every:TOKENS or prompt-end".to_owned()),
    }
}

/// Returns a retention in the form in which `--group-retention` takes it.
pub fn retention_name(retention: GroupRetention) -> String {
    match retention {
        GroupRetention::Dense => "dense".to_owned(),
        GroupRetention::PromptEnd => "prompt-end".to_owned(),
        GroupRetention::Every(tokens) => format!("every:{tokens}"),
        other => format!("{other:?}"),
    }
}

/// Parses one group of a list.
fn group(text: &str) -> Result<LayerGroup, String> {
    let (kind, sizes) = text.split_once(':').unwrap_or((text, ""));
    let wrong = |form: &str| format!("`{text}`: expected {form}, with whole numbers of tokens");
    let form = match kind {
        "full" => "full:B",
        "window" => "window:B:W",
        "chunked" => "chunked:B:C",
        "state" => "state:B",
        "sink" => "sink:B:S:W",
        _ => {
            return Err(format!(
                "`{text}`: expected full:B, window:B:W, chunked:B:C, state:B or sink:B:S:W, or as the only value \
                 gemma-3-27b or gpt-oss-20b"
            ));
        }
    };
    let sizes: Result<Vec<usize>, _> = sizes.split(':').map(str::parse).collect();
    let sizes = sizes.map_err(|_| wrong(form))?;
    match (kind, &sizes[..]) {
        ("full", &[block_size]) => Ok(LayerGroup::Full { block_size }),
        ("window", &[block_size, window]) => Ok(LayerGroup::SlidingWindow { block_size, window }),
        ("chunked", &[block_size, chunk]) => Ok(LayerGroup::Chunked { block_size, chunk }),
        ("state", &[block_size]) => Ok(LayerGroup::State { block_size }),
        ("sink", &[block_size, sink, window]) => {
            Ok(LayerGroup::SinkWindow { block_size, sink, window })
        }
        _ => Err(wrong(form)),
    }
}

/// Returns the least common multiple of the block sizes, which a cache with these groups has checked.
fn alignment(kinds: &[LayerGroup]) -> usize {
    let sizes = kinds.iter().map(|kind| kind.block_size());
    sizes.fold(1, |multiple, size| multiple / greatest_common_divisor(multiple, size) * size)
}

fn greatest_common_divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_group_has_a_name() {
        let text = "full:16,window:16:1024,chunked:32:8192,state:64,sink:16:4:128";
        let groups = LayerGroups::parse(text).unwrap();
        let names: Vec<_> = groups.kinds().iter().map(|&kind| group_name(kind)).collect();
        assert_eq!(names.join(","), text);
        assert_eq!((groups.unit(), groups.alignment()), (16, 64));
        assert!(groups.has_states());
    }

    #[test]
    fn malformed_groups_are_refused_with_the_part() {
        for (text, reason) in [
            ("", "``: expected full:B"),
            ("full", "`full`: expected full:B"),
            ("full:16,", "``: expected full:B"),
            ("full:16:8", "`full:16:8`: expected full:B"),
            ("full:16,window:16", "`window:16`: expected window:B:W"),
            ("sink:16:4", "`sink:16:4`: expected sink:B:S:W"),
            ("window:16:-1", "`window:16:-1`: expected window:B:W"),
            ("linear:16", "`linear:16`: expected full:B"),
            ("full:16,gemma-3-27b", "`gemma-3-27b`: expected full:B"),
            ("full:0", "invalid groups: group 0 has a block of 0 tokens"),
            ("full:16,window:16:0", "invalid groups: group 1 has a window of 0 tokens"),
            ("full:65537,state:65536", "invalid groups: a common multiple"),
        ] {
            let refusal = LayerGroups::parse(text).unwrap_err();
            assert!(refusal.starts_with(reason), "{text}: {refusal}");
        }
    }

    #[test]
    fn every_retention_has_a_name() {
        for text in ["dense", "prompt-end", "every:512"] {
            assert_eq!(retention_name(retention(text).unwrap()), text);
        }
        for text in ["", "every", "every:", "every:0", "Dense"] {
            assert!(retention(text).is_err(), "{text:?} was taken");
        }
    }

    /// Gemma 3 27B: 62 layers in blocks of 10. gpt-oss-20b: 24 layers in blocks of 12.
    #[test]
    fn full_attention_has_the_bytes_of_all_layers() {
        for (name, groups, pool, full) in [
            ("gemma-3-27b", 7, 620, 100),
            ("gpt-oss-20b", 2, 100, 50),
            ("full:16,window:16:64", 2, 100, 50),
            ("full:16,window:32:64", 2, 99, 66),
            ("full:16", 1, 100, 100),
        ] {
            let parsed = LayerGroups::parse(name).unwrap();
            assert_eq!(parsed.kinds().len(), groups, "{name}");
            assert_eq!(parsed.full_attention_blocks(pool), full, "{name}");
            assert_eq!(parsed.pool_blocks(full), pool, "{name}");
            assert_eq!(parsed.full_attention_blocks(pool - 1), full - 1, "{name}");
        }
    }
}
