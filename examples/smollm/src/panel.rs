//! `Panels`: a matrix packed for multiplication, in panels of 16 outputs.
//!
//! A panel holds, for each input in order, the weights of its 16 outputs. Lanes are outputs, so each output is
//! summed in the order of the inputs, however many rows are multiplied together.

use rayon::prelude::*;

use crate::weights::Matrix;

/// Outputs of a panel.
const LANES: usize = 16;
/// Rows that use a panel's weights while they are in registers.
const ROWS: usize = 4;

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
    /// Panel after panel, `ins` entries each.
    data: Vec<[f32; LANES]>,
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
        Self { outs: matrix.outs, ins: matrix.ins, data }
    }

    /// Returns the number of outputs.
    pub fn outs(&self) -> usize {
        self.outs
    }

    /// Returns the products of the rows of `x`, row after row.
    pub fn multiply(&self, x: &[f32], split: Split) -> Vec<f32> {
        let rows = x.len() / self.ins;
        // By panel first: each task writes a slice of its own.
        let mut by_panel = vec![[0.0; LANES]; self.outs.div_ceil(LANES) * rows];
        if rows == 0 {
            return Vec::new();
        }
        let tasks = (by_panel.chunks_mut(rows), self.data.chunks(self.ins));
        match split {
            Split::None => tasks.0.zip(tasks.1).for_each(|(out, panel)| multiply(panel, x, out)),
            Split::Rayon => by_panel
                .par_chunks_mut(rows)
                .zip(self.data.par_chunks(self.ins))
                .for_each(|(out, panel)| multiply(panel, x, out)),
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
}

/// Multiplies the rows of `x` with one panel.
fn multiply(panel: &[[f32; LANES]], x: &[f32], out: &mut [[f32; LANES]]) {
    let ins = panel.len();
    let (mut x, mut out) = (x.chunks_exact(ROWS * ins), out.chunks_exact_mut(ROWS));
    for (x, out) in x.by_ref().zip(out.by_ref()) {
        let sums = multiply_rows::<ROWS>(panel, x);
        out.copy_from_slice(&sums);
    }
    let rest = x.remainder().chunks_exact(ins);
    for (x, out) in rest.zip(out.into_remainder()) {
        [*out] = multiply_rows::<1>(panel, x);
    }
}

#[inline]
fn multiply_rows<const R: usize>(panel: &[[f32; LANES]], x: &[f32]) -> [[f32; LANES]; R] {
    let mut sums = [[0.0; LANES]; R];
    let rows: [&[f32]; R] = std::array::from_fn(|row| &x[row * panel.len()..][..panel.len()]);
    for (input, weights) in panel.iter().enumerate() {
        for (sums, row) in sums.iter_mut().zip(rows) {
            for (sum, weight) in sums.iter_mut().zip(weights) {
                *sum += row[input] * weight;
            }
        }
    }
    sums
}
