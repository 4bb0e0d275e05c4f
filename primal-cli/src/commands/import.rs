//! `primal import`: puts a model of another tool on the grid.

use std::process::ExitCode;

use anyhow::{Context, Result};
use primal_kernels::Isa;
use primal_lut::Grid;
use primal_model::config::FloatPart;
use primal_model::data::Documents;
use primal_model::import::{ImportOptions, ImportReport, import};
use primal_model::quantise::Rounding;

use crate::args::ImportArgs;
use crate::commands::start_threads;
use crate::output;
use crate::progress::note;

/// Imports and prints what each matrix lost.
pub fn run(args: &ImportArgs) -> Result<ExitCode> {
    start_threads(args.threads)?;
    let isa = Isa::from_env()?;
    let grid = Grid::by_id(&args.grid).with_context(|| format!("unknown grid {}", args.grid))?;
    let calibration = if args.calibrate.is_empty() {
        None
    } else {
        let documents = Documents::read(&args.calibrate, "text")?;
        Some(documents.text().to_owned())
    };
    let options = ImportOptions {
        grid,
        group: args.group,
        rounding: args.rounding.as_deref().map(|name| match name {
            "nearest" => Rounding::Nearest,
            _ => Rounding::Compensated,
        }),
        calibration,
        calibration_tokens: args.calibrate_tokens,
        float_parts: if args.float {
            vec![
                FloatPart::Embeddings,
                FloatPart::Attention,
                FloatPart::Mlp,
                FloatPart::Head,
            ]
        } else {
            args.keep_float.clone()
        },
        context: args.context,
    };
    let report = import(isa, &args.from, &args.out, &options, &mut |tensor| {
        if !args.json {
            note(format_args!(
                "{:<28} {:>6.2} dB",
                tensor.name, tensor.snr_db
            ));
        }
    })?;
    for text in &report.notes {
        note(format_args!("note: {text}"));
    }
    if args.json {
        output::json(&report)?;
    } else {
        print(&report)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn print(report: &ImportReport) -> Result<()> {
    output::line(format_args!(
        "{:<28} {:>14} {:<9} {:>6} {:>10} {:>8} {:>11}",
        "tensor", "shape", "grid", "group", "rel. error", "SNR dB", "outputs dB"
    ))?;
    for tensor in &report.tensors {
        let [rows, cols] = tensor.shape;
        let outputs = tensor
            .output_snr_db
            .map_or(String::new(), |snr| format!("{snr:.2}"));
        output::line(format_args!(
            "{:<28} {:>14} {:<9} {:>6} {:>10.4} {:>8.2} {outputs:>11}",
            tensor.name,
            format!("{rows}x{cols}"),
            tensor.grid,
            tensor.group,
            tensor.relative_error,
            tensor.snr_db,
        ))?;
    }
    output::line(format_args!(
        "{} weights, {} for inference, calibrated on {} tokens: {}",
        report.weights,
        output::bytes(report.model_bytes),
        report.calibration_tokens,
        report.checkpoint.display()
    ))
}
