//! What a voice learns from: sentences as symbols, frames and mel spectrograms, packed in batches.

use primal_kernels::philox4x32;
use sha2::{Digest, Sha256};

use super::config::MEL_BANDS;
use super::{Alignment, VoiceError};
use crate::ModelError;
use crate::checkpoint::hex;

/// Random stream of the order of sentences; the optimizer uses streams 0 to 2, the weights 3.
const ORDER_STREAM: u32 = 4;

/// A spoken sentence.
#[derive(Debug, Clone, PartialEq)]
pub struct Example {
    /// Symbols and the frames of each.
    pub alignment: Alignment,
    /// (frames, 80) logarithms of mel magnitudes.
    pub mel: Vec<f32>,
}

impl Example {
    /// A sentence whose spectrogram (frames, 80) is as long as its symbols say.
    ///
    /// # Errors
    /// [`VoiceError::Frames`] where they differ.
    pub fn new(id: &str, alignment: Alignment, mel: Vec<f32>) -> Result<Example, VoiceError> {
        let expected: u32 = alignment.frames.iter().sum();
        let found = mel.len() / MEL_BANDS;
        if found != expected as usize
            || !mel.len().is_multiple_of(MEL_BANDS)
            || mel.iter().any(|value| !value.is_finite())
        {
            return Err(VoiceError::Frames {
                id: id.to_owned(),
                found,
                expected: expected as usize,
            });
        }
        Ok(Example { alignment, mel })
    }

    fn frames(&self) -> usize {
        self.mel.len() / MEL_BANDS
    }
}

/// Sentences one after the other, without gaps: nothing is padded.
#[derive(Default)]
pub(crate) struct Batch {
    /// (S) ids of the symbols.
    pub(crate) symbols: Vec<u32>,
    /// Symbols of each sentence.
    pub(crate) symbol_lengths: Vec<usize>,
    /// (S) frames of each symbol.
    pub(crate) frames: Vec<u32>,
    /// Frames of each sentence.
    pub(crate) frame_lengths: Vec<usize>,
    /// (N, 80), or empty where nothing is compared.
    pub(crate) mel: Vec<f32>,
}

impl Batch {
    pub(crate) fn clear(&mut self) {
        self.symbols.clear();
        self.symbol_lengths.clear();
        self.frames.clear();
        self.frame_lengths.clear();
        self.mel.clear();
    }

    pub(crate) fn push(&mut self, example: &Example) {
        let Alignment { symbols, frames } = &example.alignment;
        self.symbols
            .extend(symbols.iter().map(|symbol| symbol.id() as u32));
        self.symbol_lengths.push(symbols.len());
        self.frames.extend(frames);
        self.frame_lengths.push(example.frames());
        self.mel.extend(&example.mel);
    }

    pub(crate) fn n_symbols(&self) -> usize {
        self.symbols.len()
    }

    pub(crate) fn n_frames(&self) -> usize {
        self.frame_lengths.iter().sum()
    }
}

/// Most symbols and frames of any batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sizes {
    pub(crate) symbols: usize,
    pub(crate) frames: usize,
}

/// A corpus, cut in two.
pub(crate) struct VoiceData {
    pub(crate) train: Vec<Example>,
    pub(crate) val: Vec<Example>,
}

impl VoiceData {
    /// Holds out every so-manieth sentence.
    pub(crate) fn split(
        examples: Vec<Example>,
        val_fraction: f64,
        context: usize,
    ) -> Result<VoiceData, ModelError> {
        let longest = |it: &Example| it.frames().max(it.alignment.symbols.len());
        let longest = examples.iter().map(longest).max().unwrap_or(0);
        if longest > context {
            return Err(ModelError::Voice(VoiceError::TooLong {
                length: longest,
                context,
            }));
        }
        let (mut train, mut val) = (Vec::new(), Vec::new());
        for (index, example) in examples.into_iter().enumerate() {
            let held_out = |count: usize| (count as f64 * val_fraction).floor() as usize;
            if held_out(index + 1) > held_out(index) {
                val.push(example);
            } else {
                train.push(example);
            }
        }
        if train.is_empty() || val.is_empty() {
            let found = train.len() + val.len();
            return Err(ModelError::Voice(VoiceError::TooFew { found }));
        }
        Ok(VoiceData { train, val })
    }

    /// Hex sha256 of what is trained on.
    pub(crate) fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        for example in &self.train {
            for (symbol, frames) in example
                .alignment
                .symbols
                .iter()
                .zip(&example.alignment.frames)
            {
                hash.update([symbol.id() as u8]);
                hash.update(frames.to_le_bytes());
            }
            hash.update(bytemuck::cast_slice::<f32, u8>(&example.mel));
        }
        hex(&hash.finalize())
    }

    /// Sizes of the largest batch of `sentences` sentences.
    pub(crate) fn largest(&self, sentences: usize) -> Sizes {
        let sum = |size: &dyn Fn(&Example) -> usize| {
            let all = self.train.iter().chain(&self.val);
            let mut sizes: Vec<usize> = all.map(size).collect();
            sizes.sort_unstable_by(|a, b| b.cmp(a));
            sizes.iter().take(sentences).sum()
        };
        Sizes {
            symbols: sum(&|it| it.alignment.symbols.len()),
            frames: sum(&Example::frames),
        }
    }

    /// Mean and standard deviation of each band over the training frames.
    pub(crate) fn band_statistics(&self) -> (Vec<f32>, Vec<f32>) {
        let frames: usize = self.train.iter().map(Example::frames).sum();
        let (mut sums, mut squares) = ([0.0f64; MEL_BANDS], [0.0f64; MEL_BANDS]);
        for row in self.train.iter().flat_map(|it| it.mel.chunks(MEL_BANDS)) {
            for ((sum, square), &value) in sums.iter_mut().zip(&mut squares).zip(row) {
                *sum += f64::from(value);
                *square += f64::from(value).powi(2);
            }
        }
        let n = frames.max(1) as f64;
        let mean = sums.iter().map(|sum| (sum / n) as f32).collect();
        let std = |(sum, square): (&f64, &f64)| (square / n - (sum / n).powi(2)).max(1e-4).sqrt();
        let std = sums.iter().zip(&squares).map(|it| std(it) as f32);
        (mean, std.collect())
    }
}

/// The order of training: every epoch each sentence once, in an order of its own. A pure function
/// of (seed, position), so that a run can go on from its step number alone.
pub(crate) struct Order {
    seed: u64,
    epoch: Option<u64>,
    /// (key, sentence) by key.
    order: Vec<(u32, u32)>,
}

impl Order {
    pub(crate) fn new(seed: u64, sentences: usize) -> Self {
        Order {
            seed,
            epoch: None,
            order: vec![(0, 0); sentences],
        }
    }

    /// The sentence at a position, counted over all epochs.
    pub(crate) fn sentence(&mut self, position: u64) -> usize {
        let count = self.order.len() as u64;
        let epoch = position / count;
        if self.epoch != Some(epoch) {
            let key = [self.seed as u32, (self.seed >> 32) as u32];
            for (index, slot) in (0..).zip(&mut self.order) {
                let counter = [
                    index,
                    epoch as u32,
                    (epoch >> 32) as u32,
                    ORDER_STREAM << 28,
                ];
                *slot = (philox4x32(counter, key)[0], index);
            }
            self.order.sort_unstable();
            self.epoch = Some(epoch);
        }
        self.order[(position % count) as usize].1 as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::voice::Symbol;

    pub(crate) fn example(frames: &[u32], level: f32) -> Example {
        let symbols = (0..frames.len()).map(|id| Symbol::from_id(id).unwrap());
        let alignment = Alignment {
            symbols: symbols.collect(),
            frames: frames.to_vec(),
        };
        let total: u32 = frames.iter().sum();
        Example::new("x", alignment, vec![level; total as usize * MEL_BANDS]).unwrap()
    }

    #[test]
    fn a_twentieth_is_held_out_evenly() {
        let examples = (0..100).map(|index| example(&[1, 2], index as f32));
        let data = VoiceData::split(examples.collect(), 0.05, 100).unwrap();
        assert_eq!((data.train.len(), data.val.len()), (95, 5));
        let held_out: Vec<f32> = data.val.iter().map(|it| it.mel[0]).collect();
        assert_eq!(held_out, [19.0, 39.0, 59.0, 79.0, 99.0]);
        assert!(VoiceData::split(vec![example(&[1], 0.0)], 0.5, 100).is_err());
        let long = vec![example(&[60], 0.0), example(&[101], 0.0)];
        let error = VoiceData::split(long, 0.5, 100).err().unwrap().to_string();
        assert!(error.contains("101 frames or symbols"), "{error}");
    }

    #[test]
    fn every_epoch_has_each_sentence_once() {
        let mut order = Order::new(7, 50);
        let mut epoch =
            |from: u64| -> Vec<usize> { (from..from + 50).map(|at| order.sentence(at)).collect() };
        let (first, second) = (epoch(0), epoch(50));
        assert_ne!(first, second);
        assert_eq!(first, epoch(0));
        for mut sentences in [first, second] {
            sentences.sort_unstable();
            assert_eq!(sentences, (0..50).collect::<Vec<_>>());
        }
    }

    #[test]
    fn lengths_that_disagree_are_refused() {
        let alignment = example(&[3, 4], 0.0).alignment;
        let error = Example::new("a7", alignment, vec![0.0; 6 * MEL_BANDS]).unwrap_err();
        assert!(error.to_string().contains("a7") && error.to_string().contains('7'));
    }
}
