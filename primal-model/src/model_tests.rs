//! The whole model against PyTorch: loss, logits, and the gradient of every parameter.
//!
//! Golden files: `tests/golden/MANIFEST.toml`.

use std::path::PathBuf;

use primal_kernels::{CacheKind, Isa};
use primal_lut::{Grid, QuantMatrix, TensorFile, TensorFileWriter};
use primal_optim::{OptimConfig, Rule, StatePart, StepContext};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;

use crate::activations::{Activations, PassPlan};
use crate::config::{Compute, Config};
use crate::generate::Generator;
use crate::inference::InferenceModel;
use crate::layers::Param;
use crate::ledger::Ledger;
use crate::model::{Model, Pass};
use crate::parameters::Parameters;
use crate::rope::{frequencies, sharpness as sharpness_of};
use crate::shape::ModelShape;

/// One golden file, its tensors by name.
struct Golden {
    bytes: Vec<u8>,
}

impl Golden {
    fn read(name: &str) -> Golden {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join("tests/golden")
            .join(name);
        Golden {
            bytes: std::fs::read(path).unwrap(),
        }
    }

    fn tensor(&self, name: &str) -> Option<TensorView<'_>> {
        SafeTensors::deserialize(&self.bytes)
            .unwrap()
            .tensor(name)
            .ok()
    }

    fn f32(&self, name: &str) -> Vec<f32> {
        let view = self
            .tensor(name)
            .unwrap_or_else(|| panic!("no tensor {name}"));
        view.data()
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
            .collect()
    }

    fn u32(&self, name: &str) -> Vec<u32> {
        let view = self.tensor(name).unwrap();
        view.data()
            .chunks_exact(4)
            .map(|b| u32::from_le_bytes(b.try_into().unwrap()))
            .collect()
    }

    fn loss(&self) -> f64 {
        f64::from_le_bytes(self.tensor("loss").unwrap().data().try_into().unwrap())
    }

    fn quant(&self, name: &str) -> QuantMatrix {
        let view = self.tensor(&format!("{name}.codes")).unwrap();
        let [rows, cols] = view.shape().try_into().unwrap();
        let mut matrix = QuantMatrix::zeros(&Grid::prime(), rows, cols, cols).unwrap();
        matrix
            .scales_mut()
            .copy_from_slice(&self.f32(&format!("{name}.scales")));
        for (i, &code) in view.data().iter().enumerate() {
            matrix.set_code(i / cols, i % cols, code).unwrap();
        }
        matrix
    }

    /// The file's parameters in a model to train, and the same for inference.
    fn models(&self, config: &Config) -> (Model, InferenceModel) {
        let mut model = Model::new(config, 67).unwrap();
        let quants: Vec<(String, QuantMatrix)> = model
            .params()
            .into_iter()
            .filter_map(|p| match p {
                Param::Matrix(weight) => {
                    Some((weight.name().to_string(), self.quant(weight.name())))
                }
                Param::Vector(_) => None,
            })
            .collect();
        let dense: Vec<Vec<f32>> = quants
            .iter()
            .map(|(_, matrix)| matrix.dequantise())
            .collect();
        let vectors: Vec<(String, Vec<f32>)> = model
            .params()
            .into_iter()
            .filter_map(|p| match p {
                Param::Matrix(_) => None,
                Param::Vector(v) => Some((v.name().to_string(), self.f32(v.name()))),
            })
            .collect();
        let mut file = TensorFileWriter::new();
        for ((name, matrix), dense) in quants.iter().zip(&dense) {
            if config.optim.rule == Rule::Adamw {
                file.f32(name, &[matrix.rows(), matrix.cols()], dense);
            } else {
                file.quant(name, matrix);
            }
        }
        for (name, values) in &vectors {
            file.f32(name, &[values.len()], values);
        }
        let bytes = file.to_bytes().unwrap();
        let file = TensorFile::from_bytes(bytes).unwrap();
        model.load_state(StatePart::Model, &file).unwrap();
        let inference = InferenceModel::packed(config, 67, &file, Compute::Int8).unwrap();
        (model, inference)
    }
}

/// The configuration of a golden file.
fn config(name: &str, rule: Rule) -> Config {
    let mut config = Config::preset("shakespeare-char").unwrap();
    let own: &[&str] = match name {
        "gpt_untied" => &["n_head=2", "ff_width=96"],
        "gpt_tied_biased" => &["n_head=2", "ff_width=96", "tie_head=true", "biases=true"],
        "llama_untied" => &["n_kv_head=2", "head_dim=10"],
        "llama_tied" => &[
            "n_kv_head=1",
            "tie_head=true",
            "qkv_bias=true",
            "rope_scaling=llama3",
            "rope_factor=4",
            "rope_original_context=12",
        ],
        "llama_normed" => &["n_kv_head=2", "head_dim=6", "tie_head=true", "qk_norm=true"],
        "llama_still" => &["n_kv_head=2", "tie_head=true", "rope_free_layers=[1]"],
        _ => panic!("no golden file {name}"),
    };
    let of_llama: &[&str] = match name.starts_with("llama") {
        true => &[
            "n_head=4",
            "ff_width=48",
            "norm=rms",
            "norm_eps=1e-6",
            "position=rope",
            "rope_theta=100",
            "feed_forward=swiglu",
        ],
        false => &[],
    };
    let shared = ["context=16", "n_layer=2", "width=32"];
    for change in shared.iter().chain(of_llama).chain(own) {
        config.set(&format!("model.{change}")).unwrap();
    }
    config.optim.rule = rule;
    config.validate().unwrap();
    config
}

fn assert_close(name: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len(), "{name}");
    let size = expected.iter().fold(0.0f32, |max, x| max.max(x.abs()));
    let worst = found
        .iter()
        .zip(expected)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max);
    assert!(
        worst <= tolerance * size + 1e-9,
        "{name}: worst difference {worst}, largest value {size}"
    );
}

/// Largest differences from PyTorch's float32: of the loss relative to it, of a gradient relative
/// to the largest of its tensor.
struct Tolerance {
    loss: f64,
    gradient: f32,
}

impl Tolerance {
    fn of(compute: Compute) -> Tolerance {
        let (loss, gradient) = match compute {
            Compute::Float => (1e-5, 1e-4),
            _ => (0.01, 0.2),
        };
        Tolerance { loss, gradient }
    }
}

fn check_file(name: &str, rule: Rule, recompute: usize, compute: Compute) {
    let close = Tolerance::of(compute);
    let golden = Golden::read(&format!("{name}.safetensors"));
    let config = config(name, rule);
    let (mut model, inference) = golden.models(&config);
    let (tokens, targets) = (golden.u32("tokens"), golden.u32("targets"));
    let optim = OptimConfig {
        rule,
        ..Default::default()
    };
    for isa in Isa::available() {
        let ctx = StepContext {
            isa,
            config: &optim,
            seed: 1,
            step: 0,
            rate: 1.0,
            micro_batches: 1,
        };
        let plan = PassPlan {
            sequences: 3,
            pieces: 1,
            recompute: Some(recompute),
            compute,
        };
        let mut acts = Activations::new(model.shape(), &plan);
        let pass = Pass {
            first_micro_batch: 0,
            micro_batches: 1,
            time: 16,
            tokens: &tokens,
            targets: &targets,
        };
        let mut losses = [0.0];
        model.begin_step(&ctx).unwrap();
        assert!(
            model
                .forward_backward(&ctx, &pass, &mut acts, &mut losses, &mut |_| {})
                .unwrap()
        );
        let expected = golden.loss();
        assert!(
            (losses[0] - expected).abs() < close.loss * expected,
            "{} {}",
            isa.name(),
            losses[0]
        );
        for param in model.params() {
            match param {
                Param::Matrix(weight) if rule == Rule::Adamw => {
                    let expected = golden.f32(&format!("{}.grad", weight.name()));
                    assert_close(
                        weight.name(),
                        weight.float_gradient(),
                        &expected,
                        close.gradient,
                    );
                }
                Param::Matrix(weight) => {
                    let expected = golden.f32(&format!("{}.scales.grad", weight.name()));
                    assert_close(
                        weight.name(),
                        weight.float_gradient(),
                        &expected,
                        close.gradient,
                    );
                }
                Param::Vector(vector) => {
                    let expected = golden.f32(&format!("{}.grad", vector.name()));
                    // Few elements, each a sum over all heads that nearly cancels.
                    let of_heads = vector.name().contains("query") || vector.name().contains("key");
                    let tolerance = if of_heads { 2.0 } else { 1.0 } * close.gradient;
                    assert_close(vector.name(), vector.grad(), &expected, tolerance);
                }
            }
        }
        model.discard();
        if compute.is_int8() {
            continue;
        }

        // On the grid products are of integers: activations have seven bits, weights 1/119.
        let tolerance = if rule == Rule::Adamw { 1e-4 } else { 0.15 };
        let mut generator = Generator::new(&inference, isa, CacheKind::F32);
        let logits = golden.f32("logits");
        for (token, expected) in tokens[..16].iter().zip(logits.chunks_exact(67)) {
            let found = generator.feed(&[*token]).unwrap();
            assert_close("logits", found, expected, tolerance);
        }
    }
}

const FILES: [&str; 6] = [
    "gpt_untied",
    "gpt_tied_biased",
    "llama_untied",
    "llama_tied",
    "llama_normed",
    "llama_still",
];

#[test]
fn float_gradients_equal_pytorch() {
    for name in FILES {
        check_file(name, Rule::Adamw, 0, Compute::Float);
    }
}

#[test]
fn scale_gradients_on_the_grid_equal_pytorch() {
    for name in FILES {
        check_file(name, Rule::Frozen, 0, Compute::Float);
        check_file(name, Rule::Consensus, 1, Compute::Float);
        check_file(name, Rule::Consensus, 1, Compute::Int8);
        check_file(name, Rule::Consensus, 1, Compute::Int8Blocks);
    }
}

#[test]
fn frequencies_of_rotary_positions_equal_transformers() {
    let golden = Golden::read("rope_frequencies.safetensors");
    for scaling in ["linear", "llama3", "yarn"] {
        let mut config = Config::default();
        for change in [
            "position=rope",
            "head_dim=64",
            "context=16384",
            "rope_factor=8",
            "rope_original_context=2048",
            &format!("rope_scaling={scaling}"),
        ] {
            config.set(&format!("model.{change}")).unwrap();
        }
        let shape = ModelShape::new(&config, 67).unwrap();
        let found: Vec<f32> = frequencies(&config.model, &shape)
            .iter()
            .map(|&frequency| frequency as f32)
            .collect();
        let expected = golden.f32(scaling);
        assert_eq!(found.len(), expected.len());
        for (pair, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let error = (found - expected).abs() / expected;
            assert!(
                error < 1e-5,
                "{scaling} {pair}: {found} instead of {expected}"
            );
        }
        let sharpness = golden.f32(&format!("{scaling}.sharpness"));
        assert_close(scaling, &[sharpness_of(&config.model)], &sharpness, 1e-6);
    }
}

const CACHES: [CacheKind; 3] = [CacheKind::F32, CacheKind::F16, CacheKind::Int8];

#[test]
fn tokens_at_once_or_one_by_one_give_the_same_bits() {
    for name in FILES {
        let golden = Golden::read(&format!("{name}.safetensors"));
        let mut config = config(name, Rule::Consensus);
        config.model.context = 16;
        let (_, model) = golden.models(&config);
        let tokens = &golden.u32("tokens")[..16];
        for cache in CACHES {
            let mut at_once = Generator::new(&model, Isa::best(), cache);
            let expected = at_once.feed(tokens).unwrap();
            let largest = expected.iter().fold(0.0f32, |max, x| max.max(x.abs()));
            assert!(largest > 0.1, "{name}: {largest}");
            for isa in Isa::available() {
                for step in [1, 5] {
                    let mut generator = Generator::new(&model, isa, cache);
                    for tokens in tokens.chunks(step) {
                        generator.feed(tokens).unwrap();
                    }
                    assert_eq!(generator.len(), 16);
                    assert_eq!(
                        generator.logits().unwrap(),
                        expected,
                        "{name} {cache:?} {}",
                        isa.name()
                    );
                }
            }
        }
    }
}

#[test]
fn generation_goes_on_past_the_context() {
    for name in FILES {
        let model = InferenceModel::random(&config(name, Rule::Consensus), 67).unwrap();
        let feed = |steps: &[usize]| {
            let mut generator = Generator::new(&model, Isa::best(), CacheKind::F16);
            let mut token = 0;
            for &step in steps {
                let tokens: Vec<u32> = (token..token + step as u32).map(|i| i % 67).collect();
                let logits = generator.feed(&tokens).unwrap();
                assert!(logits.iter().all(|x| x.is_finite()));
                assert!(generator.len() <= 16);
                token += step as u32;
            }
            (generator.len(), generator.logits().unwrap().to_vec())
        };
        let one_by_one = feed(&[1; 100]);
        assert_eq!(feed(&[100]), one_by_one, "{name}");
        assert_eq!(feed(&[7, 30, 63]), one_by_one, "{name}");
        let mut generator = Generator::new(&model, Isa::best(), CacheKind::Int8);
        assert!(generator.feed(&[67]).is_err());
        assert!(generator.feed(&[]).is_err());
        assert!(generator.is_empty());
    }
}

#[test]
fn random_models_are_whole_and_as_large_as_planned() {
    for changes in [
        &[][..],
        &["tie_head=true", "fine_last_block=true"],
        &["float_parts=attention"],
        &["float_parts=head"],
        &["tie_head=true", "float_parts=embeddings"],
        &["float_parts=[\"embeddings\", \"attention\", \"mlp\", \"head\"]"],
        &["group=32"],
    ] {
        let mut config = config("llama_untied", Rule::Consensus);
        for change in changes {
            config.set(&format!("model.{change}")).unwrap();
        }
        let model = InferenceModel::random(&config, 67).unwrap();
        let ledger = Ledger::for_inference(&config, model.shape(), 1);
        let planned = ledger
            .rows()
            .iter()
            .find(|row| row.what == "weights")
            .unwrap();
        // The plan counts what brings each piece to a cache line.
        let padding = planned.bytes.checked_sub(model.weight_bytes());
        assert!(
            padding.is_some_and(|bytes| bytes < 20 * 64),
            "{changes:?}: {padding:?}"
        );
        let mut generator = Generator::new(&model, Isa::best(), CacheKind::F16);
        let logits = generator.feed(&[1, 2, 3]).unwrap();
        assert!(logits.iter().any(|x| *x != logits[0]), "{changes:?}");
        let again = InferenceModel::random(&config, 67).unwrap();
        let mut again = Generator::new(&again, Isa::best(), CacheKind::F16);
        assert_eq!(again.feed(&[1, 2, 3]).unwrap(), generator.logits().unwrap());
    }
}
