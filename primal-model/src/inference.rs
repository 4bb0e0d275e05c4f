//! A model for inference: matrices in the order in which their products read them, nothing else.

use std::ops::Range;

use primal_kernels as kernels;
use primal_kernels::{
    ByteWeights, HugeArena, Isa, MatrixRows, PackedWeights, QuantisedRows, byte_matvec, philox4x32,
};
use primal_lut::{Grid, QuantInfo, QuantMatrix, TensorFile};
use primal_optim::FloatVector;
use rayon::prelude::*;

use crate::block::Block;
use crate::build::{INIT_STREAM, Place, Source, build, normal_values};
use crate::config::{Compute, Config, FloatPart};
use crate::error::ModelError;
use crate::layers::Linear;
use crate::ledger::{PlannedMatrix, matrices};
use crate::model::Model;
use crate::shape::ModelShape;

/// Weights that are packed at a time, by each thread.
const SLAB_WEIGHTS: usize = 1 << 20;

/// Rows of a slab are a multiple of this, as [`PackedWeights::set_rows`] asks.
const SLAB_ROWS: usize = 16;

/// A model that reads and writes text; see [`crate::generate::Generator`].
pub type InferenceModel = Model<Matrix>;

/// A matrix of an [`InferenceModel`].
#[derive(Debug)]
pub struct Matrix(Storage);

#[derive(Debug)]
enum Storage {
    /// Multiplied in integers.
    Packed(PackedWeights),
    /// An embedding, what the integer kernels do not take, or what is to be multiplied in float.
    Plain(QuantMatrix),
    /// The float head of a model whose other matrices are on a grid.
    Bytes(ByteWeights),
    /// A matrix that is kept float.
    Dense {
        rows: usize,
        cols: usize,
        /// (rows, cols) f32.
        values: Vec<f32>,
    },
}

impl Matrix {
    /// Bytes of a planned matrix.
    pub(crate) fn bytes(planned: &PlannedMatrix) -> u64 {
        let (rows, cols) = planned.size;
        let Some(grid) = &planned.grid else {
            let bytes = if planned.in_bytes {
                ByteWeights::arena_bytes(rows, cols) + ByteWeights::scale_bytes(rows, cols)
            } else {
                4 * rows * cols
            };
            return bytes as u64;
        };
        let group = if planned.group == 0 {
            cols
        } else {
            planned.group
        };
        let bytes = if planned.multiplied {
            PackedWeights::arena_bytes(rows, cols, grid.is_wide())
                + PackedWeights::scale_bytes(rows, cols, group)
        } else {
            let high = if grid.is_wide() { cols.div_ceil(8) } else { 0 };
            rows * (cols.div_ceil(2) + high + 4 * cols.div_ceil(group))
        };
        bytes as u64
    }

    fn allocated_bytes(&self) -> u64 {
        match &self.0 {
            Storage::Packed(weights) => weights.bytes() as u64,
            Storage::Plain(matrix) => matrix.bytes() as u64,
            Storage::Bytes(weights) => weights.bytes() as u64,
            Storage::Dense { values, .. } => 4 * values.len() as u64,
        }
    }

    /// y (n, rows) = x Wᵀ for x (n, cols). A row of y depends on its row of x alone.
    pub(crate) fn multiply(&self, isa: Isa, x: &[f32], y: &mut [f32], scratch: &mut QuantisedRows) {
        let (rows, cols) = (self.rows(), self.cols());
        let n = x.len() / cols;
        match &self.0 {
            Storage::Packed(weights) => {
                assert!(scratch.quantise_for(isa, x, weights), "packed as bytes");
                if n == 1 {
                    kernels::int8_matvec(isa, weights, scratch, y);
                } else {
                    kernels::int8_matmul_nt(isa, scratch, weights, 0..rows, y, false);
                }
            }
            Storage::Plain(matrix) => {
                for (x, y) in x.chunks_exact(cols).zip(y.chunks_exact_mut(rows)) {
                    kernels::matvec(isa, matrix, x, y);
                }
            }
            Storage::Bytes(weights) => {
                for (x, y) in x.chunks_exact(cols).zip(y.chunks_exact_mut(rows)) {
                    scratch.quantise_for_bytes(isa, x, weights);
                    byte_matvec(isa, weights, scratch, y);
                }
            }
            Storage::Dense { values, .. } if n == 1 => {
                let rows_of_task = (SLAB_WEIGHTS / 16 / cols).max(1);
                y.par_chunks_mut(rows_of_task)
                    .zip(values.par_chunks(rows_of_task * cols))
                    .for_each(|(y, values)| {
                        for (y, row) in y.iter_mut().zip(values.chunks_exact(cols)) {
                            *y = kernels::dot(isa, row, x);
                        }
                    });
            }
            Storage::Dense { values, .. } => {
                kernels::matmul_nt(x, values, y, n, rows, cols, n, false);
            }
        }
    }
}

impl MatrixRows for Matrix {
    fn rows(&self) -> usize {
        match &self.0 {
            Storage::Packed(weights) => weights.rows(),
            Storage::Plain(matrix) => matrix.rows(),
            Storage::Bytes(weights) => weights.rows(),
            Storage::Dense { rows, .. } => *rows,
        }
    }

    fn cols(&self) -> usize {
        match &self.0 {
            Storage::Packed(weights) => weights.cols(),
            Storage::Plain(matrix) => matrix.cols(),
            Storage::Bytes(weights) => weights.cols(),
            Storage::Dense { cols, .. } => *cols,
        }
    }

    fn fill_row(&self, isa: Isa, row: usize, out: &mut [f32]) {
        match &self.0 {
            Storage::Packed(weights) => weights.fill_row(isa, row, out),
            Storage::Plain(matrix) => matrix.fill_row(isa, row, out),
            Storage::Bytes(weights) => weights.fill_row(isa, row, out),
            Storage::Dense { cols, values, .. } => {
                out.copy_from_slice(&values[row * cols..(row + 1) * cols]);
            }
        }
    }
}

impl Linear<Matrix> {
    /// y (n, out) = x (n, in) Wᵀ + b.
    pub(crate) fn forward(&self, isa: Isa, x: &[f32], y: &mut [f32], scratch: &mut QuantisedRows) {
        self.weight.multiply(isa, x, y, scratch);
        if let Some(bias) = &self.bias {
            kernels::add_bias(isa, y, bias.values());
        }
    }
}

impl InferenceModel {
    /// A model with random weights, made in packed form: for measuring, without any file.
    pub fn random(config: &Config, vocab: usize) -> Result<Self, ModelError> {
        InferenceModel::packed(config, vocab, &Random { config }, Compute::Int8)
    }

    /// The model of these weights, see [`crate::checkpoint::Checkpoint::load_for_inference`].
    pub(crate) fn packed(
        config: &Config,
        vocab: usize,
        from: &dyn Weights,
        compute: Compute,
    ) -> Result<Self, ModelError> {
        build(
            config,
            vocab,
            &mut Packer::new(config, vocab, from, compute)?,
        )
    }

    /// Bytes of all matrices.
    pub fn weight_bytes(&self) -> u64 {
        self.matrices().map(Matrix::allocated_bytes).sum()
    }

    /// The packed codes and bytes that every token reads, in that order.
    pub fn codes(&self) -> Vec<&[u8]> {
        let packed = self.matrices().filter_map(|matrix| match &matrix.0 {
            Storage::Packed(weights) => Some(weights.codes()),
            Storage::Bytes(weights) => Some(weights.values()),
            Storage::Plain(_) | Storage::Dense { .. } => None,
        });
        packed.collect()
    }

    fn matrices(&self) -> impl Iterator<Item = &Matrix> {
        let embeddings = std::iter::once(&self.tok_embedding).chain(&self.pos_embedding);
        embeddings
            .chain(self.blocks.iter().flat_map(of_block))
            .chain(&self.head)
    }
}

fn of_block(block: &Block<Matrix>) -> [&Matrix; 4] {
    let Block {
        qkv,
        attention_out,
        up,
        down,
        ..
    } = block;
    [&qkv.weight, &attention_out.weight, &up.weight, &down.weight]
}

/// Where the weights of a model that does not learn are found.
pub(crate) trait Weights: Sync {
    /// Grid and sizes of the matrix `name`, `None` where it is float. `planned` is the grid that
    /// the configuration means, `None` for float.
    fn quant_info(
        &self,
        name: &str,
        size: (usize, usize),
        planned: Option<&Grid>,
    ) -> Result<Option<QuantInfo>, ModelError>;

    /// Some rows of a matrix on a grid; a random one has the standard deviation `std`.
    fn quant_rows(
        &self,
        name: &str,
        rows: Range<usize>,
        info: &QuantInfo,
        std: f32,
    ) -> Result<QuantMatrix, ModelError>;

    /// Some rows of a float matrix of this size; a random one has the standard deviation `std`.
    fn dense_rows(
        &self,
        name: &str,
        size: (usize, usize),
        rows: Range<usize>,
        std: f32,
    ) -> Result<Vec<f32>, ModelError>;

    /// A float vector; a random one is `initial`.
    fn vector(&self, name: &str, len: usize, initial: f32) -> Result<Vec<f32>, ModelError>;

    /// Whether any matrix is on a grid.
    fn any_on_grid(&self) -> bool;
}

impl dyn Weights + '_ {
    /// [`Weights::quant_info`] of a matrix that must have this size.
    pub(crate) fn checked_info(
        &self,
        name: &str,
        (rows, cols): (usize, usize),
        planned: Option<&Grid>,
    ) -> Result<Option<QuantInfo>, ModelError> {
        let info = self.quant_info(name, (rows, cols), planned)?;
        match &info {
            Some(info) if (info.rows, info.cols) != (rows, cols) => {
                Err(ModelError::Shape(format!(
                    "{name} is {} x {}, expected {rows} x {cols}",
                    info.rows, info.cols
                )))
            }
            _ => Ok(info),
        }
    }
}

/// Packs a model matrix by matrix.
struct Packer<'a> {
    config: &'a Config,
    compute: Compute,
    arena: HugeArena,
    from: &'a dyn Weights,
}

impl<'a> Packer<'a> {
    fn new(
        config: &'a Config,
        vocab: usize,
        from: &'a dyn Weights,
        compute: Compute,
    ) -> Result<Self, ModelError> {
        let shape = ModelShape::new(config, vocab)?;
        let bytes = |planned: &PlannedMatrix| match &planned.grid {
            _ if !planned.multiplied || !compute.is_int8() => 0,
            Some(grid) => {
                PackedWeights::arena_bytes(planned.size.0, planned.size.1, grid.is_wide())
            }
            None if planned.in_bytes => ByteWeights::arena_bytes(planned.size.0, planned.size.1),
            None => 0,
        };
        let bytes = matrices(config, &shape).iter().map(bytes).sum();
        let arena = HugeArena::new(bytes).map_err(|error| ModelError::Memory {
            bytes: bytes as u64,
            reason: error.to_string(),
        })?;
        Ok(Packer {
            config,
            compute,
            arena,
            from,
        })
    }
}

impl Packer<'_> {
    /// A float matrix as bytes, read in slabs.
    fn fill_bytes(
        &self,
        mut weights: ByteWeights,
        name: &str,
        std: f32,
    ) -> Result<Matrix, ModelError> {
        let (rows, cols) = (weights.rows(), weights.cols());
        let slab = slab_rows(cols);
        for start in (0..rows).step_by(slab) {
            let part = start..(start + slab).min(rows);
            let values = self.from.dense_rows(name, (rows, cols), part, std)?;
            weights.set_rows(start, &values);
        }
        Ok(Matrix(Storage::Bytes(weights)))
    }
}

/// Rows that are packed at a time.
fn slab_rows(cols: usize) -> usize {
    (SLAB_WEIGHTS / cols)
        .next_multiple_of(SLAB_ROWS)
        .max(SLAB_ROWS)
}

impl Source<Matrix> for Packer<'_> {
    fn matrix(
        &mut self,
        name: &str,
        (rows, cols): (usize, usize),
        std: f32,
        grid: &Grid,
        place: Place<'_>,
    ) -> Result<Matrix, ModelError> {
        let part = place.part;
        let on_grid = !self.config.model.is_float(part);
        let info = self
            .from
            .checked_info(name, (rows, cols), on_grid.then_some(grid))?;
        let tied = self.config.model.tie_head && name == "tok_embedding";
        let Some(info) = info else {
            let in_bytes = (part == FloatPart::Head || tied)
                && self.compute.is_int8()
                && self.from.any_on_grid();
            if in_bytes && let Some(weights) = ByteWeights::zeros((rows, cols), &mut self.arena) {
                return self.fill_bytes(weights, name, std);
            }
            let values = self.from.dense_rows(name, (rows, cols), 0..rows, std)?;
            return Ok(Matrix(Storage::Dense { rows, cols, values }));
        };
        let looked_up_only = part == FloatPart::Embeddings && !tied;
        let packed = (!looked_up_only && self.compute.is_int8())
            .then(|| PackedWeights::zeros(&info.grid, (rows, cols), info.group, &mut self.arena));
        let Some(mut packed) = packed.flatten() else {
            let matrix = self.from.quant_rows(name, 0..rows, &info, std)?;
            return Ok(Matrix(Storage::Plain(matrix)));
        };
        let slab = slab_rows(cols);
        let starts: Vec<usize> = (0..rows).step_by(slab).collect();
        for starts in starts.chunks(rayon::current_num_threads()) {
            let slabs: Vec<QuantMatrix> = starts
                .par_iter()
                .map(|&start| {
                    let rows = start..(start + slab).min(rows);
                    self.from.quant_rows(name, rows, &info, std)
                })
                .collect::<Result<_, _>>()?;
            for (&start, slab) in starts.iter().zip(&slabs) {
                packed.set_rows(start, slab);
            }
        }
        Ok(Matrix(Storage::Packed(packed)))
    }

    fn vector(
        &mut self,
        name: String,
        len: usize,
        initial: f32,
    ) -> Result<FloatVector, ModelError> {
        let values = self.from.vector(&name, len, initial)?;
        Ok(FloatVector::new(name, values).without_training())
    }
}

impl Weights for TensorFile {
    fn quant_info(
        &self,
        name: &str,
        _size: (usize, usize),
        _planned: Option<&Grid>,
    ) -> Result<Option<QuantInfo>, ModelError> {
        if !self.quant_names().any(|quant| quant == name) {
            return Ok(None);
        }
        Ok(Some(TensorFile::quant_info(self, name)?))
    }

    fn quant_rows(
        &self,
        name: &str,
        rows: Range<usize>,
        _info: &QuantInfo,
        _std: f32,
    ) -> Result<QuantMatrix, ModelError> {
        Ok(TensorFile::quant_rows(self, name, rows)?)
    }

    fn dense_rows(
        &self,
        name: &str,
        size: (usize, usize),
        rows: Range<usize>,
        _std: f32,
    ) -> Result<Vec<f32>, ModelError> {
        Ok(self.f32_rows(name, size, rows)?)
    }

    fn vector(&self, name: &str, len: usize, _initial: f32) -> Result<Vec<f32>, ModelError> {
        Ok(self.f32(name, &[len])?)
    }

    fn any_on_grid(&self) -> bool {
        self.quant_names().next().is_some()
    }
}

/// Random weights, a pure function of seed, name and place; not those that training starts from.
pub(crate) struct Random<'a> {
    pub(crate) config: &'a Config,
}

impl Random<'_> {
    /// A number of a matrix's own.
    fn tensor(name: &str) -> u16 {
        let fold = |hash: u16, byte| hash.wrapping_mul(31).wrapping_add(u16::from(byte));
        name.bytes().fold(7, fold)
    }
}

impl Weights for Random<'_> {
    fn quant_info(
        &self,
        _name: &str,
        (rows, cols): (usize, usize),
        planned: Option<&Grid>,
    ) -> Result<Option<QuantInfo>, ModelError> {
        Ok(planned.map(|grid| QuantInfo {
            grid: grid.clone(),
            rows,
            cols,
            group: match self.config.model.group {
                0 => cols,
                group => group,
            },
        }))
    }

    /// Each code is one of 256 that were drawn as a fresh model's are.
    fn quant_rows(
        &self,
        name: &str,
        rows: Range<usize>,
        info: &QuantInfo,
        std: f32,
    ) -> Result<QuantMatrix, ModelError> {
        let config = self.config;
        let (grid, cols, seed) = (&info.grid, info.cols, config.train.seed);
        let tensor = Random::tensor(name);
        let normals = normal_values(seed, tensor, 256, 1.0);
        let codes: Vec<u8> = normals
            .iter()
            .map(|x| grid.nearest(x / config.model.scale_per_std))
            .collect();
        let (row_bytes, high_bytes) = (cols.div_ceil(2), cols.div_ceil(8));
        let mut nibbles = vec![0; rows.len() * row_bytes];
        let mut high = vec![
            0;
            if grid.is_wide() {
                rows.len() * high_bytes
            } else {
                0
            }
        ];
        let key = [seed as u32, (seed >> 32) as u32];
        let mut row_codes = vec![0; cols.next_multiple_of(16)];
        for (i, row) in rows.clone().enumerate() {
            for (block, to) in row_codes.chunks_exact_mut(16).enumerate() {
                let place = [
                    block as u32,
                    row as u32,
                    u32::from(tensor),
                    (INIT_STREAM << 28) | 1,
                ];
                let words = philox4x32(place, key).map(u32::to_le_bytes);
                for (to, &byte) in to.iter_mut().zip(words.as_flattened()) {
                    *to = codes[usize::from(byte)];
                }
            }
            row_codes[cols..].fill(grid.zero_code());
            let pairs = row_codes.chunks_exact(2);
            for (to, pair) in nibbles[i * row_bytes..]
                .iter_mut()
                .take(row_bytes)
                .zip(pairs)
            {
                *to = pair[0] & 15 | pair[1] << 4;
            }
            if grid.is_wide() {
                for (col, code) in row_codes[..cols].iter().enumerate() {
                    high[i * high_bytes + col / 8] |= (code >> 4) << (col % 8);
                }
            }
        }
        let n_scales = rows.len() * cols.div_ceil(info.group);
        let scales = vec![std * config.model.scale_per_std; n_scales];
        let high = grid.is_wide().then_some(high);
        let matrix = QuantMatrix::from_planes(
            grid,
            rows.len(),
            cols,
            info.group,
            nibbles,
            high,
            scales,
            name,
        );
        Ok(matrix?)
    }

    fn dense_rows(
        &self,
        name: &str,
        (_, cols): (usize, usize),
        rows: Range<usize>,
        std: f32,
    ) -> Result<Vec<f32>, ModelError> {
        let tensor = Random::tensor(&format!("{name} {}", rows.start));
        let len = rows.len() * cols;
        Ok(normal_values(self.config.train.seed, tensor, len, std))
    }

    fn vector(&self, _name: &str, len: usize, initial: f32) -> Result<Vec<f32>, ModelError> {
        Ok(vec![initial; len])
    }

    fn any_on_grid(&self) -> bool {
        !self.config.model.is_float(FloatPart::Mlp)
    }
}

#[cfg(test)]
mod tests {
    use primal_kernels::CacheKind;

    use super::*;
    use crate::generate::Generator;

    /// Logits by both ways to compute; the heads hold the same floats before one is rounded.
    #[test]
    fn a_head_in_bytes_gives_nearly_the_logits_of_the_floats() {
        for changes in [
            &["tie_head=false", "float_parts=head"][..],
            &["tie_head=true", "float_parts=embeddings"],
        ] {
            let mut config = Config::preset("small").unwrap();
            for change in changes {
                config.set(&format!("model.{change}")).unwrap();
            }
            let from = Random { config: &config };
            let [exact, rounded] = [Compute::Float, Compute::Int8].map(|compute| {
                let packer = &mut Packer::new(&config, 300, &from, compute).unwrap();
                let model: InferenceModel = build(&config, 300, packer).unwrap();
                let head = model.head.as_ref().unwrap_or(&model.tok_embedding);
                let in_bytes = matches!(head.0, Storage::Bytes(_));
                assert_eq!(in_bytes, compute.is_int8());
                let mut generator = Generator::new(&model, Isa::best(), CacheKind::F16);
                generator.feed(&[1, 2, 3]).unwrap().to_vec()
            });
            let square = |x: &f32| f64::from(*x).powi(2);
            let size: f64 = exact.iter().map(square).sum();
            let parts = exact.iter().zip(&rounded).map(|(a, b)| square(&(a - b)));
            let error = (parts.sum::<f64>() / size).sqrt();
            assert!(error > 0.0 && error < 0.05, "{changes:?}: {error}");
        }
    }
}
