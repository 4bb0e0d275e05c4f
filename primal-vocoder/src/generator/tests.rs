//! The generator against PyTorch in float64, stage by stage, and against itself in pieces.

use std::path::{Path, PathBuf};

use safetensors::SafeTensors;

use super::*;
use crate::config::Padding;

/// Allowed difference of samples in −1..1 and, relative to the largest value, of inner tensors.
const TOLERANCE: f32 = 1e-4;

fn golden_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// A golden tensor: (channels, values).
fn golden(name: &str) -> (usize, Vec<f32>) {
    let bytes = std::fs::read(golden_folder().join("vocoder.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = file.tensor(name).unwrap();
    let values = tensor
        .data()
        .as_chunks()
        .0
        .iter()
        .map(|&b| f32::from_le_bytes(b));
    (tensor.shape()[0], values.collect())
}

/// `count` numbers in −1..1, a function of the name and the index: the same as in
/// `tools/reference/vocoder_golden.py`.
pub(crate) fn noise(name: &str, count: usize) -> Vec<f32> {
    let fnv = |seed: u64, byte: u8| (seed ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325, fnv);
    let value = |index: u64| {
        let mut z = seed.wrapping_add((index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        (z >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count as u64).map(value).collect()
}

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Form {
    Norm,
    Parametrizations,
    Folded,
}

/// The random weights of the reference program.
pub(crate) fn weights(config: &VocoderConfig, form: Form) -> Weights {
    let mut tensors = Vec::new();
    for layer in layers(config) {
        let (name, shape, bias) = (layer.name, layer.shape, layer.bias);
        let norm = match (&*name, layer.rate) {
            ("conv_pre" | "conv_post", _) => 0.5,
            (_, rate) => 0.7 * (rate as f64).sqrt(),
        };
        let row: usize = shape[1..].iter().product();
        let mut v = noise(&format!("{name}.v"), shape[0] * row);
        let g = noise(&format!("{name}.g"), shape[0]);
        let g = g.iter().map(|g| norm as f32 * (1.0 + 0.25 * g)).collect();
        let (g_name, v_name) = match form {
            Form::Norm => ("weight_g", "weight_v"),
            Form::Parametrizations => (
                "parametrizations.weight.original0",
                "parametrizations.weight.original1",
            ),
            Form::Folded => ("", "weight"),
        };
        if form == Form::Folded {
            let scale = (norm * (3.0 / row as f64).sqrt()) as f32;
            v.iter_mut().for_each(|v| *v *= scale);
        } else {
            tensors.push((format!("{name}.{g_name}"), vec![shape[0], 1, 1], g));
        }
        tensors.push((format!("{name}.{v_name}"), shape.to_vec(), v));
        let bias_values = noise(&format!("{name}.b"), bias)
            .iter()
            .map(|b| 0.1 * b)
            .collect();
        tensors.push((format!("{name}.bias"), vec![bias], bias_values));
    }
    Weights::new("test", tensors).unwrap()
}

pub(crate) fn mel_input(config: &VocoderConfig, frames: usize) -> Signal {
    let values = noise("mel", config.num_mels * frames);
    let values: Vec<f32> = values.iter().map(|x| 6.0 * x - 5.0).collect();
    Signal::from_rows(config.num_mels, &values)
}

/// The tiny generator whose blocks have two convolutions a dilation.
pub(crate) fn tiny_1() -> VocoderConfig {
    VocoderConfig {
        upsample_rates: vec![4, 3],
        upsample_kernel_sizes: vec![8, 7],
        upsample_initial_channel: 8,
        resblock_kernel_sizes: vec![3, 5],
        resblock_dilation_sizes: vec![vec![1, 3, 2], vec![1, 2, 1]],
        num_mels: 5,
        hop_size: 12,
        ..VocoderConfig::v1()
    }
}

/// The tiny generator with one convolution a dilation, and the wider block first.
pub(crate) fn tiny_2() -> VocoderConfig {
    VocoderConfig {
        resblock: "2".to_owned(),
        upsample_rates: vec![5, 2, 2],
        upsample_kernel_sizes: vec![5, 4, 4],
        resblock_kernel_sizes: vec![5, 3],
        resblock_dilation_sizes: vec![vec![1], vec![4, 2]],
        hop_size: 20,
        ..tiny_1()
    }
}

/// SpeechBrain's ends around the tiny generator.
fn mirrored() -> VocoderConfig {
    VocoderConfig {
        padding: Padding::Reflect,
        edge_frames: 5,
        ..tiny_1()
    }
}

fn assert_near(got: &[f32], want: &[f32], what: &str) -> f32 {
    assert_eq!(got.len(), want.len(), "{what}");
    let largest = want.iter().fold(1.0_f32, |largest, x| largest.max(x.abs()));
    let mut worst = 0.0_f32;
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let error = (got - want).abs() / largest;
        assert!(error <= TOLERANCE, "{what}[{i}]: {got} instead of {want}");
        worst = worst.max(error);
    }
    worst
}

fn flat(signal: &Signal, columns: usize) -> Vec<f32> {
    let rows = 0..signal.channels();
    rows.flat_map(|channel| signal.row(channel)[..columns].to_vec())
        .collect()
}

#[test]
fn the_published_generators_equal_pytorch() {
    for (name, config, form) in [
        ("v1", VocoderConfig::v1(), Form::Norm),
        ("v2", VocoderConfig::v2(), Form::Parametrizations),
        ("v3", VocoderConfig::v3(), Form::Folded),
    ] {
        let generator = Generator::new(config.clone(), &weights(&config, form)).unwrap();
        let samples = generator
            .generate(Isa::best(), &mel_input(&config, 12), 64)
            .unwrap();
        let worst = assert_near(&samples, &golden(name).1, name);
        println!("{name}: largest difference {worst:.1e}");
    }
}

#[test]
fn every_stage_equals_pytorch() {
    for (name, config) in [("tiny1", tiny_1()), ("tiny2", tiny_2())] {
        let generator = Generator::new(config.clone(), &weights(&config, Form::Norm)).unwrap();
        for isa in Isa::available() {
            let what = |layer: &str| format!("{name}.{layer}");
            let mut stream = generator.stream(isa);
            let mel = mel_input(&config, 9);
            let mut x = Signal::new(config.upsample_initial_channel);
            let input = (&mel, mel.len(), 1.0);
            stream
                .pre
                .push(isa, &generator.pre, input, true, None, &mut x)
                .unwrap();
            assert_near(
                &flat(&x, x.len()),
                &golden(&what("conv_pre")).1,
                &what("conv_pre"),
            );
            for (i, (state, stage)) in stream.stages.iter_mut().zip(&generator.stages).enumerate() {
                let columns = state.push(isa, stage, (&x, x.len()), true).unwrap();
                let (ups, out) = (what(&format!("ups.{i}")), what(&format!("stage.{i}")));
                assert_near(
                    &flat(&state.upsampled, state.upsampled.len()),
                    &golden(&ups).1,
                    &ups,
                );
                let (channels, values) = golden(&out);
                assert_eq!((channels, columns), (state.sum.channels(), state.sum.len()));
                assert_near(&flat(&state.sum, columns), &values, &out);
                x = state.sum.clone();
            }
            let samples = generator.generate(isa, &mel, 64).unwrap();
            assert_near(&samples, &golden(&what("samples")).1, &what("samples"));
        }
    }
}

#[test]
fn checkpoint_files_of_both_implementations_are_read() {
    let folder = golden_folder();
    let official = Weights::open(&folder.join("tiny_official.pth")).unwrap();
    let generator = Generator::new(tiny_1(), &official).unwrap();
    let samples = generator
        .generate(Isa::best(), &mel_input(&tiny_1(), 9), 4)
        .unwrap();
    assert_near(&samples, &golden("tiny1.samples").1, "official");

    let speechbrain = Weights::open(&folder.join("tiny_speechbrain.ckpt")).unwrap();
    let generator = Generator::new(mirrored(), &speechbrain).unwrap();
    let samples = generator
        .generate(Isa::best(), &mel_input(&mirrored(), 9), 4)
        .unwrap();
    // The reference keeps the sound of the five copied frames at each end.
    let want = golden("mirrored.samples").1;
    assert_near(&samples, &want[5 * 12..14 * 12], "speechbrain");
}

#[test]
fn pieces_and_threads_give_the_bits_of_the_whole() {
    for (config, frames) in [
        (tiny_1(), 331),
        (tiny_2(), 200),
        (mirrored(), 300),
        (VocoderConfig::v2(), 130),
    ] {
        let generator = Generator::new(config.clone(), &weights(&config, Form::Norm)).unwrap();
        let mel = mel_input(&config, frames);
        let run = |pieces: usize, threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            pool.install(|| generator.generate(Isa::best(), &mel, pieces))
                .unwrap()
        };
        let whole = run(frames, 1);
        assert_eq!(whole.len(), frames * config.hop_size);
        for (pieces, threads) in [(1, 1), (2, 2), (7, 1), (16, 2), (129, 3), (1000, 4)] {
            assert!(run(pieces, threads) == whole, "{pieces} frames a piece");
        }
    }
}

#[test]
fn tiers_give_equal_bits() {
    let config = tiny_2();
    let generator = Generator::new(config.clone(), &weights(&config, Form::Folded)).unwrap();
    let mel = mel_input(&config, 9);
    let want = generator.generate(Isa::best(), &mel, 9).unwrap();
    for isa in Isa::available() {
        assert_eq!(
            generator.generate(isa, &mel, 9).unwrap(),
            want,
            "{}",
            isa.name()
        );
    }
}

#[test]
fn bad_input_is_refused() {
    let config = tiny_1();
    let sound = weights(&config, Form::Norm);
    let generator = Generator::new(config.clone(), &sound).unwrap();
    let mut stream = generator.stream(Isa::best());
    assert!(matches!(
        stream.push(&Signal::new(4)),
        Err(VocoderError::Bands { .. })
    ));
    let mut mel = mel_input(&config, 3);
    assert!(stream.push(&mel).is_ok());
    mel.row_mut(2)[1] = f32::NAN;
    let error = stream.push(&mel).unwrap_err();
    assert!(
        matches!(error, VocoderError::NonFiniteMel { band: 2, frame: 4 }),
        "{error}"
    );
    // The stream goes on as if nothing had been.
    assert!(stream.push(&Signal::new(5)).unwrap().is_empty());
    let before = generator.generate(Isa::best(), &Signal::new(5), 8).unwrap();
    assert!(before.is_empty());

    let wider = VocoderConfig {
        upsample_initial_channel: 16,
        ..config.clone()
    };
    assert!(matches!(
        Generator::new(wider, &sound),
        Err(VocoderError::WrongShape { .. })
    ));
    let deeper = VocoderConfig {
        resblock_dilation_sizes: vec![vec![1, 3, 2, 2], vec![1, 2, 1]],
        ..config
    };
    let error = Generator::new(deeper, &sound).unwrap_err().to_string();
    assert!(error.contains("resblocks.0.convs1.3.weight"), "{error}");
    // Mirrored ends need something to mirror, unless frames are copied around them.
    let short = VocoderConfig {
        edge_frames: 0,
        ..mirrored()
    };
    let generator = Generator::new(short.clone(), &sound).unwrap();
    let one = generator.generate(Isa::best(), &mel_input(&short, 1), 1);
    assert!(matches!(one, Err(VocoderError::TooShort { .. })));
}

#[test]
fn folders_are_searched_and_broken_ones_explained() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let error = |what: &str| {
        let error = Generator::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    };
    error("no weight file");
    let good = std::fs::read(golden_folder().join("tiny_official.pth")).unwrap();
    std::fs::write(at("g_02500000"), &good).unwrap();
    error("holds none of config.json");
    std::fs::write(at("config.json"), "{\"resblocks\": 1}").unwrap();
    error("`resblock`?");
    std::fs::write(at("config.json"), serde_json::to_string(&tiny_1()).unwrap()).unwrap();
    assert_eq!(Generator::open(folder.path()).unwrap().config(), &tiny_1());
    std::fs::write(at("other.pt"), &good).unwrap();
    error("several weight files");
    std::fs::remove_file(at("other.pt")).unwrap();
    for len in (0..good.len()).step_by(997) {
        std::fs::write(at("g_02500000"), &good[..len]).unwrap();
        error("not a readable checkpoint");
    }
    std::fs::write(at("generator.safetensors"), [255; 100]).unwrap();
    error("not a readable checkpoint");
}

#[test]
fn weights_may_live_on_the_grid() {
    use primal_lut::{Grid, QuantMatrix, TensorFileWriter};
    let config = tiny_2();
    let dense = weights(&config, Form::Folded);
    let grid = Grid::prime();
    let (mut matrices, mut vectors) = (Vec::new(), Vec::new());
    for name in dense.names() {
        let (shape, values) = dense.tensor(name).unwrap();
        if shape.len() == 1 {
            vectors.push((name, shape, values));
        } else {
            let (rows, cols) = (shape[0], values.len() / shape[0]);
            let largest = |row: &[f32]| row.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
            let scales = values.chunks(cols).map(largest).collect();
            let matrix = QuantMatrix::quantise(&grid, rows, cols, cols, values, scales).unwrap();
            matrices.push((name, shape, matrix));
        }
    }
    let mut file = TensorFileWriter::new();
    for (name, _, matrix) in &matrices {
        file.quant(name, matrix);
    }
    for (name, shape, values) in &vectors {
        file.f32(name, shape, values);
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("generator.safetensors");
    file.write(&path).unwrap();
    let rounded = matrices
        .iter()
        .map(|(name, shape, matrix)| (name.to_string(), shape.to_vec(), matrix.dequantise()))
        .chain(
            vectors
                .iter()
                .map(|(n, s, v)| (n.to_string(), s.to_vec(), v.to_vec())),
        );
    let mel = mel_input(&config, 6);
    let sound = |weights: &Weights| {
        let generator = Generator::new(config.clone(), weights).unwrap();
        generator.generate(Isa::best(), &mel, 6).unwrap()
    };
    let from_grid = sound(&Weights::open(&path).unwrap());
    assert_eq!(from_grid, sound(&Weights::new("rounded", rounded).unwrap()));
    assert_ne!(from_grid, sound(&dense));
}

#[test]
fn the_mel_spectrogram_equals_pytorch() {
    let mut samples: Vec<f32> = noise("samples", 6000).iter().map(|x| 0.5 * x).collect();
    samples[3000..].iter_mut().for_each(|x| *x *= 1e-3);
    let extractor = crate::mel::MelExtractor::new(&VocoderConfig::v1()).unwrap();
    let mel = extractor.extract(&samples).unwrap();
    let (bands, want) = golden("mel");
    assert_eq!(bands, mel.channels());
    let got = flat(&mel, mel.len());
    assert_eq!(got.len(), want.len());
    let worst = got
        .iter()
        .zip(&want)
        .fold(0.0_f32, |m, (a, b)| m.max((a - b).abs()));
    assert!(worst <= TOLERANCE, "{worst}");
}

#[test]
fn the_shipped_vocoder_opens() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../voices/vocoder-rms");
    let generator = Generator::open(&folder).unwrap();
    let samples = generator
        .generate(Isa::best(), &mel_input(generator.config(), 8), 8)
        .unwrap();
    assert_eq!(samples.len(), 8 * 256);
    assert!(samples.iter().all(|sample| sample.is_finite()));
    assert!(samples.iter().any(|sample| sample.abs() > 1e-3));
}
