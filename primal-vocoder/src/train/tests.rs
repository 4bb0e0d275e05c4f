//! Gradients against PyTorch and against differences; runs against themselves.

use std::fs;
use std::path::Path;

use safetensors::SafeTensors;

use super::conv::{Conv, ConvShape};
use super::*;
use crate::generator::tests::{Form, mel_input, noise, tiny_1, tiny_2, weights};
use crate::wav::write_wav;

/// Largest error of a loss.
const TOLERANCE: f64 = 1e-4;

/// Largest error of a gradient relative to its largest value or its norm: Fourier transforms in
/// float32, divided by small magnitudes.
const GRADIENT_TOLERANCE: f64 = 1e-3;

const SAMPLES: usize = 2400;

/// The golden tensors by name.
fn golden(name: &str) -> Vec<f64> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/train");
    let bytes = fs::read(folder.join("train.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let data = file.tensor(name).unwrap().data();
    let values = data.as_chunks().0.iter();
    values
        .map(|&it| f64::from(f32::from_le_bytes(it)))
        .collect()
}

fn halved(name: &str) -> Vec<f32> {
    noise(name, SAMPLES).iter().map(|x| 0.5 * x).collect()
}

/// Asserts that every difference is small beside the largest value wanted.
fn assert_near(got: &[f32], want: &[f64], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    let largest = want.iter().fold(0.0_f64, |largest, x| largest.max(x.abs()));
    for (index, (&got, want)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(got) - want).abs() / largest;
        assert!(
            error < GRADIENT_TOLERANCE,
            "{what}[{index}]: {got} instead of {want}"
        );
    }
}

/// Asserts that a gradient has the norm and the product with numbers of its name that were kept.
fn assert_pair(gradient: &[f32], golden_name: &str, name: &str) {
    let [norm, product] = golden(golden_name)[..] else {
        panic!("a pair");
    };
    let squares: f64 = gradient.iter().map(|&x| f64::from(x).powi(2)).sum();
    let direction = noise(&format!("{name}.d"), gradient.len());
    let along = gradient.iter().zip(direction);
    let along: f64 = along.map(|(&a, b)| f64::from(a) * f64::from(b)).sum();
    for (got, want) in [(squares.sqrt(), norm), (along, product)] {
        let error = (got - want).abs() / norm.max(1e-12);
        assert!(
            error < GRADIENT_TOLERANCE,
            "{golden_name}: {got} instead of {want}"
        );
    }
}

#[test]
fn the_generators_gradients_equal_pytorch() {
    for (name, config) in [("tiny1", tiny_1()), ("tiny2", tiny_2())] {
        for isa in Isa::available() {
            let weights = weights(&config, Form::Folded);
            let generator = TrainedGenerator::new(&config, &weights).unwrap();
            let mut tape = generator.tape();
            let mel = mel_input(&config, SAMPLES / config.hop_size);
            generator.forward(isa, &mel, &mut tape);
            let plain = Generator::new(config.clone(), &weights).unwrap();
            let sound = tape.samples.row(0).to_vec();
            assert_eq!(sound, plain.generate(isa, &mel, 16).unwrap(), "{name}");

            let loss = SpectralLoss::new(&config, SAMPLES, 45.0, 2.0).unwrap();
            let mut d_sound = vec![0.0; SAMPLES];
            let scratch = &mut loss.scratch();
            let found = loss.run(&halved("target"), &sound, 1.0, &mut d_sound, scratch);
            let want = golden(&format!("{name}.losses"));
            assert!((found.0 - want[0]).abs() < TOLERANCE, "{found:?}, {want:?}");
            assert!((found.1 - want[1]).abs() < TOLERANCE, "{found:?}, {want:?}");
            assert_near(&d_sound, &golden(&format!("{name}.d_sound")), "d_sound");

            let mut gradients = vec![0.0; generator.parameters.values.len()];
            generator.backward(isa, &d_sound, &mut tape, &mut gradients);
            for layer in &generator.parameters.layers {
                for (part, at) in [("weight", &layer.weight), ("bias", &layer.bias)] {
                    let part = format!("{}.{part}", layer.name);
                    assert_pair(&gradients[at.clone()], &format!("{name}.{part}"), &part);
                }
            }
        }
    }
}

/// The discriminators of the reference program.
fn judges() -> Discriminators {
    let mut discriminators = Discriminators::new(128, 1);
    let parameters = &mut discriminators.parameters;
    for layer in &parameters.layers {
        let row: usize = layer.shape[1..].iter().product();
        let scale = (1.5 / (row as f64).sqrt()) as f32;
        for (part, at, scale) in [("w", &layer.weight, scale), ("b", &layer.bias, 0.1)] {
            let values = noise(&format!("{}.{part}", layer.name), at.len());
            let to = parameters.values[at.clone()].iter_mut();
            to.zip(values).for_each(|(to, value)| *to = scale * value);
        }
    }
    discriminators.load();
    discriminators
}

#[test]
fn the_discriminators_gradients_equal_pytorch() {
    let discriminators = judges();
    for isa in Isa::available() {
        let (mut real, mut fake) = (discriminators.tape(), discriminators.tape());
        discriminators.forward(isa, &halved("target"), &mut real);
        discriminators.forward(isa, &halved("sound"), &mut fake);
        let mut d_sound = vec![0.0; SAMPLES];
        let found = discriminators.deceive(isa, &real, 1.0, &mut fake, &mut d_sound);
        let want = golden("deceive.losses");
        assert!(
            (found.0 - want[0]).abs() < TOLERANCE * want[0],
            "{found:?}, {want:?}"
        );
        assert!(
            (found.1 - want[1]).abs() < TOLERANCE * want[1],
            "{found:?}, {want:?}"
        );
        assert_near(&d_sound, &golden("deceive.d_sound"), "d_sound");

        let mut gradients = vec![0.0; discriminators.parameters.values.len()];
        let loss = discriminators.judge(isa, true, 1.0, &mut real, &mut gradients)
            + discriminators.judge(isa, false, 1.0, &mut fake, &mut gradients);
        let want = golden("judges.loss")[0];
        assert!(
            (loss - want).abs() < TOLERANCE * want,
            "{loss} instead of {want}"
        );
        for layer in &discriminators.parameters.layers {
            for (part, at) in [("weight", &layer.weight), ("bias", &layer.bias)] {
                let part = format!("{}.{part}", layer.name);
                assert_pair(&gradients[at.clone()], &format!("judges.{part}"), &part);
            }
        }
    }
}

/// Every kind of convolution: the gradient along a random direction against a difference. They
/// are linear up to the leaky ReLU, which a small step seldom crosses.
#[test]
fn convolutions_equal_differences() {
    let base = ConvShape::same(4, 6, 5, 1);
    for shape in [
        base,
        ConvShape::same(4, 6, 3, 7),
        ConvShape::transposed(4, 3, 8, 3),
        ConvShape::transposed(4, 3, 5, 5),
        ConvShape { stride: 2, ..base },
        ConvShape {
            stride: 4,
            kernel: 41,
            pad: 20,
            groups: 2,
            ..base
        },
        ConvShape {
            stride: 3,
            period: 7,
            ..base
        },
        ConvShape { period: 11, ..base },
    ] {
        let isa = Isa::best();
        let columns = 77;
        let (n_weights, n) = (shape.weights(), shape.weights() + shape.c_out);
        let mut conv = Conv::new(shape, 0..n_weights, n_weights..n);
        let (parameters, x) = (noise("parameters", n), noise("x", 4 * columns));
        let (to, dx_along) = (noise("direction", n), noise("input direction", 4 * columns));
        let moved = |from: &[f32], along: &[f32], step: f32| -> Vec<f32> {
            from.iter().zip(along).map(|(a, b)| a + step * b).collect()
        };
        let mut tape = conv.tape();
        let mut out = Signal::new(shape.c_out);
        // The product of the output with fixed numbers stands for a loss.
        let mut loss = |conv: &mut Conv, parameters: &[f32], x: &[f32]| -> f64 {
            conv.load(parameters);
            conv.forward(
                isa,
                (&Signal::from_rows(4, x), 0.1),
                &mut tape,
                None,
                &mut out,
            );
            let mut sum = 0.0;
            for channel in 0..out.channels() {
                let numbers = noise(&format!("loss {channel}"), out.len());
                let row = out.row(channel).iter().zip(numbers);
                sum += row.map(|(&a, b)| f64::from(a) * f64::from(b)).sum::<f64>();
            }
            sum
        };
        let step = 1e-3;
        let mut slope = |along: &[f32], input: &[f32]| {
            let ends = [step, -step].map(|step| {
                let parameters = moved(&parameters, along, step);
                loss(&mut conv, &parameters, &moved(&x, input, step))
            });
            (ends[0] - ends[1]) / (2.0 * f64::from(step))
        };
        let zeros = vec![0.0; n.max(x.len())];
        let want_weights = slope(&to, &zeros[..x.len()]);
        let want_input = slope(&zeros[..n], &dx_along);
        loss(&mut conv, &parameters, &x);

        let mut dy = Signal::new(shape.c_out);
        dy.set_len(out.len());
        for channel in 0..dy.channels() {
            let numbers = noise(&format!("loss {channel}"), out.len());
            dy.row_mut(channel).copy_from_slice(&numbers);
        }
        let (mut gradients, mut dx) = (vec![0.0; n], Signal::new(4));
        conv.backward(
            isa,
            &dy,
            0.1,
            &mut tape,
            Some(&mut gradients),
            Some(&mut dx),
        );
        let product = |a: &[f32], b: &[f32]| -> f64 {
            let pairs = a.iter().zip(b);
            pairs.map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
        };
        let along_input: f64 = (0..4)
            .map(|c| product(dx.row(c), &dx_along[c * columns..][..columns]))
            .sum();
        for (got, want) in [
            (product(&gradients, &to), want_weights),
            (along_input, want_input),
        ] {
            assert!(
                (got - want).abs() < 2e-2 * want.abs().max(1.0),
                "{shape:?}: {got}, {want}"
            );
        }
    }
}

/// A few short sounds of two tones in a folder, and options of a tiny run on them.
fn little_run() -> (tempfile::TempDir, TrainOptions, VocoderConfig) {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("wavs")).unwrap();
    for index in 0..5 {
        let pitch = 0.02 + 0.005 * index as f32;
        let tone = |t: i32| 0.4 * (pitch * t as f32).sin() + 0.2 * (3.0 * pitch * t as f32).sin();
        let samples: Vec<f32> = (0..6000).map(tone).collect();
        let path = folder.path().join(format!("wavs/{index}.wav"));
        write_wav(&path, &samples, 22_050).unwrap();
    }
    let options = TrainOptions {
        steps: 6,
        batch: 3,
        segment: 2400,
        rate: 2e-3,
        warmup: 1,
        held_out: 2,
        eval_samples: 4800,
        discriminator_width: 128,
        ..TrainOptions::default()
    };
    let config = VocoderConfig {
        num_mels: 20,
        ..tiny_1()
    };
    (folder, options, config)
}

fn on_threads<R: Send>(threads: usize, run: impl FnOnce() -> R + Send) -> R {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
    pool.build().unwrap().install(run)
}

#[test]
fn threads_and_a_resume_change_no_bit() {
    let (folder, options, config) = little_run();
    let options = TrainOptions {
        adversarial_from: Some(3),
        ..options
    };
    let start = || {
        let options = options.clone();
        Trainer::new(options, config.clone(), None, folder.path(), Isa::best()).unwrap()
    };
    let finish = |trainer: &mut Trainer| -> Vec<TrainedStep> {
        (trainer.step()..6)
            .map(|_| trainer.advance().unwrap())
            .collect()
    };
    let mut whole = start();
    let rows = on_threads(1, || finish(&mut whole));
    assert!(rows[1].adversarial_loss.is_none() && rows[2].adversarial_loss.is_some());
    let mut wide = start();
    assert_eq!(on_threads(3, || finish(&mut wide)), rows);
    assert!(wide.generator.parameters.values == whole.generator.parameters.values);

    let run = tempfile::tempdir().unwrap();
    for stop in [2, 4] {
        let mut first = start();
        for _ in 0..stop {
            first.advance().unwrap();
        }
        first.save(run.path()).unwrap();
        let mut second = Trainer::resume(run.path(), folder.path(), Isa::best()).unwrap();
        assert_eq!(second.step(), stop);
        assert_eq!(finish(&mut second), rows[stop as usize..]);
        assert!(second.generator.parameters.values == whole.generator.parameters.values);
    }
    // Only the newest is kept, and it is a folder that vocodes.
    assert!(!run.path().join("step_000002").exists());
    Generator::open(&run.path().join("step_000004")).unwrap();
}

#[test]
fn the_loss_falls() {
    let (folder, options, config) = little_run();
    let options = TrainOptions {
        steps: 60,
        rate: 5e-3,
        ..options
    };
    let mut trainer = Trainer::new(options, config, None, folder.path(), Isa::best()).unwrap();
    let before = trainer.evaluate().unwrap();
    let first = trainer.advance().unwrap();
    let last = (1..60).map(|_| trainer.advance().unwrap()).last().unwrap();
    assert!(last.mel_loss < 0.6 * first.mel_loss, "{first:?} {last:?}");
    assert!(trainer.evaluate().unwrap() < 0.7 * before);
}

#[test]
fn bad_runs_are_explained() {
    let (folder, options, config) = little_run();
    let isa = Isa::best();
    let start = |options: TrainOptions, folder: &Path| {
        Trainer::new(options, config.clone(), None, folder, isa).map(drop)
    };
    let says = |result: Result<(), VocoderError>, what: &str| {
        let error = result.unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    };
    let with = |change: fn(&mut TrainOptions)| {
        let mut options = options.clone();
        change(&mut options);
        options
    };
    says(
        start(with(|it| it.batch = 0), folder.path()),
        "batch 1 to 256",
    );
    says(
        start(with(|it| it.segment = 2401), folder.path()),
        "multiple of 12",
    );
    says(
        start(with(|it| it.segment = 1200), folder.path()),
        "too few",
    );
    says(start(with(|it| it.rate = f32::NAN), folder.path()), "rate");
    says(
        start(with(|it| it.discriminator_width = 100), folder.path()),
        "power of two",
    );
    says(
        start(with(|it| it.held_out = 5), folder.path()),
        "5 WAV files are too few",
    );
    says(start(options.clone(), &folder.path().join("none")), "none");
    says(
        Trainer::resume(folder.path(), folder.path(), isa).map(drop),
        "no complete checkpoint",
    );

    // A weight that is not a number is met in the first loss, and nothing is learnt from it.
    let mut trainer =
        Trainer::new(options.clone(), config.clone(), None, folder.path(), isa).unwrap();
    trainer.generator.parameters.values[3] = f32::NAN;
    trainer.generator.load();
    let error = trainer.advance().unwrap_err();
    assert!(
        matches!(
            error,
            VocoderError::Diverged {
                step: 1,
                what: "mel loss"
            }
        ),
        "{error}"
    );
    assert_eq!(trainer.step(), 0);

    // Other sounds than the run began with, and a file that is cut short.
    let run = tempfile::tempdir().unwrap();
    let mut trainer = Trainer::new(options, config.clone(), None, folder.path(), isa).unwrap();
    let path = trainer.save(run.path()).unwrap();
    fs::rename(
        folder.path().join("wavs/0.wav"),
        folder.path().join("wavs/9.wav"),
    )
    .unwrap();
    let resume = || Trainer::resume(run.path(), folder.path(), isa).map(drop);
    says(resume(), "other sounds");
    let optimizer = path.join("optimizer.safetensors");
    let bytes = fs::read(&optimizer).unwrap();
    fs::rename(
        folder.path().join("wavs/9.wav"),
        folder.path().join("wavs/0.wav"),
    )
    .unwrap();
    fs::write(&optimizer, &bytes[..bytes.len() - 1]).unwrap();
    says(resume(), "not a readable checkpoint");
    for entry in fs::read_dir(folder.path().join("wavs")).unwrap() {
        fs::write(entry.unwrap().path(), [0; 10]).unwrap();
    }
    says(trainer.advance().map(drop), "not a readable WAV file");
}
