//! Float parts and the other rules on a GPU, here the stand-in, against the processor.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests")]

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::PoisonError;

use primal_lut::{QuantMatrix, TensorFile};
use primal_model::checkpoint::Checkpoint;
use primal_model::config::{Backend, Config, Rule};
use primal_model::train::{Event, Summary, Trainer};

use crate::cuda::{DEVICE, config, standin};

/// Trains to the end; also returns the flips of each step as fractions.
fn finish(config: Config) -> (Summary, Vec<f64>) {
    let mut flip_rates = Vec::new();
    let summary = Trainer::new(config).unwrap().run(&mut |event| {
        if let Event::Step(row) = event {
            flip_rates.push(row.flip_rate);
        }
        ControlFlow::Continue(())
    });
    (summary.unwrap(), flip_rates)
}

/// How two states differ.
#[derive(Debug, Default)]
struct Difference {
    codes: usize,
    weights_on_grid: usize,
    ballots: usize,
    /// The largest of a float tensor's differences, in parts of its largest value, and whose.
    floats: (f32, String),
}

/// The newest checkpoints of two runs.
fn compare(want: &Path, got: &Path) -> Difference {
    let open = |run: &Path, file: &str| {
        TensorFile::open(&Checkpoint::open(run).unwrap().dir.join(file)).unwrap()
    };
    let mut difference = Difference::default();
    for file in ["model.safetensors", "optim.safetensors"] {
        let (want, got) = (open(want, file), open(got, file));
        let names: Vec<&str> = want.names().collect();
        assert_eq!(names, got.names().collect::<Vec<_>>(), "{file}");
        for name in want.quant_names() {
            let codes = |matrix: QuantMatrix| {
                let mut codes = vec![0; matrix.rows() * matrix.cols()];
                for (row, codes) in codes.chunks_exact_mut(matrix.cols()).enumerate() {
                    matrix.row_codes(row, codes);
                }
                codes
            };
            let (want, got) = (
                codes(want.quant(name).unwrap()),
                codes(got.quant(name).unwrap()),
            );
            difference.weights_on_grid += want.len();
            difference.codes += want.iter().zip(&got).filter(|(w, g)| w != g).count();
        }
        for name in names {
            let shape = want.shape(name).unwrap();
            if let Ok(want) = want.i8(name, shape) {
                let got = got.i8(name, shape).unwrap();
                difference.ballots += want.iter().zip(&got).filter(|(w, g)| w != g).count();
            }
            let Ok(want) = want.f32(name, shape) else {
                continue;
            };
            let got = got.f32(name, shape).unwrap();
            let largest = want
                .iter()
                .fold(f32::MIN_POSITIVE, |most, w| most.max(w.abs()));
            let off = want.iter().zip(&got).map(|(w, g)| (w - g).abs());
            let off = off.fold(0.0, f32::max) / largest;
            assert!(off.is_finite(), "{name}");
            if off > difference.floats.0 {
                difference.floats = (off, name.to_string());
            }
        }
    }
    difference
}

/// Largest difference of a float tensor in parts of its largest value. Products of small shapes add
/// in another order on the processor, which changes last bits.
const FLOAT: f32 = 1e-4;

/// The same where products are in int8: a last bit that decides how a number is rounded to eight
/// bits is worth up to a 254th of it.
const INT8: f32 = 3e-2;

/// Trains on both, six steps unless changed. Codes and ballots may differ in a thousandth, float
/// tensors by `tolerance`.
fn same_on_both(changes: &[&str], tolerance: f32) -> Vec<f64> {
    let _alone = DEVICE.lock().unwrap_or_else(PoisonError::into_inner);
    standin();
    let folder = tempfile::tempdir().unwrap();
    let changes = [&["train.steps=6", "train.batch=2"], changes].concat();
    let (cpu, cpu_flips) = finish(config(folder.path(), "cpu", "cpu", &changes));
    let (gpu, gpu_flips) = finish(config(folder.path(), "gpu", "cuda", &changes));
    let difference = compare(&folder.path().join("cpu"), &folder.path().join("gpu"));
    println!("{changes:?}: {difference:?}");
    let Difference {
        codes,
        ballots,
        weights_on_grid,
        floats: (off, name),
    } = difference;
    assert!(
        1000 * codes <= weights_on_grid && 1000 * ballots <= weights_on_grid,
        "{codes} codes and {ballots} ballots of {weights_on_grid} differ"
    );
    assert!(off <= tolerance, "{name} differs by {off:e}");
    for (cpu, gpu) in cpu_flips.iter().zip(&gpu_flips) {
        assert!((cpu - gpu).abs() <= 1e-3, "{cpu_flips:?} and {gpu_flips:?}");
    }
    let (cpu, gpu) = (cpu.done.val_loss, gpu.done.val_loss);
    assert!((cpu - gpu).abs() < 1e-5, "{cpu} and {gpu}");
    gpu_flips
}

#[test]
fn everything_float_under_adamw() {
    let flips = same_on_both(&["optim.rule=adamw", "model.tie_head=true"], FLOAT);
    assert_eq!(flips, [0.0; 6]);
}

#[test]
fn a_llama_under_adamw_in_micro_batches() {
    let changes = [
        "optim.rule=adamw",
        "train.steps=4",
        "train.batch=4",
        "train.micro_batches=4",
        "train.micro_batches_per_pass=2",
        "train.recompute=1",
        "model.norm=rms",
        "model.position=rope",
        "model.feed_forward=swiglu",
        "model.n_kv_head=1",
    ];
    same_on_both(&changes, FLOAT);
}

#[test]
fn float_parts_beside_matrices_on_the_grid() {
    let changes = [
        "model.float_parts=[\"embeddings\", \"attention\"]",
        "train.micro_batches=2",
    ];
    let flips = same_on_both(&changes, INT8);
    assert!(flips.iter().any(|&rate| rate > 0.0));
    let changes = [
        "model.float_parts=[\"mlp\", \"head\"]",
        "model.tie_head=false",
        "train.compute=float",
    ];
    same_on_both(&changes, FLOAT);
}

#[test]
fn codes_that_stay() {
    let changes = ["optim.rule=frozen", "model.fine_last_block=true"];
    assert_eq!(same_on_both(&changes, INT8), [0.0; 6]);
    let in_float = [&changes[..], &["train.compute=float"]].concat();
    same_on_both(&in_float, FLOAT);
}

#[test]
fn codes_that_follow_float_values() {
    let changes = [
        "optim.rule=shadow",
        "train.compute=float",
        "model.fine_last_block=true",
        "model.float_parts=attention",
    ];
    let flips = same_on_both(&changes, FLOAT);
    assert!(flips.iter().all(|&rate| rate > 0.0));
}

#[test]
fn the_original_rule() {
    let changes = [
        "optim.rule=classic",
        "optim.classic_probability=0.02",
        "model.fine_last_block=true",
        "train.micro_batches=2",
    ];
    let flips = same_on_both(&changes, INT8);
    assert!(flips.iter().all(|&rate| rate > 0.0));
}

#[test]
fn only_some_blocks_learn() {
    let changes = ["train.only_blocks=[1]", "model.float_parts=attention"];
    let flips = same_on_both(&changes, INT8);
    assert!(flips.iter().any(|&rate| rate > 0.0));
    let changes = ["train.only_blocks=[0]", "optim.rule=adamw", "train.steps=3"];
    same_on_both(&changes, FLOAT);
}

/// The rules that a GPU has kernels for.
fn gpu_rules() -> impl Iterator<Item = Rule> {
    let all = Rule::ALL.iter().copied();
    all.filter(|rule| Backend::Cuda.trains(*rule))
}

/// A run that was stopped and resumed on the GPU has every bit of one that was not.
#[test]
fn resuming_changes_no_bit() {
    let _alone = DEVICE.lock().unwrap_or_else(PoisonError::into_inner);
    standin();
    let folder = tempfile::tempdir().unwrap();
    for rule in gpu_rules() {
        let rule = format!("optim.rule={rule}");
        let changes = [
            "train.steps=2",
            "train.batch=2",
            "train.micro_batches=2",
            "model.n_layer=1",
            "model.float_parts=attention",
            &rule,
        ];
        let start = |name: &str| config(folder.path(), &format!("{rule}-{name}"), "cuda", &changes);
        let (whole, _) = finish(start("whole"));
        let stopped = Trainer::new(start("cut"))
            .unwrap()
            .run(&mut |event| match event {
                Event::Step(row) if row.step == 1 => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            });
        assert!(stopped.unwrap().interrupted);
        let mut resumed = Trainer::resume(start("cut")).unwrap();
        let resumed = resumed.run(&mut |_| ControlFlow::Continue(())).unwrap();
        assert_eq!(whole.done.state_hash, resumed.done.state_hash, "{rule}");
        assert_eq!(whole.done.val_loss, resumed.done.val_loss, "{rule}");
    }
}

/// After a step that is far too large, all others are skipped and leave nothing behind.
#[test]
fn what_is_not_finite_is_skipped() {
    let _alone = DEVICE.lock().unwrap_or_else(PoisonError::into_inner);
    standin();
    let folder = tempfile::tempdir().unwrap();
    for rule in gpu_rules() {
        let rule = format!("optim.rule={rule}");
        let runs = ["cpu", "cuda"].map(|backend| {
            let run = format!("{rule}-{backend}");
            let changes = ["optim.lr=1e30", "train.batch=1", &rule];
            let config = config(folder.path(), &run, backend, &changes);
            let mut made = 0;
            let summary = Trainer::new(config).unwrap().run(&mut |event| match event {
                Event::Skipped { total: 2, .. } => ControlFlow::Break(()),
                Event::Step(_) => {
                    made += 1;
                    ControlFlow::Continue(())
                }
                _ => ControlFlow::Continue(()),
            });
            assert_eq!((made, summary.unwrap().skipped_steps), (1, 2), "{run}");
            folder.path().join(run)
        });
        let difference = compare(&runs[0], &runs[1]);
        assert!(difference.floats.0 <= INT8, "{rule}: {difference:?}");
        assert_eq!((difference.codes, difference.ballots), (0, 0), "{rule}");
    }
}
