//! `Row`: the transfers of one work at each number of threads, and the factor that they predict.

use std::fmt::Display;

use paged_kv::census::Place;

use crate::turns::Counted;
use crate::{CORES, Measured, THREADS};

/// The seconds that one transfer takes between two cores.
const TRANSFER: f64 = 90e-9;

pub struct Row {
    pub measured: Measured,
    /// The counts by number of threads.
    pub counted: Vec<(usize, Counted)>,
}

impl Row {
    fn counted(&self, threads: usize) -> &Counted {
        let found = self.counted.iter().find(|(of, _)| *of == threads);
        &found.expect("each row is counted at this number of threads").1
    }

    /// Returns the transfers an operation.
    pub fn transfers(&self, threads: usize) -> f64 {
        self.counted(threads).a_unit(|_| true)
    }

    /// Returns the share of its rate that a thread keeps when it pays for the transfers.
    fn predicted(&self, threads: usize) -> f64 {
        let alone = 1.0 / self.measured.rate;
        alone / (alone + self.transfers(threads) * TRANSFER)
    }

    /// Returns the share of its rate that a thread kept, relative to the control.
    fn kept(&self) -> f64 {
        self.measured.factor / self.measured.control
    }

    pub fn print_sites(&self, threads: usize, most: usize) {
        println!("\n{}, {threads} threads:\n", self.measured.name);
        println!("| transfers | place | call site |");
        println!("|---|---|---|");
        self.counted(threads).print_sites(most);
    }
}

/// Prints the rows as a markdown table.
pub fn print(rows: &[Row]) {
    let threads = THREADS.map(|threads| format!(" {threads} |")).concat();
    println!("\n| transfers an operation, by threads |{threads} predicted | measured |");
    println!("|---{}|---|---|", "|---".repeat(THREADS.len()));
    for row in rows {
        let transfers = THREADS.map(|threads| format!(" {} |", short(row.transfers(threads))));
        let (transfers, name) = (transfers.concat(), row.measured.name);
        println!("| {name} |{transfers} {:.2} | {:.2} |", row.predicted(CORES), row.kept());
    }
}

fn short(transfers: f64) -> String {
    match transfers {
        0.0 => "0".to_owned(),
        few if few < 0.1 => format!("{few:.3}"),
        few if few < 10.0 => format!("{few:.2}"),
        many => format!("{many:.0}"),
    }
}

/// Returns true for lines that are neither of blocks, nor of the index, nor of levels.
pub fn is_rest(place: Place) -> bool {
    !matches!(place, Place::BlockWord | Place::Index | Place::Levels)
}

/// Prints the transfers of a request of 32 blocks: of blocks, of the index, of levels, and of all the rest.
pub fn print_split(setting: impl Display, threads: usize, counted: &Counted) {
    let of = |place: Place| counted.a_unit(|of| of == place);
    let mut places: Vec<Place> = Vec::new();
    for transfers in counted.transfers.iter().filter(|transfers| is_rest(transfers.place)) {
        if !places.contains(&transfers.place) {
            places.push(transfers.place);
        }
    }
    let by_place: Vec<String> =
        places.iter().map(|&place| format!("{place:?} {:.2}", of(place))).collect();
    let [blocks, index, levels] = [Place::BlockWord, Place::Index, Place::Levels].map(of);
    println!(
        "| {setting} | {threads} | {blocks:.1} | {index:.1} | {levels:.1} | {:.1} | {} |",
        counted.a_unit(is_rest),
        by_place.join(", ")
    );
}

/// Returns Spearman's rank correlation of the predicted and the measured shares.
pub fn correlation(rows: &[Row], threads: usize) -> f64 {
    let predicted = ranks(rows.iter().map(|row| row.predicted(threads)).collect());
    let kept = ranks(rows.iter().map(Row::kept).collect());
    let mean = (rows.len() as f64 + 1.0) / 2.0;
    let product = |a: &[f64], b: &[f64]| -> f64 {
        a.iter().zip(b).map(|(a, b)| (a - mean) * (b - mean)).sum()
    };
    product(&predicted, &kept) / (product(&predicted, &predicted) * product(&kept, &kept)).sqrt()
}

/// Returns the rank of each value, from 1 on. Equal values share the mean of their ranks.
fn ranks(values: Vec<f64>) -> Vec<f64> {
    let rank = |value: &f64| {
        let below = values.iter().filter(|other| *other < value).count() as f64;
        let equal = values.iter().filter(|other| *other == value).count() as f64;
        below + (equal + 1.0) / 2.0
    };
    values.iter().map(rank).collect()
}

#[test]
fn ranks_of_equal_values_are_their_mean() {
    assert_eq!(ranks(vec![7.0, 1.0, 7.0, 9.0]), [2.5, 1.0, 2.5, 4.0]);
}
