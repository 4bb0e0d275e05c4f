//! Whole training runs, tiny: what must hold for every one of them.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests")]

use std::ops::ControlFlow;
use std::path::Path;

use primal_model::ModelError;
use primal_model::config::{Config, Rule};
use primal_model::train::{Event, Poison, Summary, Trainer};

/// A text with structure, long enough for a few windows.
fn corpus(folder: &Path) -> std::path::PathBuf {
    let path = folder.join("text.txt");
    let text: String = (0..400)
        .map(|i| format!("line {i}: the square of {i} is {}.\n", i * i))
        .collect();
    std::fs::write(&path, text).unwrap();
    path
}

fn config(folder: &Path, run: &str, changes: &[&str]) -> Config {
    let mut config = Config::preset("shakespeare-char").unwrap();
    config.data.train = vec![corpus(folder)];
    config.train.run = folder.join(run);
    let tiny = [
        "model.width=32",
        "model.n_layer=2",
        "model.n_head=2",
        "model.context=16",
        "train.steps=12",
        "train.batch=8",
        "train.eval_every=0",
        "train.save_every=0",
        "train.eval_tokens=256",
        "optim.warmup_steps=4",
    ];
    for change in tiny.iter().chain(changes) {
        config.set(change).unwrap();
    }
    config
}

fn finish(config: Config) -> Summary {
    Trainer::new(config)
        .unwrap()
        .run(&mut |_| ControlFlow::Continue(()))
        .unwrap()
}

/// What makes a Llama of the tiny GPT.
const LLAMA: [&str; 4] = [
    "model.norm=rms",
    "model.position=rope",
    "model.feed_forward=swiglu",
    "model.n_kv_head=1",
];

#[test]
fn threads_passes_and_recomputation_change_no_bit() {
    let folder = tempfile::tempdir().unwrap();
    let kinds = Rule::ALL.iter().map(|&rule| (rule, &[][..]));
    for (rule, kind) in kinds.chain([(Rule::Spectral, &LLAMA[..]), (Rule::Adamw, &LLAMA)]) {
        for cut in ["train.micro_batches=1", "train.micro_batches=8"] {
            let hash = |name: &str, changes: &[&str]| {
                let name = format!("{name}-{}", kind.len());
                let rule = format!("optim.rule={rule}");
                let mut all = vec![rule.as_str(), cut, "model.fine_last_block=true"];
                all.extend(kind);
                all.extend(changes);
                let run = format!("{rule}-{cut}-{name}");
                finish(config(folder.path(), &run, &all)).done.state_hash
            };
            let plain = hash("plain", &["train.threads=1"]);
            assert_eq!(plain, hash("threads", &["train.threads=2"]), "{rule} {cut}");
            assert_eq!(
                plain,
                hash("recompute", &["train.recompute=1"]),
                "{rule} {cut}"
            );
            if cut.ends_with('8') {
                for passes in ["2", "8"] {
                    let key = format!("train.micro_batches_per_pass={passes}");
                    assert_eq!(plain, hash(&key, &[&key]), "{rule} {cut} {key}");
                }
            }
        }
    }
}

/// 2048 token rows are computed in parts of 1536 and 512.
#[test]
fn parts_of_a_micro_batch_change_no_bit() {
    let folder = tempfile::tempdir().unwrap();
    for compute in ["int8", "float"] {
        let hash = |recompute: &str| {
            let compute_key = format!("train.compute=\"{compute}\"");
            let changes = [
                "train.batch=128",
                "train.micro_batches=1",
                "train.steps=3",
                &compute_key,
                recompute,
            ];
            let run = format!("{compute}-{recompute}");
            finish(config(folder.path(), &run, &changes))
                .done
                .state_hash
        };
        let whole = hash("train.recompute=0");
        assert_eq!(whole, hash("train.recompute=1"), "{compute}");
        assert_eq!(whole, hash("train.recompute=2"), "{compute}");
    }
}

#[test]
fn a_stopped_run_resumes_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    for rule in Rule::ALL {
        let rule = format!("optim.rule={rule}");
        let build = |run: &str, more: &str| {
            let mut changes = vec![rule.as_str(), more, "train.micro_batches=2"];
            // The rules do not know the architecture: one of each kind is enough.
            if rule.ends_with("spectral") {
                changes.extend(LLAMA);
            }
            config(folder.path(), &format!("{rule}-{run}"), &changes)
        };
        let whole = finish(build("whole", "train.threads=1"));
        let mut trainer = Trainer::new(build("stopped", "train.threads=1")).unwrap();
        let stopped = trainer
            .run(&mut |event| match event {
                Event::Step(row) if row.step == 5 => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            })
            .unwrap();
        assert!(stopped.interrupted && stopped.done.steps == 5);
        let resumed = Trainer::resume(build("stopped", "train.threads=2"))
            .unwrap()
            .run(&mut |_| ControlFlow::Continue(()))
            .unwrap();
        assert_eq!(whole.done.state_hash, resumed.done.state_hash, "{rule}");
        assert_eq!(whole.done.val_loss, resumed.done.val_loss, "{rule}");

        let other = build("stopped", "model.init_std=0.1");
        assert!(matches!(
            Trainer::resume(other),
            Err(ModelError::ConfigChanged { .. })
        ));
    }
    let again = config(folder.path(), "optim.rule=spectral-whole", &[]);
    assert!(matches!(Trainer::new(again), Err(ModelError::RunExists(_))));
}

#[test]
fn a_number_that_is_not_finite_skips_the_step_and_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    for cut in ["train.micro_batches=1", "train.micro_batches=2"] {
        for poison in [Poison::Gradient, Poison::Loss] {
            let run = format!("{cut}-{poison:?}");
            let mut trainer = Trainer::new(config(folder.path(), &run, &[cut])).unwrap();
            trainer.poison_at(6, poison);
            let mut skipped = Vec::new();
            let summary = trainer
                .run(&mut |event| {
                    if let Event::Skipped { step, total } = event {
                        skipped.push((step, total));
                    }
                    ControlFlow::Continue(())
                })
                .unwrap();
            assert_eq!(skipped, [(7, 1)]);
            assert_eq!(summary.skipped_steps, 1);
            assert!(summary.done.val_loss.is_finite() && summary.done.skipped_steps == 1);
            let metrics =
                std::fs::read_to_string(folder.path().join(run).join("metrics.jsonl")).unwrap();
            assert!(metrics.contains("skipped"), "{metrics}");
        }
    }
}

#[test]
fn a_run_that_is_never_finite_again_ends_with_its_checkpoints() {
    let folder = tempfile::tempdir().unwrap();
    let changes = ["train.steps=60", "train.save_every=5"];
    let mut trainer = Trainer::new(config(folder.path(), "diverged", &changes)).unwrap();
    trainer.poison_at(12, Poison::EveryLoss);
    let error = trainer
        .run(&mut |_| ControlFlow::Continue(()))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("25 steps") && error.contains("hint:"),
        "{error}"
    );
    let resumed = Trainer::resume(config(folder.path(), "diverged", &changes)).unwrap();
    assert!(resumed.state_hash().len() == 64);
}

#[test]
fn a_run_that_will_not_fit_is_refused_before_it_takes_anything() {
    let folder = tempfile::tempdir().unwrap();
    let huge = ["model.width=65536", "model.n_layer=200"];
    match Trainer::new(config(folder.path(), "huge", &huge)) {
        Err(ModelError::NotEnoughMemory { needed, available }) => assert!(needed > available),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("petabytes were found"),
    }
}

#[test]
fn one_batch_can_be_learned_by_heart() {
    let folder = tempfile::tempdir().unwrap();
    // 33 characters: windows of 32 with one start only, so every step sees the same sequence.
    let text = folder.path().join("short.txt");
    std::fs::write(&text, "pack my box with five dozen jugs.").unwrap();
    for rule in ["spectral", "consensus", "adamw"] {
        let rule = format!("optim.rule={rule}");
        let mut config = config(
            folder.path(),
            &rule,
            &[
                &rule,
                "model.context=32",
                "train.batch=1",
                "train.steps=400",
                "optim.warmup_steps=20",
            ],
        );
        config.data.train = vec![text.clone()];
        config.data.val = vec![text.clone()];
        let mut last = f64::NAN;
        Trainer::new(config)
            .unwrap()
            .run(&mut |event| {
                if let Event::Step(row) = event {
                    last = row.train_loss;
                }
                ControlFlow::Continue(())
            })
            .unwrap();
        assert!(last < 0.1, "{rule}: {last}");
    }
}
