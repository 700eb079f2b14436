//! `draw`: the picture of a sweep, with the hit rate over the cache's size and one curve per policy.
//!
//! The size has a logarithmic scale, because memory is bought in multiples. A dashed line is the hit rate of
//! an unlimited cache.

use anyhow::{Result, anyhow};
use plotters::prelude::*;
use plotters::style::full_palette::{BLUE_700, GREY_600, ORANGE_800, TEAL_700};

use super::Cell;
use super::max_hit_rate::Ceiling;

const SIZE: (u32, u32) = (900, 560);

/// One color per policy, in the order of the cells.
const COLORS: [RGBColor; 3] = [BLUE_700, ORANGE_800, TEAL_700];

/// Returns the picture as SVG.
pub fn draw(title: &str, block_size: usize, cells: &[Cell], ceiling: &Ceiling) -> Result<String> {
    let mut text = String::new();
    let root = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
    // The library's errors borrow the drawing area.
    draw_on(&root, title, block_size, cells, ceiling).map_err(|error| anyhow!("{error}"))?;
    root.present().map_err(|error| anyhow!("{error}"))?;
    drop(root);
    Ok(text)
}

fn draw_on<DB: DrawingBackend>(
    root: &DrawingArea<DB, plotters::coord::Shift>,
    title: &str,
    block_size: usize,
    cells: &[Cell],
    ceiling: &Ceiling,
) -> Result<(), DrawingAreaErrorKind<DB::ErrorType>> {
    root.fill(&WHITE)?;
    let (Some(least), Some(most)) =
        (cells.iter().map(|cell| cell.blocks).min(), cells.iter().map(|cell| cell.blocks).max())
    else {
        return Ok(());
    };
    let sizes = least as f64 / 1.1..most as f64 * 1.1;
    let highest = (ceiling.hit_rate() * 105.0).clamp(1.0, 100.0);
    let mut chart = ChartBuilder::on(root)
        .caption(title, ("sans-serif", 20))
        .margin(16)
        .x_label_area_size(48)
        .y_label_area_size(64)
        .build_cartesian_2d(sizes.clone().log_scale().base(2.0), 0.0..highest)?;
    chart
        .configure_mesh()
        .x_desc(format!("blocks of {block_size} tokens"))
        .y_desc("prompt blocks that hit, %")
        .x_label_formatter(&|blocks| format!("{blocks:.0}"))
        .y_label_formatter(&|percent| format!("{percent:.0}"))
        .max_light_lines(0)
        .label_style(("sans-serif", 15))
        .draw()?;
    let height = ceiling.hit_rate() * 100.0;
    chart
        .draw_series(DashedLineSeries::new(
            [(sizes.start, height), (sizes.end, height)],
            6,
            4,
            GREY_600.stroke_width(2),
        ))?
        .label("a cache without end")
        .legend(|(x, y)| PathElement::new([(x, y), (x + 20, y)], GREY_600.stroke_width(2)));
    for (curve, color) in cells.chunk_by(|a, b| a.reclaim == b.reclaim).zip(COLORS.iter().cycle()) {
        let points = || curve.iter().map(|cell| (cell.blocks as f64, cell.hit_rate() * 100.0));
        chart
            .draw_series(LineSeries::new(points(), color.stroke_width(2)))?
            .label(curve[0].reclaim.to_string())
            .legend(|(x, y)| PathElement::new([(x, y), (x + 20, y)], color.stroke_width(2)));
        chart.draw_series(points().map(|point| Circle::new(point, 3, color.filled())))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .label_font(("sans-serif", 15))
        .background_style(WHITE.mix(0.9))
        .border_style(GREY_600)
        .draw()
}
