//! The shape of a HiFi-GAN generator and of its mel spectrogram, with HiFi-GAN's own key names.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::VocoderError;
use crate::generator::CONFIG_NAMES;

/// Keys of the official configuration files that only training reads.
const TRAINING_KEYS: [&str; 16] = [
    "num_gpus",
    "batch_size",
    "learning_rate",
    "adam_b1",
    "adam_b2",
    "lr_decay",
    "seed",
    "segment_size",
    "num_freq",
    "fmax_for_loss",
    "num_workers",
    "dist_config",
    "resblock_initial_channel",
    "fine_tuning",
    "input_training_file",
    "input_validation_file",
];

/// Bounds that keep a hostile file from asking for absurd amounts of memory.
const MAX_CHANNELS: usize = 4096;
const MAX_KERNEL: usize = 512;
const MAX_LAYERS: usize = 16;

/// What a convolution reads beyond the ends of its input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Padding {
    /// Zeros: the official implementation.
    #[default]
    Zeros,
    /// The input mirrored at its first and last column: SpeechBrain.
    Reflect,
}

/// A generator and its mel spectrogram. Missing keys have the values of HiFi-GAN V1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct VocoderConfig {
    /// `"1"`: two convolutions a dilation; `"2"`: one.
    pub resblock: String,
    /// Factor of each transposed convolution; their product is `hop_size`.
    pub upsample_rates: Vec<usize>,
    /// Kernel of each transposed convolution, its rate plus an even number.
    pub upsample_kernel_sizes: Vec<usize>,
    /// Channels behind the first convolution; every stage halves them.
    pub upsample_initial_channel: usize,
    /// Kernel of each residual block of a stage; odd.
    pub resblock_kernel_sizes: Vec<usize>,
    /// Dilations of each residual block of a stage.
    pub resblock_dilation_sizes: Vec<Vec<usize>>,
    /// Bands of the mel spectrogram.
    pub num_mels: usize,
    /// Samples of a Fourier transform; even.
    pub n_fft: usize,
    /// Samples from one frame to the next.
    pub hop_size: usize,
    /// Samples of the Hann window, at most `n_fft`.
    pub win_size: usize,
    /// Samples a second.
    pub sampling_rate: u32,
    /// Lower edge of the lowest band, Hz.
    pub fmin: f64,
    /// Upper edge of the highest band, Hz; half the sampling rate if absent.
    pub fmax: Option<f64>,
    /// Ours: what the convolutions read beyond the ends.
    pub padding: Padding,
    /// Ours: copies of the first and last frame that are put around the input and whose sound is
    /// cut off again (SpeechBrain: 5).
    pub edge_frames: usize,
}

impl Default for VocoderConfig {
    fn default() -> VocoderConfig {
        VocoderConfig::v1()
    }
}

impl VocoderConfig {
    /// HiFi-GAN V1: 13.9M weights.
    pub fn v1() -> VocoderConfig {
        VocoderConfig {
            resblock: "1".to_owned(),
            upsample_rates: vec![8, 8, 2, 2],
            upsample_kernel_sizes: vec![16, 16, 4, 4],
            upsample_initial_channel: 512,
            resblock_kernel_sizes: vec![3, 7, 11],
            resblock_dilation_sizes: vec![vec![1, 3, 5]; 3],
            num_mels: 80,
            n_fft: 1024,
            hop_size: 256,
            win_size: 1024,
            sampling_rate: 22_050,
            fmin: 0.0,
            fmax: Some(8000.0),
            padding: Padding::Zeros,
            edge_frames: 0,
        }
    }

    /// HiFi-GAN V2: V1 with a quarter of the channels, 0.93M weights.
    pub fn v2() -> VocoderConfig {
        VocoderConfig {
            upsample_initial_channel: 128,
            ..VocoderConfig::v1()
        }
    }

    /// HiFi-GAN V3: 1.46M weights.
    pub fn v3() -> VocoderConfig {
        VocoderConfig {
            resblock: "2".to_owned(),
            upsample_rates: vec![8, 8, 4],
            upsample_kernel_sizes: vec![16, 16, 8],
            upsample_initial_channel: 256,
            resblock_kernel_sizes: vec![3, 5, 7],
            resblock_dilation_sizes: vec![vec![1, 2], vec![2, 6], vec![3, 12]],
            ..VocoderConfig::v1()
        }
    }

    /// SpeechBrain's `tts-hifigan-ljspeech`: V1 with mirrored ends and five copied frames.
    pub fn speechbrain_ljspeech() -> VocoderConfig {
        VocoderConfig {
            padding: Padding::Reflect,
            edge_frames: 5,
            ..VocoderConfig::v1()
        }
    }

    /// From JSON, as the official `config.json`. Keys that only training reads are passed over;
    /// unknown ones are errors.
    ///
    /// # Errors
    /// [`VocoderError::Config`].
    pub fn from_json(text: &str) -> Result<VocoderConfig, VocoderError> {
        let mut keys: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(text).map_err(|error| VocoderError::config(error.to_string()))?;
        keys.retain(|key, _| !TRAINING_KEYS.contains(&key.as_str()));
        check_keys(keys.keys())?;
        let config: VocoderConfig = serde_json::from_value(serde_json::Value::Object(keys))
            .map_err(|error| VocoderError::config(error.to_string()))?;
        config.check()?;
        Ok(config)
    }

    /// From TOML with the same keys.
    ///
    /// # Errors
    /// [`VocoderError::Config`].
    pub fn from_toml(text: &str) -> Result<VocoderConfig, VocoderError> {
        let mut keys: toml::Table =
            toml::from_str(text).map_err(|error| VocoderError::config(error.to_string()))?;
        keys.retain(|key, _| !TRAINING_KEYS.contains(&key));
        check_keys(keys.keys())?;
        let config: VocoderConfig = keys
            .try_into()
            .map_err(|error: toml::de::Error| VocoderError::config(error.to_string()))?;
        config.check()?;
        Ok(config)
    }

    /// Writes `config.json` into `folder`, which is made.
    ///
    /// # Errors
    /// [`VocoderError::Io`].
    pub fn write(&self, folder: &Path) -> Result<(), VocoderError> {
        let text = serde_json::to_string_pretty(self)
            .map_err(|error| VocoderError::config(error.to_string()))?;
        let path = folder.join(CONFIG_NAMES[0]);
        fs::create_dir_all(folder)
            .and_then(|()| fs::write(&path, text + "\n"))
            .map_err(|source| VocoderError::Io {
                action: "write",
                path,
                source,
            })
    }

    /// Whether a generator and a mel spectrogram of this shape exist.
    ///
    /// # Errors
    /// [`VocoderError::Config`] with the first key that is wrong.
    pub fn check(&self) -> Result<(), VocoderError> {
        let fail = |reason: String| Err(VocoderError::config(reason));
        if self.resblock != "1" && self.resblock != "2" {
            return fail(format!(
                "resblock is \"1\" or \"2\", not {:?}",
                self.resblock
            ));
        }
        let stages = self.upsample_rates.len();
        if stages == 0 || stages > MAX_LAYERS || stages != self.upsample_kernel_sizes.len() {
            return fail(format!(
                "upsample_rates and upsample_kernel_sizes are 1 to {MAX_LAYERS} numbers each, not {stages} and {}",
                self.upsample_kernel_sizes.len()
            ));
        }
        for (&rate, &kernel) in self.upsample_rates.iter().zip(&self.upsample_kernel_sizes) {
            if rate == 0
                || kernel < rate
                || kernel > MAX_KERNEL
                || !(kernel - rate).is_multiple_of(2)
            {
                return fail(format!(
                    "an upsampling kernel is its rate plus an even number, at most {MAX_KERNEL}, not {kernel} for a rate of {rate}"
                ));
            }
        }
        let hop = self
            .upsample_rates
            .iter()
            .try_fold(1_usize, |hop, &rate| hop.checked_mul(rate));
        if hop != Some(self.hop_size) || self.hop_size > 1 << 16 {
            return fail(format!(
                "the upsample_rates multiply to hop_size, not {}",
                self.hop_size
            ));
        }
        let channels = self.upsample_initial_channel;
        if channels == 0 || channels > MAX_CHANNELS || !channels.is_multiple_of(1 << stages) {
            return fail(format!(
                "upsample_initial_channel is halved {stages} times and at most {MAX_CHANNELS}, not {channels}"
            ));
        }
        let blocks = self.resblock_kernel_sizes.len();
        if blocks == 0 || blocks > MAX_LAYERS || blocks != self.resblock_dilation_sizes.len() {
            return fail(format!(
                "resblock_kernel_sizes and resblock_dilation_sizes are 1 to {MAX_LAYERS} entries each, not {blocks} and {}",
                self.resblock_dilation_sizes.len()
            ));
        }
        for (&kernel, dilations) in self
            .resblock_kernel_sizes
            .iter()
            .zip(&self.resblock_dilation_sizes)
        {
            if kernel % 2 == 0 || kernel > MAX_KERNEL {
                return fail(format!(
                    "a residual kernel is odd and below {MAX_KERNEL}, not {kernel}"
                ));
            }
            let sound = |&dilation: &usize| (1..=MAX_KERNEL).contains(&dilation);
            if dilations.is_empty() || dilations.len() > MAX_LAYERS || !dilations.iter().all(sound)
            {
                return fail(format!(
                    "dilations are 1 to {MAX_LAYERS} numbers from 1 to {MAX_KERNEL}, not {dilations:?}"
                ));
            }
        }
        if !(1..=MAX_CHANNELS).contains(&self.num_mels) {
            return fail(format!(
                "num_mels is 1 to {MAX_CHANNELS}, not {}",
                self.num_mels
            ));
        }
        if self.edge_frames > 1000 {
            return fail(format!(
                "edge_frames is at most 1000, not {}",
                self.edge_frames
            ));
        }
        if !(16..=1 << 16).contains(&self.n_fft)
            || !self.n_fft.is_multiple_of(2)
            || self.n_fft < self.hop_size
            || !(self.n_fft - self.hop_size).is_multiple_of(2)
            || !(1..=self.n_fft).contains(&self.win_size)
        {
            return fail(format!(
                "n_fft is even, 16 to 65536, at least hop_size by an even number, and win_size at most n_fft, not {} and {}",
                self.n_fft, self.win_size
            ));
        }
        let top = f64::from(self.sampling_rate) / 2.0;
        let fmax = self.fmax();
        if self.sampling_rate == 0 || !(self.fmin >= 0.0 && self.fmin < fmax && fmax <= top) {
            return fail(format!(
                "0 <= fmin < fmax <= sampling_rate / 2 does not hold for {}, {fmax} and {top}",
                self.fmin
            ));
        }
        Ok(())
    }

    /// Upper edge of the highest band, Hz.
    pub fn fmax(&self) -> f64 {
        self.fmax.unwrap_or(f64::from(self.sampling_rate) / 2.0)
    }

    /// Channels behind stage `stage`.
    pub(crate) fn channels(&self, stage: usize) -> usize {
        self.upsample_initial_channel >> (stage + 1)
    }
}

/// Fails on a key that no vocoder has, with the nearest one that it has.
fn check_keys<'k>(keys: impl Iterator<Item = &'k String>) -> Result<(), VocoderError> {
    let Ok(serde_json::Value::Object(known)) = serde_json::to_value(VocoderConfig::v1()) else {
        return Ok(());
    };
    for key in keys {
        if known.contains_key(key) {
            continue;
        }
        let nearest = known
            .keys()
            .max_by(|a, b| strsim::jaro_winkler(a, key).total_cmp(&strsim::jaro_winkler(b, key)));
        let hint = nearest.map(|name| format!("; hint: did you mean `{name}`?"));
        return Err(VocoderError::config(format!(
            "unknown key `{key}`{}",
            hint.unwrap_or_default()
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_shapes_are_sound() {
        for config in [
            VocoderConfig::v1(),
            VocoderConfig::v2(),
            VocoderConfig::v3(),
            VocoderConfig::speechbrain_ljspeech(),
        ] {
            config.check().unwrap();
            let json = serde_json::to_string(&config).unwrap();
            assert_eq!(VocoderConfig::from_json(&json).unwrap(), config);
            let toml = toml::to_string(&config).unwrap();
            assert_eq!(VocoderConfig::from_toml(&toml).unwrap(), config);
        }
    }

    #[test]
    fn training_keys_pass_and_unknown_ones_do_not() {
        let config = VocoderConfig::from_json(
            r#"{"resblock": "1", "num_gpus": 0, "dist_config": {"world_size": 1}, "fmax_for_loss": null}"#,
        );
        assert_eq!(config.unwrap(), VocoderConfig::v1());
        let error = VocoderConfig::from_toml("hop_sise = 256")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("`hop_sise`") && error.contains("`hop_size`?"),
            "{error}"
        );
    }

    #[test]
    fn shapes_that_cannot_be_are_refused() {
        for text in [
            r#"{"resblock": "3"}"#,
            r#"{"upsample_rates": []}"#,
            r#"{"upsample_rates": [8, 8, 2, 0]}"#,
            r#"{"upsample_kernel_sizes": [16, 16, 4, 5]}"#,
            r#"{"hop_size": 255}"#,
            r#"{"upsample_initial_channel": 100}"#,
            r#"{"upsample_initial_channel": 1000000000}"#,
            r#"{"resblock_kernel_sizes": [3, 7, 10]}"#,
            r#"{"resblock_dilation_sizes": [[1], [1]]}"#,
            r#"{"resblock_dilation_sizes": [[1], [1], [0]]}"#,
            r#"{"num_mels": 0}"#,
            r#"{"n_fft": 255}"#,
            r#"{"win_size": 2048}"#,
            r#"{"fmax": 20000.0}"#,
            r#"{"sampling_rate": 0}"#,
            r#"{"sampling_rate": -1}"#,
            "[]",
            "{",
        ] {
            assert!(VocoderConfig::from_json(text).is_err(), "{text}");
        }
    }
}
