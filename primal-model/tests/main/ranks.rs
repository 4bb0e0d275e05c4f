//! Runs spread over ranks, here threads: the bits of a single process, whatever the cut.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests")]

use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use primal_model::ModelError;
use primal_model::config::{Config, Rule};
use primal_model::parallel::Exchange;
use primal_model::parallel::in_process::InProcess;
use primal_model::train::{Event, Poison, Summary, Trainer};

const LONG: Duration = Duration::from_secs(60);

/// A folder with a text.
fn workplace() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let lines: String = (0..400)
        .map(|i| format!("line {i}: the square of {i} is {}.\n", i * i))
        .collect();
    std::fs::write(folder.path().join("text.txt"), lines).unwrap();
    folder
}

fn config(folder: &Path, run: &str, changes: &[&str]) -> Config {
    let mut config = Config::preset("shakespeare-char").unwrap();
    config.data.train = vec![folder.join("text.txt")];
    config.train.run = folder.join(run);
    let tiny = [
        "model.width=32",
        "model.n_layer=2",
        "model.n_head=2",
        "model.context=16",
        "model.biases=true",
        "train.threads=1",
        "train.steps=10",
        "train.batch=12",
        "train.micro_batches=6",
        "train.eval_every=0",
        "train.save_every=4",
        "train.eval_tokens=256",
        "train.compare_ranks_every=3",
        "optim.warmup_steps=4",
    ];
    for change in tiny.iter().chain(changes) {
        config.set(change).unwrap();
    }
    config
}

/// Runs `config` on `ranks` ranks; what each of them says. `prepare` returns the step after which
/// the rank asks to stop.
fn on_ranks(
    ranks: usize,
    timeout: Duration,
    resume: bool,
    config: impl Fn(usize) -> Config + Sync,
    prepare: impl Fn(usize, &mut Trainer) -> Option<u32> + Sync,
) -> Vec<Result<Summary, ModelError>> {
    let (config, prepare) = (&config, &prepare);
    std::thread::scope(|scope| {
        let rank = |exchange: InProcess| {
            scope.spawn(move || {
                let rank = exchange.rank();
                let exchange = Box::new(exchange);
                let trainer = if resume {
                    Trainer::resume(config(rank))?
                } else {
                    Trainer::new(config(rank))?
                };
                let mut trainer = trainer.spread(exchange)?;
                let stop_at = prepare(rank, &mut trainer);
                trainer.run(&mut |event| match event {
                    Event::Step(row) if Some(row.step) == stop_at => ControlFlow::Break(()),
                    _ => ControlFlow::Continue(()),
                })
            })
        };
        let threads: Vec<_> = InProcess::ranks(ranks, timeout)
            .into_iter()
            .map(rank)
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    })
}

fn alone(config: Config) -> Summary {
    let run = &mut |_: Event<'_>| ControlFlow::Continue(());
    Trainer::new(config).unwrap().run(run).unwrap()
}

#[test]
fn ranks_and_threads_change_no_bit() {
    let folder = workplace();
    for rule in Rule::ALL {
        let rule = format!("optim.rule={rule}");
        let whole = alone(config(folder.path(), &format!("{rule}-alone"), &[&rule]));
        for ranks in [1, 2, 4] {
            for threads in ["train.threads=1", "train.threads=2"] {
                let run = format!("{rule}-{ranks}-{threads}");
                let changes = [rule.as_str(), threads];
                let ended = on_ranks(
                    ranks,
                    LONG,
                    false,
                    |_| config(folder.path(), &run, &changes),
                    |_, _| None,
                );
                for summary in ended {
                    let summary = summary.unwrap();
                    assert_eq!(summary.done.state_hash, whole.done.state_hash, "{run}");
                    assert_eq!(summary.done.val_loss, whole.done.val_loss, "{run}");
                }
            }
        }
    }
}

#[test]
fn recomputation_on_ranks_changes_no_bit() {
    let folder = workplace();
    let changes = ["train.recompute=1"];
    let whole = alone(config(folder.path(), "alone", &[]));
    let config = |_| config(folder.path(), "ranks", &changes);
    for summary in on_ranks(2, LONG, false, config, |_, _| None) {
        assert_eq!(summary.unwrap().done.state_hash, whole.done.state_hash);
    }
}

#[test]
fn a_run_of_two_ranks_goes_on_with_four_and_ends_alone() {
    let folder = workplace();
    let whole = alone(config(folder.path(), "whole", &[]));
    // The wish of any rank stops all of them, one step later.
    for (ranks, resume, stop_at) in [(2, false, 3), (4, true, 6)] {
        let stopped = on_ranks(
            ranks,
            LONG,
            resume,
            |_| config(folder.path(), "elastic", &[]),
            |rank, _| (rank == ranks - 1).then_some(stop_at),
        );
        for summary in stopped {
            let summary = summary.unwrap();
            assert!(summary.interrupted && summary.done.steps == stop_at + 1);
        }
    }
    let mut trainer = Trainer::resume(config(folder.path(), "elastic", &[])).unwrap();
    let end = trainer.run(&mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(end.done.state_hash, whole.done.state_hash);
    assert_eq!(end.done.val_loss, whole.done.val_loss);
}

#[test]
fn a_number_that_is_not_finite_on_one_rank_skips_the_step_on_all() {
    let folder = workplace();
    let ended = on_ranks(
        2,
        LONG,
        false,
        |_| config(folder.path(), "poisoned", &[]),
        |rank, trainer| {
            if rank == 1 {
                trainer.poison_at(5, Poison::Gradient);
            }
            None
        },
    );
    for summary in ended {
        assert_eq!(summary.unwrap().skipped_steps, 1);
    }
}

#[test]
fn a_rank_that_dies_or_hangs_is_named() {
    let mut exchanges = InProcess::ranks(3, Duration::from_millis(300)).into_iter();
    let [mut first, mut second, third] = [(); 3].map(|()| exchanges.next().unwrap());
    let (one, two) = std::thread::scope(|scope| {
        let one = scope.spawn(|| first.receive(2));
        let two = scope.spawn(|| second.receive(2));
        (one.join().unwrap(), two.join().unwrap())
    });
    for result in [one, two] {
        let error = result.unwrap_err().to_string();
        assert!(error.contains("rank 2 did not come within 0 s"), "{error}");
    }
    drop(third);

    // A rank that ends is noticed at once.
    let mut exchanges = InProcess::ranks(2, LONG).into_iter();
    let mut first = exchanges.next().unwrap();
    drop(exchanges);
    let started = Instant::now();
    let error = first.receive(1).unwrap_err().to_string();
    assert!(error.contains("rank 1 did not come"), "{error}");
    assert!(started.elapsed() < LONG / 2);
}

#[test]
fn ranks_that_differ_are_named_before_anything_is_saved() {
    let folder = workplace();
    let ended = on_ranks(
        4,
        LONG,
        false,
        |rank| {
            let seed = if rank == 2 {
                "train.seed=5"
            } else {
                "train.seed=1"
            };
            config(folder.path(), "other", &[seed])
        },
        |_, _| None,
    );
    for summary in ended {
        let error = summary.unwrap_err().to_string();
        assert!(
            error.contains("rank 2 has another configuration"),
            "{error}"
        );
    }
    assert!(!folder.path().join("other").exists());

    let too_many = on_ranks(
        7,
        LONG,
        false,
        |_| config(folder.path(), "many", &[]),
        |_, _| None,
    );
    let error = too_many[0].as_ref().unwrap_err().to_string();
    assert!(
        error.contains("6 micro-batches") && error.contains("7 ranks"),
        "{error}"
    );
}
