//! Spectral losses of a segment and their gradients: the mel loss of HiFi-GAN and the
//! multi-resolution STFT loss of Parallel WaveGAN (Yamamoto, Song, Kim 2020).

use std::sync::Arc;

use realfft::num_complex::Complex32;
use realfft::{ComplexToReal, RealFftPlanner, RealToComplex};

use crate::config::VocoderConfig;
use crate::error::VocoderError;
use crate::mel::{FLOOR, MAGNITUDE_EPSILON, MelBank, hann};

/// (n_fft, hop, window) of the multi-resolution loss.
const RESOLUTIONS: [(usize, usize, usize); 3] =
    [(512, 50, 240), (1024, 120, 600), (2048, 240, 1200)];

/// Added to the squared magnitudes of the multi-resolution loss.
const STFT_EPSILON: f32 = 1e-7;

/// A short-time Fourier transform of a segment whose ends are mirrored.
struct Stft {
    n_fft: usize,
    hop: usize,
    /// Samples that are mirrored at each end.
    pad: usize,
    /// (n_fft).
    window: Vec<f32>,
    epsilon: f32,
    forward: Arc<dyn RealToComplex<f32>>,
    inverse: Arc<dyn ComplexToReal<f32>>,
}

/// Scratch of a transform.
struct Scratch {
    padded: Vec<f32>,
    frame: Vec<f32>,
    transform: Vec<Complex32>,
}

impl Stft {
    fn new(n_fft: usize, hop: usize, win_size: usize, pad: usize, epsilon: f32) -> Stft {
        let mut planner = RealFftPlanner::new();
        let window = hann(n_fft, win_size);
        Stft {
            n_fft,
            hop,
            pad,
            window: window.into_iter().map(|value| value as f32).collect(),
            epsilon,
            forward: planner.plan_fft_forward(n_fft),
            inverse: planner.plan_fft_inverse(n_fft),
        }
    }

    fn bins(&self) -> usize {
        self.n_fft / 2 + 1
    }

    fn frames(&self, samples: usize) -> usize {
        (samples + 2 * self.pad - self.n_fft) / self.hop + 1
    }

    fn scratch(&self) -> Scratch {
        let len = self
            .forward
            .get_scratch_len()
            .max(self.inverse.get_scratch_len());
        Scratch {
            padded: Vec::new(),
            frame: vec![0.0; self.n_fft],
            transform: vec![Complex32::ZERO; len],
        }
    }

    /// The spectrum (frames, bins) of `samples`, more than `pad` of them, and its magnitudes.
    fn run(
        &self,
        samples: &[f32],
        spectrum: &mut Vec<Complex32>,
        magnitudes: &mut Vec<f32>,
        scratch: &mut Scratch,
    ) {
        let (pad, len) = (self.pad, samples.len());
        let padded = &mut scratch.padded;
        padded.clear();
        padded.extend(samples[1..=pad].iter().rev());
        padded.extend_from_slice(samples);
        padded.extend(samples[len - 1 - pad..len - 1].iter().rev());
        let frames = self.frames(len);
        spectrum.resize(frames * self.bins(), Complex32::ZERO);
        for (index, spectrum) in spectrum.chunks_exact_mut(self.bins()).enumerate() {
            let samples = &padded[index * self.hop..];
            let frame = scratch.frame.iter_mut().zip(&self.window);
            for ((to, window), sample) in frame.zip(samples) {
                *to = sample * window;
            }
            let frame = &mut scratch.frame;
            let work = &mut scratch.transform[..self.forward.get_scratch_len()];
            if self
                .forward
                .process_with_scratch(frame, spectrum, work)
                .is_err()
            {
                // Lengths come from the plan itself; a NaN stops the run.
                spectrum.fill(Complex32::new(f32::NAN, 0.0));
            }
        }
        magnitudes.clear();
        magnitudes.extend(
            spectrum
                .iter()
                .map(|x| (x.norm_sqr() + self.epsilon).sqrt()),
        );
    }

    /// Adds the gradient of the samples to `d_samples`, given that of the magnitudes, which take
    /// the place of the spectrum.
    fn back(
        &self,
        spectrum: &mut [Complex32],
        magnitudes: &[f32],
        d_magnitudes: &[f32],
        d_samples: &mut [f32],
        scratch: &mut Scratch,
    ) {
        let (pad, len, last) = (self.pad, d_samples.len(), self.bins() - 1);
        scratch.padded.clear();
        scratch.padded.resize(len + 2 * pad, 0.0);
        let rows = spectrum
            .chunks_exact_mut(self.bins())
            .zip(magnitudes.chunks_exact(self.bins()))
            .zip(d_magnitudes.chunks_exact(self.bins()));
        for (index, ((spectrum, magnitudes), d_magnitudes)) in rows.enumerate() {
            for ((x, magnitude), d) in spectrum.iter_mut().zip(magnitudes).zip(d_magnitudes) {
                *x *= d / magnitude;
            }
            // The inverse transform counts every bin between the ends twice, for its mirror image.
            for x in &mut spectrum[1..last] {
                *x *= 0.5;
            }
            spectrum[0].im = 0.0;
            spectrum[last].im = 0.0;
            let work = &mut scratch.transform[..self.inverse.get_scratch_len()];
            let frame = &mut scratch.frame;
            if self
                .inverse
                .process_with_scratch(spectrum, frame, work)
                .is_err()
            {
                frame.fill(f32::NAN);
            }
            let to = scratch.padded[index * self.hop..].iter_mut();
            for ((to, sample), window) in to.zip(&scratch.frame).zip(&self.window) {
                *to += sample * window;
            }
        }
        let padded = &scratch.padded;
        for (to, from) in d_samples.iter_mut().zip(&padded[pad..]) {
            *to += from;
        }
        for i in 0..pad {
            d_samples[pad - i] += padded[i];
            d_samples[len - 2 - i] += padded[pad + len + i];
        }
    }
}

/// The spectral losses of segments of one length.
pub(crate) struct SpectralLoss {
    mel: Stft,
    bank: Vec<(usize, Vec<f32>)>,
    resolutions: Vec<Stft>,
    /// Weights of the two losses in the gradient.
    mel_weight: f32,
    stft_weight: f32,
}

/// Scratch of [`SpectralLoss`].
pub(crate) struct LossScratch {
    mel: Scratch,
    resolutions: Vec<Scratch>,
    spectrum: Vec<Complex32>,
    target: Vec<f32>,
    magnitudes: Vec<f32>,
    d_magnitudes: Vec<f32>,
}

impl SpectralLoss {
    /// For segments of `samples`; the mel loss takes all bands up to half the sampling rate.
    ///
    /// # Errors
    /// [`VocoderError::TooShort`] for segments shorter than half a window and a sample.
    pub fn new(
        config: &VocoderConfig,
        samples: usize,
        mel_weight: f32,
        stft_weight: f32,
    ) -> Result<SpectralLoss, VocoderError> {
        let longest = RESOLUTIONS.iter().map(|it| it.0).max().unwrap_or(0);
        let needed = longest.max(config.n_fft);
        if samples < needed {
            return Err(VocoderError::TooShort {
                what: "samples of a segment",
                found: samples,
                needed,
            });
        }
        let full = VocoderConfig {
            fmax: None,
            ..config.clone()
        };
        let bank = MelBank::new(&full).rows.into_iter();
        let narrow = |weights: Vec<f64>| weights.into_iter().map(|x| x as f32).collect();
        let pad = (config.n_fft - config.hop_size) / 2;
        let resolution =
            |(n_fft, hop, window)| Stft::new(n_fft, hop, window, n_fft / 2, STFT_EPSILON);
        let (hop, window) = (config.hop_size, config.win_size);
        Ok(SpectralLoss {
            mel: Stft::new(config.n_fft, hop, window, pad, MAGNITUDE_EPSILON as f32),
            bank: bank
                .map(|(first, weights)| (first, narrow(weights)))
                .collect(),
            resolutions: RESOLUTIONS.map(resolution).into(),
            mel_weight,
            stft_weight,
        })
    }

    pub fn scratch(&self) -> LossScratch {
        LossScratch {
            mel: self.mel.scratch(),
            resolutions: self.resolutions.iter().map(Stft::scratch).collect(),
            spectrum: Vec::new(),
            target: Vec::new(),
            magnitudes: Vec::new(),
            d_magnitudes: Vec::new(),
        }
    }

    /// The mel loss and the multi-resolution loss of `sound` beside `target`, unweighted. Adds the
    /// gradient of their weighted sum times `scale` to `d_sound`.
    pub fn run(
        &self,
        target: &[f32],
        sound: &[f32],
        scale: f32,
        d_sound: &mut [f32],
        scratch: &mut LossScratch,
    ) -> (f64, f64) {
        let mel = self.mel(target, sound, scale * self.mel_weight, d_sound, scratch);
        if self.stft_weight == 0.0 {
            return (mel, 0.0);
        }
        let n = self.resolutions.len();
        let scale = scale * self.stft_weight / n as f32;
        let sum: f64 = (0..n)
            .map(|index| self.resolution(index, target, sound, scale, d_sound, scratch))
            .sum();
        (mel, sum / n as f64)
    }

    /// Mean |log mel(sound) − log mel(target)|.
    fn mel(
        &self,
        target: &[f32],
        sound: &[f32],
        scale: f32,
        d_sound: &mut [f32],
        scratch: &mut LossScratch,
    ) -> f64 {
        let stft = &self.mel;
        let LossScratch {
            mel: work,
            spectrum,
            target: wanted,
            magnitudes,
            d_magnitudes,
            ..
        } = scratch;
        stft.run(target, spectrum, wanted, work);
        stft.run(sound, spectrum, magnitudes, work);
        d_magnitudes.clear();
        d_magnitudes.resize(magnitudes.len(), 0.0);
        let count = stft.frames(sound.len()) * self.bank.len();
        let (mut sum, share, floor) = (0.0, scale / count as f32, FLOOR as f32);
        let rows = d_magnitudes
            .chunks_exact_mut(stft.bins())
            .zip(magnitudes.chunks_exact(stft.bins()))
            .zip(wanted.chunks_exact(stft.bins()));
        for ((d_row, row), wanted) in rows {
            for (first, weights) in &self.bank {
                let band = |row: &[f32]| -> f32 {
                    row[*first..].iter().zip(weights).map(|(x, w)| x * w).sum()
                };
                let (found, wanted) = (band(row), band(wanted));
                let difference = found.max(floor).ln() - wanted.max(floor).ln();
                sum += f64::from(difference.abs());
                if found > floor && difference != 0.0 {
                    let d = share * difference.signum() / found;
                    for (to, weight) in d_row[*first..].iter_mut().zip(weights) {
                        *to += d * weight;
                    }
                }
                // A NaN must be seen, though no comparison holds for it and `max` drops it.
                if found.is_nan() {
                    sum = f64::NAN;
                }
            }
        }
        stft.back(spectrum, magnitudes, d_magnitudes, d_sound, work);
        sum / count as f64
    }

    /// Spectral convergence ‖Y − X‖ / ‖Y‖ plus mean |ln Y − ln X| at one resolution.
    fn resolution(
        &self,
        index: usize,
        target: &[f32],
        sound: &[f32],
        scale: f32,
        d_sound: &mut [f32],
        scratch: &mut LossScratch,
    ) -> f64 {
        let stft = &self.resolutions[index];
        let LossScratch {
            resolutions,
            spectrum,
            target: wanted,
            magnitudes,
            d_magnitudes,
            ..
        } = scratch;
        let work = &mut resolutions[index];
        stft.run(target, spectrum, wanted, work);
        stft.run(sound, spectrum, magnitudes, work);
        let (mut off, mut all, mut logs) = (0.0_f64, 0.0_f64, 0.0_f64);
        for (&x, &y) in magnitudes.iter().zip(&*wanted) {
            off += f64::from((x - y) * (x - y));
            all += f64::from(y * y);
            logs += f64::from((x / y).ln().abs());
        }
        let (off, all) = (off.sqrt(), all.sqrt());
        let share = scale / magnitudes.len() as f32;
        let convergence = match off > 0.0 {
            true => (f64::from(scale) / (off * all)) as f32,
            false => 0.0,
        };
        d_magnitudes.clear();
        d_magnitudes.extend(magnitudes.iter().zip(&*wanted).map(|(&x, &y)| {
            let log = if x == y { 0.0 } else { (x - y).signum() / x };
            (x - y) * convergence + share * log
        }));
        let count = magnitudes.len() as f64;
        stft.back(spectrum, magnitudes, d_magnitudes, d_sound, work);
        off / all + logs / count
    }
}
