//! `page`: the tables as Markdown.

use crate::Report;
use crate::plan::{Cell, ENOUGH, Name, Plan};
use crate::rig::tails::OPERATIONS;
use crate::tails::{DESIGNS, Tails};

pub const TABLE_HEAD: &str = "\
| row | threads | control | ours | one lock | ArrayQueue | kvbm-logical | ours, operations/s \
| to one lock | to ArrayQueue | to kvbm-logical | rounds |
|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|
";

/// Returns all that was measured so far.
pub fn page(report: &Report, plan: &Plan) -> String {
    let mut page = format!("{}\n{TABLE_HEAD}", head(plan));
    report.rows.iter().for_each(|(name, cells)| page += &lines(name, cells, plan));
    page += &report.tails.as_ref().map_or(String::new(), tails);
    page
}

/// Returns the description of the machine and of the run.
pub fn head(plan: &Plan) -> String {
    format!("{}; {} s a row; kvbm-logical 1.6.1\n", plan.title(), plan.span.as_secs_f64())
}

/// Returns the lines of one row, one for each number of threads.
pub fn lines(name: &str, cells: &[Cell], plan: &Plan) -> String {
    cells.iter().map(|cell| line(name, cell, plan)).collect()
}

fn line(name: &str, cell: &Cell, plan: &Plan) -> String {
    let mark = if cell.control < plan.control_min(cell.threads) { " !" } else { "" };
    let control = format!("{:.2}{mark}", cell.control);
    let mut columns = vec![name.to_owned(), cell.threads.to_string(), control];
    let factor = |name| cell.figures(name).map(|figures| ratio(figures.factor));
    columns.extend(Name::ALL.map(|name| factor(name).unwrap_or_default()));
    columns.extend(cell.figures(Name::Ours).map(|figures| in_short(figures.rate)));
    let ours_to = |name| cell.figures(name).map(|figures| ratio(figures.ours_to_it));
    let opponents = [Name::OneLock, Name::ArrayQueue, Name::Kvbm];
    columns.extend(opponents.map(|name| ours_to(name).unwrap_or_default()));
    let used = if cell.counted < ENOUGH { "*" } else { "" };
    columns.push(format!("{}/{}{used}", cell.counted, cell.rounds));
    format!("| {} |\n", columns.join(" | "))
}

fn ratio(ratio: f64) -> String {
    if ratio < 100.0 { format!("{ratio:.2}") } else { format!("{ratio:.0}") }
}

/// Formats a rate in thousands or millions.
fn in_short(rate: f64) -> String {
    if rate >= 1e6 { format!("{:.1}M", rate / 1e6) } else { format!("{:.1}k", rate / 1e3) }
}

/// Returns the table of single operations, after an empty line.
pub fn tails(tails: &Tails) -> String {
    let mut text = format!(
        "\n| p99.9, us: {} threads, {} cores, control {:.2} | {} |\n|---|--:|--:|--:|--:|\n",
        tails.threads,
        tails.cores,
        tails.control,
        OPERATIONS.join(" | "),
    );
    for (design, p999) in DESIGNS.iter().zip(tails.p999) {
        text +=
            &format!("| {design} | {} |\n", p999.map(|micros| format!("{micros:.2}")).join(" | "));
    }
    text
}
