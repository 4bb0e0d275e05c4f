//! Generation on a GPU, here the stand-in, against the processor: logits, tokens, memory.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests")]

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::PoisonError;

use primal_kernels::{CacheKind, Isa};
use primal_model::ResidentModel;
use primal_model::checkpoint::Checkpoint;
use primal_model::config::{Backend, Compute};
use primal_model::ledger::Ledger;
use primal_model::sampling::{Sampling, TokenSampler};
use primal_model::train::Trainer;

use crate::cuda::{DEVICE, config, standin};

const CONTEXT: usize = 80;

/// Tokens of a text: one and a half contexts are read or written.
const TOKENS: usize = 120;

/// A model of ten steps.
fn trained(folder: &Path, changes: &[&str]) -> Checkpoint {
    let context = format!("model.context={CONTEXT}");
    let mut all = vec![context.as_str(), "train.steps=10", "train.eval_tokens=160"];
    all.extend(changes);
    let config = config(folder, "run", "cpu", &all);
    let run = config.train.run.clone();
    let mut trainer = Trainer::new(config).unwrap();
    trainer.run(&mut |_| ControlFlow::Continue(())).unwrap();
    Checkpoint::open(&run).unwrap()
}

const PROMPT: [u32; 10] = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3];

/// Writes greedily from a prompt; returns the tokens and the logits after each.
fn write(model: &ResidentModel, kind: CacheKind) -> (Vec<u32>, Vec<Vec<f32>>) {
    let greedy = Sampling {
        temperature: 0.0,
        ..Sampling::default()
    };
    let mut sampler = TokenSampler::new(greedy).unwrap();
    let isa = Isa::from_env().unwrap();
    let mut generator = model.generator(isa, kind).unwrap();
    let mut tokens = PROMPT.to_vec();
    let mut logits = vec![generator.feed(&tokens).unwrap().to_vec()];
    while tokens.len() < TOKENS {
        let known = logits[0].len();
        let token = generator.choose(&mut sampler, known, &tokens).unwrap();
        tokens.push(token);
        logits.push(generator.feed(&[token]).unwrap().to_vec());
    }
    (tokens, logits)
}

/// Writes from a prompt; copies no logits from a GPU.
fn sampled(model: &ResidentModel, sampling: Sampling, n_tokens: usize) -> Vec<u32> {
    let mut sampler = TokenSampler::new(sampling).unwrap();
    let isa = Isa::from_env().unwrap();
    let mut generator = model.generator(isa, CacheKind::F16).unwrap();
    let mut tokens = PROMPT.to_vec();
    generator.read(&tokens).unwrap();
    while tokens.len() < n_tokens {
        // A tokenizer may know less than the model has rows.
        let known = model.shape().vocab - 1;
        let token = generator.choose(&mut sampler, known, &tokens).unwrap();
        tokens.push(token);
        generator.read(&[token]).unwrap();
    }
    tokens
}

/// The models of a checkpoint on both, what they write, and the GPU's memory against its plan.
fn on_both(changes: &[&str], compute: Compute) -> [(Vec<u32>, Vec<Vec<f32>>); 2] {
    let _alone = DEVICE.lock().unwrap_or_else(PoisonError::into_inner);
    let standin = standin();
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = trained(folder.path(), changes);
    let kind = checkpoint.config.inference.kv_cache.into();
    standin.counts(0);
    let written = [Backend::Cpu, Backend::Cuda].map(|backend| {
        let model = ResidentModel::load(&checkpoint, backend, compute).unwrap();
        if let ResidentModel::Cuda(on_gpu) = &model {
            let _generator = model.generator(Isa::best(), kind).unwrap();
            let ledger = Ledger::for_gpu_inference(&checkpoint.config, model.shape());
            let gpu = on_gpu.gpu();
            assert_eq!(gpu.allocated_bytes, ledger.total(), "{changes:?}");
            let gaps = ledger.rows().iter();
            let gaps = gaps.filter(|row| row.what.starts_with("alignment"));
            let buffers = ledger.total() - gaps.map(|row| row.bytes).sum::<u64>();
            assert_eq!(standin.counts(0).used_bytes, buffers, "{changes:?}");
        }
        write(&model, kind)
    });
    let counts = standin.counts(0);
    println!(
        "{changes:?}: {} launches, {} M instructions, {} KiB copied for {TOKENS} tokens",
        counts.launches,
        counts.instructions / 1_000_000,
        counts.copied_bytes >> 10,
    );
    written
}

fn same_bits(changes: &[&str]) {
    let [want, got] = on_both(changes, Compute::Int8);
    assert_eq!(got.0, want.0, "tokens of {changes:?}");
    for (i, (got, want)) in got.1.iter().zip(&want.1).enumerate() {
        let bits = |logits: &[f32]| logits.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(got), bits(want), "logits {i} of {changes:?}");
    }
    let mut known = want.0.clone();
    known.sort_unstable();
    known.dedup();
    assert!(known.len() > 6, "the text is not one token: {:?}", want.0);
}

#[test]
fn a_gpt_writes_the_processors_text() {
    same_bits(&["model.fine_last_block=true"]);
}

#[test]
fn a_llama_writes_the_processors_text() {
    same_bits(&[
        "model.norm=rms",
        "model.position=rope",
        "model.feed_forward=swiglu",
        "model.n_kv_head=1",
        "model.tie_head=false",
    ]);
}

#[test]
fn scales_by_group_and_matrices_that_are_float() {
    same_bits(&["model.group=32", "model.ff_width=100"]);
    // A last bit of a float product decides how an activation rounds to int8.
    nearly_the_same(&["model.float_parts=attention"], Compute::Int8, 4e-3);
}

#[test]
fn other_caches_have_the_processors_bits() {
    same_bits(&["inference.kv_cache=int8"]);
    same_bits(&["inference.kv_cache=f32"]);
}

#[test]
fn products_in_float_are_near_the_processors() {
    nearly_the_same(&[], Compute::Float, 1e-3);
}

#[test]
fn texts_are_the_processors_with_any_options() {
    let _alone = DEVICE.lock().unwrap_or_else(PoisonError::into_inner);
    let standin = standin();
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = trained(folder.path(), &["model.n_layer=1"]);
    let load = |backend| ResidentModel::load(&checkpoint, backend, Compute::Int8).unwrap();
    let (cpu, gpu) = (load(Backend::Cpu), load(Backend::Cuda));
    let mut texts = BTreeSet::new();
    let n_tokens = 34;
    for (seed, (temperature, top_k, top_p, min_p, repeat_penalty)) in (1..).zip([
        (0.0, 0, 1.0, 0.0, 1.3),
        (0.8, 40, 0.95, 0.05, 1.0),
        (1.0, 0, 1.0, 0.0, 1.0),
        (1.5, 5, 1.0, 0.0, 1.1),
        (3.0, 0, 0.7, 0.0, 0.9),
        (0.7, 0, 1.0, 0.3, 2.0),
        (2.0, 12, 0.9, 0.02, 1.2),
    ]) {
        let sampling = Sampling {
            temperature,
            top_k,
            top_p,
            min_p,
            repeat_penalty,
            seed,
        };
        let want = sampled(&cpu, sampling, n_tokens);
        standin.counts(0);
        let got = sampled(&gpu, sampling, n_tokens);
        assert_eq!(got, want, "{sampling:?}");
        // Four bytes up and four down a token, and the recent tokens where they count.
        let counts = standin.counts(0);
        println!(
            "{sampling:?}: {} launches, {} M instructions",
            counts.launches,
            counts.instructions / 1_000_000
        );
        let written = (n_tokens - PROMPT.len()) as u64;
        let recent: u64 = (PROMPT.len() as u64..n_tokens as u64).map(|n| 4 * n).sum();
        let penalty = if repeat_penalty == 1.0 { 0 } else { recent };
        assert_eq!(
            counts.copied_bytes,
            4 * PROMPT.len() as u64 + 8 * written + penalty
        );
        texts.insert(want);
    }
    assert_eq!(texts.len(), 7);
}

#[test]
fn a_model_trained_in_float_has_room() {
    let _alone = DEVICE.lock().unwrap_or_else(PoisonError::into_inner);
    standin();
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = trained(folder.path(), &["model.n_layer=1", "optim.rule=adamw"]);
    let texts = [Backend::Cpu, Backend::Cuda].map(|backend| {
        let model = ResidentModel::load(&checkpoint, backend, Compute::Float).unwrap();
        let greedy = Sampling {
            temperature: 0.0,
            ..Sampling::default()
        };
        sampled(&model, greedy, 20)
    });
    assert_eq!(texts[0], texts[1]);
}

#[test]
fn a_choice_of_no_tokens_is_an_error() {
    let _alone = DEVICE.lock().unwrap_or_else(PoisonError::into_inner);
    standin();
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = trained(folder.path(), &["model.n_layer=1"]);
    let load = |backend| ResidentModel::load(&checkpoint, backend, Compute::Int8).unwrap();
    let messages = [Backend::Cpu, Backend::Cuda].map(|backend| {
        let model = load(backend);
        let mut generator = model.generator(Isa::best(), CacheKind::F16).unwrap();
        let mut sampler = TokenSampler::new(Sampling::default()).unwrap();
        generator.read(&PROMPT).unwrap();
        let error = generator.choose(&mut sampler, 0, &PROMPT).unwrap_err();
        error.to_string()
    });
    assert_eq!(messages[0], messages[1]);
    assert!(
        messages[0].contains("no token can be drawn"),
        "{messages:?}"
    );
}

fn nearly_the_same(changes: &[&str], compute: Compute, tolerance: f32) {
    let [want, got] = on_both(changes, compute);
    assert_eq!(got.0, want.0);
    for (got, want) in got.1.iter().flatten().zip(want.1.iter().flatten()) {
        assert!((got - want).abs() < tolerance, "{got} and {want}");
    }
}

#[test]
fn what_does_not_fit_is_said_or_left_to_the_processor() {
    let _alone = DEVICE.lock().unwrap_or_else(PoisonError::into_inner);
    let standin = standin();
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = trained(folder.path(), &[]);
    let load = |backend| ResidentModel::load(&checkpoint, backend, Compute::Int8);
    let free = load(Backend::Auto).unwrap();
    assert!(matches!(free, ResidentModel::Cuda(_)));
    drop(free);
    standin.inject(0, cuda_standin::Injection::Memory, 10_000);
    let refused = load(Backend::Cuda).err().unwrap().to_string();
    assert!(refused.contains("out of GPU memory"), "{refused}");
    assert!(matches!(
        load(Backend::Auto).unwrap(),
        ResidentModel::Cpu(_)
    ));
    standin.inject(0, cuda_standin::Injection::Memory, 11 << 30);
    assert_eq!(standin.counts(0).used_bytes, 0, "everything was freed");
}
