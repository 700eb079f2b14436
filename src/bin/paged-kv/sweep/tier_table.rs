//! `write` and `print`: the result of a sweep of tiers, with the tokens of prompts by their source.

use std::io::{self, Write};

use super::Cell;
use super::max_hit_rate::Ceiling;
use crate::tiers::TierKind;
use crate::tiers::usage::TierUsage;

const TIERS: [TierKind; 2] = [TierKind::Host, TierKind::Disk];

impl Cell {
    fn tier(&self, kind: TierKind) -> Option<&TierUsage> {
        self.tiers.as_ref()?.tier(kind)
    }

    /// Returns the use of each tier, of an absent one `None`.
    fn by_tier(&self) -> [Option<&TierUsage>; 2] {
        TIERS.map(|kind| self.tier(kind))
    }
}

/// Writes one line per cell, and one with policy `ceiling` for an unlimited cache.
pub fn write(out: &mut impl Write, cells: &[Cell], ceiling: &Ceiling) -> io::Result<()> {
    writeln!(
        out,
        "cache,reclaim,store,blocks,host_blocks,disk_blocks,prompt_blocks,hit_blocks,hit_rate,\
         device_tokens,host_tokens,disk_tokens,computed_tokens,host_stored,host_loaded,\
         host_writes_per_hit,disk_stored,disk_loaded,disk_writes_per_hit,late_stores,saved_seconds,\
         reclaimed_blocks,rejected"
    )?;
    for cell in cells {
        let of_tiers = |count: fn(&TierUsage) -> u64| {
            cell.by_tier().map(|tier| tier.map_or(0, count).to_string()).join(",")
        };
        let copies = cell.by_tier().map(|tier| {
            let [stored, loaded] =
                tier.map_or([0, 0], |tier| [tier.blocks_stored, tier.blocks_loaded]);
            let writes = tier.and_then(|tier| tier.writes_per_hit);
            let writes = writes.map_or_else(String::new, |writes| format!("{writes:.4}"));
            format!("{stored},{loaded},{writes}")
        });
        writeln!(
            out,
            "{},{},{},{},{},{},{},{:.6},{},{},{},{},{},{:.1},{},{}",
            cell.curve.name,
            cell.curve.reclaim,
            cell.curve.tiers.map_or_else(String::new, |tiers| tiers.store.to_string()),
            cell.blocks,
            of_tiers(|tier| tier.slots as u64),
            cell.prompt_blocks,
            cell.hit_blocks,
            cell.hit_rate(),
            cell.device_tokens(),
            of_tiers(|tier| tier.hit_tokens),
            cell.tokens[1],
            copies.join(","),
            cell.tiers.as_ref().map_or(0, |tiers| tiers.late_stores),
            cell.tiers.as_ref().map_or(0.0, |tiers| tiers.saved_seconds),
            cell.reclaimed_blocks,
            cell.rejected,
        )?;
    }
    let Ceiling { prompt_blocks, hit_blocks, .. } = ceiling;
    let rate = ceiling.hit_rate();
    writeln!(out, "ceiling,,,,,,{prompt_blocks},{hit_blocks},{rate:.6},,,,,,,,,,,,,0,0")
}

/// Prints the table. Hits are shares of the prompts' tokens, but `hits` is the share of their blocks.
pub fn print(out: &mut impl Write, cells: &[Cell], ceiling: &Ceiling) -> io::Result<()> {
    writeln!(
        out,
        "{:<24}{:>10}{:>10}{:>10}{:>10}{:>10}{:>10}{:>12}{:>14}{:>10}",
        "tiers",
        "blocks",
        "hits",
        "device",
        "host",
        "disk",
        "computed",
        "saved s",
        "writes a hit",
        "rejected"
    )?;
    for cell in cells {
        let all = cell.tokens.iter().sum::<u64>().max(1) as f64;
        let share = |tokens: u64| format!("{:.2} %", tokens as f64 / all * 100.0);
        let of_tier =
            |kind| cell.tier(kind).map_or_else(String::new, |tier| share(tier.hit_tokens));
        let [host, disk] = TIERS.map(of_tier);
        let writes = cell.by_tier().map(|tier| {
            let writes = tier.and_then(|tier| tier.writes_per_hit);
            writes.map_or_else(String::new, |writes| format!("{writes:.2} "))
        });
        writeln!(
            out,
            "{:<24}{:>10}{:>8.2} %{:>10}{host:>10}{disk:>10}{:>10}{:>12.1}{:>14}{:>10}",
            cell.curve.name,
            cell.blocks,
            cell.hit_rate() * 100.0,
            share(cell.device_tokens()),
            share(cell.tokens[1]),
            cell.tiers.as_ref().map_or(0.0, |tiers| tiers.saved_seconds),
            writes.concat().trim_end(),
            cell.rejected,
        )?;
    }
    for tier in
        cells.iter().flat_map(Cell::by_tier).flatten().filter(|tier| !tier.is_loaded_from).take(1)
    {
        writeln!(out, "nothing is loaded from {}: loading is slower than computing", tier.medium)?;
    }
    writeln!(out, "{:<24}{:>10}{:>8.2} %", "ceiling", "any", ceiling.hit_rate() * 100.0)
}
