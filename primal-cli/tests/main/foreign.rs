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
    let mut command = place.primal("chat");
    command.args(["--model", "endless", "--threads", "1"]);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(b"the dog\n/exit\n")
        .unwrap();
    let done = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(done.stderr).unwrap();
    assert!(
        stderr.contains("template") && !stderr.contains("panicked"),
        "{stderr}"
    );

    let bad = finish(place.primal("chat").args(["--model", "nowhere"]));
    assert_eq!(bad.code, Some(1));
}
