//! `Multiply`: the product of the rows of a batch with one panel.
//!
//! The weights of 32 inputs are widened once, into memory that stays in the first cache, and used by all rows. One row
//! alone uses them in registers.

use crate::quant::QUANTS;
use crate::wide::{Kernel, LANES, Wide};

/// The weights of one panel.
#[derive(Clone, Copy)]
pub(super) enum PanelView<'a> {
    Numbers(&'a [[f32; LANES]]),
    Q4_1 { quants: &'a [[u8; LANES]], scales: &'a [[[f32; LANES]; 2]] },
    Q8_0 { quants: &'a [[i8; LANES]], scales: &'a [[f32; LANES]] },
}

/// The product of all rows of `x` with one panel, into one entry of `out` a row.
pub(super) struct Multiply<'a> {
    pub(super) panel: PanelView<'a>,
    pub(super) ins: usize,
    pub(super) x: &'a [f32],
    pub(super) out: &'a mut [[f32; LANES]],
}

impl Kernel for Multiply<'_> {
    #[inline(always)]
    fn run<W: Wide>(self, wide: W) {
        let Self { panel, ins, x, out } = self;
        match panel {
            PanelView::Numbers(weights) => rows(wide, weights, x, ins, 0, out),
            _ if out.len() == 1 => out[0] = one_row(wide, panel, x),
            PanelView::Q4_1 { quants, scales } => {
                let blocks = quants.chunks_exact(QUANTS / 2).zip(scales).enumerate();
                for (block, (quants, scales)) in blocks {
                    rows(wide, &widen_q4_1(wide, quants, scales), x, ins, block * QUANTS, out);
                }
            }
            PanelView::Q8_0 { quants, scales } => {
                let blocks = quants.chunks_exact(QUANTS).zip(scales).enumerate();
                for (block, (quants, scale)) in blocks {
                    rows(wide, &widen_q8_0(wide, quants, scale), x, ins, block * QUANTS, out);
                }
            }
        }
    }
}

#[inline(always)]
fn widen_q4_1<W: Wide>(
    wide: W,
    quants: &[[u8; LANES]],
    [factor, smallest]: &[[f32; LANES]; 2],
) -> [[f32; LANES]; QUANTS] {
    let (factor, smallest) = (wide.load(factor), wide.load(smallest));
    let mut weights = [[0.0; LANES]; QUANTS];
    for (pair, &bytes) in quants.iter().enumerate() {
        let low = wide.add(wide.mul(factor, wide.low_nibbles(bytes)), smallest);
        let high = wide.add(wide.mul(factor, wide.high_nibbles(bytes)), smallest);
        weights[pair] = wide.store(low);
        weights[pair + QUANTS / 2] = wide.store(high);
    }
    weights
}

#[inline(always)]
fn widen_q8_0<W: Wide>(
    wide: W,
    quants: &[[i8; LANES]],
    factor: &[f32; LANES],
) -> [[f32; LANES]; QUANTS] {
    let factor = wide.load(factor);
    let mut weights = [[0.0; LANES]; QUANTS];
    for (weights, &bytes) in weights.iter_mut().zip(quants) {
        *weights = wide.store(wide.mul(factor, wide.signed(bytes)));
    }
    weights
}

#[inline(always)]
fn one_row<W: Wide>(wide: W, panel: PanelView<'_>, x: &[f32]) -> [f32; LANES] {
    let mut sum = wide.splat(0.0);
    match panel {
        PanelView::Numbers(_) => unreachable!("numbers need no widening"),
        PanelView::Q4_1 { quants, scales } => {
            let blocks = quants.chunks_exact(QUANTS / 2).zip(scales).zip(x.chunks_exact(QUANTS));
            for ((quants, [factor, smallest]), x) in blocks {
                let (factor, smallest) = (wide.load(factor), wide.load(smallest));
                let (first, second) = x.split_at(QUANTS / 2);
                for (&bytes, &x) in quants.iter().zip(first) {
                    let weight = wide.add(wide.mul(factor, wide.low_nibbles(bytes)), smallest);
                    sum = wide.add(sum, wide.mul(wide.splat(x), weight));
                }
                for (&bytes, &x) in quants.iter().zip(second) {
                    let weight = wide.add(wide.mul(factor, wide.high_nibbles(bytes)), smallest);
                    sum = wide.add(sum, wide.mul(wide.splat(x), weight));
                }
            }
        }
        PanelView::Q8_0 { quants, scales } => {
            let blocks = quants.chunks_exact(QUANTS).zip(scales).zip(x.chunks_exact(QUANTS));
            for ((quants, factor), x) in blocks {
                let factor = wide.load(factor);
                for (&bytes, &x) in quants.iter().zip(x) {
                    let weight = wide.mul(factor, wide.signed(bytes));
                    sum = wide.add(sum, wide.mul(wide.splat(x), weight));
                }
            }
        }
    }
    wide.store(sum)
}

/// Adds the products of some inputs, from `first` on, to the sums of all rows.
#[inline(always)]
fn rows<W: Wide>(
    wide: W,
    weights: &[[f32; LANES]],
    x: &[f32],
    ins: usize,
    first: usize,
    out: &mut [[f32; LANES]],
) {
    let mut row = 0;
    while row < out.len() {
        let x = &x[row * ins + first..];
        let (left, out) = (out.len() - row, &mut out[row..]);
        row += match left {
            8.. if W::ROWS >= 8 => some_rows::<W, 8>(wide, weights, x, ins, out),
            4.. => some_rows::<W, 4>(wide, weights, x, ins, out),
            2.. => some_rows::<W, 2>(wide, weights, x, ins, out),
            _ => some_rows::<W, 1>(wide, weights, x, ins, out),
        };
    }
}

/// Adds the products of `R` rows. Returns `R`.
#[inline(always)]
fn some_rows<W: Wide, const R: usize>(
    wide: W,
    weights: &[[f32; LANES]],
    x: &[f32],
    ins: usize,
    out: &mut [[f32; LANES]],
) -> usize {
    let rows: [&[f32]; R] = std::array::from_fn(|row| &x[row * ins..][..weights.len()]);
    let mut sums: [W::Lanes; R] = std::array::from_fn(|row| wide.load(&out[row]));
    for (input, weights) in weights.iter().enumerate() {
        let weights = wide.load(weights);
        for (sum, row) in sums.iter_mut().zip(rows) {
            *sum = wide.add(*sum, wide.mul(wide.splat(row[input]), weights));
        }
    }
    out.iter_mut().zip(sums).for_each(|(out, sum)| *out = wide.store(sum));
    R
}
