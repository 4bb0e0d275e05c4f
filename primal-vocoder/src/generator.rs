//! The HiFi-GAN generator (Kong, Kim, Bae 2020, "HiFi-GAN: Generative Adversarial Networks for
//! Efficient and High Fidelity Speech Synthesis"): mel spectrogram in, samples out.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use primal_kernels::{Conv1d, Isa, Signal};
use rayon::prelude::*;

use crate::config::VocoderConfig;
use crate::error::VocoderError;
use crate::layer::{Block, BlockState, SameConv, SameConvState, Unit, Upsampler, UpsamplerState};
use crate::weights::{Weights, layers};

/// Slope of every leaky ReLU but the last.
pub(crate) const SLOPE: f32 = 0.1;

/// Slope of the leaky ReLU before the last convolution: PyTorch's default.
pub(crate) const LAST_SLOPE: f32 = 0.01;

/// Frames to generate at once where nothing else decides: what lies between two layers then stays
/// in the cache of a core.
pub const FRAMES_PER_PIECE: usize = 16;

/// Shortest segment that is worth a thread of its own, which has to make what lies around it too.
const MIN_SEGMENT_FRAMES: usize = 64;

/// Kernel of the first and last convolution.
pub(crate) const OUTER_KERNEL: usize = 7;

/// Names of a configuration beside the weights, in the order in which they are tried.
pub(crate) const CONFIG_NAMES: [&str; 3] = ["config.json", "config.toml", "vocoder.toml"];

/// Names of weights that are taken before others in a folder.
const WEIGHT_NAMES: [&str; 3] = [
    "generator.safetensors",
    "model.safetensors",
    "generator.ckpt",
];

/// The generator's weights, float32, packed for the convolution kernels.
#[derive(Debug)]
pub struct Generator {
    config: VocoderConfig,
    pre: SameConv,
    stages: Vec<Stage>,
    post: SameConv,
}

#[derive(Debug)]
struct Stage {
    upsampler: Upsampler,
    /// By ascending lag, so that sums have one order however the input is cut.
    blocks: Vec<Block>,
}

impl Generator {
    /// Opens a folder with a configuration (`config.json` or `config.toml`) and one weight file:
    /// `generator.safetensors`, `model.safetensors`, `generator.ckpt`, or the only file that ends
    /// in `.safetensors`, `.ckpt`, `.pt`, `.pth` or begins with `g_`. A SpeechBrain folder (a
    /// `generator.ckpt` and no configuration) has the shape of its `tts-hifigan-ljspeech`.
    ///
    /// # Errors
    /// [`VocoderError::Folder`], [`VocoderError::Config`] and those of [`Weights::open`] and
    /// [`Generator::new`].
    pub fn open(folder: &Path) -> Result<Generator, VocoderError> {
        let (config, weights) = Generator::open_parts(folder)?;
        Generator::new(config, &weights)
    }

    /// What [`Generator::open`] packs: the shape and the weights, to train from.
    ///
    /// # Errors
    /// As there, but for those of [`Generator::new`].
    pub fn open_parts(folder: &Path) -> Result<(VocoderConfig, Weights), VocoderError> {
        let weights_path = find_weights(folder)?;
        let config = match CONFIG_NAMES
            .iter()
            .map(|name| folder.join(name))
            .find(|it| it.is_file())
        {
            Some(path) => {
                let text = fs::read_to_string(&path).map_err(|source| VocoderError::Io {
                    action: "read",
                    path: path.clone(),
                    source,
                })?;
                match path.extension().is_some_and(|it| it == "json") {
                    true => VocoderConfig::from_json(&text)?,
                    false => VocoderConfig::from_toml(&text)?,
                }
            }
            None if weights_path.ends_with("generator.ckpt") => {
                VocoderConfig::speechbrain_ljspeech()
            }
            None => {
                return Err(VocoderError::Folder {
                    path: folder.to_owned(),
                    reason: format!("holds none of {}", CONFIG_NAMES.join(", ")),
                });
            }
        };
        Ok((config, Weights::open(&weights_path)?))
    }

    /// Packs the weights that `config` asks for.
    ///
    /// # Errors
    /// [`VocoderError::Config`], [`VocoderError::MissingTensor`], [`VocoderError::WrongShape`],
    /// [`VocoderError::NonFiniteWeight`].
    pub fn new(config: VocoderConfig, weights: &Weights) -> Result<Generator, VocoderError> {
        config.check()?;
        let conv = |name: &str, shape: [usize; 3], dilation: usize, optional_bias: bool| {
            let weight = weights.weight(name, &shape)?;
            let bias = weights.bias(name, shape[0], optional_bias)?;
            Ok::<_, VocoderError>(SameConv {
                conv: Conv1d::new(&weight, &bias, shape[2], dilation),
                padding: config.padding,
            })
        };
        let first = config.upsample_initial_channel;
        let pre = conv("conv_pre", [first, config.num_mels, OUTER_KERNEL], 1, false)?;
        let n_blocks = config.resblock_kernel_sizes.len();
        let mut stages = Vec::new();
        for (stage, (&rate, &kernel)) in config
            .upsample_rates
            .iter()
            .zip(&config.upsample_kernel_sizes)
            .enumerate()
        {
            let (c_in, c_out) = (2 * config.channels(stage), config.channels(stage));
            let name = format!("ups.{stage}");
            let weight = weights.weight(&name, &[c_in, c_out, kernel])?;
            let bias = weights.bias(&name, c_out, false)?;
            let mut blocks = Vec::new();
            for (index, (&kernel, dilations)) in config
                .resblock_kernel_sizes
                .iter()
                .zip(&config.resblock_dilation_sizes)
                .enumerate()
            {
                let block = format!("resblocks.{}", stage * n_blocks + index);
                let shape = [c_out, c_out, kernel];
                let unit = |(unit, &dilation): (usize, &usize)| {
                    Ok::<_, VocoderError>(match config.resblock.as_str() {
                        "1" => Unit {
                            first: conv(&format!("{block}.convs1.{unit}"), shape, dilation, false)?,
                            second: Some(conv(&format!("{block}.convs2.{unit}"), shape, 1, false)?),
                        },
                        _ => Unit {
                            first: conv(&format!("{block}.convs.{unit}"), shape, dilation, false)?,
                            second: None,
                        },
                    })
                };
                let units = dilations.iter().enumerate().map(unit);
                blocks.push(Block {
                    units: units.collect::<Result<_, _>>()?,
                });
            }
            blocks.sort_by_key(Block::lag);
            stages.push(Stage {
                upsampler: Upsampler::new(&weight, &bias, kernel, rate),
                blocks,
            });
        }
        let last = config.channels(stages.len() - 1);
        let post = conv("conv_post", [1, last, OUTER_KERNEL], 1, true)?;
        Ok(Generator {
            config,
            pre,
            stages,
            post,
        })
    }

    /// The shape.
    pub fn config(&self) -> &VocoderConfig {
        &self.config
    }

    /// Multiplications for a second of sound.
    pub fn multiplications_per_second(&self) -> f64 {
        let mut columns = f64::from(self.config.sampling_rate) / self.config.hop_size as f64;
        let mut total = 0.0;
        for layer in layers(&self.config) {
            // A transposed convolution multiplies every input column with all of its weights.
            total += columns * layer.shape.iter().product::<usize>() as f64;
            columns *= layer.rate as f64;
        }
        total
    }

    /// The sound of a whole mel spectrogram (bands, frames): frames · hop samples in −1..1.
    ///
    /// Every thread makes a segment, in pieces of `frames_per_piece` frames; neither changes a bit.
    ///
    /// # Errors
    /// Those of [`Stream::push`] and [`Stream::finish`].
    pub fn generate(
        &self,
        isa: Isa,
        mel: &Signal,
        frames_per_piece: usize,
    ) -> Result<Vec<f32>, VocoderError> {
        self.check(mel, 0)?;
        let frames = mel.len();
        let segments = (frames / MIN_SEGMENT_FRAMES).clamp(1, rayon::current_num_threads());
        let sounds: Vec<Vec<f32>> = (0..segments)
            .into_par_iter()
            .map(|i| {
                let own = frames * i / segments..frames * (i + 1) / segments;
                self.segment(isa, mel, own, frames_per_piece.max(1))
            })
            .collect::<Result<_, _>>()?;
        Ok(sounds.concat())
    }

    /// The sound of some frames, made with as many around them as it depends on.
    fn segment(
        &self,
        isa: Isa,
        mel: &Signal,
        own: Range<usize>,
        frames_per_piece: usize,
    ) -> Result<Vec<f32>, VocoderError> {
        let (view, hop) = (self.field_of_view(), self.config.hop_size);
        let seen = own.start.saturating_sub(view)..mel.len().min(own.end + view);
        let mut stream = self.stream(isa);
        let mut samples = Vec::with_capacity(seen.len() * hop);
        let mut piece = Signal::new(mel.channels());
        for first in seen.clone().step_by(frames_per_piece) {
            let columns = first..seen.end.min(first + frames_per_piece);
            piece.set_len(columns.len());
            for band in 0..mel.channels() {
                piece
                    .row_mut(band)
                    .copy_from_slice(&mel.row(band)[columns.clone()]);
            }
            samples.extend_from_slice(stream.push(&piece)?);
        }
        samples.extend(stream.finish()?);
        samples.drain(..(own.start - seen.start) * hop);
        samples.truncate(own.len() * hop);
        Ok(samples)
    }

    /// Frames to each side that a frame's sound depends on.
    fn field_of_view(&self) -> usize {
        let mut columns = OUTER_KERNEL / 2;
        for (stage, &rate) in self.stages.iter().zip(&self.config.upsample_rates) {
            let lag = stage.blocks.iter().map(Block::lag).max().unwrap_or(0);
            columns = (columns + stage.upsampler.reach()) * rate + lag;
        }
        (columns + OUTER_KERNEL / 2).div_ceil(self.config.hop_size)
    }

    /// Whether `mel` is one that this generator takes; `first` is the number of its first frame.
    fn check(&self, mel: &Signal, first: usize) -> Result<(), VocoderError> {
        if mel.channels() != self.config.num_mels {
            return Err(VocoderError::Bands {
                found: mel.channels(),
                expected: self.config.num_mels,
            });
        }
        for band in 0..mel.channels() {
            if let Some(frame) = mel.row(band).iter().position(|value| !value.is_finite()) {
                return Err(VocoderError::NonFiniteMel {
                    band,
                    frame: first + frame,
                });
            }
        }
        Ok(())
    }

    /// A sound to be made piece by piece.
    pub fn stream(&self, isa: Isa) -> Stream<'_> {
        let stage_state = |stage: &Stage, channels: usize| StageState {
            upsampler: stage.upsampler.state(),
            blocks: stage.blocks.iter().map(Block::state).collect(),
            counts: vec![0; stage.blocks.len()],
            upsampled: Signal::new(channels),
            block_out: Signal::new(channels),
            sum: Signal::new(channels),
        };
        let stages = self.stages.iter().enumerate();
        Stream {
            generator: self,
            isa,
            pre: self.pre.state(),
            stages: stages
                .map(|(index, stage)| stage_state(stage, self.config.channels(index)))
                .collect(),
            post: self.post.state(),
            pre_out: Signal::new(self.pre.conv.c_out()),
            samples: Signal::new(1),
            frames: 0,
            edge: Signal::new(self.config.num_mels),
            to_skip: self.config.edge_frames * self.config.hop_size,
            to_come: 0,
        }
    }
}

/// A sound in the making: what every layer keeps between two pieces of the mel spectrogram.
///
/// All pieces together have the bits of the whole. Samples come out about as late as the
/// generator's field of view is wide (some 15 frames); [`Stream::finish`] gives the rest.
#[derive(Debug)]
pub struct Stream<'g> {
    generator: &'g Generator,
    isa: Isa,
    pre: SameConvState,
    stages: Vec<StageState>,
    post: SameConvState,
    /// Scratch: behind the first convolution.
    pre_out: Signal,
    samples: Signal,
    /// Frames taken so far.
    frames: usize,
    /// The last frame, for the copies behind it.
    edge: Signal,
    /// Samples of the copied first frames that still have to be cut off.
    to_skip: usize,
    /// Samples that the frames so far stand for and that did not come out yet.
    to_come: usize,
}

#[derive(Debug)]
struct StageState {
    upsampler: UpsamplerState,
    blocks: Vec<BlockState>,
    /// Columns at the front of `sum` that hold a block's summand.
    counts: Vec<usize>,
    /// Scratch: behind the transposed convolution.
    upsampled: Signal,
    /// Scratch: behind a block.
    block_out: Signal,
    /// The sums of the blocks, scaled where the last one was added.
    sum: Signal,
}

impl StageState {
    /// Takes the first `columns` of `input`; gives the number of columns of `sum` that are done.
    fn push(
        &mut self,
        isa: Isa,
        stage: &Stage,
        (input, columns): (&Signal, usize),
        last: bool,
    ) -> Result<usize, VocoderError> {
        let input = (input, columns, SLOPE);
        self.upsampler
            .push(isa, &stage.upsampler, input, last, &mut self.upsampled);
        let n_blocks = stage.blocks.len();
        for (index, (block, state)) in stage.blocks.iter().zip(&mut self.blocks).enumerate() {
            let out = &mut self.block_out;
            state.push(isa, block, &self.upsampled, SLOPE, last, out)?;
            let scale = match index + 1 == n_blocks {
                true => 1.0 / n_blocks as f32,
                false => 1.0,
            };
            match index {
                0 => self.sum.append(isa, out, out.len()),
                _ => self.sum.add_scaled(isa, self.counts[index], out, scale),
            }
            self.counts[index] += out.len();
        }
        Ok(self.counts[n_blocks - 1])
    }

    fn drop_front(&mut self, columns: usize) {
        self.sum.drop_front(columns);
        self.counts.iter_mut().for_each(|count| *count -= columns);
    }
}

impl Stream<'_> {
    /// Takes frames (bands, n) of log-mel values and gives the samples that are known by now.
    ///
    /// # Errors
    /// [`VocoderError::Bands`], [`VocoderError::NonFiniteMel`]; the stream is unchanged then.
    pub fn push(&mut self, mel: &Signal) -> Result<&[f32], VocoderError> {
        self.generator.check(mel, self.frames)?;
        let config = &self.generator.config;
        if mel.is_empty() {
            return Ok(&[]);
        }
        let n_edge = config.edge_frames;
        self.to_come += mel.len() * config.hop_size;
        if n_edge == 0 {
            self.frames += mel.len();
            return self.advance(mel, false);
        }
        let mut padded = Signal::new(mel.channels());
        if self.frames == 0 {
            padded.set_len(n_edge);
            for band in 0..mel.channels() {
                padded.row_mut(band).fill(mel.row(band)[0]);
            }
        }
        padded.append(self.isa, mel, mel.len());
        self.edge.set_len(n_edge);
        for band in 0..mel.channels() {
            self.edge.row_mut(band).fill(mel.row(band)[mel.len() - 1]);
        }
        self.frames += mel.len();
        self.advance(&padded, false)
    }

    /// Ends the sound and gives the rest of the samples.
    ///
    /// # Errors
    /// [`VocoderError::TooShort`] where the ends are mirrored and nothing is there to mirror.
    pub fn finish(mut self) -> Result<Vec<f32>, VocoderError> {
        if self.frames == 0 {
            return Ok(Vec::new());
        }
        let edge = std::mem::replace(&mut self.edge, Signal::new(1));
        let edge = match edge.is_empty() {
            true => Signal::new(self.generator.config.num_mels),
            false => edge,
        };
        Ok(self.advance(&edge, true)?.to_vec())
    }

    fn advance(&mut self, mel: &Signal, last: bool) -> Result<&[f32], VocoderError> {
        let (isa, generator) = (self.isa, self.generator);
        let input = (mel, mel.len(), 1.0);
        self.pre
            .push(isa, &generator.pre, input, last, None, &mut self.pre_out)?;
        let mut columns = self.pre_out.len();
        for index in 0..self.stages.len() {
            let (before, rest) = self.stages.split_at_mut(index);
            let input = before.last().map_or(&self.pre_out, |stage| &stage.sum);
            let ready = rest[0].push(isa, &generator.stages[index], (input, columns), last)?;
            if let Some(stage) = before.last_mut() {
                stage.drop_front(columns);
            }
            columns = ready;
        }
        let Some(stage) = self.stages.last_mut() else {
            return Ok(&[]);
        };
        let input = (&stage.sum, columns, LAST_SLOPE);
        self.post
            .push(isa, &generator.post, input, last, None, &mut self.samples)?;
        stage.drop_front(columns);
        let row = self.samples.row_mut(0);
        let skip = self.to_skip.min(row.len());
        self.to_skip -= skip;
        let count = (row.len() - skip).min(self.to_come);
        self.to_come -= count;
        let samples = &mut row[skip..skip + count];
        samples
            .iter_mut()
            .for_each(|sample| *sample = sample.tanh());
        Ok(samples)
    }
}

/// The one weight file of a folder.
fn find_weights(folder: &Path) -> Result<PathBuf, VocoderError> {
    let io_error = |source| VocoderError::Io {
        action: "read",
        path: folder.to_owned(),
        source,
    };
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(io_error)? {
        let path = entry.map_err(io_error)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let ending = path.extension().unwrap_or_default().to_string_lossy();
        let by_ending = ["safetensors", "ckpt", "pt", "pth"].contains(&&*ending);
        if path.is_file() && (by_ending || name.starts_with("g_")) {
            found.push(path);
        }
    }
    found.sort();
    for name in WEIGHT_NAMES {
        let path = folder.join(name);
        if found.contains(&path) {
            return Ok(path);
        }
    }
    match found.as_slice() {
        [path] => Ok(path.clone()),
        [] => Err(VocoderError::Folder {
            path: folder.to_owned(),
            reason: "holds no weight file (.safetensors, .ckpt, .pt, .pth or g_*)".to_owned(),
        }),
        [first, second, ..] => Err(VocoderError::Folder {
            path: folder.to_owned(),
            reason: format!(
                "holds several weight files, {} and {}; hint: rename one to {}",
                first.display(),
                second.display(),
                WEIGHT_NAMES[0]
            ),
        }),
    }
}

#[cfg(test)]
pub(crate) mod tests;
