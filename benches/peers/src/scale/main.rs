//! How rates grow with the number of threads: `cargo run --release --bin scale -- --help`
//!
//! Each row is one kind of work, by this crate, one lock, a plain queue and kvbm-logical. Each design runs at
//! each number of threads in every round, beside a control of pure arithmetic at the same number of threads.
//! The executable needs nothing beside it, so that it can be copied to a machine without cargo.

#[path = "../../../baseline/mod.rs"]
mod baseline;
#[path = "../kvbm.rs"]
mod kvbm;
mod machine;
mod markdown;
mod plan;
mod requests;
#[path = "../rig.rs"]
mod rig;
mod rows;
mod svg;
mod tails;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;

use plan::{Cell, Plan};
use tails::Tails;

/// Measures how rates grow with the number of threads.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Parts of the names of the rows to measure; without one, all rows are measured
    names: Vec<String>,
    /// Numbers of threads; 1 is always measured [default: 1,2,4 .. up to twice the cores]
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..=128))]
    threads: Vec<u16>,
    /// Seconds of measurement a row; set-up adds to it [default: 20, or 6 if --quick]
    #[arg(long)]
    seconds: Option<f64>,
    /// A row goes on for up to this many seconds while too few of its rounds count [default: --seconds]
    #[arg(long)]
    longest: Option<f64>,
    /// Takes 6 seconds a row: about two minutes in all
    #[arg(long)]
    quick: bool,
    /// Writes the tables to this file, after each row
    #[arg(long)]
    markdown: Option<PathBuf>,
    /// Writes a figure of the factors over one thread to this file, after each row
    #[arg(long)]
    svg: Option<PathBuf>,
    /// Prints the names of the rows only
    #[arg(long)]
    list: bool,
}

/// All that was measured so far.
#[derive(Default)]
struct Report {
    rows: Vec<(&'static str, Vec<Cell>)>,
    tails: Option<Tails>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let names = rows::ROWS.iter().map(|(name, _)| *name).chain([tails::NAME]);
    if args.list {
        names.for_each(|name| println!("{name}"));
        return Ok(());
    }
    let seconds = args.seconds.unwrap_or(if args.quick { 6.0 } else { 20.0 });
    let [span, longest] =
        [seconds, args.longest.unwrap_or(seconds)].map(Duration::try_from_secs_f64);
    let plan = Plan::new(&args.threads, span?, longest?);
    let is_wanted = |name: &str| {
        args.names.is_empty() || args.names.iter().any(|part| name.contains(part.as_str()))
    };
    let mut report = Report::default();
    print!("{}\n{}", markdown::head(&plan), markdown::TABLE_HEAD);
    for (name, measure) in rows::ROWS.iter().filter(|(name, _)| is_wanted(name)) {
        let cells = measure(&plan);
        print!("{}", markdown::lines(name, &cells, &plan));
        report.rows.push((name, cells));
        report.save(&args, &plan)?;
    }
    if is_wanted(tails::NAME) {
        let tails = tails::measure(&plan);
        print!("{}", markdown::tails(&tails));
        report.tails = Some(tails);
        report.save(&args, &plan)?;
    }
    Ok(())
}

impl Report {
    /// Writes the files, so that a run that is cut off leaves its finished rows.
    fn save(&self, args: &Args, plan: &Plan) -> Result<()> {
        if let Some(path) = &args.markdown {
            let text = markdown::page(self, plan);
            fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        if let Some(path) = &args.svg {
            let text = svg::draw(&self.rows, &plan.title())?;
            fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }
}
