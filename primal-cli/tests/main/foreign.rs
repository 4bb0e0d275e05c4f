//! Models of other tools through the binary: in, measured, talked with, and out again.
#![allow(clippy::unwrap_used, reason = "tests may fail loudly")]

use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use crate::common::{Workplace, finish, json, refused};
use serde_json::Value;

/// A tiny random Llama as `transformers` saves it, with a chat template, in `place`.
fn llama(place: &Workplace) {
    let golden = "../primal-model/tests/golden/hf_llama";
    let folder = place.path("hf");
    std::fs::create_dir(&folder).unwrap();
    for entry in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(golden)).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.join(path.file_name().unwrap())).unwrap();
    }
    std::fs::remove_file(folder.join("expected.safetensors")).unwrap();
    let template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}\
                    {% if add_generation_prompt %}assistant: {% endif %}";
    let config = serde_json::json!({ "chat_template": template });
    place.write("hf/tokenizer_config.json", config.to_string());
}

fn import(place: &Workplace, from: &str, out: &str, more: &[&str]) -> Value {
    let mut command = place.primal("import");
    command.args(["--from", from, "--out", out, "--threads", "1", "--json"]);
    json(command.args(more))
}

fn perplexity(place: &Workplace, model: &str, more: &[&str]) -> Value {
    let mut command = place.primal("eval");
    command.args(["--model", model, "--data", "text.txt", "--window", "32"]);
    json(
        command
            .args(["--tokens", "640", "--threads", "1", "--json"])
            .args(more),
    )
}

#[test]
fn an_import_reports_every_matrix_and_is_measured_against_its_original() {
    let place = Workplace::new();
    llama(&place);
    let float = import(&place, "hf", "float", &["--float"]);
    assert_eq!(float["tensors"].as_array().unwrap().len(), 0);
    let nearest = import(&place, "hf", "nearest", &[]);
    let calibrated = ["--calibrate", "text.txt", "--calibrate-tokens", "2048"];
    let compensated = import(&place, "hf", "compensated", &calibrated);
    // Embedding, four matrices of two blocks, head.
    for (report, rounding) in [(&nearest, "nearest"), (&compensated, "compensated")] {
        let tensors = report["tensors"].as_array().unwrap();
        assert_eq!(tensors.len(), 10);
        assert!(
            tensors
                .iter()
                .all(|tensor| tensor["snr_db"].as_f64() > Some(3.0)),
            "{report}"
        );
        assert_eq!(tensors[1]["rounding"], rounding);
    }
    assert!(compensated["calibration_tokens"].as_u64() > Some(1000));

    let same = perplexity(&place, "float", &["--reference", "float"]);
    assert_eq!(same["kl_divergence"].as_f64(), Some(0.0));
    assert_eq!(same["same_top_token"].as_f64(), Some(1.0));
    let [near, comp] = ["nearest", "compensated"].map(|model| {
        let row = perplexity(&place, model, &["--reference", "float"]);
        assert!(row["perplexity"].as_f64() > Some(1.0));
        row["kl_divergence"].as_f64().unwrap()
    });
    assert!(0.0 < comp && comp < near, "{comp} {near}");
    // Half the stride: each prediction sees more, and none is counted twice.
    let strided = perplexity(&place, "float", &["--stride", "16"]);
    assert_eq!(strided["stride"], 16);
    assert!(strided["tokens"].as_u64() <= Some(656));

    let mut again = place.primal("import");
    refused(
        again.args(["--from", "hf", "--out", "float"]),
        1,
        &["float"],
    );
    let mut blind = place.primal("import");
    let blind = blind.args(["--from", "hf", "--out", "x", "--rounding", "compensated"]);
    refused(blind, 1, &["hint: --calibrate"]);
}

#[test]
fn exports_come_back_as_the_same_model() {
    let place = Workplace::new();
    llama(&place);
    import(&place, "hf", "model", &[]);
    for (to, kind) in [("hf", "f16"), ("gguf", "f16")] {
        let mut command = place.primal("export");
        command.args(["--model", "model", "--to", to, "--type", kind, "--json"]);
        let out = format!("out-{to}");
        assert_eq!(json(command.args(["--out", &out]))["format"], to);
        // As plain numbers: half precision is all that is lost.
        let again = format!("again-{to}");
        import(&place, &out, &again, &["--float"]);
        let row = perplexity(&place, &again, &["--reference", "model"]);
        assert!(row["kl_divergence"].as_f64() < Some(1e-3), "{to}: {row}");
    }
    let mut command = place.primal("export");
    command.args([
        "--model", "model", "--to", "hf", "--type", "q8_0", "--out", "x",
    ]);
    refused(&mut command, 2, &["q8_0"]);
}

/// What a chat says to lines of input: its exit code, stdout, stderr.
fn chat(
    place: &Workplace,
    model: &str,
    more: &[&str],
    input: &str,
) -> (Option<i32>, String, String) {
    let mut command = place.primal("chat");
    command.args(["--model", model, "--threads", "1"]);
    if !more.contains(&"--temperature") {
        command.args(["--temperature", "0"]);
    }
    command
        .args(more)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // A chat that ends early closes its input.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let done = child.wait_with_output().unwrap();
    let [stdout, stderr] = [done.stdout, done.stderr].map(|it| String::from_utf8(it).unwrap());
    assert!(!stderr.contains("panicked"), "{stderr}");
    (done.status.code(), stdout, stderr)
}

fn with_template(place: &Workplace, template: &str) {
    let config = serde_json::json!({ "chat_template": template });
    place.write("hf/tokenizer_config.json", config.to_string());
}

#[test]
fn a_turn_that_fails_is_taken_back_and_old_turns_make_room() {
    let place = Workplace::new();
    llama(&place);
    with_template(
        &place,
        "{% for m in messages %}{% if m.content == 'bad' %}{{ raise_exception('no bad words') }}\
         {% endif %}{{ m.content }}\n{% endfor %}",
    );
    import(&place, "hf", "model", &[]);
    let (code, stdout, stderr) = chat(&place, "model", &["-n", "3"], "hi\nbad\nhi\n/exit\n");
    assert_eq!(code, Some(0), "{stderr}");
    assert_eq!(stderr.matches("no bad words").count(), 1, "{stderr}");
    assert!(stdout.lines().count() >= 3, "{stdout}");

    // The context is 64: the default reply of 256 tokens leaves room for what was said.
    let (code, _, stderr) = chat(&place, "model", &[], "the fox\n/help\nthe dog\n/exit\n");
    assert_eq!(code, Some(0));
    assert!(
        stderr.contains("/clear") && !stderr.contains("error"),
        "{stderr}"
    );
    let lines = "the quick brown fox\n".repeat(8);
    let (_, _, stderr) = chat(
        &place,
        "model",
        &["-n", "8", "--system", "be brief"],
        &lines,
    );
    assert!(stderr.contains("messages are forgotten"), "{stderr}");
    let (_, _, stderr) = chat(
        &place,
        "model",
        &["-n", "8"],
        "a\nb\n/clear\nc\n/system d\ne\n",
    );
    assert!(
        !stderr.contains("forgotten") && !stderr.contains("error"),
        "{stderr}"
    );
    let (_, _, stderr) = chat(&place, "model", &["-n", "2", "--temperature", "1"], "a\n");
    assert!(stderr.contains("--seed"), "{stderr}");
    let long = "jugs ".repeat(60);
    let (code, _, stderr) = chat(&place, "model", &[], &format!("{long}\nhi\n"));
    assert_eq!(code, Some(0));
    assert!(stderr.contains("the model sees 64"), "{stderr}");
}

#[test]
fn fine_tuning_keeps_the_context_and_foreign_paths_are_named() {
    let place = Workplace::new();
    llama(&place);
    import(&place, "hf", "model", &[]);
    let mut command = place.primal("train");
    command.args(["--from", "model", "--run", "tuned", "--data", "text.txt"]);
    command.args([
        "--context",
        "16",
        "--steps",
        "2",
        "--batch",
        "4",
        "--threads",
        "1",
        "--json",
    ]);
    json(&mut command);
    let mut command = place.primal("export");
    command.args(["--model", "tuned", "--to", "hf", "--out", "out", "--json"]);
    json(&mut command);
    let config = std::fs::read_to_string(place.path("out/config.json")).unwrap();
    let config: Value = serde_json::from_str(&config).unwrap();
    assert_eq!(config["max_position_embeddings"], 64);
    let row = perplexity(&place, "tuned", &[]);
    assert_eq!(row["window"], 32);
    // Trained on once more, from the one that was.
    let mut command = place.primal("train");
    command.args(["--from", "tuned", "--run", "again", "--data", "text.txt"]);
    command.args([
        "--context",
        "8",
        "--steps",
        "1",
        "--batch",
        "4",
        "--threads",
        "1",
        "--json",
    ]);
    json(&mut command);
    assert_eq!(perplexity(&place, "again", &[])["window"], 32);

    let generate = |model: &str| {
        let mut command = place.primal("generate");
        command.args(["--model", model, "-p", "x"]);
        finish(&mut command).stderr
    };
    assert!(generate("hf").contains("hint: primal import --from"));
    place.write("x.gguf", "GGUF");
    assert!(generate("x.gguf").contains("is a GGUF file"));
    assert!(generate("nowhere").contains("is not there"));
}

#[test]
fn folders_that_hold_no_model_are_named_for_what_they_are() {
    let place = Workplace::new();
    llama(&place);
    let named = |from: &str, words: &[&str]| {
        let mut command = place.primal("import");
        command.args(["--from", from, "--out", "out"]);
        refused(&mut command, 1, words);
    };
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n";
    place.write("hf/model-00001-of-00002.safetensors", pointer);
    named("hf", &["Git LFS pointer", "hint: git lfs pull"]);
    place.write("pointer.gguf", pointer);
    named("pointer.gguf", &["Git LFS pointer"]);
    std::fs::remove_file(place.path("hf/config.json")).unwrap();
    named("hf", &["holds no config.json"]);
    place.write("hf/adapter_config.json", "{}");
    named("hf", &["LoRA adapter", "merge_and_unload"]);

    let place = Workplace::new();
    llama(&place);
    std::fs::remove_file(place.path("hf/tokenizer.json")).unwrap();
    place.write("hf/tokenizer.model", "x");
    let mut command = place.primal("import");
    command.args(["--from", "hf", "--out", "out"]);
    refused(
        &mut command,
        1,
        &[
            "tokenizer.json",
            "there is only tokenizer.model",
            "save_pretrained",
        ],
    );
}

#[test]
fn a_chat_goes_through_the_template_of_the_model() {
    let place = Workplace::new();
    llama(&place);
    import(&place, "hf", "model", &[]);
    let mut command = place.primal("chat");
    command.args([
        "--model",
        "model",
        "-n",
        "4",
        "--temperature",
        "0",
        "--system",
        "be brief",
    ]);
    command.args(["--threads", "1"]);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(b"the quick\nthe dog\n/exit\n").unwrap();
    drop(input);
    let done = child.wait_with_output().unwrap();
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );

    // A template that no conversation can end is refused, and nothing hangs.
    let endless = serde_json::json!({ "chat_template":
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}" });
    place.write("hf/tokenizer_config.json", endless.to_string());
    import(&place, "hf", "endless", &[]);
    let (code, _, stderr) = chat(&place, "endless", &[], "the dog\n/exit\n");
    assert_eq!(code, Some(1));
    assert!(stderr.contains("template"), "{stderr}");

    let bad = finish(place.primal("chat").args(["--model", "nowhere"]));
    assert_eq!(bad.code, Some(1));
}
