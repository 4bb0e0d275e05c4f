//! The plots of a report as SVG text.

use anyhow::{Result, anyhow};
use plotters::prelude::*;

/// Pixels of a curve plot; the page scales them.
const CURVE_SIZE: (u32, u32) = (900, 320);

/// Pixels of the picture of one layer.
const STACK_SIZE: (u32, u32) = (420, 180);

const FONT: &str = "sans-serif";

/// Colours of curves, told apart by most eyes (Okabe and Ito 2008).
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(70, 70, 70),
];

/// One curve: its name and its points by step.
pub struct Curve {
    /// Name in the legend.
    pub name: String,
    /// (step, value).
    pub points: Vec<(f64, f64)>,
    /// Whether it is drawn as dots, for few and precise values.
    pub dots: bool,
}

/// Curves over the steps of a run; `unit` labels the vertical axis.
pub fn curves(unit: &str, curves: &[Curve]) -> Result<String> {
    let all = || curves.iter().flat_map(|curve| &curve.points);
    let finite = || all().filter(|point| point.1.is_finite());
    let last_step = all().map(|point| point.0).fold(1.0, f64::max);
    let low = finite().map(|point| point.1).fold(f64::INFINITY, f64::min);
    let high = finite()
        .map(|point| point.1)
        .fold(f64::NEG_INFINITY, f64::max);
    let (low, high) = if low > high { (0.0, 1.0) } else { (low, high) };
    // A constant gets room, too.
    let margin = match high - low {
        range if range > 1e-9 * high.abs() && range > 0.0 => 0.05 * range,
        _ => (0.1 * high.abs()).max(0.1),
    };
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, CURVE_SIZE).into_drawing_area();
        area.fill(&WHITE).map_err(drawing)?;
        let mut chart = ChartBuilder::on(&area)
            .margin(10)
            .x_label_area_size(36)
            .y_label_area_size(64)
            .build_cartesian_2d(0.0..last_step, low - margin..high + margin)
            .map_err(drawing)?;
        chart
            .configure_mesh()
            .x_desc("step")
            .y_desc(unit)
            .x_label_formatter(&|step| format!("{step:.0}"))
            .light_line_style(WHITE)
            .draw()
            .map_err(drawing)?;
        for (index, curve) in curves.iter().enumerate() {
            let colour = COLOURS[index % COLOURS.len()];
            let points = curve.points.iter().copied();
            let drawn = if curve.dots {
                chart.draw_series(points.map(|point| Circle::new(point, 3, colour.filled())))
            } else {
                chart.draw_series(LineSeries::new(points, colour.stroke_width(2)))
            };
            drawn
                .map_err(drawing)?
                .label(&curve.name)
                .legend(move |(x, y)| {
                    PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(3))
                });
        }
        chart
            .configure_series_labels()
            .background_style(WHITE.mix(0.85))
            .border_style(BLACK.mix(0.2))
            .label_font((FONT, 13))
            .draw()
            .map_err(drawing)?;
        area.present().map_err(drawing)?;
    }
    Ok(svg)
}

/// Shares that add up to one, over the steps of a run: a column an evaluation.
pub fn stack(columns: &[(u32, Vec<u64>)], colour: &dyn Fn(usize) -> RGBColor) -> Result<String> {
    let last_step = f64::from(columns.last().map_or(1, |column| column.0).max(1));
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, STACK_SIZE).into_drawing_area();
        area.fill(&WHITE).map_err(drawing)?;
        let mut chart = ChartBuilder::on(&area)
            .margin(6)
            .x_label_area_size(22)
            .y_label_area_size(34)
            .build_cartesian_2d(0.0..last_step, 0.0..100.0)
            .map_err(drawing)?;
        chart
            .configure_mesh()
            .disable_mesh()
            .x_labels(4)
            .y_labels(3)
            .x_label_formatter(&|step| format!("{step:.0}"))
            .y_label_formatter(&|share| format!("{share:.0} %"))
            .draw()
            .map_err(drawing)?;
        let mut left = 0.0;
        for (step, counts) in columns {
            let right = f64::from(*step);
            let total = counts.iter().sum::<u64>().max(1) as f64;
            let mut base = 0.0;
            for (index, &count) in counts.iter().enumerate() {
                let top = base + 100.0 * count as f64 / total;
                if count > 0 {
                    let corners = [(left, base), (right, top)];
                    let bar = Rectangle::new(corners, colour(index).filled());
                    chart.draw_series([bar]).map_err(drawing)?;
                }
                base = top;
            }
            left = right;
        }
        area.present().map_err(drawing)?;
    }
    Ok(svg)
}

/// Blue below zero, red above, pale at it, fuller with `value` in -1..=1; on a root scale, since
/// the grid crowds around zero.
pub fn signed_colour(value: f64) -> RGBColor {
    let strength = value.abs().min(1.0).sqrt();
    let blend = |end: f64| (225.0 + (end - 225.0) * strength) as u8;
    match value.partial_cmp(&0.0) {
        Some(std::cmp::Ordering::Less) => RGBColor(blend(20.0), blend(60.0), blend(150.0)),
        Some(std::cmp::Ordering::Greater) => RGBColor(blend(160.0), blend(25.0), blend(25.0)),
        _ => RGBColor(245, 235, 190),
    }
}

/// Plotters' errors borrow the backend; their text is all that is wanted.
fn drawing(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("cannot draw: {error}")
}
