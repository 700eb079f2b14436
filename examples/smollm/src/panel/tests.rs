//! Tests of `Panels`: the products have the bits of plain loops, quantized or not, for any number of rows.

use super::*;
use crate::sampling::mix;

fn number(at: usize) -> f32 {
    (mix(at as u64, 1) % 2001) as f32 / 1000.0 - 1.0
}

/// Returns the products by a plain loop.
fn plain(weights: &[Vec<f32>], x: &[f32]) -> Vec<f32> {
    let dot = |(row, x): (&Vec<f32>, &[f32])| {
        row.iter().zip(x).fold(0.0, |sum, (weight, x)| sum + weight * x)
    };
    let ins = weights[0].len();
    x.chunks_exact(ins).flat_map(|x| weights.iter().map(move |row| dot((row, x)))).collect()
}

fn assert_same(panels: &Panels, weights: &[Vec<f32>]) {
    let ins = weights[0].len();
    for rows in [1, 2, 3, 7, 8, 13, 20] {
        let x: Vec<f32> = (0..rows * ins).map(number).collect();
        let bits = |out: Vec<f32>| out.into_iter().map(f32::to_bits).collect::<Vec<_>>();
        for split in [Split::None, Split::Rayon] {
            assert_eq!(bits(panels.multiply(&x, split)), bits(plain(weights, &x)), "{rows} rows");
        }
    }
}

#[test]
fn a_product_of_numbers_has_the_bits_of_a_loop() {
    let data: Vec<f32> = (0..35 * 50).map(number).collect();
    let matrix = Matrix { outs: 35, ins: 50, data };
    let rows: Vec<Vec<f32>> = (0..35).map(|out| matrix.row(out).to_vec()).collect();
    assert_same(&Panels::pack(&matrix), &rows);
}

#[test]
fn a_product_of_quants_has_the_bits_of_its_numbers() {
    let byte = |at: usize| mix(at as u64, 2) as u8;
    let q4 = |row: usize, block: usize| Q4_1 {
        factor: number(row + block).abs() / 8.0,
        smallest: number(row * 7 + block),
        quants: std::array::from_fn(|at| byte(row * 1000 + block * 100 + at)),
    };
    let rows: Vec<Vec<Q4_1>> = (0..48).map(|row| (0..3).map(|b| q4(row, b)).collect()).collect();
    let numbers = rows.iter().map(|row| row.iter().flat_map(Q4_1::numbers).collect());
    assert_same(&Panels::pack_q4_1(&rows), &numbers.collect::<Vec<_>>());

    let q8 = |row: usize, block: usize| Q8_0 {
        factor: number(row + block).abs() / 8.0,
        quants: std::array::from_fn(|at| byte(row * 1000 + block * 100 + at) as i8),
    };
    let rows: Vec<Vec<Q8_0>> = (0..32).map(|row| (0..2).map(|b| q8(row, b)).collect()).collect();
    let numbers = rows.iter().map(|row| row.iter().flat_map(Q8_0::numbers).collect());
    assert_same(&Panels::pack_q8_0(&rows), &numbers.collect::<Vec<_>>());
}
