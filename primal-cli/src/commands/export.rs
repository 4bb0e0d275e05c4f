//! `primal export`: writes a model in the files of other tools.

use std::process::ExitCode;

use anyhow::Result;
use primal_model::checkpoint::Checkpoint;
use primal_model::export::{ExportFormat, export};
use primal_model::foreign::gguf::TensorType;
use primal_model::foreign::safetensors::FloatType;
use serde::Serialize;

use crate::args::ExportArgs;
use crate::output;
use crate::report::WrongUsage;

#[derive(Serialize)]
struct Report<'a> {
    out: String,
    format: &'a str,
    #[serde(rename = "type")]
    tensor_type: &'a str,
}

/// Exports and says what was written.
pub fn run(args: &ExportArgs) -> Result<ExitCode> {
    let format = match (args.to.as_str(), args.tensor_type.as_str()) {
        ("hf", "f32") => ExportFormat::HuggingFace(FloatType::F32),
        ("hf", "f16") => ExportFormat::HuggingFace(FloatType::F16),
        ("hf", "bf16") => ExportFormat::HuggingFace(FloatType::Bf16),
        ("gguf", "f32") => ExportFormat::Gguf(TensorType::F32),
        ("gguf", "f16") => ExportFormat::Gguf(TensorType::F16),
        ("gguf", "q8_0") => ExportFormat::Gguf(TensorType::Q8_0),
        (to, kind) => return Err(WrongUsage(format!("--to {to} has no --type {kind}")).into()),
    };
    export(&Checkpoint::open(&args.model)?, format, &args.out)?;
    let report = Report {
        out: args.out.display().to_string(),
        format: &args.to,
        tensor_type: &args.tensor_type,
    };
    if args.json {
        output::json(&report)?;
    } else {
        output::line(format_args!("{} ({})", report.out, report.tensor_type))?;
    }
    Ok(ExitCode::SUCCESS)
}
