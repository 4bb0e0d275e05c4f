//! Checkpoints of a voice: folders as those of the language models, and voices that are shipped.

use std::fs;
use std::path::{Path, PathBuf};

use primal_lut::TensorFile;
use primal_optim::StatePart;

use super::acoustic::AcousticModel;
use super::config::VoiceConfig;
use crate::build::Stored;
use crate::checkpoint::{CONFIG_FILE, MODEL_FILE, OPTIM_FILE, Position, open_newest, verify};
use crate::error::ModelError;
use crate::parameters::Parameters;

/// Folder of the best evaluation within a run folder.
pub(crate) const BEST: &str = "best";

/// A complete checkpoint on disk.
pub(crate) struct VoiceCheckpoint {
    pub(crate) dir: PathBuf,
    pub(crate) position: Position,
    pub(crate) config: VoiceConfig,
}

impl VoiceCheckpoint {
    /// Opens a checkpoint folder, or the newest complete one of a run folder, and verifies the
    /// checksum of every file.
    pub(crate) fn open(path: &Path) -> Result<Self, ModelError> {
        open_newest(path, &VoiceCheckpoint::open_folder)
    }

    fn open_folder(dir: &Path) -> Result<Self, ModelError> {
        let (position, text) = verify(dir)?;
        Ok(VoiceCheckpoint {
            dir: dir.to_path_buf(),
            position,
            config: config(&text)?,
        })
    }

    /// Fills a trainable model, built from the same config, with the complete state.
    pub(crate) fn load_training(&self, model: &mut AcousticModel) -> Result<(), ModelError> {
        for (part, name) in [
            (StatePart::Model, MODEL_FILE),
            (StatePart::Optimizer, OPTIM_FILE),
        ] {
            model.load_state(part, &TensorFile::open(&self.dir.join(name))?)?;
        }
        Ok(())
    }
}

/// The network of a checkpoint folder, of a run folder (its best checkpoint, else its newest) or of
/// a folder of `config.resolved.toml` and `model.safetensors` alone, for inference.
pub(crate) fn load(path: &Path) -> Result<(VoiceConfig, AcousticModel), ModelError> {
    let best = path.join(BEST);
    let path = if best.is_dir() { &best } else { path };
    let (config_path, model_path) = (path.join(CONFIG_FILE), path.join(MODEL_FILE));
    // What a run left has a seal; what was shipped has no more than these two.
    let is_shipped =
        config_path.exists() && model_path.exists() && !path.join("state.json").exists();
    if !is_shipped {
        let checkpoint = VoiceCheckpoint::open(path)?;
        let file = TensorFile::open(&checkpoint.dir.join(MODEL_FILE))?;
        return build(checkpoint.config, &file);
    }
    let text = fs::read_to_string(&config_path).map_err(ModelError::io("read", &config_path))?;
    build(config(&text)?, &TensorFile::open(&model_path)?)
}

/// The network of the two files of a shipped voice.
pub(crate) fn load_bytes(
    text: &str,
    tensors: &[u8],
) -> Result<(VoiceConfig, AcousticModel), ModelError> {
    build(config(text)?, &TensorFile::from_bytes(tensors.to_vec())?)
}

fn build(
    config: VoiceConfig,
    file: &TensorFile,
) -> Result<(VoiceConfig, AcousticModel), ModelError> {
    let model = AcousticModel::build(&config, &mut Stored(file))?;
    Ok((config, model))
}

fn config(text: &str) -> Result<VoiceConfig, ModelError> {
    let config = VoiceConfig::from_toml(text)?;
    config.validate()?;
    Ok(config)
}
