//! What `primal watch` draws: everything at 60 × 20 and more, the numbers alone below that.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::symbols::Marker;
use ratatui::text::{Line, Span};
use ratatui::widgets::{
    Axis, Block, Borders, Chart, Dataset, GraphType, LineGauge, Paragraph, Row, Table,
};

use super::short;
use crate::output::{bytes, clock};
use crate::run_status::{Phase, RunStatus, smoothed, thinned, zero_and_end_share};

/// Least size for plots and tables.
const FULL_SIZE: (u16, u16) = (60, 20);

/// Points of a curve; a braille cell shows two columns.
const CURVE_POINTS: usize = 400;

/// Bars of a histogram, lowest first.
const BARS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Draws the run; `scroll` layers are scrolled away.
pub fn draw(frame: &mut Frame<'_>, status: &RunStatus, scroll: usize) {
    let area = frame.area();
    if status.phase() == Phase::NotBegun {
        let text = format!("{}\nthe run has not begun", status.run().display());
        frame.render_widget(Paragraph::new(text), area);
        return;
    }
    if area.width < FULL_SIZE.0 || area.height < FULL_SIZE.1 {
        let mut lines = vec![heading(status)];
        lines.extend(numbers(status));
        frame.render_widget(Paragraph::new(lines), area);
        return;
    }
    let layers = status.record().newest_layers().len().saturating_sub(scroll);
    // Title, border and column names around the rows; at most half of the screen.
    let wanted = if layers == 0 { 0 } else { layers as u16 + 3 };
    let table_height = wanted.min(area.height / 2);
    let [head, gauge, middle, table, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Min(6),
        Constraint::Length(table_height),
        Constraint::Length(1),
    ])
    .areas(area);
    frame.render_widget(heading(status), head);
    draw_gauge(frame, status, gauge);
    let [plot, side] =
        Layout::horizontal([Constraint::Min(28), Constraint::Length(34)]).areas(middle);
    draw_loss(frame, status, plot);
    let block = Block::default().borders(Borders::ALL).title(" now ");
    frame.render_widget(Paragraph::new(numbers(status)).block(block), side);
    draw_layers(frame, status, scroll, table);
    let keys = Line::from("q leaves   ↑ ↓ move through the layers");
    frame.render_widget(keys.style(Style::new().add_modifier(Modifier::DIM)), foot);
}

fn heading(status: &RunStatus) -> Line<'static> {
    let (word, colour) = match status.phase() {
        Phase::NotBegun => ("not begun".to_string(), Color::Yellow),
        Phase::Running => ("running".to_string(), Color::Green),
        Phase::Silent(time) => {
            let time = clock(time.as_secs_f64());
            (format!("no row for {time}"), Color::Red)
        }
        Phase::Finished => ("finished".to_string(), Color::Cyan),
    };
    Line::from(vec![
        Span::styled(
            short(status.run()),
            Style::new().add_modifier(Modifier::BOLD),
        ),
        Span::raw("  "),
        Span::styled(word, Style::new().fg(colour)),
    ])
}

fn draw_gauge(frame: &mut Frame<'_>, status: &RunStatus, area: Rect) {
    let ratio = match status.steps() {
        0 => 0.0,
        steps => (f64::from(status.step()) / f64::from(steps)).clamp(0.0, 1.0),
    };
    let gauge = LineGauge::default()
        .ratio(ratio)
        .label(progress(status))
        .filled_style(Style::new().fg(Color::Blue));
    frame.render_widget(gauge, area);
}

fn progress(status: &RunStatus) -> String {
    let time = clock(status.seconds());
    let left = match (status.phase(), status.seconds_left()) {
        (Phase::Finished, _) | (_, None) => String::new(),
        (_, Some(left)) => format!(", {} left", clock(left)),
    };
    match status.steps() {
        0 => format!("step {} in {time}", status.step()),
        steps => format!("step {} of {steps} in {time}{left}", status.step()),
    }
}

/// The numbers of the run, the most wanted first.
fn numbers(status: &RunStatus) -> Vec<Line<'static>> {
    let record = status.record();
    let mut lines = Vec::new();
    let mut number = |what: &str, value: String| {
        lines.push(Line::from(format!("{what:<14} {value}")));
    };
    if let Some(loss) = status.train_loss() {
        number("loss", format!("{loss:.4} nats"));
    }
    let eval = record
        .evals
        .last()
        .map(|row| (row.val_loss, row.bits_per_byte));
    let last = record
        .done
        .as_ref()
        .map(|done| (done.val_loss, done.bits_per_byte));
    if let Some((loss, bits)) = last.or(eval) {
        number("held-out loss", format!("{loss:.4} nats"));
        number("bits a byte", format!("{bits:.4}"));
    }
    number("progress", progress(status));
    number("speed", format!("{:.0} tokens/s", status.tokens_per_s()));
    if let Some(rate) = status.flip_rate() {
        number("flips", format!("{:.4} % a step", 100.0 * rate));
    }
    if let Some(row) = record.steps.last() {
        number("float rate", format!("{:.2e}", row.lr));
        number("peak memory", bytes(row.peak_rss_bytes));
    }
    if record.skipped_steps > 0 {
        number("skipped steps", record.skipped_steps.to_string());
    }
    if record.unreadable_lines > 0 {
        number("bad lines", record.unreadable_lines.to_string());
    }
    let names = status.checkpoints.iter().rev().take(3);
    for (index, (_, path)) in names.enumerate() {
        number(if index == 0 { "checkpoints" } else { "" }, short(path));
    }
    lines
}

fn draw_loss(frame: &mut Frame<'_>, status: &RunStatus, area: Rect) {
    let record = status.record();
    let train: Vec<_> = record
        .steps
        .iter()
        .map(|row| (f64::from(row.step), row.train_loss))
        .collect();
    let train = thinned(&smoothed(&train), CURVE_POINTS);
    let held_out: Vec<_> = record
        .evals
        .iter()
        .map(|row| (f64::from(row.step), row.val_loss))
        .collect();
    let all = || train.iter().chain(&held_out).map(|point| point.1);
    let (low, high) = all().fold((f64::INFINITY, f64::NEG_INFINITY), |range, loss| {
        (range.0.min(loss), range.1.max(loss))
    });
    let margin = 0.05 * (high - low).max(0.01);
    let (low, high) = (low - margin, high + margin);
    let steps = f64::from(status.steps().max(status.step()).max(1));
    let curve = |name, points, marker, colour| {
        Dataset::default()
            .name(name)
            .marker(marker)
            .graph_type(GraphType::Line)
            .style(Style::new().fg(colour))
            .data(points)
    };
    let chart = Chart::new(vec![
        curve("training", &train, Marker::Braille, Color::Blue),
        curve("held out", &held_out, Marker::Braille, Color::Red),
    ])
    .block(
        Block::default()
            .borders(Borders::ALL)
            .title(" loss, nats a token "),
    )
    .x_axis(
        Axis::default()
            .bounds([0.0, steps])
            .labels(["0".to_string(), format!("{steps:.0}")]),
    )
    .y_axis(
        Axis::default()
            .bounds([low, high])
            .labels([low, (low + high) / 2.0, high].map(|loss| format!("{loss:.2}"))),
    );
    frame.render_widget(chart, area);
}

fn draw_layers(frame: &mut Frame<'_>, status: &RunStatus, scroll: usize, area: Rect) {
    let layers = status.record().newest_layers();
    let Some(first) = layers.first() else { return };
    let rows = layers.iter().skip(scroll).map(|layer| {
        let (zero, ends) = zero_and_end_share(layer);
        let saturated = match layer.ballot_counts.is_empty() {
            true => String::new(),
            false => format!("{:.1}", 100.0 * layer.ballot_saturated),
        };
        Row::new([
            layer.layer.clone(),
            format!("{:.4}", 100.0 * layer.flip_rate),
            bars(&layer.code_counts),
            format!("{:.1}", 100.0 * zero),
            format!("{:.1}", 100.0 * ends),
            bars(&layer.ballot_counts),
            saturated,
        ])
    });
    let widths = [
        Constraint::Min(10),
        Constraint::Length(8),
        Constraint::Length(25),
        Constraint::Length(6),
        Constraint::Length(6),
        Constraint::Length(17),
        Constraint::Length(5),
    ];
    let title = format!(" layers at step {} ", first.step);
    let names = [
        "layer", "flips %", "grid", "zero %", "ends %", "ballots", "full %",
    ];
    let table = Table::new(rows, widths)
        .header(Row::new(names).style(Style::new().add_modifier(Modifier::BOLD)))
        .block(Block::default().borders(Borders::ALL).title(title));
    frame.render_widget(table, area);
}

/// A histogram, one character a bin, the fullest bin a full bar.
fn bars(counts: &[u64]) -> String {
    let most = counts.iter().copied().max().unwrap_or(0).max(1) as f64;
    let bar = |&count: &u64| {
        let height = (count as f64 / most * 8.0).ceil() as usize;
        BARS[height.min(8)]
    };
    counts.iter().map(bar).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn bars_show_that_something_is_there() {
        assert_eq!(super::bars(&[0, 1, 500, 1000]), " ▁▄█");
        assert_eq!(super::bars(&[]), "");
    }
}
