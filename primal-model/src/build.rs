//! A model put together from its parts, wherever they come from and whatever holds them: fresh
//! random weights to train, the tensors of a file, or either of them packed for inference.

use primal_kernels::philox4x32;
use primal_lut::{Grid, TensorFile};
use primal_optim::{FloatVector, Role, Weight, WeightSpec};
use rayon::prelude::*;

use crate::block::{Block, HeadNorms};
use crate::config::{Config, FloatPart};
use crate::error::ModelError;
use crate::layers::{Linear, Norm};
use crate::model::Model;
use crate::rope::Rope;
use crate::shape::ModelShape;

/// Random stream of the initial weights; the optimizer uses streams 0 to 2.
pub(crate) const INIT_STREAM: u32 = 3;

/// Where a matrix stands.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    /// What the configuration may keep float.
    pub(crate) part: FloatPart,
    /// How it votes.
    pub(crate) role: Role<'a>,
}

impl Place<'_> {
    /// Beside tokens, not between hidden activations.
    pub(crate) fn edge(part: FloatPart) -> Self {
        Place {
            part,
            role: Role::Edge,
        }
    }
}

/// Where parameters come from.
pub(crate) trait Source<W = Weight> {
    /// The matrix `name` of (rows, cols); a fresh one has the standard deviation `std` and lives
    /// on `grid` unless the configuration keeps its part float.
    fn matrix(
        &mut self,
        name: &str,
        size: (usize, usize),
        std: f32,
        grid: &Grid,
        place: Place<'_>,
    ) -> Result<W, ModelError>;

    /// The vector `name` of `len` elements; a fresh one holds `initial` everywhere.
    fn vector(&mut self, name: String, len: usize, initial: f32)
    -> Result<FloatVector, ModelError>;
}

/// The model that `config` describes, its parameters taken from `source` in the order of the
/// forward pass.
pub(crate) fn build<W>(
    config: &Config,
    vocab: usize,
    source: &mut dyn Source<W>,
) -> Result<Model<W>, ModelError> {
    let shape = ModelShape::new(config, vocab)?;
    let m = &config.model;
    let grid = Grid::by_id(&m.grid)
        .ok_or_else(|| ModelError::Shape(format!("unknown grid '{}'", m.grid)))?;
    let c = shape.width;
    let mut embedding = |name: &str, rows| {
        let place = Place::edge(FloatPart::Embeddings);
        source.matrix(name, (rows, c), m.embedding_std, &grid, place)
    };
    let tok_embedding = embedding("tok_embedding", shape.vocab)?;
    let pos_embedding = shape
        .learned_positions()
        .then(|| embedding("pos_embedding", shape.context))
        .transpose()?;
    let mut blocks = Vec::with_capacity(shape.n_layer);
    for layer in 0..shape.n_layer {
        blocks.push(block(config, &shape, layer, source, &grid)?);
    }
    let head = (!shape.tie_head)
        .then(|| {
            let place = Place::edge(FloatPart::Head);
            source.matrix("head", (shape.vocab, c), m.init_std, &grid, place)
        })
        .transpose()?;
    let norm = Norm::new(m, "norm", &mut |name, len, initial| {
        source.vector(name, len, initial)
    })?;
    Ok(Model {
        rope: Rope::new(m, &shape),
        shape,
        tok_embedding,
        pos_embedding,
        blocks,
        norm,
        head,
    })
}

/// Block `layer` of that model.
pub(crate) fn block<W>(
    config: &Config,
    shape: &ModelShape,
    layer: usize,
    source: &mut dyn Source<W>,
    grid: &Grid,
) -> Result<Block<W>, ModelError> {
    let m = &config.model;
    let fine = Grid::fine();
    let last = layer + 1 == shape.n_layer;
    let grid = if last && m.fine_last_block {
        &fine
    } else {
        grid
    };
    let [qkv, attention_out, up, down] = shape.block_matrices();
    let residual_std = m.init_std / (2.0 * shape.n_layer as f32).sqrt();
    let mut linear = |name, size: (usize, usize), std, place: Place<'_>, has_bias: bool| {
        let name = format!("blocks.{layer}.{name}");
        let weight = source.matrix(&name, size, std, grid, place)?;
        let bias = has_bias.then(|| source.vector(format!("{name}.bias"), size.0, 0.0));
        Ok::<_, ModelError>(Linear {
            weight,
            bias: bias.transpose()?,
        })
    };
    let stacks = shape.block_stacks();
    let [in_qkv, in_attention_out, in_up, in_down] = [
        (FloatPart::Attention, &stacks[0]),
        (FloatPart::Attention, &stacks[1]),
        (FloatPart::Mlp, &stacks[2]),
        (FloatPart::Mlp, &stacks[3]),
    ]
    .map(|(part, stack)| Place {
        part,
        role: Role::Hidden(stack),
    });
    let (biases, std) = (shape.biases, m.init_std);
    let qkv = linear("qkv", qkv, std, in_qkv, shape.qkv_bias)?;
    let attention_out = linear(
        "attention_out",
        attention_out,
        residual_std,
        in_attention_out,
        biases,
    )?;
    let up = linear("up", up, std, in_up, biases)?;
    let down = linear("down", down, residual_std, in_down, biases)?;
    let mut norm = |name: &str| {
        let name = format!("blocks.{layer}.{name}");
        Norm::new(m, &name, &mut |name, len, initial| {
            source.vector(name, len, initial)
        })
    };
    let (norm1, norm2) = (norm("norm1")?, norm("norm2")?);
    let mut head_norm = |name: &str| {
        let name = format!("blocks.{layer}.{name}");
        Norm::of_width(
            m,
            &name,
            shape.head_dim,
            false,
            &mut |name, len, initial| source.vector(name, len, initial),
        )
    };
    let head_norms = match shape.qk_norm {
        true => Some(HeadNorms {
            query: head_norm("query_norm")?,
            key: head_norm("key_norm")?,
        }),
        false => None,
    };
    Ok(Block {
        norm1,
        qkv,
        head_norms,
        turned: !m.rope_free_layers.contains(&layer),
        attention_out,
        norm2,
        feed_forward: shape.feed_forward,
        up,
        down,
    })
}

/// New parameters to train: a pure function of the configuration.
pub(crate) struct Fresh<'a> {
    config: &'a Config,
    next_tensor: u16,
}

impl<'a> Fresh<'a> {
    pub(crate) fn new(config: &'a Config) -> Self {
        Fresh {
            config,
            next_tensor: 0,
        }
    }
}

impl Source for Fresh<'_> {
    fn matrix(
        &mut self,
        name: &str,
        (rows, cols): (usize, usize),
        std: f32,
        grid: &Grid,
        place: Place<'_>,
    ) -> Result<Weight, ModelError> {
        let tensor = self.next_tensor;
        self.next_tensor += 1;
        let config = self.config;
        let on_grid = config.optim.rule.is_on_grid() && !config.model.is_float(place.part);
        let spec = WeightSpec {
            rule: config.optim.rule,
            grid: on_grid.then_some(grid),
            std,
            scale_per_std: config.model.scale_per_std,
            group: config.model.group,
            many_micro_batches: config.train.micro_batches > 1,
            role: place.role,
        };
        let initial = normal_values(config.train.seed, tensor, rows * cols, std);
        Ok(Weight::new(name, tensor, (rows, cols), initial, &spec)?)
    }

    fn vector(
        &mut self,
        name: String,
        len: usize,
        initial: f32,
    ) -> Result<FloatVector, ModelError> {
        Ok(FloatVector::new(name, vec![initial; len]))
    }
}

/// The tensors of a checkpoint, for inference.
pub(crate) struct Stored<'a>(pub(crate) &'a TensorFile);

impl Source for Stored<'_> {
    fn matrix(
        &mut self,
        name: &str,
        (rows, cols): (usize, usize),
        _std: f32,
        _grid: &Grid,
        _place: Place<'_>,
    ) -> Result<Weight, ModelError> {
        let file = self.0;
        if !file.quant_names().any(|quant| quant == name) {
            let values = file.f32(name, &[rows, cols])?;
            return Ok(Weight::from_dense(name, rows, cols, values));
        }
        let matrix = file.quant(name)?;
        if (matrix.rows(), matrix.cols()) != (rows, cols) {
            let (r, k) = (matrix.rows(), matrix.cols());
            return Err(ModelError::Shape(format!(
                "{name} is {r} x {k}, expected {rows} x {cols}"
            )));
        }
        Ok(Weight::from_quant(name, matrix))
    }

    fn vector(
        &mut self,
        name: String,
        len: usize,
        _initial: f32,
    ) -> Result<FloatVector, ModelError> {
        let values = self.0.f32(&name, &[len])?;
        Ok(FloatVector::new(name, values).without_training())
    }
}

/// `len` values ~ N(0, std²), a pure function of (seed, tensor): Box-Muller over counter-based
/// random numbers.
pub(crate) fn normal_values(seed: u64, tensor: u16, len: usize, std: f32) -> Vec<f32> {
    let key = [seed as u32, (seed >> 32) as u32];
    let mut values = vec![0.0f32; len];
    values.par_chunks_mut(4).enumerate().for_each(|(i, chunk)| {
        let words = philox4x32(
            [
                i as u32,
                (i as u64 >> 32) as u32,
                u32::from(tensor),
                INIT_STREAM << 28,
            ],
            key,
        );
        let uniform = |word: u32| (f64::from(word) + 0.5) / 4_294_967_296.0;
        for (pair, words) in chunk.chunks_mut(2).zip(words.chunks_exact(2)) {
            let radius = (-2.0 * uniform(words[0]).ln()).sqrt() * f64::from(std);
            let angle = std::f64::consts::TAU * uniform(words[1]);
            for (value, normal) in pair
                .iter_mut()
                .zip([radius * angle.cos(), radius * angle.sin()])
            {
                *value = normal as f32;
            }
        }
    });
    values
}
