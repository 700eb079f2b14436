//! `draw`: the picture of a sweep, with the hit rate over the cache's size and one curve per policy.
//!
//! The size has a logarithmic scale, because memory is bought in multiples. A dashed line is the hit rate of
//! an unlimited cache. With groups of layers a dashed curve has the hits of the group with the longest one: the gap to
//! the curve below is lost by the other groups.

use anyhow::{Result, anyhow};
use plotters::prelude::*;
use plotters::style::full_palette::{
    BLUE_700, BROWN_700, GREY_600, ORANGE_800, PURPLE_700, TEAL_700,
};

use super::table::GIB;
use super::{Bounds, Cell, Trace};

const SIZE: (u32, u32) = (900, 560);

/// One color per curve, in the order of the cells.
const COLORS: [RGBColor; 5] = [BLUE_700, ORANGE_800, TEAL_700, PURPLE_700, BROWN_700];

/// Returns the picture as SVG.
pub fn draw(trace: &Trace, cells: &[Cell], bounds: &Bounds) -> Result<String> {
    let mut text = String::new();
    let root = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
    // The library's errors borrow the drawing area.
    draw_on(&root, trace, cells, bounds).map_err(|error| anyhow!("{error}"))?;
    root.present().map_err(|error| anyhow!("{error}"))?;
    drop(root);
    Ok(text)
}

fn draw_on<DB: DrawingBackend>(
    root: &DrawingArea<DB, plotters::coord::Shift>,
    trace: &Trace,
    cells: &[Cell],
    bounds: &Bounds,
) -> Result<(), DrawingAreaErrorKind<DB::ErrorType>> {
    root.fill(&WHITE)?;
    let Bounds { ceiling, foreseen } = bounds;
    let (Some(least), Some(most)) =
        (cells.iter().map(|cell| cell.blocks).min(), cells.iter().map(|cell| cell.blocks).max())
    else {
        return Ok(());
    };
    let Axis { text, scale } = Axis::of(trace);
    let sizes = least as f64 * scale / 1.1..most as f64 * scale * 1.1;
    let highest = (ceiling.hit_rate() * 105.0).clamp(1.0, 100.0);
    let mut chart = ChartBuilder::on(root)
        .caption(&trace.name, ("sans-serif", 20))
        .margin(16)
        .x_label_area_size(48)
        .y_label_area_size(64)
        .build_cartesian_2d(sizes.clone().log_scale().base(2.0), 0.0..highest)?;
    chart
        .configure_mesh()
        .x_desc(text)
        .y_desc("prompt blocks that hit, %")
        .x_label_formatter(&|&size| label(size))
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
    for (curve, color) in cells.chunk_by(|a, b| a.number == b.number).zip(COLORS.iter().cycle()) {
        let size = |cell: &Cell| cell.blocks as f64 * scale;
        let points = || curve.iter().map(|cell| (size(cell), cell.hit_rate() * 100.0));
        chart
            .draw_series(LineSeries::new(points(), color.stroke_width(2)))?
            .label(&curve[0].curve.name)
            .legend(|(x, y)| PathElement::new([(x, y), (x + 20, y)], color.stroke_width(2)));
        chart.draw_series(points().map(|point| Circle::new(point, 3, color.filled())))?;
        if curve[0].curve.is_grouped() {
            let longest = curve.iter().map(|cell| (size(cell), cell.longest_hit_rate() * 100.0));
            chart
                .draw_series(DashedLineSeries::new(longest, 3, 3, color.stroke_width(1)))?
                .label(format!("{}: longest group", curve[0].curve.name))
                .legend(|(x, y)| PathElement::new([(x, y), (x + 20, y)], color.stroke_width(1)));
        }
    }
    if !foreseen.is_empty() {
        let points =
            foreseen.iter().map(|one| (one.blocks as f64, ceiling.rate_of(one.hit_blocks) * 100.0));
        chart
            .draw_series(DashedLineSeries::new(points, 3, 3, GREY_600.stroke_width(2)))?
            .label("clairvoyant")
            .legend(|(x, y)| PathElement::new([(x, y), (x + 20, y)], GREY_600.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .label_font(("sans-serif", 15))
        .background_style(WHITE.mix(0.9))
        .border_style(GREY_600)
        .draw()
}

/// The axis of sizes.
struct Axis {
    text: String,
    /// The size of one block.
    scale: f64,
}

impl Axis {
    fn of(trace: &Trace) -> Self {
        let Some(groups) = &trace.groups else {
            let text = format!("blocks of {} tokens on the device", trace.needs.unit());
            return Self { text, scale: 1.0 };
        };
        match groups.block_bytes() {
            None => Self { text: format!("blocks of the pool: {}", groups.name()), scale: 1.0 },
            Some(bytes) => {
                let text = format!("GiB of blocks: {}", groups.name());
                Self { text, scale: bytes as f64 / GIB }
            }
        }
    }
}

/// Returns the label of a size.
fn label(size: f64) -> String {
    if size < 1.0 { format!("{size:.2}") } else { format!("{size:.0}") }
}
