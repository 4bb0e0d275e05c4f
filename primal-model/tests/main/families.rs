//! Every family that is read, from a Hugging Face folder and from GGUF, against `transformers`;
//! through rounding, training, export and back.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail like tests")]

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use primal_kernels::{CacheKind, Isa};
use primal_lut::Grid;
use primal_model::checkpoint::Checkpoint;
use primal_model::config::{Compute, Config, FloatPart, RopeScaling};
use primal_model::export::{ExportFormat, export};
use primal_model::foreign::gguf::{GgufFile, GgufWriter, TensorType, Value as GgufValue};
use primal_model::foreign::safetensors::{FloatType, SafetensorsFile};
use primal_model::generate::Generator;
use primal_model::import::{ImportOptions, ImportReport, import};
use primal_model::train::{Event, Trainer};
use serde_json::{Map, Value};

/// Folder of the golden files, and whether llama.cpp has the architecture.
const FAMILIES: [(&str, bool); 11] = [
    ("llama3", true),
    ("ministral", false),
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
    for (name, _) in FAMILIES {
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

/// The Llama of the golden GGUF files with keys changed or, for `None`, removed; in `place`.
fn gguf(place: &Path, name: &str, changes: &[(&str, Option<GgufValue>)]) -> PathBuf {
    let mut file = GgufFile::open(&golden("llama3").join("model.gguf")).unwrap();
    let mut writer = GgufWriter::new();
    for (key, value) in file.all_metadata() {
        if !changes.iter().any(|(changed, _)| changed == key) {
            writer.set(key, value.clone());
        }
    }
    for (key, value) in changes {
        if let Some(value) = value {
            writer.set(key, value.clone());
        }
    }
    let tensors = file.tensors().clone();
    for (name, info) in &tensors {
        writer.plan(name, &info.shape, TensorType::F32);
    }
    let path = place.join(format!("{name}.gguf"));
    let mut started = writer.start(&path).unwrap();
    for (name, info) in &tensors {
        let values = file.tensor(name, &info.shape).unwrap();
        started.tensor(name, &values).unwrap();
    }
    started.finish().unwrap();
    path
}

#[test]
fn keys_of_gguf_are_applied_or_refused() {
    let place = tempfile::tempdir().unwrap();
    let float_value = |value: f32| Some(GgufValue::f32(value));
    for (at, (key, value, part)) in [
        ("llama.attention.scale", float_value(0.1), "0.1"),
        ("llama.logit_scale", float_value(2.0), "2"),
        ("llama.embedding_scale", float_value(12.0), "12"),
        ("llama.residual_scale", float_value(0.2), "0.2"),
        (
            "llama.attention.causal",
            Some(GgufValue::bool(false)),
            "is 0",
        ),
        ("llama.expert_count", Some(GgufValue::u32(8)), "is 8"),
        ("llama.attention.max_alibi_bias", float_value(8.0), "no key"),
        ("llama.final_logit_softcapping", float_value(30.0), "no key"),
        (
            "llama.rope.scaling.yarn_log_multiplier",
            float_value(0.1),
            "0.1",
        ),
        (
            "llama.rope.scaling.yarn_ext_factor",
            float_value(0.5),
            "0.5",
        ),
        ("llama.rope.scaling.attn_factor", float_value(-2.0), "-2"),
        (
            "llama.rope.scaling.type",
            Some(GgufValue::String("dynamic".into())),
            "dynamic",
        ),
        (
            "llama.rope.dimension_count",
            Some(GgufValue::u32(8)),
            "8 of 16",
        ),
        (
            "llama.attention.value_length",
            Some(GgufValue::u32(8)),
            "is 8",
        ),
        (
            "llama.attention.head_count_kv",
            Some(GgufValue::i32s(&[2, 1])),
            "layer to layer",
        ),
        (
            "llama.attention.head_count_kv",
            Some(GgufValue::String("x".into())),
            "not a number",
        ),
        ("llama.block_count", None, "is missing"),
        ("split.count", Some(GgufValue::u32(3)), "llama-gguf-split"),
        (
            "general.architecture",
            Some(GgufValue::String("mamba".into())),
            "is mamba",
        ),
        (
            "tokenizer.ggml.pre",
            Some(GgufValue::String("tekken".into())),
            "is tekken",
        ),
        (
            "tokenizer.ggml.eot_token_id",
            Some(GgufValue::u32(9999)),
            "not the id",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let from = gguf(place.path(), &format!("bad{at}"), &[(key, value)]);
        let error = refusal(&from, &place.path().join("out"));
        assert!(
            error.contains(key) && error.contains(part),
            "{key}: {error}"
        );
    }
    // What changes nothing is no reason to refuse a file.
    let neutral = [
        ("llama.attention.scale", float_value(0.25)),
        ("llama.logit_scale", float_value(1.0)),
        ("llama.attention.causal", Some(GgufValue::bool(true))),
        ("llama.expert_count", Some(GgufValue::u32(0))),
        (
            "llama.attention.head_count_kv",
            Some(GgufValue::i32s(&[2, 2])),
        ),
        (
            "llama.feed_forward_length",
            Some(GgufValue::i32s(&[24, 24])),
        ),
        ("llama.rope.scaling.attn_factor", float_value(1.0)),
        ("split.count", Some(GgufValue::u32(1))),
    ];
    let from = gguf(place.path(), "neutral", &neutral);
    let (checkpoint, report) = load(&from, &place.path().join("neutral"), &float());
    Expected::read("llama3", "").assert_equal("neutral keys", &checkpoint);
    assert!(report.notes.is_empty());

    let model = |name: &str, changes: &[(&str, Option<GgufValue>)]| {
        let from = gguf(place.path(), name, changes);
        let (checkpoint, report) = load(&from, &place.path().join(name), &float());
        (checkpoint.config.model, report.notes)
    };
    let (found, _) = model("linear", &[("llama.rope.scale_linear", float_value(4.0))]);
    assert_eq!(
        (found.rope_scaling, found.rope_factor),
        (RopeScaling::Linear, 4.0)
    );
    let text = |text: &str| Some(GgufValue::String(text.to_owned()));
    let (found, _) = model(
        "yarn",
        &[
            ("llama.rope.scaling.type", text("yarn")),
            ("llama.rope.scaling.factor", float_value(4.0)),
            ("llama.rope.scaling.yarn_beta_fast", float_value(4.0)),
            ("llama.rope.scaling.yarn_beta_slow", float_value(0.5)),
            ("llama.rope.scaling.yarn_attn_factor", float_value(2.0)),
            ("llama.rope.scaling.yarn_ext_factor", float_value(-1.0)),
        ],
    );
    assert_eq!((found.rope_beta_fast, found.rope_beta_slow), (4.0, 0.5));
    let expected = 2.0 * (0.1 * 4.0f32.ln() + 1.0);
    assert!((found.rope_attention_factor - expected).abs() < 1e-6);
    let window = [("llama.attention.sliding_window", Some(GgufValue::u32(4096)))];
    let (found, notes) = model("window", &window);
    assert_eq!(found.context, 4096);
    assert!(notes[0].contains("4096 of 131072"), "{notes:?}");
}

#[test]
fn the_vocabulary_of_gguf_begins_and_ends_as_llama_cpp_has_it() {
    let place = tempfile::tempdir().unwrap();
    let tokenizer = |name: &str, changes: &[(&str, Option<GgufValue>)]| {
        let from = gguf(place.path(), name, changes);
        let (checkpoint, _) = load(&from, &place.path().join(name), &float());
        (checkpoint.load_tokenizer().unwrap(), checkpoint)
    };
    let text = |text: &str| Some(GgufValue::String(text.to_owned()));
    const PRE: &str = "tokenizer.ggml.pre";
    const ADD: &str = "tokenizer.ggml.add_bos_token";
    for (name, changes, start) in [
        ("gpt2", vec![(PRE, text("gpt-2"))], None),
        ("none", vec![(PRE, None)], None),
        ("llama3", vec![(PRE, text("llama-bpe"))], Some(0)),
        ("falcon3", vec![(PRE, text("falcon3"))], Some(0)),
        ("qwen", vec![(PRE, text("deepseek-r1-qwen"))], None),
        ("phi2", vec![(PRE, text("phi-2"))], None),
        (
            "told",
            vec![
                (PRE, text("llama-bpe")),
                (ADD, Some(GgufValue::bool(false))),
            ],
            None,
        ),
        (
            "told2",
            vec![(PRE, text("qwen2")), (ADD, Some(GgufValue::bool(true)))],
            Some(0),
        ),
    ] {
        let (found, _) = tokenizer(name, &changes);
        assert_eq!(found.start_of_text(), start, "{name}");
    }
    let (found, checkpoint) = tokenizer(
        "ends",
        &[
            ("tokenizer.ggml.eot_token_id", Some(GgufValue::u32(5))),
            ("tokenizer.ggml.eom_token_id", Some(GgufValue::u32(9))),
        ],
    );
    assert_eq!(found.ends(), [0, 5, 9]);
    // Out and in again.
    for (kind, format) in [
        ("hf", ExportFormat::HuggingFace(FloatType::F32)),
        ("gguf", ExportFormat::Gguf(TensorType::F32)),
    ] {
        let out = place.path().join(format!("out-{kind}"));
        export(&checkpoint, format, &out).unwrap();
        let (again, _) = load(&out, &place.path().join(format!("again-{kind}")), &float());
        assert_eq!(again.load_tokenizer().unwrap().ends(), [0, 5, 9], "{kind}");
        if kind == "hf" {
            let written = fs::read_to_string(out.join("generation_config.json")).unwrap();
            let written: Value = serde_json::from_str(&written).unwrap();
            assert_eq!(written["eos_token_id"], serde_json::json!([0, 5, 9]));
        }
    }
}

#[test]
fn packed_folders_are_named_for_what_they_are() {
    let place = tempfile::tempdir().unwrap();
    for (tensor, words) in [
        ("model.layers.0.self_attn.q_proj.qweight", "GPTQ or AWQ"),
        (
            "model.layers.0.self_attn.q_proj.weight.absmax",
            "4 bits by bitsandbytes",
        ),
        ("model.layers.0.mlp.down_proj.SCB", "8 bits by bitsandbytes"),
        (
            "model.layers.0.mlp.down_proj.weight_scale_inv",
            "8-bit floating point",
        ),
        (
            "model.layers.0.mlp.down_proj.weight_packed",
            "compressed-tensors",
        ),
        ("model.embed_tokens.scales", "MLX"),
        ("base_model.model.x.lora_A.weight", "LoRA adapter"),
        ("language_model.model.x", "language_model"),
        ("layers.0.self_attn.q_proj.weight", "saved without its head"),
    ] {
        let from = case(place.path(), words, &|_| {});
        let header = serde_json::json!({
            tensor: { "dtype": "F32", "shape": [1], "data_offsets": [0, 4] },
        });
        let header = header.to_string();
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend([0; 4]);
        fs::write(from.join("model.safetensors"), bytes).unwrap();
        let error = refusal(&from, &place.path().join("out"));
        assert!(error.contains(words), "{tensor}: {error}");
    }
}
