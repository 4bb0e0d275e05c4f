//! The demo's pictures: the loss curve and how the layers use the grid, as SVG.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use plotters::prelude::*;
use serde_json::Value;

const SIZE: (u32, u32) = (900, 540);
const FONT: &str = "sans-serif";

/// Steps that the smoothed training loss remembers.
const SMOOTHING_STEPS: f64 = 20.0;

/// Draws training loss, raw and smoothed, and held-out loss over the steps of a run.
/// `rows` are those of `metrics.jsonl`.
pub fn loss(rows: &[Value], to: &Path) -> Result<()> {
    let series = |key: &str| -> Vec<(f64, f64)> {
        let point = |row: &Value| Some((row["step"].as_f64()?, row[key].as_f64()?));
        rows.iter().filter_map(point).collect()
    };
    let (train, held_out) = (series("train_loss"), series("val_loss"));
    ensure!(!train.is_empty(), "the metrics have no training rows");
    let all = || train.iter().chain(&held_out);
    let last_step = all().map(|point| point.0).fold(1.0, f64::max);
    let low = all().map(|point| point.1).fold(f64::INFINITY, f64::min);
    let high = all().map(|point| point.1).fold(f64::NEG_INFINITY, f64::max);
    let margin = 0.05 * (high - low).max(0.1);

    let area = SVGBackend::new(to, SIZE).into_drawing_area();
    area.fill(&WHITE).map_err(drawing)?;
    let mut chart = ChartBuilder::on(&area)
        .caption("Loss", (FONT, 20))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..last_step, low - margin..high + margin)
        .map_err(drawing)?;
    chart
        .configure_mesh()
        .x_desc("step")
        .y_desc("nats a token")
        .x_label_formatter(&|step| format!("{step:.0}"))
        .light_line_style(WHITE)
        .draw()
        .map_err(drawing)?;
    let raw = RGBColor(170, 190, 220);
    let smooth = RGBColor(30, 80, 160);
    let val = RGBColor(200, 60, 40);
    chart
        .draw_series(LineSeries::new(train.iter().copied(), raw))
        .map_err(drawing)?;
    chart
        .draw_series(LineSeries::new(smoothed(&train), smooth.stroke_width(2)))
        .map_err(drawing)?
        .label("training, smoothed")
        .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], smooth.stroke_width(2)));
    chart
        .draw_series(
            held_out
                .iter()
                .map(|point| Circle::new(*point, 4, val.filled())),
        )
        .map_err(drawing)?
        .label("held out")
        .legend(move |(x, y)| Circle::new((x + 9, y), 4, val.filled()));
    chart
        .configure_series_labels()
        .background_style(WHITE.mix(0.9))
        .border_style(BLACK.mix(0.3))
        .label_font((FONT, 14))
        .draw()
        .map_err(drawing)?;
    area.present().map_err(drawing)
}

/// Draws one stacked bar a layer: the share of its weights on each value of the grid.
/// `inspected` is what `primal inspect --json` says.
pub fn grid_use(inspected: &Value, to: &Path) -> Result<()> {
    let layers = layer_counts(inspected)?;
    let area = SVGBackend::new(to, SIZE).into_drawing_area();
    area.fill(&WHITE).map_err(drawing)?;
    let (bars, legend) = area.split_horizontally(SIZE.0 as i32 - 110);
    let mut chart = ChartBuilder::on(&bars)
        .caption("Share of the weights on each grid value", (FONT, 20))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..layers.len() as f64, 0.0..100.0)
        .map_err(drawing)?;
    let chart_width = chart.plotting_area().dim_in_pixel().0 as i32;
    let label = |position: &f64| {
        let layer = layers.get(position.floor() as usize);
        layer
            .filter(|_| position.fract() == 0.0)
            .map_or(String::new(), |it| it.name.clone())
    };
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(layers.len() + 1)
        .x_label_formatter(&label)
        .x_label_offset(chart_width / (2 * layers.len() as i32))
        .y_label_formatter(&|share| format!("{share:.0}"))
        .y_desc("per cent")
        .light_line_style(WHITE)
        .draw()
        .map_err(drawing)?;
    for (index, layer) in layers.iter().enumerate() {
        let total: u64 = layer.counts.iter().map(|it| it.count).sum();
        let mut base = 0.0;
        let rectangles = layer.counts.iter().map(|it| {
            let top = base + 100.0 * it.count as f64 / total.max(1) as f64;
            let x = index as f64;
            let corners = [(x + 0.1, base), (x + 0.9, top)];
            base = top;
            Rectangle::new(corners, colour(it.value).filled())
        });
        chart.draw_series(rectangles).map_err(drawing)?;
    }
    draw_legend(&legend, &layers)?;
    area.present().map_err(drawing)
}

/// How often the weights of one layer take each grid value, lowest value first.
struct Layer {
    name: String,
    counts: Vec<ValueCount>,
}

struct ValueCount {
    value: f64,
    count: u64,
}

/// Adds up the matrices of each block; what is in no block stands alone under its own name.
fn layer_counts(inspected: &Value) -> Result<Vec<Layer>> {
    let tensors = inspected["tensors"]
        .as_array()
        .context("inspect lists no tensors")?;
    // In the order of the model, so a map by name would not do.
    let mut layers: Vec<(String, BTreeMap<usize, ValueCount>)> = Vec::new();
    for tensor in tensors {
        let (Some(counts), Some(grid)) = (tensor["counts"].as_array(), tensor["grid"].as_str())
        else {
            continue;
        };
        let values = inspected["grids"][grid].as_array();
        let values = values.with_context(|| format!("inspect does not list the grid {grid}"))?;
        let name = layer_name(tensor["name"].as_str().unwrap_or_default());
        if layers.last().is_none_or(|(last, _)| *last != name) {
            layers.push((name, BTreeMap::new()));
        }
        let Some((_, sums)) = layers.last_mut() else {
            continue;
        };
        for (code, (count, value)) in counts.iter().zip(values).enumerate() {
            let count = count
                .as_u64()
                .context("a count of inspect is not a number")?;
            let value = value
                .as_f64()
                .context("a grid value of inspect is not a number")?;
            sums.entry(code)
                .or_insert(ValueCount { value, count: 0 })
                .count += count;
        }
    }
    ensure!(!layers.is_empty(), "no matrix of the model lives on a grid");
    let finish = |(name, sums): (String, BTreeMap<usize, ValueCount>)| Layer {
        name,
        counts: sums.into_values().collect(),
    };
    Ok(layers.into_iter().map(finish).collect())
}

/// `blocks.3.qkv` is of layer "block 3", `tok_embedding` of "tok".
fn layer_name(tensor: &str) -> String {
    match tensor
        .strip_prefix("blocks.")
        .and_then(|rest| rest.split('.').next())
    {
        Some(block) => format!("block {block}"),
        None => tensor.trim_end_matches("_embedding").to_string(),
    }
}

fn draw_legend(
    area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    layers: &[Layer],
) -> Result<()> {
    let longest = layers.iter().max_by_key(|layer| layer.counts.len());
    let values = longest
        .into_iter()
        .flat_map(|layer| layer.counts.iter().rev());
    for (index, it) in values.enumerate() {
        let y = 50 + 17 * index as i32;
        let swatch = Rectangle::new([(0, y), (14, y + 12)], colour(it.value).filled());
        area.draw(&swatch).map_err(drawing)?;
        let text = format!("{:+.3}", it.value);
        area.draw(&Text::new(text, (20, y), (FONT, 13)))
            .map_err(drawing)?;
    }
    Ok(())
}

/// Blue below zero, grey at it, red above; fuller with the magnitude, on a root scale since the
/// grid crowds around zero.
fn colour(value: f64) -> RGBColor {
    let strength = value.abs().min(1.0).sqrt();
    let blend = |end: f64| (225.0 + (end - 225.0) * strength) as u8;
    match value.partial_cmp(&0.0) {
        Some(std::cmp::Ordering::Less) => RGBColor(blend(20.0), blend(60.0), blend(150.0)),
        Some(std::cmp::Ordering::Greater) => RGBColor(blend(160.0), blend(25.0), blend(25.0)),
        _ => RGBColor(245, 235, 190),
    }
}

/// Exponential mean over about [`SMOOTHING_STEPS`], unbiased at the start.
fn smoothed(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let keep = 1.0 - 1.0 / SMOOTHING_STEPS;
    let (mut sum, mut weight) = (0.0, 0.0);
    let mut mean = |&(step, loss): &(f64, f64)| {
        sum = keep * sum + loss;
        weight = keep * weight + 1.0;
        (step, sum / weight)
    };
    points.iter().map(&mut mean).collect()
}

/// Plotters' errors borrow the backend; their text is all that is wanted.
fn drawing(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("cannot draw: {error}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn both_plots_are_drawn() {
        let folder = tempfile::tempdir().unwrap();
        let rows: Vec<Value> = (1..50)
            .map(|step| json!({"step": step, "train_loss": 5.0 / f64::from(step)}))
            .chain([json!({"step": 49, "val_loss": 0.4})])
            .collect();
        let path = folder.path().join("loss.svg");
        loss(&rows, &path).unwrap();
        let svg = std::fs::read_to_string(&path).unwrap();
        assert!(svg.contains("<circle") && svg.contains("held out"), "{svg}");

        let tensor = |name: &str| json!({"name": name, "grid": "g", "counts": [1, 6, 1]});
        let names = ["tok_embedding", "blocks.0.qkv", "blocks.0.up", "norm"];
        let mut tensors: Vec<Value> = names[..3].iter().map(|name| tensor(name)).collect();
        tensors.push(json!({"name": "norm"}));
        let inspected = json!({"tensors": tensors, "grids": {"g": [-1.0, 0.0, 1.0]}});
        let layers = layer_counts(&inspected).unwrap();
        assert_eq!(
            layers.iter().map(|it| it.name.as_str()).collect::<Vec<_>>(),
            ["tok", "block 0"]
        );
        assert_eq!(layers[1].counts[1].count, 12);
        let path = folder.path().join("grid_use.svg");
        grid_use(&inspected, &path).unwrap();
        assert!(std::fs::read_to_string(&path).unwrap().contains("block 0"));
    }

    #[test]
    fn a_run_without_rows_is_an_error() {
        assert!(loss(&[], Path::new("unused.svg")).is_err());
        assert!(grid_use(&json!({"tensors": []}), Path::new("unused.svg")).is_err());
    }

    #[test]
    fn smoothing_keeps_a_constant() {
        let flat: Vec<(f64, f64)> = (0..9).map(|step| (f64::from(step), 2.0)).collect();
        assert!(
            smoothed(&flat)
                .iter()
                .all(|point| (point.1 - 2.0).abs() < 1e-12)
        );
    }
}
