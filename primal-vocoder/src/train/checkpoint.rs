//! Checkpoints of a run: a folder that is complete or does not count.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use primal_kernels::Isa;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};

use super::{TrainOptions, Trainer};
use crate::config::VocoderConfig;
use crate::error::VocoderError;
use crate::generator::CONFIG_NAMES;
use crate::weights::Weights;

/// Of this layout of the folder.
const FORMAT_VERSION: u32 = 1;

const GENERATOR: &str = "generator.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";

// Tensors of the optimizer's file, flat: moments in the order of the layers, and all that the
// discriminators are.
const MEAN: &str = "generator.mean";
const SQUARE: &str = "generator.square";
const JUDGES: &str = "discriminators";
const JUDGES_MEAN: &str = "discriminators.mean";
const JUDGES_SQUARE: &str = "discriminators.square";

const STATE: &str = "state.json";
const DONE: &str = "DONE";

/// What is neither a weight nor a moment.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    format_version: u32,
    step: u64,
    options: TrainOptions,
    /// Names of the sounds, in their order: a step draws them by number.
    sounds: Vec<String>,
}

impl Trainer {
    /// Writes `run/step_NNNNNN`: the generator (a folder that vocodes), the moments, the
    /// discriminators; all of it or nothing under that name. Removes older ones.
    ///
    /// # Errors
    /// [`VocoderError::Io`], [`VocoderError::Checkpoint`].
    pub fn save(&self, run: &Path) -> Result<PathBuf, VocoderError> {
        let name = format!("step_{:06}", self.step);
        let (path, hidden) = (run.join(&name), run.join(format!(".{name}.partial")));
        let fail = |source| io_error("write", &path, source);
        if hidden.exists() {
            fs::remove_dir_all(&hidden).map_err(fail)?;
        }
        fs::create_dir_all(&hidden).map_err(fail)?;
        self.weights()?.write(&hidden.join(GENERATOR))?;
        self.write_optimizer(&hidden.join(OPTIMIZER))?;
        let state = State {
            format_version: FORMAT_VERSION,
            step: self.step,
            options: self.options.clone(),
            sounds: self.sounds.names().collect(),
        };
        self.config.write(&hidden)?;
        fs::write(hidden.join(STATE), json(&state)?).map_err(fail)?;
        for entry in fs::read_dir(&hidden).map_err(fail)? {
            let path = entry.map_err(fail)?.path();
            File::open(path)
                .and_then(|it| it.sync_all())
                .map_err(fail)?;
        }
        fs::write(hidden.join(DONE), "").map_err(fail)?;
        if path.exists() {
            fs::remove_dir_all(&path).map_err(fail)?;
        }
        fs::rename(&hidden, &path).map_err(fail)?;
        for (step, older) in complete(run)? {
            if step < self.step {
                fs::remove_dir_all(older).map_err(fail)?;
            }
        }
        Ok(path)
    }

    /// Goes on where the newest complete checkpoint of `run` stopped, on the same sounds.
    ///
    /// # Errors
    /// [`VocoderError::Training`] without a checkpoint or with other sounds; those of damaged
    /// files.
    pub fn resume(run: &Path, folder: &Path, isa: Isa) -> Result<Trainer, VocoderError> {
        let Some((_, path)) = complete(run)?.pop() else {
            return Err(VocoderError::Training {
                path: run.to_owned(),
                reason: "no complete checkpoint (step_NNNNNN) to go on from".to_owned(),
            });
        };
        let broken = |reason: String| VocoderError::Checkpoint {
            path: path.clone(),
            reason,
        };
        let read = |name: &str| {
            let path = path.join(name);
            fs::read_to_string(&path).map_err(|source| io_error("read", &path, source))
        };
        let state: State =
            serde_json::from_str(&read(STATE)?).map_err(|error| broken(error.to_string()))?;
        if state.format_version != FORMAT_VERSION {
            return Err(broken(format!("format version {}", state.format_version)));
        }
        let config = VocoderConfig::from_json(&read(CONFIG_NAMES[0])?)?;
        let weights = Weights::open(&path.join(GENERATOR))?;
        let mut trainer = Trainer::new(state.options, config, Some(&weights), folder, isa)?;
        if !trainer.sounds.names().eq(state.sounds) {
            return Err(VocoderError::Training {
                path: trainer.sounds.folder().to_owned(),
                reason: "holds other sounds than the run began with".to_owned(),
            });
        }
        trainer.step = state.step;
        if trainer
            .options
            .adversarial_from
            .is_some_and(|it| state.step >= it)
        {
            trainer.call_judges();
        }
        trainer.read_optimizer(&path.join(OPTIMIZER))?;
        Ok(trainer)
    }

    fn write_optimizer(&self, path: &Path) -> Result<(), VocoderError> {
        let generator = &self.generator.parameters;
        let mut rows = vec![(MEAN, &generator.mean), (SQUARE, &generator.square)];
        if let Some(discriminators) = &self.discriminators {
            let parameters = &discriminators.parameters;
            rows.push((JUDGES, &parameters.values));
            rows.push((JUDGES_MEAN, &parameters.mean));
            rows.push((JUDGES_SQUARE, &parameters.square));
        }
        let fail = |error: &dyn std::fmt::Display| VocoderError::Checkpoint {
            path: path.to_owned(),
            reason: error.to_string(),
        };
        let bytes: Vec<(&str, Vec<u8>)> = rows
            .into_iter()
            .map(|(name, row)| (name, row.iter().flat_map(|x| x.to_le_bytes()).collect()))
            .collect();
        let mut views = HashMap::new();
        for (name, bytes) in &bytes {
            let view = TensorView::new(Dtype::F32, vec![bytes.len() / 4], bytes);
            views.insert(*name, view.map_err(|error| fail(&error))?);
        }
        let file = safetensors::serialize(views, None).map_err(|error| fail(&error))?;
        fs::write(path, file).map_err(|source| io_error("write", path, source))
    }

    fn read_optimizer(&mut self, path: &Path) -> Result<(), VocoderError> {
        let fail = |reason: String| VocoderError::Checkpoint {
            path: path.to_owned(),
            reason,
        };
        let bytes = fs::read(path).map_err(|source| io_error("read", path, source))?;
        let file = SafeTensors::deserialize(&bytes).map_err(|error| fail(error.to_string()))?;
        let generator = &mut self.generator.parameters;
        let mut rows = vec![(MEAN, &mut generator.mean), (SQUARE, &mut generator.square)];
        if let Some(discriminators) = &mut self.discriminators {
            let parameters = &mut discriminators.parameters;
            rows.push((JUDGES, &mut parameters.values));
            rows.push((JUDGES_MEAN, &mut parameters.mean));
            rows.push((JUDGES_SQUARE, &mut parameters.square));
        }
        for (name, row) in rows {
            let tensor = file.tensor(name).map_err(|error| fail(error.to_string()))?;
            if tensor.dtype() != Dtype::F32 || tensor.shape() != [row.len()] {
                return Err(fail(format!(
                    "`{name}` is {:?} {:?}, not F32 [{}]",
                    tensor.dtype(),
                    tensor.shape(),
                    row.len()
                )));
            }
            for (to, &bytes) in row.iter_mut().zip(tensor.data().as_chunks().0) {
                *to = f32::from_le_bytes(bytes);
            }
        }
        if let Some(discriminators) = &mut self.discriminators {
            discriminators.load();
        }
        Ok(())
    }
}

/// The complete checkpoints of a run, by step.
fn complete(run: &Path) -> Result<Vec<(u64, PathBuf)>, VocoderError> {
    let mut found = Vec::new();
    let entries = match fs::read_dir(run) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        Err(error) => return Err(io_error("read", run, error)),
    };
    for entry in entries {
        let path = entry.map_err(|error| io_error("read", run, error))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let step = name.strip_prefix("step_").and_then(|it| it.parse().ok());
        if let Some(step) = step.filter(|_| path.join(DONE).is_file()) {
            found.push((step, path));
        }
    }
    found.sort();
    Ok(found)
}

fn json(value: &impl Serialize) -> Result<String, VocoderError> {
    serde_json::to_string_pretty(value).map_err(|error| VocoderError::config(error.to_string()))
}

fn io_error(action: &'static str, path: &Path, source: io::Error) -> VocoderError {
    VocoderError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}
