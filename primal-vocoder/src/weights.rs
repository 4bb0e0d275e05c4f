//! Weight files: safetensors, our own tensor files, PyTorch pickles. Names and weight
//! normalisation of the official and of SpeechBrain's HiFi-GAN come out as one form.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use half::{bf16, f16};
use primal_kernels::philox4x32;
use primal_lut::TensorFile;
use pytorch_reader::{DType, PytorchReader};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use crate::config::VocoderConfig;
use crate::error::VocoderError;
use crate::generator::OUTER_KERNEL;

/// Largest weight file that is read.
const MAX_BYTES: u64 = 2 << 30;

/// The stream of random weights: every use of the counter generator has its own.
const WEIGHT_STREAM: u32 = 0x676c_0002;

/// Names of wrappers around a generator's names.
const PREFIXES: [&str; 4] = ["module.", "generator.", "model.", "state_dict."];

/// A tensor in float32, row-major.
#[derive(Debug, Clone)]
pub(crate) struct Tensor {
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

/// A layer of a generator.
pub(crate) struct LayerShape {
    pub name: String,
    /// As PyTorch has it: (out, in, kernel), for a transposed convolution (in, out, kernel).
    pub shape: [usize; 3],
    /// Length of the bias.
    pub bias: usize,
    /// Columns that it makes of one column of its input.
    pub rate: usize,
    /// Columns between its taps.
    pub dilation: usize,
}

/// The layers of a generator, in the order of computation.
pub(crate) fn layers(config: &VocoderConfig) -> Vec<LayerShape> {
    let layer = |name: String, shape: [usize; 3], bias: usize, rate: usize| LayerShape {
        name,
        shape,
        bias,
        rate,
        dilation: 1,
    };
    let first = config.upsample_initial_channel;
    let pre = [first, config.num_mels, OUTER_KERNEL];
    let mut layers = vec![layer("conv_pre".to_owned(), pre, first, 1)];
    let stages = config
        .upsample_rates
        .iter()
        .zip(&config.upsample_kernel_sizes);
    for (stage, (&rate, &kernel)) in stages.enumerate() {
        let channels = config.channels(stage);
        let up = [2 * channels, channels, kernel];
        layers.push(layer(format!("ups.{stage}"), up, channels, rate));
        let blocks = config
            .resblock_kernel_sizes
            .iter()
            .zip(&config.resblock_dilation_sizes);
        for (index, (&kernel, dilations)) in blocks.enumerate() {
            let block = stage * config.resblock_kernel_sizes.len() + index;
            let parts: &[&str] = match config.resblock.as_str() {
                "1" => &["convs1", "convs2"],
                _ => &["convs"],
            };
            for (unit, &dilation) in dilations.iter().enumerate() {
                for &part in parts {
                    let name = format!("resblocks.{block}.{part}.{unit}");
                    let dilation = if part == "convs2" { 1 } else { dilation };
                    layers.push(LayerShape {
                        dilation,
                        ..layer(name, [channels, channels, kernel], channels, 1)
                    });
                }
            }
        }
    }
    let last = [
        1,
        config.channels(config.upsample_rates.len() - 1),
        OUTER_KERNEL,
    ];
    layers.push(layer("conv_post".to_owned(), last, 1, 1));
    layers
}

/// The tensors of a checkpoint under HiFi-GAN's own names.
#[derive(Debug)]
pub struct Weights {
    origin: String,
    tensors: BTreeMap<String, Tensor>,
}

impl Weights {
    /// Reads a file: safetensors by its name's ending, otherwise a PyTorch file, of which nothing
    /// is executed.
    ///
    /// # Errors
    /// [`VocoderError::Io`], [`VocoderError::Checkpoint`].
    pub fn open(path: &Path) -> Result<Weights, VocoderError> {
        let io_error = |source| VocoderError::Io {
            action: "read",
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(io_error)?;
        let len = file.metadata().map_err(io_error)?.len();
        if len > MAX_BYTES {
            return Err(checkpoint(path, format!("{len} bytes are too many")));
        }
        let safetensors = path.extension().is_some_and(|it| it == "safetensors");
        let tensors = if safetensors {
            let mut bytes = Vec::new();
            file.take(MAX_BYTES)
                .read_to_end(&mut bytes)
                .map_err(io_error)?;
            read_safetensors(path, bytes)?
        } else {
            drop(file);
            // A tensor may repeat one stored number; those of a generator do not.
            read_pytorch(path, len)?
        };
        let origin = path.display().to_string();
        Ok(Weights::from_tensors(&origin, tensors))
    }

    /// Random weights of the shape of `config`, about as large as trained ones: for speed tests
    /// and to train from.
    ///
    /// # Errors
    /// [`VocoderError::Config`].
    pub fn random(config: &VocoderConfig, seed: u64) -> Result<Weights, VocoderError> {
        config.check()?;
        let mut tensors = Vec::new();
        for (index, layer) in layers(config).into_iter().enumerate() {
            let len: usize = layer.shape.iter().product();
            let scale = (len as f32 / layer.shape[0] as f32).sqrt().recip();
            let values = random_values(seed, index as u32, len, scale);
            let bias = Tensor {
                shape: vec![layer.bias],
                values: vec![0.0; layer.bias],
            };
            tensors.push((format!("{}.bias", layer.name), bias));
            let shape = layer.shape.to_vec();
            tensors.push((format!("{}.weight", layer.name), Tensor { shape, values }));
        }
        Ok(Weights::from_tensors("random weights", tensors))
    }

    /// Tensors by name: (shape, values in row-major order); `origin` is what errors call them.
    ///
    /// # Errors
    /// [`VocoderError::WrongShape`] for values that do not fill their shape.
    pub fn new(
        origin: &str,
        tensors: impl IntoIterator<Item = (String, Vec<usize>, Vec<f32>)>,
    ) -> Result<Weights, VocoderError> {
        let mut named = Vec::new();
        for (name, shape, values) in tensors {
            if shape.iter().product::<usize>() != values.len() {
                return Err(VocoderError::WrongShape {
                    origin: origin.to_owned(),
                    name,
                    found: vec![values.len()],
                    expected: shape,
                });
            }
            named.push((name, Tensor { shape, values }));
        }
        Ok(Weights::from_tensors(origin, named))
    }

    fn from_tensors(origin: &str, tensors: Vec<(String, Tensor)>) -> Weights {
        let tensors = tensors
            .into_iter()
            .map(|(name, tensor)| (canonical(&name), tensor))
            .collect();
        Weights {
            origin: origin.to_owned(),
            tensors,
        }
    }

    /// What errors call the file.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// Writes a safetensors file under HiFi-GAN's own names, float32.
    ///
    /// # Errors
    /// [`VocoderError::Io`], [`VocoderError::Checkpoint`].
    pub fn write(&self, path: &Path) -> Result<(), VocoderError> {
        self.write_as(path, Dtype::F32, |value, to| to.extend(value.to_le_bytes()))
    }

    /// [`Weights::write`] with values rounded to float16: half the bytes.
    ///
    /// # Errors
    /// [`VocoderError::Io`], [`VocoderError::Checkpoint`].
    pub fn write_f16(&self, path: &Path) -> Result<(), VocoderError> {
        let half = |value, to: &mut Vec<u8>| to.extend(f16::from_f32(value).to_le_bytes());
        self.write_as(path, Dtype::F16, half)
    }

    fn write_as(
        &self,
        path: &Path,
        dtype: Dtype,
        encode: impl Fn(f32, &mut Vec<u8>),
    ) -> Result<(), VocoderError> {
        let fail = |error: &dyn std::fmt::Display| checkpoint(path, error.to_string());
        let bytes: Vec<(&str, &[usize], Vec<u8>)> = self
            .tensors
            .iter()
            .map(|(name, tensor)| {
                let mut bytes = Vec::new();
                tensor.values.iter().for_each(|&it| encode(it, &mut bytes));
                (name.as_str(), tensor.shape.as_slice(), bytes)
            })
            .collect();
        let mut views = Vec::new();
        for (name, shape, bytes) in &bytes {
            let view = TensorView::new(dtype, shape.to_vec(), bytes);
            views.push((*name, view.map_err(|error| fail(&error))?));
        }
        let file = safetensors::serialize(views, None).map_err(|error| fail(&error))?;
        fs::write(path, file).map_err(|source| VocoderError::Io {
            action: "write",
            path: path.to_owned(),
            source,
        })
    }

    /// The names, sorted, as HiFi-GAN has them.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Shape and values (row-major) of a tensor.
    pub fn tensor(&self, name: &str) -> Option<(&[usize], &[f32])> {
        let tensor = self.tensors.get(name)?;
        Some((&tensor.shape, &tensor.values))
    }

    /// The weight of a layer, of exactly this shape, with weight normalisation folded in:
    /// w = g · v / ‖v‖, the norm over all but the first dimension.
    pub(crate) fn weight(&self, layer: &str, shape: &[usize]) -> Result<Vec<f32>, VocoderError> {
        let name = format!("{layer}.weight");
        if let Some(tensor) = self.tensors.get(&name) {
            return self.checked(&name, tensor, shape);
        }
        for (g, v) in [
            ("weight_g", "weight_v"),
            (
                "parametrizations.weight.original0",
                "parametrizations.weight.original1",
            ),
        ] {
            let (g_name, v_name) = (format!("{layer}.{g}"), format!("{layer}.{v}"));
            if let (Some(g), Some(v)) = (self.tensors.get(&g_name), self.tensors.get(&v_name)) {
                let mut folded = self.checked(&v_name, v, shape)?;
                let g = self.checked(&g_name, g, &[shape[0]])?;
                let row = folded.len() / shape[0];
                for (row, g) in folded.chunks_exact_mut(row).zip(g) {
                    let squares: f64 = row.iter().map(|&v| f64::from(v) * f64::from(v)).sum();
                    let factor = f64::from(g) / squares.sqrt();
                    row.iter_mut()
                        .for_each(|v| *v = (f64::from(*v) * factor) as f32);
                }
                return self.finite(&v_name, folded);
            }
        }
        Err(self.missing(&name))
    }

    /// The bias of a layer, or zeros where `optional` and absent.
    pub(crate) fn bias(
        &self,
        layer: &str,
        len: usize,
        optional: bool,
    ) -> Result<Vec<f32>, VocoderError> {
        let name = format!("{layer}.bias");
        match self.tensors.get(&name) {
            Some(tensor) => self.checked(&name, tensor, &[len]),
            None if optional => Ok(vec![0.0; len]),
            None => Err(self.missing(&name)),
        }
    }

    /// A copy of the values if they fill `shape` and are finite. Dimensions of one do not count,
    /// and a matrix on a grid is flat behind its first dimension.
    fn checked(
        &self,
        name: &str,
        tensor: &Tensor,
        shape: &[usize],
    ) -> Result<Vec<f32>, VocoderError> {
        let squeeze = |shape: &[usize]| -> Vec<usize> {
            shape.iter().copied().filter(|&size| size != 1).collect()
        };
        let flat = [shape[0], shape[1..].iter().product()];
        let found = squeeze(&tensor.shape);
        if found != squeeze(shape) && found != squeeze(&flat) {
            return Err(VocoderError::WrongShape {
                origin: self.origin.clone(),
                name: name.to_owned(),
                found: tensor.shape.clone(),
                expected: shape.to_vec(),
            });
        }
        self.finite(name, tensor.values.clone())
    }

    fn finite(&self, name: &str, values: Vec<f32>) -> Result<Vec<f32>, VocoderError> {
        if values.iter().all(|value| value.is_finite()) {
            return Ok(values);
        }
        Err(VocoderError::NonFiniteWeight {
            origin: self.origin.clone(),
            name: name.to_owned(),
        })
    }

    fn missing(&self, name: &str) -> VocoderError {
        let first: Vec<&str> = self.tensors.keys().take(3).map(String::as_str).collect();
        VocoderError::MissingTensor {
            origin: self.origin.clone(),
            name: name.to_owned(),
            found: match first.is_empty() {
                true => "it holds no tensors".to_owned(),
                false => format!(
                    "it holds {} tensors: {}, ..",
                    self.tensors.len(),
                    first.join(", ")
                ),
            },
        }
    }
}

/// A name without wrappers in front and without SpeechBrain's `.conv.` inside.
fn canonical(name: &str) -> String {
    let mut rest = name;
    while let Some(inner) = PREFIXES.iter().find_map(|prefix| rest.strip_prefix(prefix)) {
        rest = inner;
    }
    let parts: Vec<&str> = rest.split('.').filter(|&part| part != "conv").collect();
    parts.join(".")
}

fn read_safetensors(path: &Path, bytes: Vec<u8>) -> Result<Vec<(String, Tensor)>, VocoderError> {
    let fail = |error: &dyn std::fmt::Display| checkpoint(path, error.to_string());
    let (_, metadata) = SafeTensors::read_metadata(&bytes).map_err(|error| fail(&error))?;
    let ours = metadata
        .metadata()
        .as_ref()
        .is_some_and(|it| it.contains_key("format_version"));
    if ours {
        return read_ours(path, bytes);
    }
    let file = SafeTensors::deserialize(&bytes).map_err(|error| fail(&error))?;
    let mut tensors = Vec::new();
    for (name, view) in file.iter() {
        let element = match view.dtype() {
            Dtype::F64 => Element::F64,
            Dtype::F32 => Element::F32,
            Dtype::F16 => Element::F16,
            Dtype::BF16 => Element::Bf16,
            // Counters and the like.
            _ => continue,
        };
        let shape = view.shape().to_vec();
        let values = element.decode(view.data());
        tensors.push((name.to_owned(), Tensor { shape, values }));
    }
    Ok(tensors)
}

/// Our own tensor file: matrices on a grid, everything else float32.
fn read_ours(path: &Path, bytes: Vec<u8>) -> Result<Vec<(String, Tensor)>, VocoderError> {
    let fail = |error: primal_lut::LutError| checkpoint(path, error.to_string());
    let file = TensorFile::from_bytes(bytes).map_err(fail)?;
    let mut tensors = Vec::new();
    let matrices: Vec<&str> = file.quant_names().collect();
    for &name in &matrices {
        let matrix = file.quant(name).map_err(fail)?;
        let shape = vec![matrix.rows(), matrix.cols()];
        let values = matrix.dequantise();
        tensors.push((name.to_owned(), Tensor { shape, values }));
    }
    for name in file.names() {
        let part_of_matrix = name
            .rsplit_once('.')
            .is_some_and(|(matrix, _)| matrices.contains(&matrix));
        if !part_of_matrix {
            let shape = file.shape(name).map_err(fail)?.to_vec();
            let values = file.f32(name, &shape).map_err(fail)?;
            tensors.push((name.to_owned(), Tensor { shape, values }));
        }
    }
    Ok(tensors)
}

/// At most `most` bytes of tensors.
fn read_pytorch(path: &Path, most: u64) -> Result<Vec<(String, Tensor)>, VocoderError> {
    let fail = |error: &dyn std::fmt::Display| checkpoint(path, error.to_string());
    let reader = PytorchReader::new(path).map_err(|error| fail(&error))?;
    let mut left = most;
    let mut tensors = Vec::new();
    let mut names = reader.keys();
    names.sort_unstable();
    for name in names {
        let Some(tensor) = reader.get(&name) else {
            continue;
        };
        let element = match tensor.dtype() {
            DType::F64 => Element::F64,
            DType::F32 => Element::F32,
            DType::F16 => Element::F16,
            DType::BF16 => Element::Bf16,
            _ => continue,
        };
        left = left
            .checked_sub(tensor.byte_len() as u64)
            .ok_or_else(|| fail(&"its tensors are larger than the file"))?;
        let bytes = tensor.read().map_err(|error| fail(&error))?;
        let shape = tensor.shape().to_vec();
        let values = element.decode(&bytes);
        tensors.push((name, Tensor { shape, values }));
    }
    Ok(tensors)
}

/// Floating point formats that are read, little-endian.
#[derive(Clone, Copy)]
enum Element {
    F64,
    F32,
    F16,
    Bf16,
}

impl Element {
    fn decode(self, bytes: &[u8]) -> Vec<f32> {
        match self {
            Element::F64 => each(bytes, |it| f64::from_le_bytes(it) as f32),
            Element::F32 => each(bytes, f32::from_le_bytes),
            Element::F16 => each(bytes, |it| f16::from_le_bytes(it).to_f32()),
            Element::Bf16 => each(bytes, |it| bf16::from_le_bytes(it).to_f32()),
        }
    }
}

fn each<const N: usize>(bytes: &[u8], decode: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|&it| decode(it)).collect()
}

/// `len` numbers in −scale..scale: a function of the seed, the layer and the index.
pub(crate) fn random_values(seed: u64, layer: u32, len: usize, scale: f32) -> Vec<f32> {
    let key = [seed as u32, (seed >> 32) as u32];
    let value = |index: usize| {
        let word = philox4x32([index as u32, layer, 0, WEIGHT_STREAM], key)[0];
        (word as f32 / 2.0_f32.powi(31) - 1.0) * scale
    };
    (0..len).map(value).collect()
}

fn checkpoint(path: &Path, reason: String) -> VocoderError {
    VocoderError::Checkpoint {
        path: path.to_owned(),
        reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_out_as_one_form() {
        for (name, want) in [
            ("conv_pre.weight", "conv_pre.weight"),
            ("generator.ups.0.weight_g", "ups.0.weight_g"),
            ("module.conv_post.bias", "conv_post.bias"),
            (
                "resblocks.3.convs1.2.conv.weight_v",
                "resblocks.3.convs1.2.weight_v",
            ),
            (
                "conv_pre.conv.parametrizations.weight.original0",
                "conv_pre.parametrizations.weight.original0",
            ),
        ] {
            assert_eq!(canonical(name), want);
        }
    }

    #[test]
    fn weight_norm_is_folded_and_bad_tensors_are_refused() {
        let tensors = |g: f32, v: Vec<f32>| {
            let g = ("a.weight_g".to_owned(), vec![2, 1, 1], vec![g, 2.0 * g]);
            Weights::new("test", [g, ("a.weight_v".to_owned(), vec![2, 1, 2], v)]).unwrap()
        };
        let weights = tensors(1.0, vec![3.0, 4.0, 0.0, 5.0]);
        assert_eq!(
            weights.weight("a", &[2, 1, 2]).unwrap(),
            [0.6, 0.8, 0.0, 2.0]
        );
        let wrong = weights.weight("a", &[2, 2, 1]).map(|_| ());
        // The same numbers of elements in rows: (2, 2, 1) and (2, 1, 2) squeeze to one shape.
        assert!(wrong.is_ok());
        assert!(matches!(
            weights.weight("a", &[4, 1, 1]),
            Err(VocoderError::WrongShape { .. })
        ));
        assert!(matches!(
            weights.weight("b", &[1]),
            Err(VocoderError::MissingTensor { .. })
        ));
        let zero = tensors(1.0, vec![0.0; 4]);
        assert!(matches!(
            zero.weight("a", &[2, 1, 2]),
            Err(VocoderError::NonFiniteWeight { .. })
        ));
        assert!(Weights::new("test", [("x".to_owned(), vec![3], vec![0.0])]).is_err());
    }
}
