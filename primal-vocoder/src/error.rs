//! What can go wrong between a mel spectrogram and a sound.

use std::io;
use std::path::PathBuf;

/// An error of this crate. Messages name the file, the tensor or the place.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VocoderError {
    /// The operating system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A configuration that is no vocoder's.
    #[error("vocoder configuration: {reason}")]
    Config {
        /// What is wrong.
        reason: String,
    },
    /// A folder in which no checkpoint, or more than one, was found.
    #[error("{}: {reason}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A weight file that cannot be read.
    #[error("{}: not a readable checkpoint: {reason}", path.display())]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A tensor that the configuration asks for and the checkpoint lacks.
    #[error("{origin}: has no tensor `{name}`; {found}")]
    MissingTensor {
        /// The file.
        origin: String,
        /// Name of the tensor.
        name: String,
        /// What the file holds instead.
        found: String,
    },
    /// A tensor of another shape than the configuration asks for.
    #[error("{origin}: tensor `{name}` is {found:?}, the configuration asks for {expected:?}")]
    WrongShape {
        /// The file.
        origin: String,
        /// Name of the tensor.
        name: String,
        /// Shape in the file.
        found: Vec<usize>,
        /// Shape asked for.
        expected: Vec<usize>,
    },
    /// A weight that is infinite or not a number.
    #[error("{origin}: tensor `{name}` holds a value that is not finite")]
    NonFiniteWeight {
        /// The file.
        origin: String,
        /// Name of the tensor.
        name: String,
    },
    /// A mel spectrogram with another number of bands than the vocoder's.
    #[error("a mel spectrogram of {found} bands; this vocoder takes {expected}")]
    Bands {
        /// Bands given.
        found: usize,
        /// Bands of the vocoder.
        expected: usize,
    },
    /// A mel value that is infinite or not a number.
    #[error("the mel spectrogram is not finite in band {band}, frame {frame}")]
    NonFiniteMel {
        /// The band.
        band: usize,
        /// The frame, counted from the start of the stream.
        frame: usize,
    },
    /// Fewer frames or samples than the first layer's padding needs.
    #[error("{found} {what} are too few; at least {needed} are needed")]
    TooShort {
        /// Frames or samples.
        what: &'static str,
        /// How many there are.
        found: usize,
        /// How many there must be.
        needed: usize,
    },
    /// A WAV file that cannot be read.
    #[error("{}: not a readable WAV file: {reason}", path.display())]
    Wav {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A file that holds no mel spectrogram.
    #[error("{}: not a readable mel spectrogram: {reason}", path.display())]
    MelFile {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Sounds that cannot be trained on, or a run folder that does not fit.
    #[error("{}: {reason}", path.display())]
    Training {
        /// The folder or file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A loss or a gradient that is infinite or not a number.
    #[error(
        "step {step}: the {what} is not finite; hint: a lower rate, or go on from a checkpoint before it"
    )]
    Diverged {
        /// The step.
        step: u64,
        /// Which loss or gradient.
        what: &'static str,
    },
    /// Sample rates that cannot be converted.
    #[error("cannot convert from {from_hz} Hz to {to_hz} Hz: {reason}")]
    Resample {
        /// Rate of the input.
        from_hz: u32,
        /// Rate asked for.
        to_hz: u32,
        /// What is wrong.
        reason: String,
    },
}

impl VocoderError {
    pub(crate) fn config(reason: impl Into<String>) -> VocoderError {
        VocoderError::Config {
            reason: reason.into(),
        }
    }
}
