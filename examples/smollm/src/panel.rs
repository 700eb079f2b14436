//! `Panels`: a matrix packed for multiplication, in panels of 16 outputs.
//!
//! A panel holds, for each input in order, the weights of its 16 outputs, as numbers or quantized. Lanes are
//! outputs, so each output is summed in the order of the inputs, however many rows are multiplied together.

mod kernel;

use rayon::prelude::*;

use self::kernel::{Multiply, PanelView};
use crate::quant::{Q4_1, Q8_0, QUANTS};
use crate::weights::Matrix;
use crate::wide::{LANES, dispatch};

/// How kernels split their work. No split changes a bit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Split {
    /// The calling thread does all of it.
    #[default]
    None,
    /// The threads of rayon share it.
    Rayon,
}

/// A packed matrix.
#[derive(Clone, Debug)]
pub struct Panels {
    outs: usize,
    ins: usize,
    data: Data,
}

/// The weights, panel after panel.
#[derive(Clone, Debug)]
enum Data {
    /// `ins` entries a panel.
    Numbers(Vec<[f32; LANES]>),
    /// 16 entries for each 32 inputs, and for each 32 inputs a factor and a smallest weight.
    Q4_1 { quants: Vec<[u8; LANES]>, scales: Vec<[[f32; LANES]; 2]> },
    /// `ins` entries a panel, and for each 32 inputs a factor.
    Q8_0 { quants: Vec<[i8; LANES]>, scales: Vec<[f32; LANES]> },
}

impl Panels {
    /// Packs a matrix. Lanes after its last output are 0.
    pub fn pack(matrix: &Matrix) -> Self {
        let mut data = Vec::with_capacity(matrix.outs.div_ceil(LANES) * matrix.ins);
        for first in (0..matrix.outs).step_by(LANES) {
            let lanes = LANES.min(matrix.outs - first);
            for input in 0..matrix.ins {
                let mut entry = [0.0; LANES];
                for (lane, weight) in entry.iter_mut().take(lanes).enumerate() {
                    *weight = matrix.row(first + lane)[input];
                }
                data.push(entry);
            }
        }
        Self { outs: matrix.outs, ins: matrix.ins, data: Data::Numbers(data) }
    }

    /// Packs rows of `Q4_1` blocks, one row an output. The number of rows is a multiple of 16.
    pub fn pack_q4_1(rows: &[Vec<Q4_1>]) -> Self {
        let blocks = rows[0].len();
        let mut quants = Vec::with_capacity(rows.len() / LANES * blocks * QUANTS / 2);
        let mut scales = Vec::with_capacity(rows.len() / LANES * blocks);
        for panel in rows.chunks_exact(LANES) {
            (0..blocks).for_each(|block| {
                let of_lane = |lane: usize| &panel[lane][block];
                let factors = std::array::from_fn(|lane| of_lane(lane).factor);
                let smallest = std::array::from_fn(|lane| of_lane(lane).smallest);
                scales.push([factors, smallest]);
                let pair = |pair| std::array::from_fn(|lane| of_lane(lane).quants[pair]);
                quants.extend((0..QUANTS / 2).map(pair));
            });
        }
        let data = Data::Q4_1 { quants, scales };
        Self { outs: rows.len(), ins: blocks * QUANTS, data }
    }

    /// Packs rows of `Q8_0` blocks, one row an output. The number of rows is a multiple of 16.
    pub fn pack_q8_0(rows: &[Vec<Q8_0>]) -> Self {
        let blocks = rows[0].len();
        let mut quants = Vec::with_capacity(rows.len() / LANES * blocks * QUANTS);
        let mut scales = Vec::with_capacity(rows.len() / LANES * blocks);
        for panel in rows.chunks_exact(LANES) {
            (0..blocks).for_each(|block| {
                scales.push(std::array::from_fn(|lane| panel[lane][block].factor));
                let one = |at| std::array::from_fn(|lane| panel[lane][block].quants[at]);
                quants.extend((0..QUANTS).map(one));
            });
        }
        Self { outs: rows.len(), ins: blocks * QUANTS, data: Data::Q8_0 { quants, scales } }
    }

    /// Returns the number of outputs.
    pub fn outs(&self) -> usize {
        self.outs
    }

    /// Returns the products of the rows of `x`, row after row.
    pub fn multiply(&self, x: &[f32], split: Split) -> Vec<f32> {
        let rows = x.len() / self.ins;
        if rows == 0 {
            return Vec::new();
        }
        // By panel first: each task writes a slice of its own.
        let mut by_panel = vec![[0.0; LANES]; self.outs.div_ceil(LANES) * rows];
        let task = |(number, out): (usize, &mut [[f32; LANES]])| {
            dispatch(Multiply { panel: self.panel(number), ins: self.ins, x, out });
        };
        match split {
            Split::None => by_panel.chunks_mut(rows).enumerate().for_each(task),
            Split::Rayon => {
                let tasks = by_panel.par_chunks_mut(rows).enumerate();
                tasks.with_min_len(4).for_each(task);
            }
        }
        let mut out = vec![0.0; rows * self.outs];
        for (panel, products) in by_panel.chunks(rows).enumerate() {
            for (row, lanes) in products.iter().enumerate() {
                let out = &mut out[row * self.outs..][..self.outs][panel * LANES..];
                let len = out.len().min(LANES);
                out[..len].copy_from_slice(&lanes[..len]);
            }
        }
        out
    }

    fn panel(&self, number: usize) -> PanelView<'_> {
        let (ins, blocks) = (self.ins, self.ins / QUANTS);
        match &self.data {
            Data::Numbers(data) => PanelView::Numbers(&data[number * ins..][..ins]),
            Data::Q4_1 { quants, scales } => PanelView::Q4_1 {
                quants: &quants[number * ins / 2..][..ins / 2],
                scales: &scales[number * blocks..][..blocks],
            },
            Data::Q8_0 { quants, scales } => PanelView::Q8_0 {
                quants: &quants[number * ins..][..ins],
                scales: &scales[number * blocks..][..blocks],
            },
        }
    }
}

#[cfg(test)]
mod tests;
