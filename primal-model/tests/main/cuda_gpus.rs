//! One model on several GPUs, here of the stand-in and its NCCL: the bits of one GPU, whatever their
//! number; resuming on another number of them; faults.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests")]

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::PoisonError;

use cuda_standin::{Injection, StandIn};
use primal_model::ModelError;
use primal_model::config::Config;
use primal_model::ledger::Ledger;
use primal_model::train::{Event, Summary, Trainer};

use crate::cuda::{self, DEVICE, DEVICES, standin};

/// A tiny run of one block, with 4 micro-batches of one sequence.
fn config(folder: &Path, run: &str, gpus: usize, changes: &[&str]) -> Config {
    let gpus = format!("train.gpus={gpus}");
    let mut all = vec![
        "model.n_layer=1",
        "train.steps=3",
        "train.batch=4",
        "train.micro_batches=4",
        "train.save_every=1",
        gpus.as_str(),
    ];
    all.extend(changes);
    cuda::config(folder, run, "cuda", &all)
}

fn run(mut trainer: Trainer) -> Summary {
    trainer.run(&mut |_| ControlFlow::Continue(())).unwrap()
}

/// Runs `test` with the devices to itself.
fn alone(test: impl FnOnce(&StandIn, &Path)) {
    let _alone = DEVICE.lock().unwrap_or_else(PoisonError::into_inner);
    let standin = standin();
    let folder = tempfile::tempdir().unwrap();
    test(standin, folder.path());
}

/// Trains on 1, 2 and 4 GPUs.
fn same_on_any_number(changes: &[&str]) {
    alone(|_, folder| {
        let train = |gpus| {
            let run_name = format!("{gpus}");
            run(Trainer::new(config(folder, &run_name, gpus, changes)).unwrap()).done
        };
        let one = train(1);
        for gpus in [2, 4] {
            let several = train(gpus);
            assert_eq!(several.state_hash, one.state_hash, "{gpus} GPUs");
            assert_eq!(several.val_loss, one.val_loss, "{gpus} GPUs");
        }
    });
}

#[test]
fn a_gpt_on_any_number_of_gpus() {
    same_on_any_number(&[
        "train.steps=2",
        "model.n_layer=2",
        "model.fine_last_block=true",
        "model.biases=true",
        // Micro-batches of 80 token rows: more than one block of the sums by column.
        "train.batch=20",
    ]);
}

#[test]
fn a_llama_on_any_number_of_gpus() {
    same_on_any_number(&[
        "train.steps=2",
        "train.recompute=1",
        "model.norm=rms",
        "model.position=rope",
        "model.feed_forward=swiglu",
        "model.n_kv_head=1",
        "model.tie_head=false",
    ]);
}

#[test]
fn another_number_of_gpus_goes_on_with_the_same_bits() {
    alone(|_, folder| {
        let whole = run(Trainer::new(config(folder, "whole", 1, &[])).unwrap()).done;
        let part = |gpus: usize, until: u32| {
            let config = config(folder, "elastic", gpus, &[]);
            let trainer = if until == 1 {
                Trainer::new(config)
            } else {
                Trainer::resume(config)
            };
            let on_event = &mut |event: Event<'_>| match event {
                Event::Step(row) if row.step == until => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            };
            trainer.unwrap().run(on_event).unwrap().done
        };
        part(4, 1);
        part(1, 2);
        let end = part(2, 3);
        assert_eq!(end.state_hash, whole.state_hash);
        assert_eq!(end.val_loss, whole.val_loss);
    });
}

#[test]
fn a_step_exchanges_votes_of_two_bytes_and_float_sums_alone() {
    alone(|standin, folder| {
        let config = config(folder, "run", 2, &["train.save_every=0"]);
        let mut trainer = Trainer::new(config).unwrap();
        let weights: u64 = trainer
            .model()
            .grid_matrices()
            .iter()
            .map(|(_, matrix)| (matrix.rows() * matrix.cols()).next_multiple_of(2) as u64)
            .sum();
        let ledger = trainer.ledger();
        let row = |ledger: &Ledger| {
            let mut rows = ledger.rows().iter();
            rows.find(|row| row.what == "exchange between GPUs")
                .map(|row| row.bytes)
        };
        // Those of both GPUs and of the rounds before.
        let sums = row(ledger).unwrap() / 3;
        standin.counts(1);
        let mut given = Vec::new();
        trainer
            .run(&mut |event| {
                if let Event::Step(row) = event {
                    given.push(standin.counts(1).given_bytes);
                    let exchange = row.exchange.unwrap();
                    // In a ring of two, as much as is given.
                    assert_eq!((exchange.ranks, exchange.sent_bytes), (2, given[0]));
                }
                ControlFlow::Continue(())
            })
            .unwrap();
        // Two rounds of two micro-batches.
        assert_eq!(given, [2 * weights + 2 * sums; 3]);
    });
}

/// A run on two GPUs that meets a fault in its third step: what it says, and that its last
/// checkpoint goes on to the bits of a run without one.
fn fails_in_the_third_step(prepare: impl Fn(&StandIn, u64) + Sync) -> String {
    let mut message = String::new();
    alone(|standin, folder| {
        let whole = run(Trainer::new(config(folder, "whole", 1, &[])).unwrap()).done;
        let mut trainer = Trainer::new(config(folder, "run", 2, &[])).unwrap();
        standin.counts(1);
        let error = trainer
            .run(&mut |event| {
                if let Event::Step(row) = event {
                    let launches = standin.counts(1).launches;
                    if row.step == 2 {
                        prepare(standin, launches);
                    }
                }
                ControlFlow::Continue(())
            })
            .unwrap_err();
        message = error.to_string();
        drop(trainer);
        standin.inject(1, Injection::FailLaunch, 0);
        standin.inject(1, Injection::FailCollective, 0);
        let resumed = run(Trainer::resume(config(folder, "run", 4, &[])).unwrap());
        assert_eq!(resumed.done.state_hash, whole.state_hash);
    });
    message
}

#[test]
fn a_kernel_that_crashes_on_one_gpu_spares_the_checkpoint() {
    let message = fails_in_the_third_step(|standin, launches| {
        standin.inject(1, Injection::FailLaunch, launches / 3);
    });
    assert!(
        message.contains("CUDA_ERROR_ILLEGAL_ADDRESS") && message.contains("injected"),
        "{message}"
    );
}

#[test]
fn a_gpu_that_is_lost_in_an_exchange_spares_the_checkpoint() {
    // Of sums in the first round, and of votes: six collectives of sums in two rounds come before.
    for nth in [2, 9] {
        let message = fails_in_the_third_step(|standin, _| {
            standin.inject(1, Injection::FailCollective, nth);
        });
        assert!(message.contains("NCCL call"), "{message}");
    }
}

#[test]
fn what_several_gpus_cannot_do_is_said() {
    alone(|standin, folder| {
        let start = |gpus, changes: &[&str]| -> Result<Trainer, ModelError> {
            Trainer::new(config(folder, "run", gpus, changes))
        };
        let says = |result: Result<Trainer, ModelError>, words: &[&str]| {
            let error = result.err().unwrap().to_string();
            for word in words {
                assert!(error.contains(word), "no '{word}' in: {error}");
            }
        };
        let eight = ["train.batch=8", "train.micro_batches=8"];
        says(start(8, &eight), &["8 GPUs", "finds 4", "--gpus 4"]);
        says(
            start(3, &[]),
            &["train.gpus = 3", "train.micro_batches = 4"],
        );
        says(start(2, &["train.backend=\"cpu\""]), &["--backend cuda"]);
        says(
            start(2, &["train.micro_batches_per_pass=2"]),
            &["train.micro_batches_per_pass"],
        );
        says(
            start(2, &["optim.rule=\"classic\""]),
            &["consensus", "--gpus 1"],
        );
        // Of two GPUs that one has too little memory.
        standin.inject(1, Injection::Memory, 100_000);
        says(start(2, &[]), &["out of GPU memory"]);
        standin.inject(1, Injection::Memory, 11 << 30);
        for gpu in 0..DEVICES {
            assert_eq!(standin.counts(gpu).used_bytes, 0, "everything was freed");
        }
        // Auto takes no processor where GPUs are asked for.
        let auto = [eight[0], eight[1], "train.backend=\"auto\""];
        says(start(8, &auto), &["8 GPUs"]);
    });
}
