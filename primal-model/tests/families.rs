//! Every family that is read, from a Hugging Face folder and from GGUF, against `transformers`;
//! through rounding, training, export and back.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests")]

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use primal_kernels::{CacheKind, Isa};
use primal_lut::Grid;
use primal_model::checkpoint::Checkpoint;
use primal_model::config::{Compute, Config, FloatPart};
use primal_model::export::{ExportFormat, export};
use primal_model::foreign::gguf::TensorType;
use primal_model::foreign::safetensors::{FloatType, SafetensorsFile};
use primal_model::generate::Generator;
use primal_model::import::{ImportOptions, ImportReport, import};
use primal_model::train::{Event, Trainer};
use serde_json::{Map, Value};

/// Folder of the golden files, and whether llama.cpp has the architecture.
const FAMILIES: [(&str, bool); 10] = [
    ("llama3", true),
    ("qwen3", true),
    ("granite", true),
    ("granite_untied", true),
    ("ernie4_5", true),
    ("helium", false),
    ("seed_oss", true),
    ("phi3", true),
    ("phi4_mini", true),
    ("smollm3", true),
];

fn golden(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    folder.join("families").join(name)
}

/// A copy of a golden folder with the tokenizer, which all of them share.
fn folder(name: &str, to: &Path) -> PathBuf {
    fs::create_dir_all(to).unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(golden(name).join(file), to.join(file)).unwrap();
    }
    let tokenizer = golden("../hf_llama/tokenizer.json");
    fs::copy(tokenizer, to.join("tokenizer.json")).unwrap();
    to.to_path_buf()
}

fn options(float_parts: Vec<FloatPart>) -> ImportOptions {
    ImportOptions {
        grid: Grid::prime(),
        group: 0,
        rounding: None,
        calibration: None,
        calibration_tokens: 4096,
        float_parts,
        context: None,
    }
}

fn float() -> ImportOptions {
    options(vec![
        FloatPart::Embeddings,
        FloatPart::Attention,
        FloatPart::Mlp,
        FloatPart::Head,
    ])
}

fn load(from: &Path, out: &Path, options: &ImportOptions) -> (Checkpoint, ImportReport) {
    let report = import(Isa::best(), from, out, options, &mut |_| {});
    let report = report.unwrap_or_else(|error| panic!("{}: {error}", from.display()));
    (Checkpoint::open(out).unwrap(), report)
}

fn refusal(from: &Path, out: &Path) -> String {
    let found = import(Isa::best(), from, out, &float(), &mut |_| {});
    found.unwrap_err().to_string()
}

/// What `transformers` finds: tokens, loss, logits of the last tokens.
struct Expected {
    tokens: Vec<u32>,
    loss: f64,
    logits: Vec<f32>,
}

impl Expected {
    fn read(folder: &str, case: &str) -> Expected {
        let path = golden(folder).join("expected.safetensors");
        let mut file = SafetensorsFile::open(&path).unwrap();
        let mut tensor = |name: &str| {
            let shape = file.shape(name).unwrap().to_vec();
            file.tensor(name, &shape).unwrap()
        };
        Expected {
            tokens: tensor("tokens").iter().map(|token| *token as u32).collect(),
            loss: f64::from(tensor(&format!("{case}loss"))[0]),
            logits: tensor(&format!("{case}logits")),
        }
    }

    /// How far a model is off: of the loss relative to it, of logits relative to the largest.
    fn differences(&self, checkpoint: &Checkpoint) -> (f64, f32) {
        let all = logits(checkpoint, &self.tokens);
        let vocab = all.len() / self.tokens.len();
        let last = &all[all.len() - self.logits.len()..];
        (
            (loss(&all, vocab, &self.tokens) / self.loss - 1.0).abs(),
            difference(last, &self.logits),
        )
    }

    fn assert_equal(&self, what: &str, checkpoint: &Checkpoint) {
        let (loss, logits) = self.differences(checkpoint);
        println!("{what:<32} loss {loss:.1e}  logits {logits:.1e}");
        assert!(loss < 1e-4 && logits < 1e-3, "{what}: {loss} {logits}");
    }
}

/// (tokens, V) logits, token by token through the cache, with products in float.
fn logits(checkpoint: &Checkpoint, tokens: &[u32]) -> Vec<f32> {
    let model = checkpoint.load_for_inference(Compute::Float).unwrap();
    let mut generator = Generator::new(&model, Isa::best(), CacheKind::F32);
    tokens
        .iter()
        .flat_map(|token| generator.feed(&[*token]).unwrap().to_vec())
        .collect()
}

/// Mean cross-entropy of each token after those before it.
fn loss(logits: &[f32], vocab: usize, tokens: &[u32]) -> f64 {
    let rows = logits.chunks_exact(vocab).zip(&tokens[1..]);
    let losses = rows.map(|(row, target)| {
        let sum: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
        sum.ln() - f64::from(row[*target as usize])
    });
    losses.sum::<f64>() / (tokens.len() - 1) as f64
}

/// The largest difference relative to the largest value.
fn difference(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let pairs = found.iter().zip(expected);
    pairs.fold(0.0f32, |m, (a, b)| m.max((a - b).abs())) / largest
}

#[test]
fn every_family_gives_the_loss_and_logits_of_transformers() {
    let place = tempfile::tempdir().unwrap();
    for (name, has_gguf) in FAMILIES {
        let path = |what: &str| place.path().join(format!("{name}-{what}"));
        let expected = Expected::read(name, "");
        let from = folder(name, &path("hf"));
        let (checkpoint, _) = load(&from, &path("float"), &float());
        expected.assert_equal(&format!("{name} folder"), &checkpoint);
        if has_gguf {
            let file = golden(name).join("model.gguf");
            let (checkpoint, _) = load(&file, &path("gguf-float"), &float());
            expected.assert_equal(&format!("{name} gguf"), &checkpoint);
        }
    }
}

#[test]
fn families_come_back_from_their_exports() {
    let place = tempfile::tempdir().unwrap();
    for (name, has_gguf) in FAMILIES {
        let path = |what: &str| place.path().join(format!("{name}-{what}"));
        let from = folder(name, &path("hf"));
        let (checkpoint, _) = load(&from, &path("grid"), &options(Vec::new()));
        let tokens = Expected::read(name, "").tokens;
        let ours = logits(&checkpoint, &tokens);
        for (kind, format) in [
            ("hf", ExportFormat::HuggingFace(FloatType::F32)),
            ("gguf", ExportFormat::Gguf(TensorType::F32)),
        ] {
            let out = path(&format!("out-{kind}"));
            if let Err(error) = export(&checkpoint, format, &out) {
                // Positions scaled pair by pair have a form in one architecture alone.
                assert!(
                    name == "phi4_mini" && kind == "gguf",
                    "{name} {kind}: {error}"
                );
                assert!(error.to_string().contains("no form"), "{error}");
                continue;
            }
            let (again, _) = load(&out, &path(&format!("again-{kind}")), &float());
            let found = difference(&logits(&again, &tokens), &ours);
            assert!(found < 1e-5, "{name} {kind}: {found}");
            assert_eq!(
                again.config.model.rope_scaling, checkpoint.config.model.rope_scaling,
                "{name} {kind}"
            );
        }
        let _ = has_gguf;
    }
}

#[test]
fn families_learn_by_votes() {
    let place = tempfile::tempdir().unwrap();
    let text = place.path().join("text.txt");
    fs::write(
        &text,
        "the quick brown fox jumps over the lazy dog. ".repeat(40),
    )
    .unwrap();
    for name in ["qwen3", "smollm3", "phi4_mini"] {
        let path = |what: &str| place.path().join(format!("{name}-{what}"));
        let from = folder(name, &path("hf"));
        let (base, _) = load(&from, &path("base"), &options(Vec::new()));
        let mut config = Config {
            model: base.config.model.clone(),
            ..Config::default()
        };
        config.data.train = vec![text.clone()];
        config.train.run = path("run");
        for change in [
            "model.context=16",
            "train.batch=4",
            "train.steps=30",
            "optim.warmup_steps=4",
            "data.val_fraction=0.2",
            "train.eval_every=0",
        ] {
            config.set(change).unwrap();
        }
        config.model.full_context = base.config.model.context;
        let mut losses = Vec::new();
        let mut trainer = Trainer::from_checkpoint(config, &base).unwrap();
        trainer
            .run(&mut |event| {
                if let Event::Step(row) = event {
                    losses.push(row.train_loss);
                }
                ControlFlow::Continue(())
            })
            .unwrap();
        let (first, last) = (losses[0], losses[losses.len() - 1]);
        assert!(last < first - 0.5, "{name}: {first} to {last}");
        // The model keeps the context that it came with.
        let trained = Checkpoint::open(&path("run")).unwrap();
        let model = trained.load_model().unwrap();
        assert_eq!(model.shape().context, base.config.model.context, "{name}");
    }
}

/// A folder of the model of the cases, its `config.json` changed.
fn case(place: &Path, name: &str, change: &dyn Fn(&mut Map<String, Value>)) -> PathBuf {
    let to = folder("cases", &place.join(format!("{name}-hf")));
    let path = to.join("config.json");
    let mut config = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut config);
    fs::write(&path, Value::Object(config).to_string()).unwrap();
    to
}

#[test]
fn every_scaling_of_positions_is_that_of_transformers_and_comes_back() {
    let place = tempfile::tempdir().unwrap();
    let cases = fs::read(golden("cases").join("cases.json")).unwrap();
    let cases: Map<String, Value> = serde_json::from_slice(&cases).unwrap();
    for (name, rope) in &cases {
        let path = |what: &str| place.path().join(format!("{name}-{what}"));
        let expected = Expected::read("cases", &format!("{name}."));
        let from = case(place.path(), name, &|config| {
            config.insert("rope_parameters".into(), rope.clone());
        });
        let (checkpoint, _) = load(&from, &path("float"), &float());
        expected.assert_equal(name, &checkpoint);
        for (kind, format) in [
            ("hf", ExportFormat::HuggingFace(FloatType::F32)),
            ("gguf", ExportFormat::Gguf(TensorType::F32)),
        ] {
            let out = path(&format!("out-{kind}"));
            if let Err(error) = export(&checkpoint, format, &out) {
                assert!(
                    name == "yarn_truncate" && kind == "gguf",
                    "{name} {kind}: {error}"
                );
                continue;
            }
            let (again, _) = load(&out, &path(&format!("again-{kind}")), &float());
            expected.assert_equal(&format!("{name} by {kind}"), &again);
        }
    }
    // The original context beside the object instead of inside it, and older keys.
    let beside = case(place.path(), "beside", &|config| {
        let mut rope = cases["yarn"].as_object().unwrap().clone();
        let original = rope.remove("original_max_position_embeddings").unwrap();
        config.insert("original_max_position_embeddings".into(), original);
        let theta = rope.remove("rope_theta").unwrap();
        config.insert("rope_theta".into(), theta);
        let kind = rope.remove("rope_type").unwrap();
        rope.insert("type".into(), kind);
        config.remove("rope_parameters");
        config.insert("rope_scaling".into(), Value::Object(rope));
    });
    let (checkpoint, _) = load(&beside, &place.path().join("beside"), &float());
    Expected::read("cases", "yarn.").assert_equal("yarn beside", &checkpoint);
}

#[test]
fn a_head_beside_a_tied_configuration_is_used() {
    let place = tempfile::tempdir().unwrap();
    let from = case(place.path(), "untied", &|_| {});
    let untied = golden("cases").join("untied.safetensors");
    fs::copy(untied, from.join("model.safetensors")).unwrap();
    let (checkpoint, report) = load(&from, &place.path().join("untied"), &float());
    Expected::read("cases", "untied.").assert_equal("untied", &checkpoint);
    assert!(
        report.notes[0].contains("another head"),
        "{:?}",
        report.notes
    );

    // A configuration that says nothing: the files say it.
    for (name, file, tied) in [("a", "untied", false), ("b", "model", true)] {
        let from = case(place.path(), name, &|config| {
            config.remove("tie_word_embeddings");
        });
        let file = golden("cases").join(format!("{file}.safetensors"));
        fs::copy(file, from.join("model.safetensors")).unwrap();
        let (checkpoint, report) = load(&from, &place.path().join(name), &float());
        assert_eq!(checkpoint.config.model.tie_head, tied);
        assert!(report.notes.is_empty());
    }
    let from = case(place.path(), "headless", &|config| {
        config.insert("tie_word_embeddings".into(), false.into());
    });
    let error = refusal(&from, &place.path().join("headless"));
    assert!(
        error.contains("lm_head.weight") && error.contains("without its head"),
        "{error}"
    );
}

#[test]
fn what_a_family_does_not_have_is_refused_or_said() {
    let place = tempfile::tempdir().unwrap();
    let changed = |name: &str, key: &str, value: Value| {
        case(place.path(), name, &|config| {
            config.insert(key.into(), value.clone());
        })
    };
    for (key, value, part) in [
        ("partial_rotary_factor", 0.5.into(), "0.5"),
        ("partial_rotary_factor", 0.into(), "share of a head"),
        ("attention_bias", true.into(), "does not have"),
        (
            "num_key_value_heads",
            serde_json::json!([2, 1]),
            "from layer to layer",
        ),
        ("num_hidden_layers", "2".into(), "not a number"),
        (
            "rope_parameters",
            serde_json::json!({"rope_type": "longrope"}),
            "short_factor",
        ),
    ] {
        let from = changed(&format!("{key}-{part}"), key, value);
        let error = refusal(&from, &place.path().join("out"));
        assert!(
            error.contains(key) || error.contains(part),
            "{key}: {error}"
        );
        assert!(error.contains(part), "{key}: {error}");
    }
    // Lists of equal numbers are the number.
    let from = changed("list", "num_key_value_heads", serde_json::json!([2, 2]));
    let (checkpoint, _) = load(&from, &place.path().join("list"), &float());
    assert_eq!(checkpoint.config.model.n_kv_head, 2);

    // A context beyond the default of an evaluation.
    let from = changed("long", "max_position_embeddings", 131_072.into());
    let (checkpoint, _) = load(&from, &place.path().join("long"), &float());
    assert_eq!(checkpoint.config.model.context, 131_072);

    // A window is cut with a word, and is none where no layer slides.
    let slide = |name: &str, more: Value| {
        let from = case(place.path(), name, &|config| {
            config.insert("model_type".into(), "mistral".into());
            config.insert("sliding_window".into(), 24.into());
            config.extend(more.as_object().unwrap().clone());
        });
        let (checkpoint, report) = load(&from, &place.path().join(name), &float());
        (checkpoint.config.model.context, report.notes)
    };
    let (context, notes) = slide("sliding", serde_json::json!({}));
    assert_eq!(context, 24);
    assert!(notes[0].contains("24 of 64"), "{notes:?}");
    let full = serde_json::json!({"layer_types": ["full_attention", "full_attention"]});
    assert_eq!(slide("full", full), (64, Vec::new()));
    let none = serde_json::json!({"sliding_window": null});
    assert_eq!(slide("none", none), (64, Vec::new()));
    let wide = serde_json::json!({"sliding_window": 64});
    assert_eq!(slide("wide", wide), (64, Vec::new()));
    let upper = serde_json::json!({
        "model_type": "qwen3", "use_sliding_window": true, "max_window_layers": 2,
    });
    let from = case(place.path(), "upper", &|config| {
        config.extend(upper.as_object().unwrap().clone());
    });
    // Not the tensors of that family, but its window is none: the first error is another.
    assert!(refusal(&from, &place.path().join("upper")).contains("q_norm"));
}
