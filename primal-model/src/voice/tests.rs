//! The voice's network and its training: gradients, batches, threads, resuming, speaking.

use std::ops::ControlFlow;

use primal_kernels::Isa;
use primal_optim::{Rule, StepContext};

use super::acoustic::{AcousticModel, Losses, VoiceActivations};
use super::data::{Batch, Example, Sizes};
use super::*;
use crate::build::Fresh;
use crate::config::Compute;
use crate::layers::{Param, ParamMut};
use crate::parameters::Parameters;

fn tiny(rule: Rule) -> VoiceConfig {
    let mut config = VoiceConfig::default();
    for assignment in [
        "model.encoder_blocks=1",
        "model.decoder_blocks=1",
        "model.n_head=2",
        "model.width=16",
        "model.ff_width=24",
        "model.duration_width=8",
        "model.context=512",
        "train.steps=6",
        "train.batch=4",
        "train.eval_every=2",
        "train.save_every=3",
        "train.threads=1",
        "train.val_fraction=0.2",
        "optim.warmup_steps=2",
    ] {
        config.set(assignment).unwrap();
    }
    config.optim.rule = rule;
    config
}

/// Sentences whose sound is a function of their symbols.
fn sentences(count: usize) -> Vec<Example> {
    (0..count)
        .map(|number| {
            let length = 3 + number % 4;
            let symbols = (0..length).map(|at| Symbol::from_id((7 * number + 5 * at) % 76));
            let frames: Vec<u32> = (0..length).map(|at| ((number + at) % 4) as u32).collect();
            let symbols: Vec<Symbol> = symbols.map(Option::unwrap).collect();
            let mut mel = Vec::new();
            for (symbol, &frames) in symbols.iter().zip(&frames) {
                for frame in 0..frames {
                    let value = |band| {
                        let phase = 0.3 * band as f32 + symbol.id() as f32 + 0.2 * frame as f32;
                        phase.sin() - 4.0
                    };
                    mel.extend((0..MEL_BANDS).map(value));
                }
            }
            Example::new("x", Alignment { symbols, frames }, mel).unwrap()
        })
        .collect()
}

fn model(config: &VoiceConfig) -> AcousticModel {
    let decoder = config.as_decoder();
    AcousticModel::build(config, &mut Fresh::new(&decoder)).unwrap()
}

fn batch(examples: &[Example]) -> Batch {
    let mut batch = Batch::default();
    examples.iter().for_each(|it| batch.push(it));
    batch
}

fn room(model: &AcousticModel, batch: &Batch) -> VoiceActivations {
    let sizes = Sizes {
        symbols: batch.n_symbols(),
        frames: batch.n_frames(),
    };
    VoiceActivations::new(model, sizes, Compute::Float, true)
}

/// Value `index` of the `number`-th parameter.
fn value<'m>(
    model: &'m mut AcousticModel,
    number: usize,
    index: usize,
    change: &dyn Fn(&mut f32),
) -> &'m AcousticModel {
    let mut at = 0;
    let names: Vec<(String, Vec<f32>)> = model
        .params()
        .into_iter()
        .map(|param| match param {
            Param::Matrix(weight) => (
                weight.name().to_owned(),
                weight.dense().unwrap_or_default().to_vec(),
            ),
            Param::Vector(vector) => (vector.name().to_owned(), vector.values().to_vec()),
        })
        .collect();
    model.for_each_mut(&mut |param| {
        if at == number {
            match param {
                ParamMut::Vector(vector) => change(&mut vector.parts_mut().values[index]),
                ParamMut::Matrix(weight) => {
                    let (name, values) = &names[number];
                    let mut values = values.clone();
                    change(&mut values[index]);
                    let mut file = primal_lut::TensorFileWriter::new();
                    file.f32(name, &[weight.rows(), weight.cols()], &values);
                    let file = primal_lut::TensorFile::from_bytes(file.to_bytes().unwrap());
                    let part = primal_optim::StatePart::Model;
                    weight.load(part, &file.unwrap()).unwrap();
                }
            }
        }
        at += 1;
    });
    model
}

fn total(losses: Losses, duration_weight: f32) -> f64 {
    losses.mel + f64::from(duration_weight) * losses.duration
}

#[test]
fn gradients_are_those_of_finite_differences() {
    let mut config = tiny(Rule::Adamw);
    config.model.init_std = 0.3;
    let mut model = model(&config);
    let batch = batch(&sentences(3));
    let mut acts = room(&model, &batch);
    let isa = Isa::best();
    let ctx = StepContext {
        isa,
        config: &config.optim,
        seed: 1,
        step: 0,
        rate: 1.0,
        micro_batches: 1,
    };
    let weight = 0.7;
    model.begin_step(&ctx).unwrap();
    let losses = model
        .forward_backward(&ctx, 0, &batch, weight, &mut acts)
        .unwrap();
    assert!(losses.unwrap().mel > 0.0);
    let gradients: Vec<(String, Vec<f32>)> = model
        .params()
        .into_iter()
        .map(|param| match param {
            Param::Matrix(weight) => (weight.name().to_owned(), weight.float_gradient().to_vec()),
            Param::Vector(vector) => (vector.name().to_owned(), vector.grad().to_vec()),
        })
        .collect();
    let mut checked = 0;
    for (number, (name, gradient)) in gradients.iter().enumerate() {
        if name.starts_with("mel_") {
            continue;
        }
        // The largest element and one in the middle of each parameter.
        let largest = (0..gradient.len())
            .max_by(|&a, &b| gradient[a].abs().total_cmp(&gradient[b].abs()))
            .unwrap();
        for index in [largest, gradient.len() / 2] {
            const STEP: f32 = 2e-3;
            let mut loss = |by: f32| {
                let model = value(&mut model, number, index, &|value| *value += by);
                total(model.forward(isa, &batch, &mut acts), weight)
            };
            let (above, below) = (loss(STEP), loss(-2.0 * STEP));
            loss(STEP);
            let want = (above - below) / f64::from(2.0 * STEP);
            let got = f64::from(gradient[index]);
            let tolerance = 2e-2 * want.abs().max(got.abs()) + 3e-4;
            assert!(
                (got - want).abs() < tolerance,
                "{name}[{index}]: {got} by hand, {want} by differences"
            );
            checked += usize::from(want.abs() > 1e-3);
        }
    }
    assert!(
        checked > gradients.len(),
        "{checked} of {}",
        gradients.len()
    );
}

#[test]
fn a_sentence_does_not_depend_on_its_batch() {
    let model = model(&tiny(Rule::Consensus));
    let examples = sentences(5);
    let together = batch(&examples);
    let mut acts = room(&model, &together);
    model.forward(Isa::best(), &together, &mut acts);
    let mel = acts.mel(together.n_frames()).to_vec();
    let durations = acts.log_durations(together.n_symbols()).to_vec();
    let (mut frame, mut symbol) = (0, 0);
    for example in &examples {
        let alone = batch(std::slice::from_ref(example));
        let mut acts = room(&model, &alone);
        model.forward(Isa::best(), &alone, &mut acts);
        let close = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-5);
        let (n, s) = (alone.n_frames(), alone.n_symbols());
        assert!(close(acts.mel(n), &mel[frame * MEL_BANDS..]));
        assert!(close(acts.log_durations(s), &durations[symbol..]));
        (frame, symbol) = (frame + n, symbol + s);
    }
    assert_eq!(frame * MEL_BANDS, mel.len());
}

fn train(
    config: &VoiceConfig,
    resume: bool,
    stop_at: Option<u32>,
) -> (VoiceSummary, Vec<(u32, f64)>) {
    let begin = if resume {
        VoiceTrainer::resume
    } else {
        VoiceTrainer::new
    };
    let mut trainer = begin(config.clone(), sentences(20)).unwrap();
    let mut evals = Vec::new();
    let summary = trainer.run(&mut |event| {
        match event {
            VoiceEvent::Eval(row) => evals.push((row.step, row.val_loss)),
            VoiceEvent::Step(row) if Some(row.step) == stop_at => return ControlFlow::Break(()),
            _ => {}
        }
        ControlFlow::Continue(())
    });
    (summary.unwrap(), evals)
}

#[test]
fn every_rule_gives_one_state_for_any_threads_and_across_a_resume() {
    for rule in [Rule::Consensus, Rule::Classic, Rule::Frozen, Rule::Adamw] {
        let folder = tempfile::tempdir().unwrap();
        let run = |name: &str, threads: usize, micro_batches: usize| {
            let mut config = tiny(rule);
            config.train.run = folder.path().join(name);
            config.train.threads = threads;
            config.train.micro_batches = micro_batches;
            config
        };
        let (whole, evals) = train(&run("one", 1, 2), false, None);
        assert_eq!(evals.len(), 3);
        let (two, _) = train(&run("two", 2, 2), false, None);
        assert_eq!(two.done.state_hash, whole.done.state_hash, "{rule}");
        let cut = run("cut", 1, 2);
        let (stopped, _) = train(&cut, false, Some(3));
        assert!(stopped.interrupted && stopped.checkpoint.ends_with("step_000003"));
        let (resumed, _) = train(&cut, true, None);
        assert_eq!(resumed.done.state_hash, whole.done.state_hash, "{rule}");
        assert_eq!(resumed.done.best_val_loss, whole.done.best_val_loss);
        let metrics = std::fs::read_to_string(cut.train.run.join("metrics.jsonl")).unwrap();
        assert!(
            metrics
                .lines()
                .last()
                .unwrap()
                .contains(r#""event":"done""#)
        );

        // The network of the run speaks.
        let voice = Voice::open(&cut.train.run).unwrap();
        let front_end = FrontEnd::new().unwrap();
        let sentence = &front_end.sentences("Well, yes").unwrap()[0];
        let spoken = &voice.speak(sentence, 1.0).unwrap()[0];
        let frames: u32 = spoken.frames.iter().sum();
        assert_eq!(spoken.mel.len(), frames as usize * MEL_BANDS);
        assert!(
            Voice::open(&cut.train.run.join("step_000006")).is_ok()
                && Voice::open(folder.path()).is_err()
        );
    }
}

#[test]
fn a_run_learns_keeps_its_best_and_stops_after_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = tiny(Rule::Consensus);
    config.train.run = folder.path().join("run");
    config.train.steps = 60;
    config.train.eval_every = 10;
    config.optim.eta = 0.05;
    let (summary, evals) = train(&config, false, None);
    let (first, last) = (evals[0].1, evals[evals.len() - 1].1);
    assert!(last < 0.95 * first, "{evals:?}");
    let best = evals.iter().copied().min_by(|a, b| a.1.total_cmp(&b.1));
    let done = &summary.done;
    assert_eq!(best, Some((done.best_step, done.best_val_loss)));
    assert!(!done.stopped_early);

    // Nothing gets better where nothing learns.
    config.train.run = folder.path().join("still");
    config.train.patience = 2;
    config.optim.rule = Rule::Frozen;
    config.optim.lr = 0.0;
    let (summary, evals) = train(&config, false, None);
    assert!(summary.done.stopped_early && !summary.interrupted);
    assert_eq!((summary.done.steps, summary.done.best_step), (30, 10));
    assert_eq!(evals.len(), 3);
}

#[test]
fn what_does_not_fit_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = tiny(Rule::Frozen);
    config.train.run = folder.path().join("run");
    train(&config, false, None);
    let error = |config: &VoiceConfig, examples| {
        let again = VoiceTrainer::resume(config.clone(), examples).err();
        again.unwrap().to_string()
    };
    let other = error(&config, sentences(18));
    assert!(other.contains("is not what the run"), "{other}");
    let mut other = config.clone();
    other.model.width = 32;
    assert!(error(&other, sentences(20)).contains("model.width"));
    let new = VoiceTrainer::new(config.clone(), sentences(20)).err();
    assert!(new.unwrap().to_string().contains("already holds"));
    let tensors = config.train.run.join("best/model.safetensors");
    std::fs::write(&tensors, [1, 2, 3]).unwrap();
    let broken = Voice::open(&config.train.run).err().unwrap().to_string();
    assert!(broken.contains("damaged"), "{broken}");
}

#[test]
fn a_sentence_longer_than_the_context_comes_in_parts() {
    let mut config = tiny(Rule::Frozen);
    let folder = tempfile::tempdir().unwrap();
    config.train.run = folder.path().join("run");
    config.model.context = 64;
    train(&config, false, None);
    let voice = Voice::open(&config.train.run).unwrap();
    let front_end = FrontEnd::new().unwrap();
    let sentence = &front_end.sentences(&"well ".repeat(40)).unwrap()[0];
    let parts = voice.speak(sentence, 1.0).unwrap();
    let symbols: Vec<Symbol> = parts
        .iter()
        .flat_map(|part| &part.symbols[1..part.symbols.len() - 1])
        .copied()
        .collect();
    assert!(parts.len() > 1 && symbols == sentence.symbols);
    for part in &parts {
        assert!(part.mel.len() <= 64 * MEL_BANDS);
    }
    // However long one asks a sound to be.
    let endless = voice.speak(sentence, 1e9).unwrap();
    assert!(endless.len() >= parts.len());
}
