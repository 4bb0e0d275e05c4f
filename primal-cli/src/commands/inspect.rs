//! `primal inspect`: what a checkpoint holds and how its matrices use their grids.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::Result;
use primal_lut::{Grid, QuantMatrix};
use primal_model::Model;
use primal_model::checkpoint::Checkpoint;
use primal_model::config::Config;
use primal_optim::{StatePart, StateVisitor};
use serde::Serialize;

use crate::args::InspectArgs;
use crate::output;

#[derive(Serialize)]
struct Report {
    checkpoint: String,
    step: u32,
    tokens: u64,
    /// Elements of all tensors that inference needs.
    parameters: u64,
    /// Of these, on a grid.
    grid_weights: u64,
    /// Bytes that inference holds of them.
    model_bytes: u64,
    /// Present with `--verify`.
    #[serde(skip_serializing_if = "Option::is_none")]
    verified: Option<Verified>,
    config: Config,
    /// Values of each grid by its id; the index is the code.
    grids: BTreeMap<String, Vec<f32>>,
    tensors: Vec<Tensor>,
}

/// What `--verify` read and found sound.
#[derive(Serialize)]
struct Verified {
    files: usize,
    tensors: usize,
    optimizer_bytes: u64,
}

#[derive(Serialize)]
struct Tensor {
    name: String,
    shape: Vec<usize>,
    bytes: u64,
    #[serde(flatten)]
    on_grid: Option<OnGrid>,
}

#[derive(Serialize)]
struct OnGrid {
    grid: String,
    group: usize,
    scale_min: f32,
    scale_mean: f32,
    scale_max: f32,
    zero_share: f64,
    /// Weights on each code of the grid.
    counts: Vec<u64>,
}

/// Prints what is in a checkpoint. Checksums are verified in any case.
pub fn run(args: &InspectArgs) -> Result<ExitCode> {
    let checkpoint = Checkpoint::open(&args.model)?;
    let model = checkpoint.load_model()?;
    let mut found = Collector::default();
    model.visit(StatePart::Model, &mut found);
    let verified = if args.verify {
        Some(verify(&checkpoint)?)
    } else {
        None
    };
    let elements = |tensor: &Tensor| tensor.shape.iter().product::<usize>() as u64;
    let on_grid = found
        .tensors
        .iter()
        .filter(|tensor| tensor.on_grid.is_some());
    let report = Report {
        checkpoint: checkpoint.dir.display().to_string(),
        step: checkpoint.position.step,
        tokens: checkpoint.position.tokens,
        parameters: found.tensors.iter().map(elements).sum(),
        grid_weights: on_grid.map(elements).sum(),
        model_bytes: found.tensors.iter().map(|tensor| tensor.bytes).sum(),
        verified,
        config: checkpoint.config,
        grids: found.grids,
        tensors: found.tensors,
    };
    if args.json {
        output::json(&report)?
    } else {
        print(&report)?
    }
    Ok(ExitCode::SUCCESS)
}

/// Reads the complete training state, every code and ballot checked on the way.
fn verify(checkpoint: &Checkpoint) -> Result<Verified> {
    let mut model = Model::new(&checkpoint.config, checkpoint.position.vocab)?;
    checkpoint.load_training(&mut model)?;
    let (mut weights, mut optimizer) = (Collector::default(), Collector::default());
    model.visit(StatePart::Model, &mut weights);
    model.visit(StatePart::Optimizer, &mut optimizer);
    checkpoint.load_tokenizer()?;
    Ok(Verified {
        files: checkpoint.position.files.len(),
        tensors: weights.tensors.len() + optimizer.tensors.len(),
        optimizer_bytes: optimizer.tensors.iter().map(|tensor| tensor.bytes).sum(),
    })
}

fn print(report: &Report) -> Result<()> {
    output::line(format_args!("checkpoint    {}", report.checkpoint))?;
    output::line(format_args!(
        "step          {}, {} tokens",
        report.step, report.tokens
    ))?;
    output::line(format_args!(
        "parameters    {}, {} on a grid",
        report.parameters, report.grid_weights
    ))?;
    output::line(format_args!(
        "weight bytes  {}",
        output::bytes(report.model_bytes)
    ))?;
    if let Some(it) = &report.verified {
        let optimizer = output::bytes(it.optimizer_bytes);
        output::line(format_args!(
            "verified      {} files, {} tensors, optimizer state {optimizer}",
            it.files, it.tensors
        ))?;
    }
    output::line(format_args!(
        "\n{:<28} {:>14} {:>12} {:<10} {:>7} {:>10}",
        "tensor", "shape", "bytes", "grid", "zero %", "scale"
    ))?;
    for tensor in &report.tensors {
        let shape: Vec<_> = tensor.shape.iter().map(usize::to_string).collect();
        let grid = match &tensor.on_grid {
            Some(it) => format!(
                "{:<10} {:>7.2} {:>10.5}",
                it.grid,
                100.0 * it.zero_share,
                it.scale_mean
            ),
            None => "float32".to_string(),
        };
        let (name, shape) = (&tensor.name, shape.join("x"));
        output::line(format_args!(
            "{name:<28} {shape:>14} {:>12} {grid}",
            tensor.bytes
        ))?;
    }
    Ok(())
}

/// Notes every tensor of a model.
#[derive(Default)]
struct Collector {
    grids: BTreeMap<String, Vec<f32>>,
    tensors: Vec<Tensor>,
}

impl Collector {
    fn plain(&mut self, name: &str, shape: &[usize], bytes: usize) {
        let (name, shape) = (name.to_string(), shape.to_vec());
        self.tensors.push(Tensor {
            name,
            shape,
            bytes: bytes as u64,
            on_grid: None,
        });
    }
}

impl<'a> StateVisitor<'a> for Collector {
    fn quant(&mut self, name: &str, matrix: &'a QuantMatrix) {
        let grid: &Grid = matrix.grid();
        self.grids
            .entry(grid.id().to_string())
            .or_insert_with(|| grid.values().to_vec());
        let counts = matrix.code_histogram();
        let total: u64 = counts.iter().sum();
        let zeros = counts[usize::from(grid.zero_code())];
        let scales = matrix.scales();
        let on_grid = OnGrid {
            grid: grid.id().to_string(),
            group: matrix.group(),
            scale_min: scales.iter().copied().fold(f32::INFINITY, f32::min),
            scale_mean: scales.iter().sum::<f32>() / scales.len().max(1) as f32,
            scale_max: scales.iter().copied().fold(f32::NEG_INFINITY, f32::max),
            zero_share: zeros as f64 / total.max(1) as f64,
            counts,
        };
        self.tensors.push(Tensor {
            name: name.to_string(),
            shape: vec![matrix.rows(), matrix.cols()],
            bytes: matrix.bytes() as u64,
            on_grid: Some(on_grid),
        });
    }

    fn f32(&mut self, name: &str, shape: &[usize], values: &'a [f32]) {
        self.plain(name, shape, size_of_val(values));
    }

    fn i8(&mut self, name: &str, shape: &[usize], values: &'a [i8]) {
        self.plain(name, shape, size_of_val(values));
    }
}
