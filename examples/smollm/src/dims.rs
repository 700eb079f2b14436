//! `Dims`: the shape of a model, and the groups of its layers that share one cache.

use crate::kv::KvShape;

/// The shape of a decoder with grouped-query attention, RMS norms, rotary positions and a gated FFN.
#[derive(Clone, Debug, PartialEq)]
pub struct Dims {
    /// Width of the residual stream.
    pub width: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; it divides the query heads.
    pub kv_heads: usize,
    /// Elements of a head, an even number.
    pub head_dim: usize,
    /// Width of the FFN.
    pub ffn: usize,
    /// Number of tokens.
    pub vocab: usize,
    /// Base of the rotary angles.
    pub rope_base: f32,
    /// Epsilon of the RMS norms.
    pub eps: f32,
    /// For each layer, the number of last positions that it attends to; `None` for all.
    pub windows: Vec<Option<usize>>,
}

/// The place of a layer: its group, and its number in the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerPlace {
    /// Number of the group.
    pub group: usize,
    /// Number of the layer in its group.
    pub layer: usize,
}

impl Dims {
    /// Returns the elements of all query heads.
    pub fn query_len(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Returns the elements of all key heads, and of all value heads.
    pub fn kv_len(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Returns the window of each group. Layers with one window share a group, and a group has a cache.
    pub fn groups(&self) -> Vec<Option<usize>> {
        let mut groups = Vec::new();
        for window in &self.windows {
            if !groups.contains(window) {
                groups.push(*window);
            }
        }
        groups
    }

    /// Returns the place of each layer.
    pub fn places(&self) -> Vec<LayerPlace> {
        let groups = self.groups();
        let mut layers = vec![0; groups.len()];
        let place = |window: &Option<usize>| {
            let group = groups.iter().position(|of_group| of_group == window);
            let group = group.expect("each window has a group");
            layers[group] += 1;
            LayerPlace { group, layer: layers[group] - 1 }
        };
        self.windows.iter().map(place).collect()
    }

    /// Returns the layout of the blocks of a group.
    pub fn kv_shape(&self, group: usize, block_size: usize) -> KvShape {
        let layers = self.places().iter().filter(|place| place.group == group).count();
        KvShape { layers, kv_heads: self.kv_heads, head_dim: self.head_dim, block_size }
    }
}
