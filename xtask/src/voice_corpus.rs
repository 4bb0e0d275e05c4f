//! `cargo xtask voice-corpus`: a speech corpus with exact durations, made by a Python program in
//! a virtual environment of its own.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::tools::{build_release, run as execute};

/// The program, in the folder that also names the packages it needs.
const FOLDER: &str = "tools/voice";
const PROGRAM: &str = "make_corpus.py";

/// Where the virtual environment lives: build output like any other.
const ENVIRONMENT: &str = "target/voice-venv";

/// Who speaks.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Voice {
    /// Flite's US male voice: a free licence.
    Rms,
    /// Piper's en_US-joe-medium: more natural, of terms that were not checked.
    Joe,
}

/// What to make.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder of the corpus.
    #[arg(long, value_name = "DIR", default_value = "corpus/voice")]
    out: PathBuf,
    /// Who speaks.
    #[arg(long, value_enum, default_value_t = Voice::Rms)]
    voice: Voice,
    /// Sentences to speak, at most.
    #[arg(long, value_name = "N", default_value_t = 1800)]
    count: u32,
    /// Text with a sentence a line, instead of the dependencies' documentation.
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Seed of the choice of sentences and of the voice.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u32,
}

/// Makes the virtual environment, builds `primal` for its front end, and speaks.
pub fn run(args: &Args) -> Result<()> {
    let primal = build_release("primal-cli", "primal")?;
    let python = Path::new(ENVIRONMENT).join("bin/python");
    if !python.exists() {
        let mut make = Command::new("python3");
        execute(make.args(["-m", "venv", ENVIRONMENT])).context("Python 3 with venv is needed")?;
    }
    let (voice, requirements) = match args.voice {
        Voice::Rms => ("rms", "requirements.txt"),
        Voice::Joe => ("joe", "requirements-joe.txt"),
    };
    let mut install = Command::new(&python);
    install.args(["-m", "pip", "install", "--quiet", "--requirement"]);
    execute(install.arg(Path::new(FOLDER).join(requirements)))?;
    let mut make = Command::new(&python);
    make.arg(Path::new(FOLDER).join(PROGRAM))
        .args(["--voice", voice, "--out"])
        .arg(&args.out);
    make.arg("--primal").arg(primal);
    let (count, seed) = (args.count.to_string(), args.seed.to_string());
    make.args(["--count", &count, "--seed", &seed]);
    if let Some(text) = &args.text {
        make.arg("--text").arg(text);
    }
    execute(&mut make)
}
