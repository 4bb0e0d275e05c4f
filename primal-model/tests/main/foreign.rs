//! Models of other tools, in and out: logits against `transformers`, exports that import again as
//! the same model, damage that is named.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests")]

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use primal_kernels::{CacheKind, Isa};
use primal_lut::Grid;
use primal_model::checkpoint::Checkpoint;
use primal_model::config::{Compute, Config, FloatPart};
use primal_model::data::{Documents, TokenStream};
use primal_model::eval::{Windows, evaluate};
use primal_model::export::{ExportFormat, export};
use primal_model::foreign::gguf::TensorType;
use primal_model::foreign::safetensors::{FloatType, SafetensorsFile};
use primal_model::generate::Generator;
use primal_model::import::{ImportOptions, import};
use primal_model::quantise::Rounding;
use primal_model::train::{Event, Trainer};
use primal_model::{Model, ModelError};

const FAMILIES: [&str; 3] = ["hf_llama", "hf_qwen2", "hf_gpt2"];
const TEXT: &str =
    "the quick brown fox jumps over the lazy dog pack my box with five dozen liquor jugs";

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name)
}

fn float() -> ImportOptions {
    ImportOptions {
        float_parts: vec![
            FloatPart::Embeddings,
            FloatPart::Attention,
            FloatPart::Mlp,
            FloatPart::Head,
        ],
        ..on_grid(Grid::prime(), 0)
    }
}

fn on_grid(grid: Grid, group: usize) -> ImportOptions {
    ImportOptions {
        grid,
        group,
        rounding: None,
        calibration: None,
        calibration_tokens: 4096,
        float_parts: Vec::new(),
        context: None,
    }
}

fn load(
    from: &Path,
    out: &Path,
    options: &ImportOptions,
) -> Result<(Checkpoint, Model), ModelError> {
    import(Isa::best(), from, out, options, &mut |_| {})?;
    let checkpoint = Checkpoint::open(out)?;
    let model = checkpoint.load_model()?;
    Ok((checkpoint, model))
}

/// (tokens, V) logits, token by token through the cache, with products in float.
fn logits(checkpoint: &Checkpoint, tokens: &[u32]) -> Vec<f32> {
    logits_by(Compute::Float, checkpoint, tokens)
}

fn logits_by(compute: Compute, checkpoint: &Checkpoint, tokens: &[u32]) -> Vec<f32> {
    let model = checkpoint.load_for_inference(compute).unwrap();
    let mut generator = Generator::new(&model, Isa::best(), CacheKind::F32);
    tokens
        .iter()
        .flat_map(|token| generator.feed(&[*token]).unwrap().to_vec())
        .collect()
}

/// The largest difference relative to the largest value.
fn difference(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let worst = found
        .iter()
        .zip(expected)
        .fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
    worst / largest
}

fn expected(name: &str) -> (Vec<u32>, Vec<f32>) {
    let mut file = SafetensorsFile::open(&golden(name).join("expected.safetensors")).unwrap();
    let shape = file.shape("logits").unwrap().to_vec();
    let tokens = file.tensor("tokens", &shape[..1]).unwrap();
    (
        tokens.iter().map(|t| *t as u32).collect(),
        file.tensor("logits", &shape).unwrap(),
    )
}

#[test]
fn float_imports_give_the_logits_of_transformers() {
    let folder = tempfile::tempdir().unwrap();
    for name in FAMILIES {
        let out = folder.path().join(name);
        let (checkpoint, _) = load(&golden(name), &out, &float()).unwrap();
        let (tokens, expected) = expected(name);
        let tokenizer = checkpoint.load_tokenizer().unwrap();
        assert_eq!(tokenizer.encode(TEXT).unwrap(), tokens, "{name}");
        let found = difference(&logits(&checkpoint, &tokens), &expected);
        println!("{name}: {found:.2e}");
        assert!(found < 1e-3, "{name}: {found}");
    }
}

#[test]
fn exports_import_again_as_the_same_model() {
    let folder = tempfile::tempdir().unwrap();
    for name in FAMILIES {
        let path = |what: &str| folder.path().join(format!("{name}-{what}"));
        let options = on_grid(Grid::prime(), 0);
        let (checkpoint, model) = load(&golden(name), &path("grid"), &options).unwrap();
        let (tokens, _) = expected(name);
        let ours = logits(&checkpoint, &tokens);
        let rounded = logits_by(Compute::Int8, &checkpoint, &tokens);
        let found = difference(&rounded, &ours);
        assert!(1e-4 < found && found < 0.2, "{name} in int8: {found}");
        for (kind, format, tolerance) in [
            ("f32", ExportFormat::HuggingFace(FloatType::F32), 1e-5),
            ("f16", ExportFormat::HuggingFace(FloatType::F16), 6e-3),
            ("bf16", ExportFormat::HuggingFace(FloatType::Bf16), 6e-2),
            ("gguf", ExportFormat::Gguf(TensorType::F16), 6e-3),
            ("gguf32", ExportFormat::Gguf(TensorType::F32), 1e-5),
        ] {
            let out = path(kind);
            export(&checkpoint, format, &out).unwrap();
            // As plain numbers: what the type rounds is all that is lost.
            let (again, _) = load(&out, &path(&format!("{kind}-float")), &float()).unwrap();
            let found = difference(&logits(&again, &tokens), &ours);
            assert!(found < tolerance, "{name} {kind}: {found}");
            let tokenizer = again.load_tokenizer().unwrap();
            assert_eq!(tokenizer.encode(TEXT).unwrap(), tokens, "{name} {kind}");
            // On the grid: every code is found again.
            if kind != "bf16" {
                let (_, on_grid) = load(&out, &path(&format!("{kind}-grid")), &options).unwrap();
                let pairs = model
                    .grid_matrices()
                    .into_iter()
                    .zip(on_grid.grid_matrices());
                for ((matrix_name, before), (_, after)) in pairs {
                    let close = |(a, b): (f32, f32)| (a - b).abs() <= 2e-3 * a.abs();
                    let values = before.dequantise().into_iter().zip(after.dequantise());
                    assert!(values.clone().all(close), "{name} {kind} {matrix_name}");
                }
            }
        }
    }
}

#[test]
fn a_calibration_helps_and_threads_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (tokens, _) = expected("hf_llama");
    let float = load(&golden("hf_llama"), &folder.path().join("float"), &float())
        .unwrap()
        .0;
    let wanted = logits(&float, &tokens);
    let error = |what: &str, rounding, threads| {
        let options = ImportOptions {
            rounding: Some(rounding),
            calibration: Some(TEXT.repeat(40)),
            ..on_grid(Grid::prime(), 0)
        };
        let out = folder.path().join(what);
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        let (checkpoint, _) = pool
            .install(|| load(&golden("hf_llama"), &out, &options))
            .unwrap();
        let found = logits(&checkpoint, &tokens);
        let sum: f32 = found
            .iter()
            .zip(&wanted)
            .map(|(a, b)| (a - b).powi(2))
            .sum();
        (sum, fs::read(checkpoint.model_file()).unwrap())
    };
    let (nearest, _) = error("nearest", Rounding::Nearest, 2);
    let (compensated, two) = error("compensated", Rounding::Compensated, 2);
    let (_, one) = error("one-thread", Rounding::Compensated, 1);
    assert!(compensated < nearest, "{compensated} against {nearest}");
    assert_eq!(one, two);
}

/// A copy of a golden folder.
fn copy(name: &str, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(golden(name)).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap() != "expected.safetensors" {
            fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
        }
    }
}

#[test]
fn what_is_wrong_with_a_folder_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let edit = |name: &str, file: &str, from: &str, to: &str| {
        let path = folder.path().join(format!(
            "{name}-{}",
            fs::read_dir(folder.path()).unwrap().count()
        ));
        copy(name, &path);
        let text = fs::read_to_string(path.join(file)).unwrap();
        assert!(text.contains(from), "{from}");
        fs::write(path.join(file), text.replace(from, to)).unwrap();
        let error = load(&path, &path.join("out"), &float()).unwrap_err();
        error.to_string()
    };
    let config = |from: &str, to: &str| edit("hf_llama", "config.json", from, to);
    for (error, parts) in [
        (
            config(r#""model_type": "llama""#, r#""model_type": "mamba""#),
            ["model_type", "is mamba"],
        ),
        (
            config(r#""hidden_size": 16"#, r#""hidden_size": 1e300"#),
            ["hidden_size", "expected a size"],
        ),
        (
            config(r#""hidden_size": 16"#, r#""hidden_size": "x""#),
            ["hidden_size", "not a number"],
        ),
        (
            config(r#""hidden_size": 16"#, r#""hidden_size": 24"#),
            ["model.embed_tokens.weight", "expected [288, 24]"],
        ),
        (
            config(
                r#""num_hidden_layers": 2"#,
                r#""num_hidden_layers": 200000000"#,
            ),
            ["num_hidden_layers", "at most"],
        ),
        (
            config(r#""num_hidden_layers": 2"#, r#""num_hidden_layers": 3"#),
            ["model.layers.2", "no such tensor"],
        ),
        (
            config(r#""num_hidden_layers": 2"#, r#""num_hidden_layers": 1"#),
            ["model.layers.1", "no parameter"],
        ),
        (
            config(r#""hidden_act": "silu""#, r#""hidden_act": "relu""#),
            ["hidden_act", "relu"],
        ),
        (
            config(r#""rope_type": "default""#, r#""rope_type": "dynamic""#),
            ["rope_scaling", "dynamic"],
        ),
        (
            config(r#""attention_bias": false"#, r#""attention_bias": true"#),
            ["attention_bias", "true"],
        ),
        (config("{", "["), ["config.json", "JSON"]),
        (
            edit(
                "hf_llama",
                "model.safetensors.index.json",
                "model-00001-of-00002",
                "../model-00001",
            ),
            ["index.json", "not a file beside"],
        ),
        (
            edit("hf_gpt2", "config.json", "gelu_new", "gelu"),
            ["activation_function", "gelu"],
        ),
        (
            edit("hf_gpt2", "tokenizer.json", "{", "x"),
            ["tokenizer.json", ""],
        ),
    ] {
        assert!(
            parts.iter().all(|part| error.contains(part)),
            "{parts:?}: {error}"
        );
    }
    let missing = folder.path().join("missing");
    assert!(load(&missing, &folder.path().join("out"), &float()).is_err());
    let shorter = ImportOptions {
        context: Some(8),
        ..float()
    };
    let error = load(&golden("hf_gpt2"), &folder.path().join("out"), &shorter).unwrap_err();
    assert!(error.to_string().contains("learned positions"), "{error}");
    let (_, model) = load(&golden("hf_llama"), &folder.path().join("short"), &shorter).unwrap();
    assert_eq!(model.shape().context, 8);
    let again = load(&golden("hf_llama"), &folder.path().join("short"), &shorter);
    assert!(matches!(again, Err(ModelError::RunExists(_))));
}

/// A fine-tuning run of the imported Llama.
fn tuning(run: &Path, base: &Checkpoint, data: &Path, changes: &[&str]) -> Config {
    let mut config = Config {
        model: base.config.model.clone(),
        ..Config::default()
    };
    config.data.train = vec![data.to_path_buf()];
    config.train.run = run.to_path_buf();
    let common = [
        "model.context=16",
        "train.batch=4",
        "train.micro_batches=2",
        "train.steps=40",
        "optim.warmup_steps=4",
        "data.val_fraction=0.2",
    ];
    for change in common.iter().chain(changes) {
        config.set(change).unwrap();
    }
    config
}

fn go_on(_: Event<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

#[test]
fn imported_models_learn_by_votes() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let (base, _) = load(
        &golden("hf_llama"),
        &path("base"),
        &on_grid(Grid::prime(), 8),
    )
    .unwrap();
    fs::write(path("text.txt"), format!("{TEXT}. ").repeat(30)).unwrap();
    let before = |text: &Path| {
        let tokenizer = base.load_tokenizer().unwrap();
        let documents = Documents::read(&[text.to_path_buf()], "text").unwrap();
        let tokens = TokenStream::encode(&documents, &tokenizer).unwrap();
        let windows = Windows::new(tokens.len(), 16, 16, usize::MAX).unwrap();
        let model = base.load_model().unwrap();
        evaluate(&model, Isa::best(), Compute::Int8, &tokens, &windows)
            .unwrap()
            .loss
    };
    let config = tuning(&path("all"), &base, &path("text.txt"), &[]);
    let mut trainer = Trainer::from_checkpoint(config, &base).unwrap();
    let done = trainer.run(&mut go_on).unwrap().done;
    let start = before(&path("text.txt"));
    assert!(
        done.val_loss < start - 0.5,
        "{} after {start}",
        done.val_loss
    );
    // The result is a model like any other.
    assert!(Checkpoint::open(&path("all")).unwrap().load_model().is_ok());

    let changes = ["train.only_blocks=[1]"];
    let config = tuning(&path("one"), &base, &path("text.txt"), &changes);
    let mut trainer = Trainer::from_checkpoint(config.clone(), &base).unwrap();
    let done = trainer.run(&mut go_on).unwrap().done;
    assert!(
        done.val_loss < start - 0.1,
        "{} after {start}",
        done.val_loss
    );
    let (old, new) = (
        base.load_model().unwrap(),
        Checkpoint::open(&path("one")).unwrap(),
    );
    let new = new.load_model().unwrap();
    for ((name, old), (_, new)) in old.grid_matrices().iter().zip(new.grid_matrices()) {
        assert_eq!(**old == *new, !name.starts_with("blocks.1."), "{name}");
    }
    // A finished run resumes to the same state.
    let hash = trainer.state_hash();
    assert_eq!(Trainer::resume(config).unwrap().state_hash(), hash);
    let error = tuning(
        &path("two"),
        &base,
        &path("text.txt"),
        &["train.only_blocks=[2]"],
    );
    assert!(
        error
            .validate()
            .unwrap_err()
            .to_string()
            .contains("train.only_blocks")
    );
}

#[test]
fn answers_of_instructions_are_learned() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let (base, _) = load(
        &golden("hf_llama"),
        &path("base"),
        &on_grid(Grid::prime(), 0),
    )
    .unwrap();
    let line = r#"{"prompt": "jugs?", "completion": "five dozen liquor jugs"}"#;
    fs::write(path("chat.jsonl"), format!("{line}\n").repeat(40)).unwrap();
    let changes = ["data.instructions=true"];
    let config = tuning(&path("run"), &base, &path("chat.jsonl"), &changes);
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
    assert!(last < first - 1.0, "{first} to {last}");
}
