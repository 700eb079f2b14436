//! `GroupPlan`: puts the layers of a model into groups whose blocks all have the same bytes.
//!
//! 1. A block is divided into *slices* of equal bytes, one for each layer of a group. The bytes of a slice are those
//!    of the attention layer with the most bytes a token, times the block size. A layer with half the bytes a token
//!    gets blocks of twice the tokens. If a state is larger than a slice, all blocks get a multiple of the tokens.
//!    A smaller state is padded.
//! 2. Layers of the same kind and block size are a bucket. A group has as many slices as the smallest bucket has
//!    layers, or as the largest has, if that is below 1.5 times the smallest.
//! 3. A bucket of n layers makes `ceil(n / slices)` groups. Its layers are dealt to them in turn.
//!
//! They follow vLLM (`unify_kv_cache_spec_page_size`, `_get_kv_cache_groups_uniform_page_size` and, for large states,
//! `_align_hybrid_block_size`). Other than vLLM, this module pads no attention layer by itself, puts groups of full
//! attention first, and keeps to the most groups of a cache.
//!
//! Invariant: each layer has one place, and no two layers of a group have the same slice.

mod layer;
#[cfg(all(test, not(paged_kv_loom)))]
mod tests;

use crate::error::{PagedKvError, Result};
use crate::groups::{
    GroupLayout, GroupRetention, LayerGroup, MOST_GROUPS, greatest_common_divisor,
};
use crate::id::GroupId;

pub use layer::{KvHeads, Layer};

/// The most bytes that an array can have.
const MOST_BYTES: usize = isize::MAX as usize;

/// The groups of a model's layers: an argument for
/// [`PagedKvCacheBuilder::groups`](crate::PagedKvCacheBuilder::groups), the place of each layer in a block, and the
/// bytes of a block.
///
/// An engine allocates `blocks_for(memory)` blocks of `block_bytes()` each. The layer with the place
/// `LayerPlace { group, slice }` reads the block table of `group`, and uses the `slice_bytes()` from
/// `slice * slice_bytes()` on of each block there.
///
/// ```
/// use paged_kv::{GroupId, GroupPlan, Layer, LayerGroup, PagedKvError};
///
/// // 24 layers: a window of 128 tokens and full attention alternate. 2 bytes a number, 16 tokens a block.
/// let plan = GroupPlan::new(&Layer::gpt_oss_20b(2), 16)?;
/// let window = LayerGroup::SlidingWindow { block_size: 16, window: 128 };
/// assert_eq!(plan.groups(), [LayerGroup::Full { block_size: 16 }, window]);
/// assert_eq!((plan.places()[0].group, plan.places()[0].slice), (GroupId(1), 0));
/// assert_eq!(plan.block_bytes(), 12 * 16 * 2_048); // layers of a group, tokens, bytes a token
/// assert_eq!(plan.blocks_for(8 << 30), 21_845);
///
/// // A sequence of 131,072 tokens holds 8,192 blocks and 9 of the window: half of the bytes without groups.
/// assert_eq!(plan.sequence_bytes(131_072), 8_201 * plan.block_bytes());
/// assert_eq!(plan.full_attention_bytes(131_072), 16_384 * plan.block_bytes());
///
/// let odd = [Layer::Full { bytes_per_token: 2_048 }, Layer::Full { bytes_per_token: 1_536 }];
/// let refusal = GroupPlan::new(&odd, 16).unwrap_err();
/// assert!(matches!(refusal, PagedKvError::InvalidConfig { parameter: "layers", .. }));
/// # Ok::<(), PagedKvError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupPlan {
    groups: Box<[LayerGroup]>,
    places: Box<[LayerPlace]>,
    padding_bytes: Box<[usize]>,
    slice_bytes: usize,
    block_bytes: usize,
}

/// The place of a layer: its group, and its slice of each block of that group.
///
/// ```
/// use paged_kv::{GroupId, GroupPlan, Layer};
///
/// let plan = GroupPlan::new(&[Layer::Full { bytes_per_token: 512 }; 3], 16)?;
/// let last = plan.places()[2];
/// assert_eq!((last.group, last.slice), (GroupId(0), 2));
/// assert_eq!(last.slice * plan.slice_bytes(), 2 * 16 * 512); // where its bytes in a block begin
/// # Ok::<(), paged_kv::PagedKvError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct LayerPlace {
    /// The group of the layer: its block table is that of the layer.
    pub group: GroupId,
    /// The number of its slice.
    pub slice: usize,
}

impl GroupPlan {
    /// Puts `layers` into groups. `block_size` is the number of tokens of a block for the attention layer with the
    /// most bytes a token, unless a state needs larger blocks.
    ///
    /// A state can be matched at multiples of the least common multiple of the other groups' block sizes.
    /// Groups of full attention come first. If vLLM's rule gives more than 31 groups, a block gets more
    /// slices, and so more padding.
    ///
    /// O(layers * kinds of layers).
    ///
    /// # Errors
    /// `InvalidConfig`, for `block_size` if it is 0, and for `layers` if
    /// - there are none, or one has 0 bytes, or a window or chunk of 0 tokens,
    /// - the bytes a token of an attention layer do not divide those of another. A caller can pad such a layer: it
    ///   passes more bytes a token than the layer has, and leaves the rest unused,
    /// - there are more than 31 different kinds and block sizes,
    /// - the least common multiple of the block sizes is above 2^32 - 1,
    /// - a block is larger than an array can be.
    ///
    /// ```
    /// use paged_kv::{GroupPlan, Layer, LayerGroup};
    ///
    /// // A state of 100,000 bytes needs a slice of 49 tokens of the full layer: 64 are taken, 4 times 16.
    /// let layers = [Layer::Full { bytes_per_token: 2_048 }, Layer::State { bytes: 100_000 }];
    /// let plan = GroupPlan::new(&layers, 16)?;
    /// let expected = [LayerGroup::Full { block_size: 64 }, LayerGroup::State { block_size: 64 }];
    /// assert_eq!(plan.groups(), expected);
    /// assert_eq!(plan.padding_bytes(), [0, 64 * 2_048 - 100_000]);
    ///
    /// let refusal = GroupPlan::new(&[Layer::State { bytes: 0 }], 16).unwrap_err();
    /// assert_eq!(refusal.to_string(), "invalid layers: layer 0 has 0 bytes");
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn new(layers: &[Layer], block_size: usize) -> Result<Self> {
        check(layers, block_size)?;
        let slices = SliceSize::new(layers, block_size)?;
        let buckets = buckets(layers, slices)?;
        let counts: Vec<usize> = buckets.iter().map(|(_, layers)| layers.len()).collect();
        let num_slices = slices_a_block(&counts);
        let Some(block_bytes) = bounded_product(slices.bytes, num_slices) else {
            return refuse(format!(
                "a block of {num_slices} layers has more bytes than an array can have"
            ));
        };
        let mut groups = Vec::new();
        let mut places = vec![LayerPlace { group: GroupId(0), slice: 0 }; layers.len()];
        let mut padding_bytes = Vec::new();
        for (kind, numbers) in buckets {
            let (first, added) = (groups.len(), numbers.len().div_ceil(num_slices));
            groups.resize(first + added, kind);
            padding_bytes.resize(first + added, block_bytes);
            for (at, number) in numbers.into_iter().enumerate() {
                let group = first + at % added;
                // `MOST_GROUPS` fits.
                places[number] = LayerPlace { group: GroupId(group as u8), slice: at / added };
                padding_bytes[group] -= layers[number].state_bytes().unwrap_or(slices.bytes);
            }
        }
        Ok(Self {
            groups: accepted(groups)?.into(),
            places: places.into(),
            padding_bytes: padding_bytes.into(),
            slice_bytes: slices.bytes,
            block_bytes,
        })
    }

    /// Returns the groups: an argument for [`PagedKvCacheBuilder::groups`](crate::PagedKvCacheBuilder::groups).
    ///
    /// ```
    /// use paged_kv::{GroupPlan, Layer, LayerGroup};
    ///
    /// let layers = [Layer::Full { bytes_per_token: 512 }, Layer::Full { bytes_per_token: 256 }];
    /// let plan = GroupPlan::new(&layers, 16)?;
    /// let expected = [LayerGroup::Full { block_size: 16 }, LayerGroup::Full { block_size: 32 }];
    /// assert_eq!(plan.groups(), expected);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn groups(&self) -> &[LayerGroup] {
        &self.groups
    }

    /// Returns the place of each layer, in the order in which the layers were passed.
    ///
    /// ```
    /// let plan = paged_kv::GroupPlan::new(&paged_kv::Layer::gpt_oss_20b(2), 16)?;
    /// let of_layer_5 = plan.places()[5];
    /// assert_eq!((of_layer_5.group, of_layer_5.slice), (paged_kv::GroupId(0), 2));
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn places(&self) -> &[LayerPlace] {
        &self.places
    }

    /// Returns the bytes of a slice: those of one layer in a block.
    ///
    /// ```
    /// let plan = paged_kv::GroupPlan::new(&paged_kv::Layer::gpt_oss_20b(2), 16)?;
    /// assert_eq!(plan.slice_bytes(), 16 * 2_048);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn slice_bytes(&self) -> usize {
        self.slice_bytes
    }

    /// Returns the bytes of a block. They are the same for all groups.
    ///
    /// ```
    /// let plan = paged_kv::GroupPlan::new(&paged_kv::Layer::gpt_oss_20b(2), 16)?;
    /// assert_eq!(plan.block_bytes(), 12 * plan.slice_bytes());
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn block_bytes(&self) -> usize {
        self.block_bytes
    }

    /// Returns for each group the bytes of a block that no layer uses: slices without a layer, and the rest of the
    /// slice of a small state.
    ///
    /// ```
    /// use paged_kv::{GroupPlan, Layer};
    ///
    /// let plan = GroupPlan::new(&Layer::gemma_3_27b(2), 16)?; // 52 windowed layers have 60 slices
    /// let empty: Vec<usize> =
    ///     plan.padding_bytes().iter().map(|bytes| bytes / plan.slice_bytes()).collect();
    /// assert_eq!(empty, [0, 1, 1, 1, 1, 2, 2]);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn padding_bytes(&self) -> &[usize] {
        &self.padding_bytes
    }

    /// Returns the number of whole blocks that `memory_bytes` have room for.
    ///
    /// ```
    /// let plan = paged_kv::GroupPlan::new(&paged_kv::Layer::gpt_oss_20b(2), 16)?;
    /// assert_eq!(plan.blocks_for(10 * plan.block_bytes() + 1), 10);
    /// assert_eq!(plan.blocks_for(plan.block_bytes() - 1), 0);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn blocks_for(&self, memory_bytes: usize) -> usize {
        memory_bytes / self.block_bytes
    }

    /// Returns the most bytes that a sequence of `num_tokens` tokens holds at a time, if it grows by one token at a
    /// time and shares no block. If that is above `usize::MAX`, it returns `usize::MAX`.
    ///
    /// A window holds more while it grows by more tokens at a time: blocks for as many tokens more.
    ///
    /// ```
    /// let plan = paged_kv::GroupPlan::new(&paged_kv::Layer::gpt_oss_20b(2), 16)?;
    /// assert_eq!(plan.sequence_bytes(1_024), (64 + 9) * plan.block_bytes());
    /// assert_eq!(plan.sequence_bytes(0), 0);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn sequence_bytes(&self, num_tokens: usize) -> usize {
        let blocks = self.groups.iter().map(|&group| most_blocks(group, num_tokens));
        blocks.fold(0, usize::saturating_add).saturating_mul(self.block_bytes)
    }

    /// Returns the bytes that a sequence of `num_tokens` tokens would hold without groups: every attention layer
    /// keeps all tokens, and no slice is without a layer. States count as in
    /// [`sequence_bytes`](Self::sequence_bytes). If that is above `usize::MAX`, it returns `usize::MAX`.
    ///
    /// ```
    /// let plan = paged_kv::GroupPlan::new(&paged_kv::Layer::gemma_3_27b(2), 16)?;
    /// let [hybrid, full] = [plan.sequence_bytes(131_072), plan.full_attention_bytes(131_072)];
    /// assert_eq!(full, 62 * 131_072 * 8_192); // layers, tokens, bytes a token
    /// assert_eq!(full * 10 / hybrid, 59); // 5.9 times as many
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn full_attention_bytes(&self, num_tokens: usize) -> usize {
        let blocks = self.places.iter().map(|place| match self.groups[place.group.index()] {
            state @ LayerGroup::State { .. } => most_blocks(state, num_tokens),
            group => num_tokens.div_ceil(group.block_size()),
        });
        blocks.fold(0, usize::saturating_add).saturating_mul(self.slice_bytes)
    }
}

/// The size of a slice.
#[derive(Clone, Copy)]
struct SliceSize {
    bytes: usize,
    /// Tokens between two states that can be matched.
    state_tokens: usize,
}

impl SliceSize {
    /// Returns the size that all layers have room in: rule 1.
    fn new(layers: &[Layer], block_size: usize) -> Result<Self> {
        let state_bytes = layers.iter().filter_map(|layer| layer.state_bytes()).max();
        let state_bytes = state_bytes.unwrap_or(0);
        let attention = || {
            let numbered = layers.iter().enumerate();
            numbered.filter_map(|(number, layer)| Some((layer.bytes_per_token()?, number)))
        };
        let Some((widest, number)) = attention().max_by_key(|&(bytes, _)| bytes) else {
            return Ok(Self { bytes: state_bytes, state_tokens: block_size });
        };
        if let Some((bytes, other)) = attention().find(|(bytes, _)| widest % bytes != 0) {
            let of_other = format!("{bytes} bytes a token of layer {other}");
            return refuse(format!("the {of_other} do not divide the {widest} of layer {number}"));
        }
        let page = bounded_product(widest, block_size);
        let bytes = page.and_then(|page| bounded_product(page, state_bytes.div_ceil(page).max(1)));
        let Some(bytes) = bytes else {
            return refuse(format!(
                "a block of layer {number} has more bytes than an array can have"
            ));
        };
        let unit = attention().map(|(bytes, _)| bytes).fold(0, greatest_common_divisor);
        Ok(Self { bytes, state_tokens: bytes / unit })
    }

    /// Returns the kind of a layer, with the tokens that one slice has room for.
    fn group_of(self, layer: Layer) -> LayerGroup {
        let tokens = layer.bytes_per_token().map_or(self.state_tokens, |bytes| self.bytes / bytes);
        layer.with_block_size(tokens)
    }
}

/// Refuses layers and sizes that mean nothing by themselves.
fn check(layers: &[Layer], block_size: usize) -> Result<()> {
    if block_size == 0 {
        let reason = "a block of 0 tokens".to_owned();
        return Err(PagedKvError::InvalidConfig { parameter: "block_size", reason });
    }
    if layers.is_empty() {
        return refuse("there are none".to_owned());
    }
    for (number, layer) in layers.iter().enumerate() {
        let bytes = layer.bytes_per_token().or(layer.state_bytes()).unwrap_or(0);
        if bytes == 0 {
            return refuse(format!("layer {number} has 0 bytes"));
        }
        if bytes > MOST_BYTES {
            return refuse(format!("layer {number} has more bytes than an array can have"));
        }
        if let Some(fault) = layer.with_block_size(block_size).refusal() {
            return refuse(format!("layer {number} has {fault}"));
        }
    }
    Ok(())
}

/// Returns the kinds of `layers`, each with the numbers of its layers. Full attention comes first.
fn buckets(layers: &[Layer], slices: SliceSize) -> Result<Vec<(LayerGroup, Vec<usize>)>> {
    let mut buckets: Vec<(LayerGroup, Vec<usize>)> = Vec::new();
    for (number, &layer) in layers.iter().enumerate() {
        let kind = slices.group_of(layer);
        match buckets.iter().position(|(of_bucket, _)| *of_bucket == kind) {
            Some(bucket) => buckets[bucket].1.push(number),
            None if buckets.len() == MOST_GROUPS => {
                return refuse(format!("more than {MOST_GROUPS} kinds and block sizes"));
            }
            None => buckets.push((kind, vec![number])),
        }
    }
    buckets.sort_by_key(|(kind, _)| !kind.is_full());
    Ok(buckets)
}

/// Returns the slices of a block for buckets of so many layers: rule 2, or more if that makes too many groups.
fn slices_a_block(layers_of_buckets: &[usize]) -> usize {
    let counts = || layers_of_buckets.iter().copied();
    let [min, max] = [counts().min(), counts().max()].map(|count| count.unwrap_or(1));
    let wanted = if 2 * max < 3 * min { max } else { min };
    let groups = |slices: usize| counts().map(|count| count.div_ceil(slices)).sum::<usize>();
    (wanted..max).find(|&slices| groups(slices) <= MOST_GROUPS).unwrap_or(max)
}

/// Returns `groups` if a cache accepts them.
fn accepted(groups: Vec<LayerGroup>) -> Result<Vec<LayerGroup>> {
    match GroupLayout::new(&groups, 0, GroupRetention::default()) {
        Err(PagedKvError::InvalidConfig { reason, .. }) => refuse(reason),
        layout => layout.map(|_| groups),
    }
}

/// Returns the most blocks of a group that a sequence holds, if it grows by one token at a time.
fn most_blocks(group: LayerGroup, num_tokens: usize) -> usize {
    // A window has one block more than its tokens fill, which has to fit.
    group.most_blocks(num_tokens.min(usize::MAX - 1), 1, 0)
}

fn bounded_product(a: usize, b: usize) -> Option<usize> {
    a.checked_mul(b).filter(|&product| product <= MOST_BYTES)
}

fn refuse<T>(reason: String) -> Result<T> {
    Err(PagedKvError::InvalidConfig { parameter: "layers", reason })
}
