//! `Layer`: one layer of a model, as the planner of groups needs it, and the layers of two published models.

use crate::groups::LayerGroup;

/// The tokens that a layer attends to, and the bytes that it keeps. [`GroupPlan`](crate::GroupPlan) takes one for each
/// layer of a model. The kinds are those of [`LayerGroup`].
///
/// ```
/// use paged_kv::{KvHeads, Layer};
///
/// // 8 heads of keys and values, 64 numbers a head, 2 bytes a number.
/// let heads = KvHeads { count: 8, head_dim: 64, element_bytes: 2 };
/// let layer = Layer::SlidingWindow { window: 128, bytes_per_token: heads.bytes_per_token() };
/// assert_eq!(layer, Layer::gpt_oss_20b(2)[0]);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Layer {
    /// Every token attends to all tokens before it.
    Full {
        /// Bytes of the keys and values of one token in this layer.
        bytes_per_token: usize,
    },
    /// A token attends to itself and to the `window - 1` tokens before it.
    SlidingWindow {
        /// Tokens of the window.
        window: usize,
        /// Bytes of the keys and values of one token in this layer.
        bytes_per_token: usize,
    },
    /// A token attends to the tokens before it in its chunk.
    Chunked {
        /// Tokens of a chunk.
        chunk: usize,
        /// Bytes of the keys and values of one token in this layer.
        bytes_per_token: usize,
    },
    /// A recurrent state (Mamba, linear attention), with the same bytes at every length.
    State {
        /// Bytes of the whole state of one sequence in this layer.
        bytes: usize,
    },
    /// As `SlidingWindow`, and every token attends to the first `sink` tokens too.
    SinkWindow {
        /// Tokens at the beginning.
        sink: usize,
        /// Tokens of the window.
        window: usize,
        /// Bytes of the keys and values of one token in this layer.
        bytes_per_token: usize,
    },
}

/// The heads of keys and values of one layer, from which its bytes a token follow.
///
/// ```
/// let heads = paged_kv::KvHeads { count: 16, head_dim: 128, element_bytes: 2 };
/// assert_eq!(heads.bytes_per_token(), 8_192);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct KvHeads {
    /// Heads of keys, and as many of values: `num_key_value_heads` of a model's configuration. With tensor
    /// parallelism, those of one device.
    pub count: usize,
    /// Numbers of a head.
    pub head_dim: usize,
    /// Bytes of a number: 2 for `bfloat16`, 1 for `fp8`.
    pub element_bytes: usize,
}

impl KvHeads {
    /// Returns the bytes of the keys and values of one token: `2 * count * head_dim * element_bytes`. If that is
    /// above `usize::MAX`, it returns `usize::MAX`, which no plan accepts.
    ///
    /// ```
    /// let heads = paged_kv::KvHeads { count: 8, head_dim: 64, element_bytes: 2 };
    /// assert_eq!(heads.bytes_per_token(), 2_048);
    /// ```
    pub fn bytes_per_token(self) -> usize {
        let factors = [self.count, self.head_dim, self.element_bytes];
        // A zero is a zero, however large the other factors are.
        if factors.contains(&0) {
            return 0;
        }
        factors.into_iter().fold(2, usize::saturating_mul)
    }
}

impl Layer {
    /// Returns the 62 layers of Gemma 3 27B: five windows of 1,024 tokens, then full attention, and so on.
    ///
    /// The figures are those of `get_config_for_27b_v3` in `gemma/config.py` of `google/gemma_pytorch`: 62 layers, 16
    /// heads of keys and values, 128 numbers a head, a window of 1,024, every sixth layer full.
    ///
    /// ```
    /// use paged_kv::{GroupPlan, Layer};
    ///
    /// let plan = GroupPlan::new(&Layer::gemma_3_27b(2), 16)?;
    /// assert_eq!(plan.groups().len(), 7); // 10 full layers; 52 windowed ones in 6 groups
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn gemma_3_27b(element_bytes: usize) -> Vec<Self> {
        let heads = KvHeads { count: 16, head_dim: 128, element_bytes };
        let bytes_per_token = heads.bytes_per_token();
        let layer = |number: usize| match number % 6 {
            5 => Self::Full { bytes_per_token },
            _ => Self::SlidingWindow { window: 1_024, bytes_per_token },
        };
        (0..62).map(layer).collect()
    }

    /// Returns the 24 layers of gpt-oss-20b: a window of 128 tokens, then full attention, and so on.
    ///
    /// The figures are those of `config.json` of `openai/gpt-oss-20b`: 24 layers, 8 heads of keys and values, 64
    /// numbers a head, a window of 128, layers alternating from a windowed one on.
    ///
    /// ```
    /// use paged_kv::{GroupPlan, Layer};
    ///
    /// let plan = GroupPlan::new(&Layer::gpt_oss_20b(2), 16)?;
    /// assert_eq!(plan.groups().len(), 2); // 12 layers each
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn gpt_oss_20b(element_bytes: usize) -> Vec<Self> {
        let heads = KvHeads { count: 8, head_dim: 64, element_bytes };
        let bytes_per_token = heads.bytes_per_token();
        let layer = |number: usize| match number % 2 {
            1 => Self::Full { bytes_per_token },
            _ => Self::SlidingWindow { window: 128, bytes_per_token },
        };
        (0..24).map(layer).collect()
    }

    /// Returns the bytes of one token; none for a state.
    pub(super) fn bytes_per_token(self) -> Option<usize> {
        match self {
            Self::Full { bytes_per_token }
            | Self::SlidingWindow { bytes_per_token, .. }
            | Self::Chunked { bytes_per_token, .. }
            | Self::SinkWindow { bytes_per_token, .. } => Some(bytes_per_token),
            Self::State { .. } => None,
        }
    }

    /// Returns the bytes of the whole state; none for attention.
    pub(super) fn state_bytes(self) -> Option<usize> {
        match self {
            Self::State { bytes } => Some(bytes),
            _ => None,
        }
    }

    /// Returns the kind of the layer with blocks of `block_size` tokens.
    pub(super) fn with_block_size(self, block_size: usize) -> LayerGroup {
        match self {
            Self::Full { .. } => LayerGroup::Full { block_size },
            Self::SlidingWindow { window, .. } => LayerGroup::SlidingWindow { block_size, window },
            Self::Chunked { chunk, .. } => LayerGroup::Chunked { block_size, chunk },
            Self::State { .. } => LayerGroup::State { block_size },
            Self::SinkWindow { sink, window, .. } => {
                LayerGroup::SinkWindow { block_size, sink, window }
            }
        }
    }
}
