//! From mel spectrogram to sound: the HiFi-GAN generator and Griffin-Lim.
//!
//! ```
//! use primal_kernels::Isa;
//! use primal_vocoder::{Generator, GriffinLim, GriffinLimOptions, MelExtractor, VocoderConfig};
//! # use primal_vocoder::Weights;
//!
//! // A tenth of a second of a 200 Hz tone, and its mel spectrogram (80 bands, 8 frames).
//! let config = VocoderConfig::v3();
//! let tone = (0..2205).map(|t| 0.3 * (0.057 * t as f32).sin());
//! let mel = MelExtractor::new(&config)?.extract(&tone.collect::<Vec<_>>())?;
//! assert_eq!((mel.channels(), mel.len()), (80, 8));
//!
//! // Back to samples without any weights. Phases are random, but the same for the same seed.
//! let samples = GriffinLim::new(&config, GriffinLimOptions::default())?.generate(&mel)?;
//! assert_eq!(samples.len(), 8 * 256);
//!
//! // With weights: `Generator::open(folder)`. Here a tiny generator of zeros, which is silent.
//! let tiny = VocoderConfig::from_toml(
//!     "upsample_initial_channel = 4
//!      upsample_rates = [16, 16]
//!      upsample_kernel_sizes = [32, 32]
//!      resblock = '2'
//!      resblock_kernel_sizes = [3]
//!      resblock_dilation_sizes = [[1]]",
//! )?;
//! # let zeros = |name: &str, shape: &[usize]| {
//! #     (name.to_owned(), shape.to_vec(), vec![0.0; shape.iter().product()])
//! # };
//! # let weights = Weights::new("zeros", [
//! #     zeros("conv_pre.weight", &[4, 80, 7]), zeros("conv_pre.bias", &[4]),
//! #     zeros("ups.0.weight", &[4, 2, 32]), zeros("ups.0.bias", &[2]),
//! #     zeros("ups.1.weight", &[2, 1, 32]), zeros("ups.1.bias", &[1]),
//! #     zeros("resblocks.0.convs.0.weight", &[2, 2, 3]), zeros("resblocks.0.convs.0.bias", &[2]),
//! #     zeros("resblocks.1.convs.0.weight", &[1, 1, 3]), zeros("resblocks.1.convs.0.bias", &[1]),
//! #     zeros("conv_post.weight", &[1, 1, 7]), zeros("conv_post.bias", &[1]),
//! # ])?;
//! let generator = Generator::new(tiny, &weights)?;
//! let mut stream = generator.stream(Isa::best());
//! let first = stream.push(&mel)?.len();
//! let rest = stream.finish()?.len();
//! assert!(first < first + rest && first + rest == 8 * 256);
//! # Ok::<(), primal_vocoder::VocoderError>(())
//! ```
//!
//! Everything is deterministic: the same input gives the same bits for any number of threads,
//! any instruction set of the convolutions and any cut of a stream.

mod config;
mod error;
mod generator;
mod griffin_lim;
mod layer;
mod mel;
mod picture;
mod train;
mod wav;
mod weights;

pub use config::{Padding, VocoderConfig};
pub use error::VocoderError;
pub use generator::{FRAMES_PER_PIECE, Generator, Stream};
pub use griffin_lim::{GriffinLim, GriffinLimOptions};
pub use mel::{MelExtractor, read_mel, write_mel};
pub use picture::write_spectrogram;
pub use primal_kernels::Signal;
pub use train::{TrainOptions, TrainedStep, Trainer};
pub use wav::{Sound, WavStream, read_wav, resample, wav_bytes, write_wav};
pub use weights::Weights;
