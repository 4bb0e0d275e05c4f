//! Training on a GPU, here the stand-in, against the processor: votes, flips, losses, faults.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests")]

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::PoisonError;

use cuda_standin::Injection;
use primal_lut::{QuantMatrix, TensorFile};
use primal_model::checkpoint::Checkpoint;
use primal_model::config::Config;
use primal_model::metrics::StepRow;
use primal_model::train::{Event, Summary, Trainer};

use crate::cuda::{DEVICE, config, standin, steps};

/// Trains to the end.
fn finish(config: Config) -> Summary {
    run(Trainer::new(config).unwrap())
}

fn run(trainer: Trainer) -> Summary {
    watched(trainer, |_| ())
}

/// Trains to the end, and shows every step.
fn watched(mut trainer: Trainer, mut show: impl FnMut(&StepRow) + Send) -> Summary {
    let summary = trainer.run(&mut |event| {
        if let Event::Step(row) = event {
            show(row);
        }
        ControlFlow::Continue(())
    });
    summary.unwrap()
}

/// Matrices, and ballots, by name.
type Integers = (Vec<(String, QuantMatrix)>, Vec<(String, Vec<i8>)>);

/// Grid matrices and ballots of a run's newest checkpoint.
fn integers(run: &Path) -> Integers {
    let folder = Checkpoint::open(run).unwrap().dir;
    let model = TensorFile::open(&folder.join("model.safetensors")).unwrap();
    let optim = TensorFile::open(&folder.join("optim.safetensors")).unwrap();
    let names: Vec<String> = model.quant_names().map(String::from).collect();
    let matrices = names
        .iter()
        .map(|name| (name.clone(), model.quant(name).unwrap()));
    let matrices: Vec<_> = matrices.collect();
    let ballots = matrices.iter().map(|(name, matrix)| {
        let shape = [matrix.rows(), matrix.cols()];
        (
            name.clone(),
            optim.i8(&format!("{name}.ballot"), &shape).unwrap(),
        )
    });
    let ballots = ballots.collect();
    (matrices, ballots)
}

/// Trains on both, and compares codes, ballots, scales and losses.
fn same_on_both(changes: &[&str]) {
    let _alone = DEVICE.lock().unwrap_or_else(PoisonError::into_inner);
    let standin = standin();
    let folder = tempfile::tempdir().unwrap();
    let mut flips = 0.0;
    let cpu = Trainer::new(config(folder.path(), "cpu", "cpu", changes)).unwrap();
    let cpu = watched(cpu, |row| flips += row.flip_rate);
    assert!(flips > 0.0, "nothing moved that could differ");
    standin.counts(0);
    let gpu = finish(config(folder.path(), "gpu", "cuda", changes));
    let counts = standin.counts(0);
    println!(
        "{changes:?}: {} launches, {} M instructions, {} KiB copied, state equal: {}",
        counts.launches,
        counts.instructions / 1_000_000,
        counts.copied_bytes >> 10,
        cpu.done.state_hash == gpu.done.state_hash
    );
    let (want, got) = (
        integers(&folder.path().join("cpu")),
        integers(&folder.path().join("gpu")),
    );
    let (mut entries, mut ballots, mut codes) = (0, 0, 0);
    for ((_, want), (_, got)) in want.1.iter().zip(&got.1) {
        entries += want.len();
        ballots += want.iter().zip(got).filter(|(w, g)| w != g).count();
    }
    for ((name, want), (_, got)) in want.0.iter().zip(&got.0) {
        for row in 0..want.rows() {
            codes += (0..want.cols())
                .filter(|&col| want.code(row, col) != got.code(row, col))
                .count();
        }
        for (g, w) in got.scales().iter().zip(want.scales()) {
            assert!(
                (g - w).abs() <= 1e-4 * w.abs(),
                "scales of {name}: {g} and {w}"
            );
        }
    }
    println!("{ballots} ballots and {codes} codes of {entries} differ");
    // Casting and counting give the same integers from the same gradient. Gradients differ in
    // the last bit where the processor's product of a small shape adds in another order, and
    // one such bit in 65536 decides a vote.
    assert!(
        1000 * ballots <= entries && 1000 * codes <= entries,
        "{ballots} ballots and {codes} codes of {entries} differ"
    );
    let difference = (cpu.done.val_loss - gpu.done.val_loss).abs();
    assert!(
        difference < 1e-5,
        "{} and {}",
        cpu.done.val_loss,
        gpu.done.val_loss
    );
}

#[test]
fn steps_of_a_gpt() {
    same_on_both(&[&steps(6, 20)]);
}

#[test]
fn steps_in_float() {
    same_on_both(&[&steps(6, 20), "train.compute=float"]);
}

#[test]
fn micro_batches_summed_wide_and_recomputation() {
    same_on_both(&[
        &steps(4, 6),
        "train.batch=2",
        "train.micro_batches=2",
        "train.recompute=1",
        "model.fine_last_block=true",
    ]);
}

#[test]
fn two_micro_batches_in_a_pass_and_a_head_of_its_own() {
    same_on_both(&[
        &steps(3, 4),
        "train.micro_batches=4",
        "train.micro_batches_per_pass=2",
        "model.tie_head=false",
        "model.biases=false",
    ]);
}

#[test]
fn a_llama() {
    same_on_both(&[
        &steps(4, 5),
        "train.batch=2",
        "model.norm=rms",
        "model.position=rope",
        "model.feed_forward=swiglu",
        "model.n_kv_head=1",
    ]);
}

/// A run on the GPU that saves every three steps and meets a fault in the tenth; returns what
/// was said.
fn fails_after_saving(prepare: impl FnOnce(&cuda_standin::StandIn, u64) + Send) -> String {
    let _alone = DEVICE.lock().unwrap_or_else(PoisonError::into_inner);
    let standin = standin();
    let folder = tempfile::tempdir().unwrap();
    let changes = ["train.save_every=3"];
    let mut prepare = Some(prepare);
    let mut trainer = Trainer::new(config(folder.path(), "run", "cuda", &changes)).unwrap();
    standin.counts(0);
    let error = trainer
        .run(&mut |event| {
            if let Event::Step(row) = event {
                let launches = standin.counts(0).launches;
                if row.step == 9
                    && let Some(prepare) = prepare.take()
                {
                    prepare(standin, launches);
                }
            }
            ControlFlow::Continue(())
        })
        .unwrap_err();
    drop(trainer);
    standin.inject(0, Injection::FailLaunch, 0);
    // What was saved is whole: the run goes on from there, on the processor.
    let summary = run(Trainer::resume(config(folder.path(), "run", "cpu", &changes)).unwrap());
    assert_eq!(summary.done.steps, 20);
    let whole = finish(config(folder.path(), "whole", "cpu", &changes));
    assert!((whole.done.val_loss - summary.done.val_loss).abs() < 1e-5);
    error.to_string()
}

#[test]
fn a_kernel_that_crashes_ends_the_run_and_spares_the_checkpoint() {
    let message = fails_after_saving(|standin, launches| {
        standin.inject(0, Injection::FailLaunch, launches / 2);
    });
    assert!(
        message.contains("CUDA_ERROR_ILLEGAL_ADDRESS") && message.contains("injected"),
        "{message}"
    );
}

#[test]
fn too_little_memory_is_said_before_the_run_and_within_it() {
    let _alone = DEVICE.lock().unwrap_or_else(PoisonError::into_inner);
    let standin = standin();
    let folder = tempfile::tempdir().unwrap();
    let start = |changes: &[&str]| Trainer::new(config(folder.path(), "run", "cuda", changes));
    standin.inject(0, Injection::Memory, 100_000);
    let error = start(&[]).err().unwrap().to_string();
    assert!(
        error.contains("out of GPU memory") && error.contains("hint: a smaller --batch"),
        "{error}"
    );
    standin.inject(0, Injection::Memory, 11 << 30);
    standin.inject(0, Injection::FailAllocation, 30);
    let error = start(&[]).err().unwrap().to_string();
    assert!(error.contains("out of GPU memory"), "{error}");
    assert!(start(&["model.group=16"]).is_err());
    assert_eq!(standin.counts(0).used_bytes, 0, "everything was freed");
}
