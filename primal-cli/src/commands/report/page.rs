//! The page of a report: numbers, curves, a picture of every layer's grid and ballots, the data.

use std::fmt::Write;

use anyhow::Result;
use plotters::style::RGBColor;
use primal_lut::Grid;
use primal_model::metrics::{BALLOT_BINS, LayerRow};
use serde_json::json;

use super::plots::{Curve, curves, signed_colour, stack};
use crate::output::{bytes, clock};
use crate::run_status::{Phase, RunStatus, smoothed, thinned};

/// Points of a curve and columns of a layer's picture: more would not be seen.
const CURVE_POINTS: usize = 800;
const STACK_COLUMNS: usize = 60;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;\
padding:0 1rem;color:#222;background:#fff}h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}\
table{border-collapse:collapse}td,th{padding:.15rem .9rem .15rem 0;text-align:left}\
svg{width:100%;height:auto}.layers{display:grid;grid-template-columns:repeat(auto-fill,\
minmax(19rem,1fr));gap:1rem}figure{margin:0}figcaption{font-size:.85rem;color:#555}\
.key span{display:inline-block;padding:0 .5rem;font-size:.8rem}pre{overflow-x:auto;font-size:.8rem}";

/// The whole page.
pub fn html(status: &RunStatus) -> Result<String> {
    let record = status.record();
    let title = escaped(&status.run().display().to_string());
    let mut page = String::new();
    write!(
        page,
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"/>\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\
         <title>{title}</title><style>{STYLE}</style></head><body>\n<h1>{title}</h1>\n"
    )?;
    numbers(&mut page, status)?;

    let train = series(&record.steps, |row| (row.step, row.train_loss));
    let held_out = series(&record.evals, |row| (row.step, row.val_loss));
    let loss = [
        curve("training, smoothed", &smoothed(&train)),
        dots("held out", held_out),
    ];
    section(&mut page, "Loss", &curves("nats a token", &loss)?)?;

    let flips = series(&record.steps, |row| (row.step, 100.0 * row.flip_rate));
    let flips = [curve("all layers, smoothed", &smoothed(&flips))];
    section(
        &mut page,
        "Flips",
        &curves("% of the weights a step", &flips)?,
    )?;

    let names = layer_names(&record.layers);
    let of_layer = |name: &str| -> Vec<&LayerRow> {
        let rows = record.layers.iter().filter(|row| row.layer == name);
        rows.collect()
    };
    if !names.is_empty() {
        let by_layer = |value: &dyn Fn(&LayerRow) -> f64| -> Vec<Curve> {
            let points = |name: &str| -> Vec<(f64, f64)> {
                let rows = of_layer(name);
                rows.iter()
                    .map(|row| (f64::from(row.step), value(row)))
                    .collect()
            };
            names
                .iter()
                .map(|name| curve(name, &points(name)))
                .collect()
        };
        let flips = by_layer(&|row| 100.0 * row.flip_rate);
        let plot = curves("% of the weights a step", &flips)?;
        section(&mut page, "Flips by layer", &plot)?;
        let full = by_layer(&|row| 100.0 * row.ballot_saturated);
        let plot = curves("% of the ballots", &full)?;
        section(&mut page, "Full ballots by layer", &plot)?;
    }

    let speed = series(&record.steps, |row| (row.step, row.tokens_per_s));
    let speed = [curve("smoothed", &smoothed(&speed))];
    section(&mut page, "Speed", &curves("tokens/s", &speed)?)?;

    for name in &names {
        layer(&mut page, name, &of_layer(name))?;
    }
    if let Some(config) = &status.config {
        let toml = escaped(&config.to_toml().unwrap_or_default());
        write!(page, "<h2>Configuration</h2>\n<pre>{toml}</pre>\n")?;
    }
    data(&mut page, status)?;
    page += "</body></html>\n";
    Ok(page)
}

fn numbers(page: &mut String, status: &RunStatus) -> Result<()> {
    let record = status.record();
    let phase = match status.phase() {
        Phase::NotBegun => "not begun".to_string(),
        Phase::Running => "running".to_string(),
        Phase::Silent(time) => format!("no row for {}", clock(time.as_secs_f64())),
        Phase::Finished => "finished".to_string(),
    };
    let mut rows = vec![
        ("state", phase),
        ("steps", format!("{} of {}", status.step(), status.steps())),
        ("time in training steps", clock(status.seconds())),
        (
            "speed of the last steps",
            format!("{:.0} tokens/s", status.tokens_per_s()),
        ),
    ];
    let done = record.done.as_ref();
    let eval = record
        .evals
        .last()
        .map(|row| (row.val_loss, row.bits_per_byte));
    if let Some((loss, bits)) = done
        .map(|done| (done.val_loss, done.bits_per_byte))
        .or(eval)
    {
        rows.push((
            "held-out loss",
            format!("{loss:.4} nats a token, {bits:.4} bits a byte"),
        ));
    }
    if let Some(row) = record.steps.last() {
        rows.push(("peak memory", bytes(row.peak_rss_bytes)));
    }
    if let Some(done) = done {
        rows.push((
            "state of a weight",
            format!("{:.3} bytes", done.state_bytes_per_weight),
        ));
        rows.push(("state hash", done.state_hash.clone()));
    }
    if record.skipped_steps > 0 {
        rows.push(("skipped steps", record.skipped_steps.to_string()));
    }
    if record.unreadable_lines > 0 {
        rows.push(("unreadable lines", record.unreadable_lines.to_string()));
    }
    let saved: Vec<_> = status
        .checkpoints
        .iter()
        .map(|(step, _)| step.to_string())
        .collect();
    if !saved.is_empty() {
        rows.push(("checkpoints at steps", saved.join(", ")));
    }
    *page += "<table>\n";
    for (what, value) in rows {
        writeln!(page, "<tr><th>{what}</th><td>{}</td></tr>", escaped(&value))?;
    }
    *page += "</table>\n";
    Ok(())
}

/// Grid and ballots of one layer over time.
fn layer(page: &mut String, name: &str, rows: &[&LayerRow]) -> Result<()> {
    let Some(newest) = rows.last() else {
        return Ok(());
    };
    let grid = Grid::by_id(&newest.grid);
    let values: Vec<f64> = grid
        .iter()
        .flat_map(|grid| grid.values().iter().map(|&value| f64::from(value)))
        .collect();
    let colour = |code: usize| signed_colour(values.get(code).copied().unwrap_or(0.0));
    let every = rows.len().div_ceil(STACK_COLUMNS).max(1);
    // The newest evaluation is always among the columns.
    let columns = |counts: &dyn Fn(&LayerRow) -> Vec<u64>| -> Vec<(u32, Vec<u64>)> {
        let mut columns: Vec<_> = rows
            .iter()
            .rev()
            .step_by(every)
            .map(|row| (row.step, counts(row)))
            .collect();
        columns.reverse();
        columns
    };
    let use_of_grid = stack(&columns(&|row| row.code_counts.clone()), &colour)?;
    write!(
        page,
        "<h2>{}</h2>\n<div class=\"layers\">\n<figure>{use_of_grid}<figcaption>weights on each value \
         of grid {}, lowest at the bottom; {} weights</figcaption></figure>\n",
        escaped(name),
        escaped(&newest.grid),
        newest.weights
    )?;
    if !newest.ballot_counts.is_empty() {
        let colour = |bin: usize| ballot_colour(bin);
        let ballots = stack(&columns(&|row| row.ballot_counts.clone()), &colour)?;
        writeln!(
            page,
            "<figure>{ballots}<figcaption>ballots by votes, -127 at the bottom to 127 at the top; \
             {:.2} % are full</figcaption></figure>",
            100.0 * newest.ballot_saturated
        )?;
    }
    *page += "</div>\n<p class=\"key\">";
    for (code, value) in values.iter().enumerate() {
        let RGBColor(red, green, blue) = colour(code);
        let text = if value.abs() > 0.6 { "#fff" } else { "#000" };
        write!(
            page,
            "<span style=\"background:rgb({red},{green},{blue});color:{text}\">{value:+.3}</span>"
        )?;
    }
    *page += "</p>\n";
    Ok(())
}

fn ballot_colour(bin: usize) -> RGBColor {
    let middle = (BALLOT_BINS / 2) as f64;
    signed_colour((bin as f64 - middle) / middle)
}

/// The rows behind the plots, for whoever wants to compute with them.
fn data(page: &mut String, status: &RunStatus) -> Result<()> {
    let record = status.record();
    let loss = thinned(
        &series(&record.steps, |row| (row.step, row.train_loss)),
        CURVE_POINTS,
    );
    let data = json!({
        "run": status.run(),
        "steps": status.step(),
        "train_loss": loss,
        "evaluations": record.evals,
        "layers": record.newest_layers(),
        "done": record.done,
    });
    // A `</script>` inside a string would end the element.
    let text = serde_json::to_string(&data)?
        .replace('<', "\\u003c")
        .replace('&', "\\u0026");
    writeln!(
        page,
        "<script type=\"application/json\" id=\"data\">{text}</script>"
    )?;
    Ok(())
}

fn section(page: &mut String, title: &str, svg: &str) -> Result<()> {
    Ok(write!(page, "<h2>{title}</h2>\n{svg}\n")?)
}

fn series<T>(rows: &[T], point: impl Fn(&T) -> (u32, f64)) -> Vec<(f64, f64)> {
    rows.iter()
        .map(|row| {
            let (step, value) = point(row);
            (f64::from(step), value)
        })
        .collect()
}

fn curve(name: &str, points: &[(f64, f64)]) -> Curve {
    Curve {
        name: name.to_string(),
        points: thinned(points, CURVE_POINTS),
        dots: false,
    }
}

fn dots(name: &str, points: Vec<(f64, f64)>) -> Curve {
    Curve {
        name: name.to_string(),
        points,
        dots: true,
    }
}

/// Names of the layers in the order of their first rows.
fn layer_names(rows: &[LayerRow]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for row in rows {
        if !names.contains(&row.layer) {
            names.push(row.layer.clone());
        }
    }
    names
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run_status::tests::example_run;

    /// Every element is closed by its own name, in order; void elements close themselves.
    fn assert_well_formed(page: &str) {
        let mut open = Vec::new();
        let mut rest = page.trim_start_matches("<!DOCTYPE html>");
        while let Some(start) = rest.find('<') {
            let end = start + rest[start..].find('>').expect("an element ends");
            let tag = &rest[start + 1..end];
            rest = &rest[end + 1..];
            assert!(!tag.contains('<'), "{tag}");
            if tag.starts_with('!') || tag.starts_with('?') || tag.ends_with('/') {
                continue;
            }
            match tag.strip_prefix('/') {
                Some(name) => assert_eq!(open.pop(), Some(name)),
                None => open.push(tag.split_whitespace().next().unwrap()),
            }
        }
        assert!(open.is_empty(), "{open:?}");
    }

    #[test]
    fn the_page_is_well_formed_and_holds_the_data() {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("a <run> & \"more\"");
        std::fs::create_dir(&run).unwrap();
        example_run(&run, 100, true);
        let page = html(&RunStatus::new(&run).unwrap()).unwrap();
        assert_well_formed(&page);
        for outside in ["http-equiv", "src=", "href=", "@import", "url("] {
            assert!(!page.contains(outside), "{outside}");
        }
        assert!(page.contains("a &lt;run&gt; &amp; &quot;more&quot;"));
        let (_, data) = page.split_once("id=\"data\">").unwrap();
        let (data, _) = data.split_once("</script>").unwrap();
        let data: serde_json::Value = serde_json::from_str(data).unwrap();
        assert_eq!(data["steps"], 100);
        assert_eq!(data["layers"].as_array().unwrap().len(), 2);
        assert_eq!(data["done"]["state_hash"], "cafe");
        assert_eq!(data["train_loss"].as_array().unwrap().len(), 100);
        // Loss, flips, flips by layer, full ballots, speed, and two pictures a layer.
        assert_eq!(page.matches("<svg").count(), 5 + 2 * 2);
    }

    #[test]
    fn a_run_without_evaluations_or_end_has_a_page() {
        let folder = tempfile::tempdir().unwrap();
        example_run(folder.path(), 1, false);
        assert_well_formed(&html(&RunStatus::new(folder.path()).unwrap()).unwrap());
    }
}
