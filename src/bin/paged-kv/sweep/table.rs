//! `write` and `print`: the result of a sweep as a CSV file, and as a table for people.

use std::io::{self, Write};

use super::Cell;
use super::max_hit_rate::Ceiling;

/// Writes one line per cell, and one with policy `ceiling` for an unlimited cache.
pub fn write(out: &mut impl Write, cells: &[Cell], ceiling: &Ceiling) -> io::Result<()> {
    writeln!(out, "reclaim,blocks,prompt_blocks,hit_blocks,hit_rate,reclaimed_blocks,rejected")?;
    for cell in cells {
        let Cell { reclaim, blocks, prompt_blocks, hit_blocks, .. } = cell;
        let (rate, reclaimed, rejected) = (cell.hit_rate(), cell.reclaimed_blocks, cell.rejected);
        writeln!(
            out,
            "{reclaim},{blocks},{prompt_blocks},{hit_blocks},{rate:.6},{reclaimed},{rejected}"
        )?;
    }
    let Ceiling { prompt_blocks, hit_blocks, .. } = ceiling;
    writeln!(out, "ceiling,,{prompt_blocks},{hit_blocks},{:.6},0,0", ceiling.hit_rate())
}

/// Prints the table to standard output.
pub fn print(cells: &[Cell], ceiling: &Ceiling) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(
        out,
        "{:<12}{:>12}{:>10}{:>14}{:>10}",
        "reclaim", "blocks", "hits", "reclaimed", "rejected"
    )?;
    for cell in cells {
        writeln!(
            out,
            "{:<12}{:>12}{:>8.2} %{:>14}{:>10}",
            cell.reclaim.to_string(),
            cell.blocks,
            cell.hit_rate() * 100.0,
            cell.reclaimed_blocks,
            cell.rejected,
        )?;
    }
    writeln!(out, "{:<12}{:>12}{:>8.2} %", "ceiling", "any", ceiling.hit_rate() * 100.0)
}
