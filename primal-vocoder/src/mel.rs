//! Mel spectrograms in the convention of the official HiFi-GAN, the only one in this project:
//!
//! - the samples (−1..1) are mirrored by (n_fft − hop) / 2 at each end; frames are not centred,
//!   so `len / hop` frames come out and frame t covers the samples around t · hop + hop / 2;
//! - periodic Hann window of `win_size` in the middle of `n_fft`; magnitude sqrt(re² + im² + 1e-9);
//! - `num_mels` triangles on Slaney's mel scale from `fmin` to `fmax`, each of unit area
//!   (2 / width in Hz);
//! - **natural logarithm of the magnitude, clipped at 1e-5 from below.** Neither power nor
//!   decibels: dB / 20 · ln 10 would be the conversion, not dB / 10.
//!
//! SpeechBrain's differs in one point: its frames are centred, half a hop earlier.

use std::f64::consts::PI;
use std::fs;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use primal_kernels::Signal;
use rayon::prelude::*;
use realfft::{RealFftPlanner, RealToComplex};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use crate::config::VocoderConfig;
use crate::error::VocoderError;

/// Smallest magnitude of a band before the logarithm.
pub const FLOOR: f64 = 1e-5;

/// Added to the squared magnitude, as the official code does.
pub(crate) const MAGNITUDE_EPSILON: f64 = 1e-9;

/// Name of the tensor in a file of a spectrogram.
const MEL_TENSOR: &str = "mel";

/// Largest file of a spectrogram that is read: half an hour of 80 bands is a tenth of it.
const MAX_MEL_BYTES: u64 = 1 << 29;

/// Turns samples into log-mel frames. Computes in float64.
pub struct MelExtractor {
    n_fft: usize,
    hop: usize,
    /// (n_fft).
    window: Vec<f64>,
    bank: MelBank,
    fft: Arc<dyn RealToComplex<f64>>,
}

impl MelExtractor {
    /// For the spectrogram that `config` describes.
    ///
    /// # Errors
    /// [`VocoderError::Config`].
    pub fn new(config: &VocoderConfig) -> Result<MelExtractor, VocoderError> {
        config.check()?;
        Ok(MelExtractor {
            n_fft: config.n_fft,
            hop: config.hop_size,
            window: hann(config.n_fft, config.win_size),
            bank: MelBank::new(config),
            fft: RealFftPlanner::new().plan_fft_forward(config.n_fft),
        })
    }

    /// Log-mel values (bands, samples.len() / hop) of samples in −1..1 at the configured rate.
    ///
    /// # Errors
    /// [`VocoderError::TooShort`] for fewer samples than the mirrored ends need.
    pub fn extract(&self, samples: &[f32]) -> Result<Signal, VocoderError> {
        let pad = (self.n_fft - self.hop) / 2;
        let needed = (pad + 1).max(self.hop);
        if samples.len() < needed {
            return Err(VocoderError::TooShort {
                what: "samples",
                found: samples.len(),
                needed,
            });
        }
        let frames = samples.len() / self.hop;
        let bands = self.bank.rows.len();
        let mut columns = vec![0.0_f32; frames * bands];
        columns.par_chunks_mut(bands).enumerate().for_each_init(
            || {
                (
                    self.fft.make_input_vec(),
                    self.fft.make_output_vec(),
                    self.fft.make_scratch_vec(),
                )
            },
            |(input, output, scratch), (frame, bands)| {
                let first = (frame * self.hop) as isize - pad as isize;
                for (i, (to, window)) in input.iter_mut().zip(&self.window).enumerate() {
                    *to = window * f64::from(mirrored(samples, first + i as isize));
                }
                if self
                    .fft
                    .process_with_scratch(input, output, scratch)
                    .is_err()
                {
                    // Lengths come from the plan itself; a NaN would be seen at once.
                    bands.fill(f32::NAN);
                    return;
                }
                let magnitudes: Vec<f64> = output
                    .iter()
                    .map(|x| (x.norm_sqr() + MAGNITUDE_EPSILON).sqrt())
                    .collect();
                for (band, (first, weights)) in bands.iter_mut().zip(&self.bank.rows) {
                    let magnitudes = &magnitudes[*first..][..weights.len()];
                    let sum: f64 = magnitudes.iter().zip(weights).map(|(x, w)| x * w).sum();
                    *band = sum.max(FLOOR).ln() as f32;
                }
            },
        );
        let mut mel = Signal::new(bands);
        mel.set_len(frames);
        for band in 0..bands {
            let values = columns.iter().skip(band).step_by(bands);
            for (to, &value) in mel.row_mut(band).iter_mut().zip(values) {
                *to = value;
            }
        }
        Ok(mel)
    }
}

/// Reads a spectrogram from a safetensors file with a tensor `mel` (bands, frames) f32.
///
/// # Errors
/// [`VocoderError::Io`]; [`VocoderError::MelFile`] for another content.
pub fn read_mel(path: &Path) -> Result<Signal, VocoderError> {
    let io_error = |source| VocoderError::Io {
        action: "read",
        path: path.to_owned(),
        source,
    };
    let fail = |reason: String| VocoderError::MelFile {
        path: path.to_owned(),
        reason,
    };
    let len = fs::metadata(path).map_err(io_error)?.len();
    if len > MAX_MEL_BYTES {
        return Err(fail(format!("{len} bytes are too many")));
    }
    let bytes = fs::read(path).map_err(io_error)?;
    let file = SafeTensors::deserialize(&bytes).map_err(|error| fail(error.to_string()))?;
    let tensor = file
        .tensor(MEL_TENSOR)
        .map_err(|error| fail(error.to_string()))?;
    match (tensor.dtype(), tensor.shape()) {
        (Dtype::F32, &[bands, _]) if bands > 0 => {
            let values = tensor
                .data()
                .as_chunks()
                .0
                .iter()
                .map(|&it| f32::from_le_bytes(it));
            Ok(Signal::from_rows(bands, &values.collect::<Vec<f32>>()))
        }
        (dtype, shape) => Err(fail(format!(
            "`{MEL_TENSOR}` is {dtype:?} {shape:?}, not F32 (bands, frames)"
        ))),
    }
}

/// Writes what [`read_mel`] reads.
///
/// # Errors
/// [`VocoderError::Io`], [`VocoderError::MelFile`].
pub fn write_mel(path: &Path, mel: &Signal) -> Result<(), VocoderError> {
    let fail = |error: &dyn std::fmt::Display| VocoderError::MelFile {
        path: path.to_owned(),
        reason: error.to_string(),
    };
    let rows = (0..mel.channels()).flat_map(|band| mel.row(band));
    let bytes: Vec<u8> = rows.flat_map(|value| value.to_le_bytes()).collect();
    let shape = vec![mel.channels(), mel.len()];
    let view = TensorView::new(Dtype::F32, shape, &bytes).map_err(|error| fail(&error))?;
    let file = safetensors::serialize([(MEL_TENSOR, view)], None).map_err(|error| fail(&error))?;
    fs::write(path, file).map_err(|source| VocoderError::Io {
        action: "write",
        path: path.to_owned(),
        source,
    })
}

/// Sample `index`, mirrored at the first and last one.
pub(crate) fn mirrored(samples: &[f32], index: isize) -> f32 {
    let last = samples.len() as isize - 1;
    let index = index.abs();
    let index = if index > last {
        2 * last - index
    } else {
        index
    };
    samples.get(index as usize).copied().unwrap_or(0.0)
}

/// A periodic Hann window of `win_size` in the middle of `n_fft` zeros.
pub(crate) fn hann(n_fft: usize, win_size: usize) -> Vec<f64> {
    let mut window = vec![0.0; n_fft];
    let first = (n_fft - win_size) / 2;
    for (i, value) in window[first..][..win_size].iter_mut().enumerate() {
        *value = 0.5 - 0.5 * (2.0 * PI * i as f64 / win_size as f64).cos();
    }
    window
}

/// Triangular filters: for every band the first bin and the weights from there on.
pub(crate) struct MelBank {
    pub rows: Vec<(usize, Vec<f64>)>,
}

impl MelBank {
    /// Slaney's mel scale and normalisation (Auditory Toolbox, 1998).
    pub fn new(config: &VocoderConfig) -> MelBank {
        let (low, high) = (hz_to_mel(config.fmin), hz_to_mel(config.fmax()));
        let step = (high - low) / (config.num_mels + 1) as f64;
        let edge = |i: usize| mel_to_hz(low + step * i as f64);
        let bin_hz = f64::from(config.sampling_rate) / config.n_fft as f64;
        let bins = config.n_fft / 2 + 1;
        let row = |band: usize| {
            let (left, centre, right) = (edge(band), edge(band + 1), edge(band + 2));
            let weight = |bin: usize| {
                let hz = bin as f64 * bin_hz;
                let rising = (hz - left) / (centre - left);
                let falling = (right - hz) / (right - centre);
                rising.min(falling).max(0.0) * 2.0 / (right - left)
            };
            let first = (0..bins).find(|&bin| weight(bin) > 0.0).unwrap_or(0);
            let last: Range<usize> = first..bins;
            let weights: Vec<f64> = last
                .map(weight)
                .take_while(|&weight| weight > 0.0)
                .collect();
            (first, weights)
        };
        MelBank {
            rows: (0..config.num_mels).map(row).collect(),
        }
    }
}

/// Linear below 1 kHz, logarithmic above.
fn hz_to_mel(hz: f64) -> f64 {
    if hz < 1000.0 {
        hz * 3.0 / 200.0
    } else {
        15.0 + (hz / 1000.0).ln() * 27.0 / 6.4_f64.ln()
    }
}

fn mel_to_hz(mel: f64) -> f64 {
    if mel < 15.0 {
        mel * 200.0 / 3.0
    } else {
        1000.0 * ((mel - 15.0) * 6.4_f64.ln() / 27.0).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mel_scale_has_its_corner_at_1000_hz() {
        assert_eq!(hz_to_mel(200.0), 3.0);
        assert!((hz_to_mel(6400.0) - 42.0).abs() < 1e-12);
        for hz in [0.0, 123.0, 999.0, 1001.0, 8000.0] {
            assert!((mel_to_hz(hz_to_mel(hz)) - hz).abs() < 1e-9);
        }
    }

    #[test]
    fn a_tone_is_loudest_in_its_band() {
        let config = VocoderConfig::v1();
        let samples: Vec<f32> = (0..22_050)
            .map(|t| (2.0 * PI * 1000.0 * f64::from(t) / 22_050.0).sin() as f32)
            .collect();
        let mel = MelExtractor::new(&config)
            .unwrap()
            .extract(&samples)
            .unwrap();
        assert_eq!((mel.channels(), mel.len()), (80, 86));
        let loudest = (0..80).max_by(|&a, &b| mel.row(a)[40].total_cmp(&mel.row(b)[40]));
        // 1000 Hz is mel 15; the highest edge is 8000 Hz, mel 45.2 in 81 steps.
        let centre = hz_to_mel(1000.0) / (hz_to_mel(8000.0) / 81.0) - 1.0;
        assert_eq!(loudest, Some(centre.round() as usize));
    }

    #[test]
    fn files_of_spectrograms_come_back_and_others_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mel.safetensors");
        let mel = Signal::from_rows(2, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        write_mel(&path, &mel).unwrap();
        let back = read_mel(&path).unwrap();
        assert_eq!(
            (back.channels(), back.row(0), back.row(1)),
            (2, mel.row(0), mel.row(1))
        );
        let good = fs::read(&path).unwrap();
        for len in 0..good.len() {
            fs::write(&path, &good[..len]).unwrap();
            assert!(
                matches!(read_mel(&path), Err(VocoderError::MelFile { .. })),
                "{len}"
            );
        }
        let view = TensorView::new(Dtype::F32, vec![1], &[0; 4]).unwrap();
        fs::write(
            &path,
            safetensors::serialize([("mel", view)], None).unwrap(),
        )
        .unwrap();
        let error = read_mel(&path).unwrap_err().to_string();
        assert!(error.contains("not F32 (bands, frames)"), "{error}");
    }

    #[test]
    fn silence_is_the_floor_and_short_sounds_are_refused() {
        let extractor = MelExtractor::new(&VocoderConfig::v1()).unwrap();
        let mel = extractor.extract(&[0.0; 1000]).unwrap();
        assert_eq!(mel.len(), 3);
        // sqrt(1e-9) in every bin times bands of small weights.
        assert!(mel.row(0).iter().all(|&value| value == (FLOOR.ln() as f32)));
        assert!(matches!(
            extractor.extract(&[0.0; 384]),
            Err(VocoderError::TooShort { .. })
        ));
        assert!(extractor.extract(&[0.0; 385]).is_ok());
        assert!(extractor.extract(&[]).is_err());
    }
}
