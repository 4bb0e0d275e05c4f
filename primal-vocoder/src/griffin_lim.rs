//! A vocoder without weights: Griffin and Lim 1984 with the momentum of Perraudin, Balazs and
//! Søndergaard 2013 ("A fast Griffin-Lim algorithm").
//!
//! It looks for a signal whose short-time spectrum has the given magnitudes, by going back and
//! forth between the two. The magnitudes come from the mel bands by non-negative least squares.

use std::f32::consts::TAU;
use std::sync::Arc;

use primal_kernels::{Signal, philox4x32};
use rayon::prelude::*;
use realfft::num_complex::Complex32;
use realfft::{ComplexToReal, RealFftPlanner, RealToComplex};

use crate::config::VocoderConfig;
use crate::error::VocoderError;
use crate::mel::{MelBank, hann};

/// The stream of the random phases: every use of the counter generator has its own.
const PHASE_STREAM: u32 = 0x676c_0001;

/// Steps of the multiplicative update that unfolds mel bands to frequency bins.
const UNFOLD_STEPS: usize = 100;

/// Samples of window energy below which a sample is taken as it is: the outermost ones, which no
/// window sees.
const MIN_ENERGY: f32 = 1e-6;

/// How the phases are sought.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GriffinLimOptions {
    /// Rounds; 60 are heard as good as 200.
    pub iterations: usize,
    /// 0 is the method of 1984; below 1.
    pub momentum: f32,
    /// Seed of the first phases.
    pub seed: u64,
}

impl Default for GriffinLimOptions {
    fn default() -> GriffinLimOptions {
        GriffinLimOptions {
            iterations: 60,
            momentum: 0.99,
            seed: 1,
        }
    }
}

/// The vocoder.
pub struct GriffinLim {
    options: GriffinLimOptions,
    n_fft: usize,
    hop: usize,
    window: Vec<f32>,
    bank: MelBank,
    forward: Arc<dyn RealToComplex<f32>>,
    inverse: Arc<dyn ComplexToReal<f32>>,
}

impl GriffinLim {
    /// For the spectrogram that `config` describes.
    ///
    /// # Errors
    /// [`VocoderError::Config`] for a wrong shape or a momentum outside 0..1.
    pub fn new(
        config: &VocoderConfig,
        options: GriffinLimOptions,
    ) -> Result<GriffinLim, VocoderError> {
        config.check()?;
        if !(0.0..1.0).contains(&options.momentum) {
            return Err(VocoderError::config(format!(
                "momentum is in 0..1, not {}",
                options.momentum
            )));
        }
        let mut planner = RealFftPlanner::new();
        let window = hann(config.n_fft, config.win_size);
        Ok(GriffinLim {
            options,
            n_fft: config.n_fft,
            hop: config.hop_size,
            window: window.into_iter().map(|value| value as f32).collect(),
            bank: MelBank::new(config),
            forward: planner.plan_fft_forward(config.n_fft),
            inverse: planner.plan_fft_inverse(config.n_fft),
        })
    }

    /// The sound of log-mel values (bands, frames): frames · hop samples, clipped to −1..1.
    ///
    /// # Errors
    /// [`VocoderError::Bands`], [`VocoderError::NonFiniteMel`].
    pub fn generate(&self, mel: &Signal) -> Result<Vec<f32>, VocoderError> {
        if mel.channels() != self.bank.rows.len() {
            return Err(VocoderError::Bands {
                found: mel.channels(),
                expected: self.bank.rows.len(),
            });
        }
        for band in 0..mel.channels() {
            // exp of more is infinite.
            let bad = |value: &f32| !value.is_finite() || *value > 80.0;
            if let Some(frame) = mel.row(band).iter().position(bad) {
                return Err(VocoderError::NonFiniteMel { band, frame });
            }
        }
        if mel.is_empty() {
            return Ok(Vec::new());
        }
        let magnitudes = self.magnitudes(mel);
        let mut samples = self.sound(&magnitudes, mel.len());
        samples
            .iter_mut()
            .for_each(|sample| *sample = sample.clamp(-1.0, 1.0));
        Ok(samples)
    }

    fn bins(&self) -> usize {
        self.n_fft / 2 + 1
    }

    /// Magnitudes (frames, bins) s ≥ 0 with bank · s ≈ exp(mel), by the multiplicative update of
    /// Lee and Seung 2001: s ← s · (bankᵀ m) / (bankᵀ bank s).
    fn magnitudes(&self, mel: &Signal) -> Vec<f32> {
        let bins = self.bins();
        let mut magnitudes = vec![0.0_f32; mel.len() * bins];
        magnitudes
            .par_chunks_mut(bins)
            .enumerate()
            .for_each(|(frame, out)| {
                let target: Vec<f64> = (0..mel.channels())
                    .map(|band| f64::from(mel.row(band)[frame]).exp())
                    .collect();
                let spread = |bands: &[f64], to: &mut [f64]| {
                    to.fill(0.0);
                    for ((first, weights), band) in self.bank.rows.iter().zip(bands) {
                        for (to, weight) in to[*first..].iter_mut().zip(weights) {
                            *to += weight * band;
                        }
                    }
                };
                let (mut wanted, mut found) = (vec![0.0; bins], vec![0.0; bins]);
                spread(&target, &mut wanted);
                let mut s = wanted.clone();
                let mut bands = target.clone();
                for _ in 0..UNFOLD_STEPS {
                    for (band, (first, weights)) in bands.iter_mut().zip(&self.bank.rows) {
                        *band = s[*first..]
                            .iter()
                            .zip(weights)
                            .map(|(s, weight)| s * weight)
                            .sum();
                    }
                    spread(&bands, &mut found);
                    for ((s, wanted), found) in s.iter_mut().zip(&wanted).zip(&found) {
                        *s *= wanted / (found + 1e-30);
                    }
                }
                for (out, s) in out.iter_mut().zip(s) {
                    *out = s as f32;
                }
            });
        magnitudes
    }

    fn sound(&self, magnitudes: &[f32], frames: usize) -> Vec<f32> {
        let bins = self.bins();
        let mut spectrum: Vec<Complex32> = vec![Complex32::ZERO; frames * bins];
        let key = [self.options.seed as u32, (self.options.seed >> 32) as u32];
        spectrum
            .par_chunks_mut(bins)
            .zip(magnitudes.par_chunks(bins))
            .enumerate()
            .for_each(|(frame, (spectrum, magnitudes))| {
                for (bin, (to, &magnitude)) in spectrum.iter_mut().zip(magnitudes).enumerate() {
                    let random = philox4x32([bin as u32, frame as u32, 0, PHASE_STREAM], key)[0];
                    let turn = (random >> 8) as f32 / (1 << 24) as f32;
                    *to = Complex32::from_polar(magnitude, TAU * turn);
                }
            });
        let mut before = vec![Complex32::ZERO; frames * bins];
        let mut pieces = vec![0.0_f32; frames * self.n_fft];
        let mut samples = vec![0.0_f32; frames * self.hop + self.n_fft - self.hop];
        let energy = self.energy(samples.len(), frames);
        let damping = self.options.momentum / (1.0 + self.options.momentum);
        for _ in 0..self.options.iterations {
            self.to_samples(&mut spectrum, &mut pieces, &energy, &mut samples);
            self.to_spectrum(&samples, &mut spectrum);
            spectrum
                .par_chunks_mut(bins)
                .zip(before.par_chunks_mut(bins))
                .zip(magnitudes.par_chunks(bins))
                .for_each(|((spectrum, before), magnitudes)| {
                    for ((new, old), magnitude) in spectrum.iter_mut().zip(before).zip(magnitudes) {
                        let ahead = *new - *old * damping;
                        *old = *new;
                        *new = ahead * (magnitude / (ahead.norm() + 1e-16));
                    }
                });
        }
        self.to_samples(&mut spectrum, &mut pieces, &energy, &mut samples);
        let pad = (self.n_fft - self.hop) / 2;
        samples[pad..pad + frames * self.hop].to_vec()
    }

    /// Sum of the squared windows over every sample.
    fn energy(&self, len: usize, frames: usize) -> Vec<f32> {
        let mut energy = vec![0.0; len];
        for frame in 0..frames {
            for (to, window) in energy[frame * self.hop..].iter_mut().zip(&self.window) {
                *to += window * window;
            }
        }
        energy
    }

    /// The samples whose windowed frames are nearest to `spectrum` (which is used up).
    fn to_samples(
        &self,
        spectrum: &mut [Complex32],
        pieces: &mut [f32],
        energy: &[f32],
        samples: &mut [f32],
    ) {
        let bins = self.bins();
        pieces
            .par_chunks_mut(self.n_fft)
            .zip(spectrum.par_chunks_mut(bins))
            .for_each_init(
                || self.inverse.make_scratch_vec(),
                |scratch, (piece, spectrum)| {
                    // Real signals have real ends; a spectrum of another kind is an error there.
                    spectrum[0].im = 0.0;
                    spectrum[bins - 1].im = 0.0;
                    if self
                        .inverse
                        .process_with_scratch(spectrum, piece, scratch)
                        .is_err()
                    {
                        piece.fill(0.0);
                    }
                    let scale = 1.0 / self.n_fft as f32;
                    for (sample, window) in piece.iter_mut().zip(&self.window) {
                        *sample *= window * scale;
                    }
                },
            );
        let pieces: &[f32] = pieces;
        let frames = pieces.len() / self.n_fft;
        samples
            .par_chunks_mut(self.hop)
            .enumerate()
            .for_each(|(block, samples)| {
                samples.fill(0.0);
                let first = block * self.hop;
                let earliest = (first + 1).saturating_sub(self.n_fft).div_ceil(self.hop);
                for frame in earliest..frames.min(block + 1) {
                    let piece = &pieces[frame * self.n_fft..][first - frame * self.hop..self.n_fft];
                    for (to, from) in samples.iter_mut().zip(piece) {
                        *to += from;
                    }
                }
                for (sample, &energy) in samples.iter_mut().zip(&energy[first..]) {
                    if energy > MIN_ENERGY {
                        *sample /= energy;
                    }
                }
            });
    }

    fn to_spectrum(&self, samples: &[f32], spectrum: &mut [Complex32]) {
        spectrum
            .par_chunks_mut(self.bins())
            .enumerate()
            .for_each_init(
                || {
                    (
                        self.forward.make_input_vec(),
                        self.forward.make_scratch_vec(),
                    )
                },
                |(input, scratch), (frame, spectrum)| {
                    let samples = &samples[frame * self.hop..][..self.n_fft];
                    for ((to, sample), window) in input.iter_mut().zip(samples).zip(&self.window) {
                        *to = sample * window;
                    }
                    if self
                        .forward
                        .process_with_scratch(input, spectrum, scratch)
                        .is_err()
                    {
                        spectrum.fill(Complex32::ZERO);
                    }
                },
            );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mel::MelExtractor;

    /// A vowel: harmonics of a gliding pitch under two resonances.
    fn vowel(len: usize) -> Vec<f32> {
        let mut phase = 0.0_f32;
        (0..len)
            .map(|t| {
                let pitch = 120.0 + 30.0 * t as f32 / len as f32;
                phase = (phase + pitch / 22_050.0).fract();
                (1..30)
                    .map(|k| {
                        let hz = pitch * k as f32;
                        let formant = |at: f32| (-((hz - at) / 200.0).powi(2)).exp();
                        0.2 * (formant(700.0) + formant(1200.0)) * (TAU * phase * k as f32).sin()
                    })
                    .sum()
            })
            .collect()
    }

    #[test]
    fn the_mel_of_the_sound_is_the_mel_asked_for() {
        let config = VocoderConfig::v1();
        let extractor = MelExtractor::new(&config).unwrap();
        let mel = extractor.extract(&vowel(60 * 256)).unwrap();
        let distance = |options: GriffinLimOptions| {
            let samples = GriffinLim::new(&config, options)
                .unwrap()
                .generate(&mel)
                .unwrap();
            assert_eq!(samples.len(), 60 * 256);
            let back = extractor.extract(&samples).unwrap();
            let mut sum = 0.0;
            for band in 0..80 {
                for frame in 4..56 {
                    // Only what can be heard.
                    let (a, b) = (
                        mel.row(band)[frame].max(-6.0),
                        back.row(band)[frame].max(-6.0),
                    );
                    sum += (a - b).abs();
                }
            }
            sum / (80.0 * 52.0)
        };
        let default = distance(GriffinLimOptions::default());
        let short = distance(GriffinLimOptions {
            iterations: 1,
            ..Default::default()
        });
        assert!(
            default < 0.12 && default < 0.5 * short,
            "{default} after {short}"
        );
    }

    #[test]
    fn seeds_and_threads() {
        let config = VocoderConfig::v1();
        let mel = MelExtractor::new(&config)
            .unwrap()
            .extract(&vowel(10 * 256))
            .unwrap();
        let run = |seed, threads| {
            let options = GriffinLimOptions {
                iterations: 3,
                seed,
                ..Default::default()
            };
            let vocoder = GriffinLim::new(&config, options).unwrap();
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            pool.install(|| vocoder.generate(&mel)).unwrap()
        };
        assert_eq!(run(1, 1), run(1, 2));
        assert_ne!(run(1, 1), run(2, 1));
    }

    #[test]
    fn bad_mels_are_refused() {
        let vocoder = GriffinLim::new(&VocoderConfig::v1(), GriffinLimOptions::default()).unwrap();
        let wrong = Signal::from_rows(1, &[0.0]);
        assert!(matches!(
            vocoder.generate(&wrong),
            Err(VocoderError::Bands { .. })
        ));
        for bad in [f32::NAN, f32::INFINITY, 1e6] {
            let mut rows = vec![-5.0; 80 * 2];
            rows[33] = bad;
            let error = vocoder.generate(&Signal::from_rows(80, &rows)).unwrap_err();
            assert!(
                matches!(error, VocoderError::NonFiniteMel { band: 16, frame: 1 }),
                "{error}"
            );
        }
        assert_eq!(vocoder.generate(&Signal::new(80)).unwrap(), [0.0; 0]);
        assert!(
            GriffinLim::new(
                &VocoderConfig::v1(),
                GriffinLimOptions {
                    momentum: 1.0,
                    ..Default::default()
                }
            )
            .is_err()
        );
    }
}
