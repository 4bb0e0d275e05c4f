//! Shared by the tests on a GPU: devices that tests take in turn, and a tiny run.
#![allow(clippy::unwrap_used, reason = "helpers of several tests")]

use std::path::Path;
use std::sync::Mutex;

use cuda_standin::StandIn;
use primal_model::config::Config;

/// Runs share the devices, of which the model opens the first.
pub static DEVICE: Mutex<()> = Mutex::new(());

/// Devices of the stand-in, for runs on several.
pub const DEVICES: u32 = 4;

pub fn standin() -> &'static StandIn {
    cuda_standin::install(DEVICES).unwrap()
}

/// The length of a run: what shows a difference, or more where `cargo xtask ci --all` asks for it.
pub fn steps(daily: u32, all: u32) -> String {
    let is_all = std::env::var_os("PRIMAL_TESTS").is_some_and(|choice| choice == "all");
    format!("train.steps={}", if is_all { all } else { daily })
}

/// A tiny model of letters, trained for twenty steps unless `changes` say otherwise.
pub fn config(folder: &Path, run: &str, backend: &str, changes: &[&str]) -> Config {
    let path = folder.join("text.txt");
    let text: String = (0..400)
        .map(|i| format!("line {i}: the square of {i} is {}.\n", i * i))
        .collect();
    std::fs::write(&path, text).unwrap();
    let mut config = Config::preset("shakespeare-char").unwrap();
    config.data.train = vec![path];
    config.train.run = folder.join(run);
    let backend = format!("train.backend=\"{backend}\"");
    let tiny = [
        "model.width=32",
        "model.n_layer=2",
        "model.n_head=2",
        "model.context=16",
        "train.steps=20",
        "train.batch=4",
        "train.eval_every=0",
        "train.save_every=0",
        "train.eval_tokens=64",
        "optim.warmup_steps=4",
        // What a GPU has kernels for.
        "optim.rule=consensus",
        // What a GPU computes when told int8, too.
        "train.compute=int8-float-gradients",
        &backend,
    ];
    for change in tiny.iter().chain(changes) {
        config.set(change).unwrap();
    }
    config
}
