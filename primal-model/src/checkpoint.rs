//! Checkpoints: the complete training state in a folder, or nothing.
//!
//! `DIR/step_000500/` holds `model.safetensors` (what inference needs), `optim.safetensors`
//! (ballots, statistics, moments), the tokenizer, `config.resolved.toml`, `state.json` (position
//! and the sha256 of every other file) and, written last, `DONE` with the sha256 of `state.json`.
//! A save goes to a hidden folder first, is synced and renamed; `DIR/latest` names the newest
//! complete one for people and scripts. A program that dies at any moment leaves the checkpoints
//! before it complete.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use primal_lut::{QuantMatrix, TensorFile, TensorFileWriter};
use primal_optim::{StatePart, StateVisitor};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::config::{Compute, Config};
use crate::error::ModelError;
use crate::fault_point;
use crate::inference::InferenceModel;
use crate::model::Model;
use crate::parameters::Parameters;
use crate::tokenizer::Tokenizer;

/// Version of the folder's layout and of `state.json`.
pub const FORMAT_VERSION: u32 = 1;

/// The resolved configuration, in a run folder and in every checkpoint.
pub const CONFIG_FILE: &str = "config.resolved.toml";

pub(crate) const MODEL_FILE: &str = "model.safetensors";
pub(crate) const OPTIM_FILE: &str = "optim.safetensors";
const STATE_FILE: &str = "state.json";
const DONE_FILE: &str = "DONE";
const LATEST_FILE: &str = "latest";

/// Ends of the hidden names of folders that are being written, replaced and removed.
const PARTIAL: &str = ".partial";
const REPLACED: &str = ".replaced";
const PRUNED: &str = ".pruned";

/// Where a run stands, beside its tensors.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Position {
    /// Version of this file.
    pub format_version: u32,
    /// Optimizer steps made, skipped ones included. The data position follows from it.
    pub step: u32,
    /// Tokens trained on.
    pub tokens: u64,
    /// Steps that were skipped because a loss or a gradient was not finite.
    pub skipped_steps: u32,
    /// Seconds of training so far.
    pub seconds: f64,
    /// sha256 of the training tokens: a resume on other data is refused.
    pub data_fingerprint: String,
    /// Vocabulary of the model.
    pub vocab: usize,
    /// The best evaluation so far, of runs that keep it: step and held-out loss.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best: Option<(u32, f64)>,
    /// sha256 of every file of the folder but this one.
    pub files: BTreeMap<String, String>,
}

/// What every version of `state.json` says.
#[derive(Deserialize)]
struct Version {
    format_version: u32,
}

/// A complete checkpoint on disk.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// The folder `step_NNNNNN`.
    pub dir: PathBuf,
    /// Its `state.json`.
    pub position: Position,
    /// Its configuration.
    pub config: Config,
}

impl Checkpoint {
    /// Writes a checkpoint into the run folder and returns its path. On any error the run folder
    /// is as before: earlier checkpoints stay complete.
    pub fn save(
        run: &Path,
        model: &Model,
        tokenizer: &Tokenizer,
        config: &Config,
        position: &Position,
    ) -> Result<PathBuf, ModelError> {
        let content = Content {
            model,
            config: config.to_toml()?,
            tokenizer: Some(tokenizer),
            position,
        };
        content.save(run)
    }

    /// Where the checkpoint of a step lies.
    pub(crate) fn path(run: &Path, step: u32) -> PathBuf {
        run.join(step_name(step))
    }

    /// Whether a run folder holds a complete checkpoint.
    pub fn exists(run: &Path) -> bool {
        complete_checkpoints(run).is_ok_and(|found| !found.is_empty())
    }

    /// Opens a checkpoint folder, or the newest complete one of a run folder, and verifies the
    /// checksum of every file.
    pub fn open(path: &Path) -> Result<Checkpoint, ModelError> {
        open_newest(path, &Checkpoint::open_folder)
    }

    fn open_folder(dir: &Path) -> Result<Checkpoint, ModelError> {
        let (position, text) = verify(dir)?;
        let config = Config::from_toml(&text)?;
        config.validate()?;
        Ok(Checkpoint {
            dir: dir.to_path_buf(),
            position,
            config,
        })
    }

    /// Fills a trainable model, built from the same config, with the complete state.
    pub fn load_training(&self, model: &mut Model) -> Result<(), ModelError> {
        model.load_state(StatePart::Model, &self.tensors(MODEL_FILE)?)?;
        model.load_state(StatePart::Optimizer, &self.tensors(OPTIM_FILE)?)
    }

    /// Fills a trainable model with the weights alone: training begins anew from them.
    pub fn load_weights(&self, model: &mut Model) -> Result<(), ModelError> {
        model.load_state(StatePart::Model, &self.tensors(MODEL_FILE)?)
    }

    /// The model for inference, its tensors read a few rows at a time. Matrices on the grid are
    /// packed for products of integers, or, where `compute` is float, kept as they are and
    /// multiplied in float32: slower, and what an export of the model computes.
    pub fn load_for_inference(&self, compute: Compute) -> Result<InferenceModel, ModelError> {
        let (config, vocab) = (self.config.in_use(), self.position.vocab);
        InferenceModel::packed(&config, vocab, &self.weights()?, compute)
    }

    /// The tensors of the model.
    pub(crate) fn weights(&self) -> Result<TensorFile, ModelError> {
        self.tensors(MODEL_FILE)
    }

    /// The model without what trains it: no ballots, no moments.
    pub fn load_model(&self) -> Result<Model, ModelError> {
        let (config, vocab) = (self.config.in_use(), self.position.vocab);
        Model::from_tensors(&config, vocab, &self.tensors(MODEL_FILE)?)
    }

    /// The tokenizer that the model was trained with.
    pub fn load_tokenizer(&self) -> Result<Tokenizer, ModelError> {
        Tokenizer::load(&self.dir)
    }

    /// Path of the tensors that inference needs.
    pub fn model_file(&self) -> PathBuf {
        self.dir.join(MODEL_FILE)
    }

    fn tensors(&self, name: &str) -> Result<TensorFile, ModelError> {
        Ok(TensorFile::open(&self.dir.join(name))?)
    }
}

/// Opens a checkpoint folder, or the newest complete one of a run folder.
pub(crate) fn open_newest<T>(
    path: &Path,
    open_folder: &dyn Fn(&Path) -> Result<T, ModelError>,
) -> Result<T, ModelError> {
    if !path.is_dir() {
        let is_gguf = path.extension().is_some_and(|end| end == "gguf");
        let reason = match (is_gguf && path.exists(), path.exists()) {
            (true, _) => of_others("a GGUF file", path),
            (_, true) => "is not a folder".to_owned(),
            (_, false) => "is not there".to_owned(),
        };
        return Err(ModelError::checkpoint(path, reason));
    }
    let dir = if path.join(STATE_FILE).exists() || path.join(MODEL_FILE).exists() {
        path.to_path_buf()
    } else {
        complete_checkpoints(path)?.pop().ok_or_else(|| {
            let reason = match path.join("config.json").exists() {
                true => of_others("a Hugging Face folder", path),
                false => "holds no complete checkpoint".to_owned(),
            };
            ModelError::checkpoint(path, reason)
        })?
    };
    open_folder(&dir).map_err(|error| {
        let earlier = dir
            .parent()
            .and_then(|run| earlier_than(run, &dir, open_folder));
        match earlier {
            Some(earlier) => ModelError::DamagedCheckpoint {
                reason: Box::new(error),
                damaged: dir.clone(),
                earlier,
            },
            None => error,
        }
    })
}

/// What to do with a model of another tool.
fn of_others(what: &str, path: &Path) -> String {
    let shown = path.display();
    format!("is {what}, not a checkpoint; hint: primal import --from {shown} --out MODEL")
}

/// Checks the seal and every checksum of a checkpoint folder; its position and its configuration.
pub(crate) fn verify(dir: &Path) -> Result<(Position, String), ModelError> {
    if !dir.join(DONE_FILE).exists() {
        // A folder of ours has both from the moment on that it has its name.
        if !dir.join(STATE_FILE).exists() && dir.join("config.json").exists() {
            let reason = of_others("a Hugging Face folder", dir);
            return Err(ModelError::checkpoint(dir, reason));
        }
        return Err(ModelError::checkpoint(
            dir,
            "has no DONE file: the save did not finish",
        ));
    }
    let state_path = dir.join(STATE_FILE);
    let text = fs::read_to_string(&state_path).map_err(ModelError::io("read", &state_path))?;
    // The version first: another one may seal and list in other ways.
    if let Ok(Version { format_version }) = serde_json::from_str(&text)
        && format_version != FORMAT_VERSION
    {
        let reason =
            format!("has format_version {format_version}, this build reads {FORMAT_VERSION}");
        return Err(ModelError::checkpoint(&state_path, reason));
    }
    let done_path = dir.join(DONE_FILE);
    let sealed = fs::read(&done_path).map_err(ModelError::io("read", &done_path))?;
    // The first checkpoints had an empty seal.
    if !sealed.is_empty() && sealed != hex(&Sha256::digest(text.as_bytes())).into_bytes() {
        return Err(ModelError::checkpoint(
            &state_path,
            "does not match its checksum: the file is damaged",
        ));
    }
    let position: Position = serde_json::from_str(&text)
        .map_err(|error| ModelError::checkpoint(&state_path, format!("is not valid: {error}")))?;
    for (name, expected) in &position.files {
        // Names come from the file: they must stay inside the folder.
        if name.contains(['/', '\\']) || name == ".." {
            return Err(ModelError::checkpoint(
                &state_path,
                format!("names a file outside: {name}"),
            ));
        }
        let path = dir.join(name);
        if &file_sha256(&path)? != expected {
            return Err(ModelError::checkpoint(
                &path,
                "does not match its checksum: the file is damaged",
            ));
        }
    }
    for name in [MODEL_FILE, OPTIM_FILE, CONFIG_FILE] {
        if !position.files.contains_key(name) {
            return Err(ModelError::checkpoint(
                &state_path,
                format!("lists no {name}"),
            ));
        }
    }
    let config = dir.join(CONFIG_FILE);
    let text = fs::read_to_string(&config).map_err(ModelError::io("read", &config))?;
    Ok((position, text))
}

/// Writes the resolved configuration into the run folder, so that a run can be watched.
pub(crate) fn write_config(run: &Path, config: &str) -> Result<(), ModelError> {
    replace(run, CONFIG_FILE, config.as_bytes())
}

/// Writes a small file of the run folder so that readers see the old content or the new.
fn replace(run: &Path, name: &str, content: &[u8]) -> Result<(), ModelError> {
    let partial = run.join(format!(".{name}.partial"));
    write_synced(&partial, content)?;
    fault_point::pass();
    fs::rename(&partial, run.join(name)).map_err(ModelError::io("rename", &partial))?;
    sync(run)
}

/// The steps and folders of the complete checkpoints of a run, oldest first.
///
/// # Errors
/// [`ModelError::Io`] when the folder cannot be listed.
pub fn list(run: &Path) -> Result<Vec<(u32, PathBuf)>, ModelError> {
    let mut found = Vec::new();
    for path in entries(run)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // Whoever died while it replaced a checkpoint left the old one under its hidden name.
        let replaced = name
            .strip_prefix('.')
            .and_then(|name| name.strip_suffix(REPLACED))
            .filter(|name| !run.join(name).join(DONE_FILE).exists());
        let step = replaced
            .unwrap_or(&name)
            .strip_prefix("step_")
            .and_then(|step| step.parse::<u32>().ok());
        if let Some(step) = step
            && path.join(DONE_FILE).exists()
        {
            found.push((step, path));
        }
    }
    found.sort();
    Ok(found)
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>, ModelError> {
    fs::read_dir(folder)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
        .map_err(ModelError::io("list", folder))
}

/// Removes all but the newest `keep` complete checkpoints, and what unfinished saves left.
pub(crate) fn prune(run: &Path, keep: usize) -> Result<(), ModelError> {
    let mut complete = complete_checkpoints(run)?;
    let excess = complete.len().saturating_sub(keep.max(1));
    for dir in complete.drain(..excess) {
        // Under a hidden name first: half a folder must not look complete.
        let name = dir.file_name().unwrap_or_default().to_string_lossy();
        let hidden = run.join(format!(".{}{PRUNED}", name.trim_start_matches('.')));
        fs::rename(&dir, &hidden).map_err(ModelError::io("rename", &dir))?;
        fault_point::pass();
    }
    for path in entries(run)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let is_left = [PARTIAL, PRUNED, REPLACED]
            .iter()
            .any(|end| name.ends_with(end));
        if name.starts_with(".step_") && is_left && !complete.contains(&path) {
            fs::remove_dir_all(&path).map_err(ModelError::io("remove", &path))?;
        }
    }
    Ok(())
}

/// Hex sha256 over every tensor of the state and the position: equal hash, equal state.
pub(crate) fn state_hash(model: &dyn Parameters, position: &Position) -> String {
    let mut hash = HashVisitor(Sha256::new());
    for part in [StatePart::Model, StatePart::Optimizer] {
        model.visit(part, &mut hash);
    }
    hash.0.update(position.step.to_le_bytes());
    hash.0.update(position.tokens.to_le_bytes());
    hash.0.update(position.data_fingerprint.as_bytes());
    hex(&hash.0.finalize())
}

fn step_name(step: u32) -> String {
    format!("step_{step:06}")
}

/// What a checkpoint folder holds.
pub(crate) struct Content<'a> {
    pub(crate) model: &'a dyn Parameters,
    /// As TOML.
    pub(crate) config: String,
    pub(crate) tokenizer: Option<&'a Tokenizer>,
    pub(crate) position: &'a Position,
}

impl Content<'_> {
    /// Writes the folder of the position's step and makes it the newest.
    pub(crate) fn save(&self, run: &Path) -> Result<PathBuf, ModelError> {
        let name = step_name(self.position.step);
        let dir = self.save_as(run, &name)?;
        replace(run, LATEST_FILE, name.as_bytes())?;
        fault_point::pass();
        Ok(dir)
    }

    /// Writes the folder `name`, in the place of one that was there.
    pub(crate) fn save_as(&self, run: &Path, name: &str) -> Result<PathBuf, ModelError> {
        let partial = run.join(format!(".{name}{PARTIAL}"));
        let result = write_folder(&partial, self).and_then(|()| publish(run, &partial, name));
        if result.is_err() {
            // Frees the space of a save that did not fit; the error that matters is `result`.
            let _ = fs::remove_dir_all(&partial);
        }
        result
    }
}

fn write_folder(dir: &Path, content: &Content<'_>) -> Result<(), ModelError> {
    if dir.exists() {
        fs::remove_dir_all(dir).map_err(ModelError::io("remove", dir))?;
    }
    fs::create_dir_all(dir).map_err(ModelError::io("create", dir))?;
    for (part, name) in [
        (StatePart::Model, MODEL_FILE),
        (StatePart::Optimizer, OPTIM_FILE),
    ] {
        let mut tensors = WriteVisitor(TensorFileWriter::new());
        content.model.visit(part, &mut tensors);
        tensors.0.write(&dir.join(name))?;
        fault_point::pass();
    }
    if let Some(tokenizer) = content.tokenizer {
        tokenizer.save(dir)?;
    }
    fault_point::pass();
    write_synced(&dir.join(CONFIG_FILE), content.config.as_bytes())?;
    fault_point::pass();

    let mut position = Position {
        format_version: FORMAT_VERSION,
        ..content.position.clone()
    };
    position.files.clear();
    for path in entries(dir)? {
        sync(&path)?;
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        position.files.insert(name, file_sha256(&path)?);
    }
    let text = serde_json::to_string_pretty(&position)
        .map_err(|error| ModelError::checkpoint(dir, format!("cannot be described: {error}")))?;
    write_synced(&dir.join(STATE_FILE), text.as_bytes())?;
    fault_point::pass();
    let seal = hex(&Sha256::digest(text.as_bytes()));
    write_synced(&dir.join(DONE_FILE), seal.as_bytes())?;
    fault_point::pass();
    sync(dir)
}

/// Moves a finished folder to its name.
fn publish(run: &Path, partial: &Path, name: &str) -> Result<PathBuf, ModelError> {
    let dir = run.join(name);
    let replaced = run.join(format!(".{name}{REPLACED}"));
    if dir.exists() {
        // A resumed run came past the same step again.
        if replaced.exists() {
            fs::remove_dir_all(&replaced).map_err(ModelError::io("remove", &replaced))?;
        }
        fs::rename(&dir, &replaced).map_err(ModelError::io("rename", &dir))?;
        fault_point::pass();
    }
    fs::rename(partial, &dir).map_err(ModelError::io("rename", partial))?;
    sync(run)?;
    fault_point::pass();
    Ok(dir)
}

fn earlier_than<T>(
    run: &Path,
    dir: &Path,
    open_folder: &dyn Fn(&Path) -> Result<T, ModelError>,
) -> Option<PathBuf> {
    let complete = complete_checkpoints(run).ok()?;
    complete
        .into_iter()
        .rev()
        .skip_while(|other| other != dir)
        .find(|other| other != dir && open_folder(other).is_ok())
}

/// Folders of [`list`].
fn complete_checkpoints(run: &Path) -> Result<Vec<PathBuf>, ModelError> {
    Ok(list(run)?.into_iter().map(|(_, path)| path).collect())
}

pub(crate) fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), ModelError> {
    let mut file = File::create(path).map_err(ModelError::io("create", path))?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .map_err(ModelError::io("write", path))
}

fn sync(path: &Path) -> Result<(), ModelError> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(ModelError::io("sync", path))
}

fn file_sha256(path: &Path) -> Result<String, ModelError> {
    let mut file = File::open(path).map_err(ModelError::io("read", path))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let read = file
            .read(&mut buffer)
            .map_err(ModelError::io("read", path))?;
        if read == 0 {
            return Ok(hex(&hash.finalize()));
        }
        hash.update(&buffer[..read]);
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

struct WriteVisitor<'a>(TensorFileWriter<'a>);

impl<'a> StateVisitor<'a> for WriteVisitor<'a> {
    fn quant(&mut self, name: &str, matrix: &'a QuantMatrix) {
        self.0.quant(name, matrix);
    }

    fn f32(&mut self, name: &str, shape: &[usize], values: &'a [f32]) {
        self.0.f32(name, shape, values);
    }

    fn i8(&mut self, name: &str, shape: &[usize], values: &'a [i8]) {
        self.0.i8(name, shape, values);
    }
}

struct HashVisitor(Sha256);

impl HashVisitor {
    fn tensor(&mut self, name: &str, bytes: &[u8]) {
        self.0.update(name.as_bytes());
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }
}

impl<'a> StateVisitor<'a> for HashVisitor {
    fn quant(&mut self, name: &str, matrix: &'a QuantMatrix) {
        self.tensor(name, matrix.nibbles());
        self.tensor(name, matrix.high().unwrap_or_default());
        self.tensor(name, bytemuck::cast_slice(matrix.scales()));
    }

    fn f32(&mut self, name: &str, _shape: &[usize], values: &'a [f32]) {
        self.tensor(name, bytemuck::cast_slice(values));
    }

    fn i8(&mut self, name: &str, _shape: &[usize], values: &'a [i8]) {
        self.tensor(name, bytemuck::cast_slice(values));
    }
}
