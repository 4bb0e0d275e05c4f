//! The sounds to learn from: every WAV file below a folder, read when it is drawn.

use std::fs;
use std::path::{Path, PathBuf};

use primal_kernels::philox4x32;

use crate::error::VocoderError;
use crate::wav::{read_wav, resample};

/// The stream of drawn segments: every use of the counter generator has its own.
const SEGMENT_STREAM: u32 = 0x676c_0003;

/// Folders within folders that are searched.
const MAX_DEPTH: usize = 8;

/// The files, sorted, in two parts.
#[derive(Debug)]
pub(crate) struct Sounds {
    folder: PathBuf,
    training: Vec<PathBuf>,
    held_out: Vec<PathBuf>,
    rate_hz: u32,
}

impl Sounds {
    /// Finds the WAV files below `folder`, and holds out `held_out` of them, spread evenly over
    /// the sorted names.
    ///
    /// # Errors
    /// [`VocoderError::Io`]; [`VocoderError::Training`] where there are too few.
    pub fn open(folder: &Path, held_out: usize, rate_hz: u32) -> Result<Sounds, VocoderError> {
        let mut files = Vec::new();
        find(folder, MAX_DEPTH, &mut files)?;
        files.sort();
        if files.len() <= held_out {
            return Err(VocoderError::Training {
                path: folder.to_owned(),
                reason: format!(
                    "{} WAV files are too few with {held_out} of them held out",
                    files.len()
                ),
            });
        }
        let mut sounds = Sounds {
            folder: folder.to_owned(),
            training: Vec::new(),
            held_out: Vec::new(),
            rate_hz,
        };
        let total = files.len();
        for (index, file) in files.into_iter().enumerate() {
            // File i begins a held-out share where i · held_out / total steps up.
            let share = |index: usize| (index * held_out).div_ceil(total);
            match share(index + 1) > share(index) {
                true => sounds.held_out.push(file),
                false => sounds.training.push(file),
            }
        }
        Ok(sounds)
    }

    /// Where the files are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The names of all files below the folder: what a resumed run must find again.
    pub fn names(&self) -> impl Iterator<Item = String> {
        let files = self.training.iter().chain(&self.held_out);
        files.map(|path| {
            let name = path.strip_prefix(&self.folder).unwrap_or(path);
            name.to_string_lossy().into_owned()
        })
    }

    /// Numbers of files to train on and held out.
    pub fn counts(&self) -> (usize, usize) {
        (self.training.len(), self.held_out.len())
    }

    /// `len` samples of a random file from a random place on, with zeros behind a shorter one: a
    /// function of the seed, the step and the item.
    pub fn draw(
        &self,
        seed: u64,
        (step, item): (u64, usize),
        len: usize,
    ) -> Result<Vec<f32>, VocoderError> {
        let key = [seed as u32, (seed >> 32) as u32];
        let place = [
            step as u32,
            (step >> 32) as u32,
            item as u32,
            SEGMENT_STREAM,
        ];
        let [which, at, ..] = philox4x32(place, key);
        let below = |word: u32, n: usize| ((u64::from(word) * n as u64) >> 32) as usize;
        let mut samples = self.read(&self.training[below(which, self.training.len())])?;
        let first = below(at, samples.len().saturating_sub(len) + 1);
        samples.drain(..first);
        samples.resize(len, 0.0);
        Ok(samples)
    }

    /// The first `len` samples of every held-out file that has them, or all of it.
    pub fn held_out(&self, len: usize) -> Result<Vec<Vec<f32>>, VocoderError> {
        let read = |path: &PathBuf| {
            let mut samples = self.read(path)?;
            samples.truncate(len);
            Ok(samples)
        };
        self.held_out.iter().map(read).collect()
    }

    fn read(&self, path: &Path) -> Result<Vec<f32>, VocoderError> {
        let sound = read_wav(path)?;
        resample(&sound.samples, sound.rate_hz, self.rate_hz)
    }
}

fn find(folder: &Path, depth: usize, files: &mut Vec<PathBuf>) -> Result<(), VocoderError> {
    let io_error = |source| VocoderError::Io {
        action: "read",
        path: folder.to_owned(),
        source,
    };
    for entry in fs::read_dir(folder).map_err(io_error)? {
        let path = entry.map_err(io_error)?.path();
        if path.is_dir() && depth > 0 {
            find(&path, depth - 1, files)?;
        } else if path
            .extension()
            .is_some_and(|it| it.eq_ignore_ascii_case("wav"))
        {
            files.push(path);
        }
    }
    Ok(())
}
