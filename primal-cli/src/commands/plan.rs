//! `primal plan`: every buffer of a run, before it is made.

use std::process::ExitCode;
use std::thread::available_parallelism;

use anyhow::Result;
use primal_model::ModelShape;
use primal_model::config::{Backend, Config};
use primal_model::data::Documents;
use primal_model::ledger::Ledger;
use primal_model::tokenizer::Tokenizer;
use serde::Serialize;

use crate::args::PlanArgs;
use crate::commands::train::{cut_batch, override_with};
use crate::commands::{apply_overrides, base_config, fit_rule_to};
use crate::output;
use crate::progress::note;

/// Stands in for a character vocabulary whose text is not given.
const ASSUMED_CHARACTERS: usize = 128;

#[derive(Serialize)]
struct Plan {
    /// GPUs that train, each of which has the memory of the ledger; absent without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    gpus: Option<usize>,
    training: Ledger,
    inference: Ledger,
}

/// Prints the ledgers of training and of inference.
pub fn run(args: &PlanArgs) -> Result<ExitCode> {
    let mut config = base_config(&args.base)?;
    if args.base.config.is_none() {
        fit_rule_to(&mut config, args.backend, args.gpus);
    }
    cut_batch(&mut config.train, args.batch, args.micro_batches);
    if let Some(budget) = args.memory_budget {
        config.train.memory_budget_mib = budget;
    }
    override_with(&mut config.train.backend, &args.backend);
    override_with(&mut config.train.gpus, &args.gpus);
    apply_overrides(&args.set, |assignment| config.set(assignment))?;
    config.validate()?;
    let shape = ModelShape::new(&config, vocabulary(&config)?)?;
    let threads = match config.train.threads {
        0 => available_parallelism().map_or(1, usize::from),
        threads => threads,
    };
    let gpus = config.train.gpus;
    let plan = if config.train.backend == Backend::Cuda || gpus > 1 {
        // A GPU's memory is known without a GPU.
        Plan {
            gpus: Some(gpus),
            training: Ledger::for_gpu_training(&config, &shape),
            inference: Ledger::for_gpu_inference(&config, &shape),
        }
    } else {
        Plan {
            gpus: None,
            training: Ledger::within_budget(&mut config, &shape, threads, None)?,
            inference: Ledger::for_inference(&config, &shape, threads),
        }
    };
    if args.json {
        output::json(&plan)?;
        return Ok(ExitCode::SUCCESS);
    }
    output::line(format_args!(
        "{} weights in matrices, {threads} threads",
        shape.matrix_weights()
    ))?;
    let each = if gpus > 1 {
        format!(", each of {gpus} GPUs")
    } else {
        String::new()
    };
    print_ledger(&format!("training{each}"), &plan.training)?;
    print_ledger("inference", &plan.inference)?;
    Ok(ExitCode::SUCCESS)
}

/// Tokens that the model will know, without reading more than is needed to know it.
fn vocabulary(config: &Config) -> Result<usize> {
    let spec = config.data.tokenizer.as_str();
    if spec != "chars" {
        return Ok(Tokenizer::from_spec(spec, [])?.vocab_size());
    }
    if config.data.train.is_empty() {
        if config.model.vocab_size == 0 {
            note(format_args!(
                "no text given: a vocabulary of {ASSUMED_CHARACTERS} characters is assumed"
            ));
            return Ok(ASSUMED_CHARACTERS);
        }
        return Ok(config.model.vocab_size);
    }
    let paths: Vec<_> = config
        .data
        .train
        .iter()
        .chain(&config.data.val)
        .cloned()
        .collect();
    let documents = Documents::read(&paths, &config.data.text_key)?;
    Ok(Tokenizer::from_spec(spec, [documents.text()])?.vocab_size())
}

fn print_ledger(title: &str, ledger: &Ledger) -> Result<()> {
    output::line(format_args!("\n{title}"))?;
    let total = ("total", ledger.total());
    for (what, count) in ledger
        .rows()
        .iter()
        .map(|row| (row.what.as_str(), row.bytes))
        .chain([total])
    {
        output::line(format_args!(
            "  {what:<50} {:>12} {count:>16}",
            output::bytes(count)
        ))?;
    }
    Ok(())
}
