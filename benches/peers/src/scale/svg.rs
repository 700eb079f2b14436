//! `draw`: the factors over one thread against the number of threads, a panel for each row.
//!
//! Both axes are logarithmic, so that a design that scales with the threads is a straight line. The control
//! is dashed: it is the most that the machine allows any design.

use std::ops::Range;

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::full_palette::{BLUE_700, GREY_600, ORANGE_800, PURPLE_600, TEAL_700};

use crate::plan::{Cell, Name};

const COLUMNS: usize = 3;
const PANEL: (u32, u32) = (320, 250);
const HEAD: u32 = 60;

/// Curves leave the panel below this factor.
const LEAST: f64 = 0.05;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn<'a> = Result<(), DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>>;

fn color(name: Name) -> RGBColor {
    match name {
        Name::Ours => BLUE_700,
        Name::OneLock => ORANGE_800,
        Name::ArrayQueue => TEAL_700,
        Name::Kvbm => PURPLE_600,
    }
}

/// Returns the figure as SVG.
pub fn draw(rows: &[(&str, Vec<Cell>)], title: &str) -> Result<String> {
    let lines = rows.len().div_ceil(COLUMNS).max(1);
    let size = (COLUMNS as u32 * PANEL.0, HEAD + lines as u32 * PANEL.1);
    let mut text = String::new();
    let root = SVGBackend::with_string(&mut text, size).into_drawing_area();
    // The library's errors borrow the drawing area.
    draw_on(&root, lines, rows, title).map_err(|error| anyhow!("{error}"))?;
    drop(root);
    Ok(text)
}

fn draw_on<'a>(
    root: &Area<'a>,
    lines: usize,
    rows: &[(&str, Vec<Cell>)],
    title: &str,
) -> Drawn<'a> {
    root.fill(&WHITE)?;
    let (head, body) = root.split_vertically(HEAD);
    draw_head(&head, title)?;
    let factors = range(rows);
    for (panel, (name, cells)) in body.split_evenly((lines, COLUMNS)).iter().zip(rows) {
        draw_panel(panel, name, cells, factors.clone())?;
    }
    root.present()
}

/// Returns the factors that all panels show.
fn range(rows: &[(&str, Vec<Cell>)]) -> Range<f64> {
    let figures = |cell: &Cell| {
        let designs = cell.designs.iter().map(|(_, figures)| figures.factor);
        designs.chain([cell.control, cell.threads as f64]).collect::<Vec<_>>()
    };
    let all = || rows.iter().flat_map(|(_, cells)| cells).flat_map(figures);
    let least = all().fold(0.5, f64::min).max(LEAST);
    least / 1.1..all().fold(2.0, f64::max) * 1.1
}

/// Draws the title and the legend.
fn draw_head<'a>(head: &Area<'a>, title: &str) -> Drawn<'a> {
    let text = ("sans-serif", 16).into_font();
    let title = format!("Rate over that of one thread, against the number of threads: {title}");
    head.draw(&Text::new(title, (16, 10), text.clone()))?;
    let mut x = 16;
    let designs = Name::ALL.map(|name| (name.text(), color(name)));
    for (name, color) in designs.into_iter().chain([("control (dashed)", GREY_600)]) {
        head.draw(&PathElement::new([(x, 42), (x + 24, 42)], color.stroke_width(2)))?;
        head.draw(&Text::new(name, (x + 30, 34), text.clone()))?;
        x += 60 + 8 * name.len() as i32;
    }
    Ok(())
}

fn draw_panel<'a>(panel: &Area<'a>, name: &str, cells: &[Cell], factors: Range<f64>) -> Drawn<'a> {
    let most = cells.iter().map(|cell| cell.threads).max().unwrap_or(1).max(2) as f64;
    let mut chart = ChartBuilder::on(panel)
        .caption(name, ("sans-serif", 15))
        .margin(8)
        .x_label_area_size(24)
        .y_label_area_size(36)
        .build_cartesian_2d(
            (0.9..most * 1.1).log_scale().base(2.0),
            factors.clone().log_scale().base(2.0),
        )?;
    chart
        .configure_mesh()
        .x_label_formatter(&|threads| format!("{threads:.0}"))
        .y_label_formatter(&|factor| format!("{factor}"))
        .max_light_lines(0)
        .label_style(("sans-serif", 13))
        .draw()?;
    let points = |factor: &dyn Fn(&Cell) -> Option<f64>| -> Vec<(f64, f64)> {
        let point = |cell: &Cell| Some((cell.threads as f64, factor(cell)?.max(factors.start)));
        cells.iter().filter_map(point).collect()
    };
    let control = points(&|cell| Some(cell.control));
    chart.draw_series(DashedLineSeries::new(control, 5, 4, GREY_600.stroke_width(2)))?;
    for name in Name::ALL {
        let curve = points(&|cell| cell.figures(name).map(|figures| figures.factor));
        chart
            .draw_series(curve.iter().map(|&point| Circle::new(point, 3, color(name).filled())))?;
        chart.draw_series(LineSeries::new(curve, color(name).stroke_width(2)))?;
    }
    Ok(())
}
