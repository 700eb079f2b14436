//! `write` and `print`: the result of a sweep as a CSV file, and as a table for people.
//!
//! With groups of layers both have more columns: the bytes of the pool, the hits that the group with the longest one had,
//! and the tokens that each group lost.

use std::io::{self, Write};

use super::max_hit_rate::Ceiling;
use super::{Bounds, Cell, Trace, tier_table};
use crate::layer_groups::{LayerGroups, group_name};

/// Bytes of a GiB.
pub const GIB: f64 = (1_u64 << 30) as f64;

/// Writes one line per cell, one per size for a cache that knows the trace, and one for an unlimited cache.
pub fn write(
    out: &mut impl Write,
    trace: &Trace,
    cells: &[Cell],
    Bounds { ceiling, foreseen }: &Bounds,
) -> io::Result<()> {
    if let Some(groups) = &trace.groups {
        return write_grouped(out, groups, cells, ceiling);
    }
    if cells.iter().any(|cell| cell.tiers.is_some()) {
        return tier_table::write(out, cells, ceiling);
    }
    writeln!(out, "reclaim,blocks,prompt_blocks,hit_blocks,hit_rate,reclaimed_blocks,rejected")?;
    for cell in cells {
        let Cell { curve, blocks, prompt_blocks, hit_blocks, .. } = cell;
        let (reclaim, rate) = (&curve.name, cell.hit_rate());
        let (reclaimed, rejected) = (cell.reclaimed_blocks, cell.rejected);
        writeln!(
            out,
            "{reclaim},{blocks},{prompt_blocks},{hit_blocks},{rate:.6},{reclaimed},{rejected}"
        )?;
    }
    for one in foreseen {
        let (blocks, hit_blocks, rate) =
            (one.blocks, one.hit_blocks, ceiling.rate_of(one.hit_blocks));
        writeln!(out, "clairvoyant,{blocks},{},{hit_blocks},{rate:.6},,", ceiling.prompt_blocks)?;
    }
    let Ceiling { prompt_blocks, hit_blocks, .. } = ceiling;
    writeln!(out, "ceiling,,{prompt_blocks},{hit_blocks},{:.6},0,0", ceiling.hit_rate())
}

/// Writes the cells of groups. A column of each group has the tokens by which it made hits shorter.
fn write_grouped(
    out: &mut impl Write,
    groups: &LayerGroups,
    cells: &[Cell],
    ceiling: &Ceiling,
) -> io::Result<()> {
    write!(
        out,
        "cache,reclaim,blocks,bytes,prompt_blocks,hit_blocks,hit_rate,longest_hit_rate,\
         reclaimed_blocks,rejected"
    )?;
    for (number, &kind) in groups.kinds().iter().enumerate() {
        write!(out, ",lost_by_{number}_{}", group_name(kind))?;
    }
    writeln!(out)?;
    for cell in cells {
        let bytes = groups
            .block_bytes()
            .map_or_else(String::new, |bytes| (cell.blocks as u128 * bytes as u128).to_string());
        write!(
            out,
            "{},{},{},{bytes},{},{},{:.6},{:.6},{},{}",
            cell.curve.name,
            cell.curve.reclaim,
            cell.blocks,
            cell.prompt_blocks,
            cell.hit_blocks,
            cell.hit_rate(),
            cell.longest_hit_rate(),
            cell.reclaimed_blocks,
            cell.rejected,
        )?;
        for number in 0..groups.kinds().len() {
            write!(out, ",{}", cell.lost_tokens.get(number).copied().unwrap_or(0))?;
        }
        writeln!(out)?;
    }
    let (Ceiling { prompt_blocks, hit_blocks, .. }, rate) = (ceiling, ceiling.hit_rate());
    let none_lost = ",0".repeat(groups.kinds().len());
    writeln!(out, "ceiling,,,,{prompt_blocks},{hit_blocks},{rate:.6},{rate:.6},0,0{none_lost}")
}

/// Prints the table to standard output.
pub fn print(trace: &Trace, cells: &[Cell], bounds: &Bounds) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let Bounds { ceiling, foreseen } = bounds;
    if let Some(groups) = &trace.groups {
        return print_grouped(&mut out, groups, cells, ceiling);
    }
    if cells.iter().any(|cell| cell.tiers.is_some()) {
        return tier_table::print(&mut out, cells, ceiling);
    }
    writeln!(
        out,
        "{:<18}{:>10}{:>10}{:>14}{:>10}",
        "reclaim", "blocks", "hits", "reclaimed", "rejected"
    )?;
    for cell in cells {
        writeln!(
            out,
            "{:<18}{:>10}{:>8.2} %{:>14}{:>10}",
            cell.curve.name,
            cell.blocks,
            cell.hit_rate() * 100.0,
            cell.reclaimed_blocks,
            cell.rejected,
        )?;
    }
    for one in foreseen {
        let rate = ceiling.rate_of(one.hit_blocks) * 100.0;
        writeln!(out, "{:<18}{:>10}{rate:>8.2} %", "clairvoyant", one.blocks)?;
    }
    writeln!(out, "{:<18}{:>10}{:>8.2} %", "ceiling", "any", ceiling.hit_rate() * 100.0)
}

fn print_grouped(
    out: &mut impl Write,
    groups: &LayerGroups,
    cells: &[Cell],
    ceiling: &Ceiling,
) -> io::Result<()> {
    writeln!(
        out,
        "{:<24}{:>10}{:>9}{:>10}{:>10}{:>14}{:>10}",
        groups.name(),
        "blocks",
        "GiB",
        "hits",
        "longest",
        "reclaimed",
        "rejected"
    )?;
    for cell in cells {
        let bytes = groups.block_bytes().map(|bytes| cell.blocks as f64 * bytes as f64);
        writeln!(
            out,
            "{:<24}{:>10}{:>9}{:>8.2} %{:>8.2} %{:>14}{:>10}",
            cell.curve.name,
            cell.blocks,
            bytes.map_or_else(|| "-".to_owned(), |bytes| format!("{:.1}", bytes / GIB)),
            cell.hit_rate() * 100.0,
            cell.longest_hit_rate() * 100.0,
            cell.reclaimed_blocks,
            cell.rejected,
        )?;
    }
    writeln!(out, "{:<24}{:>10}{:>9}{:>8.2} %", "ceiling", "any", "", ceiling.hit_rate() * 100.0)
}
