//! A weight matrix together with the rule that trains it.

mod rows;

use std::ops::Range;

use primal_kernels::{Isa, MatrixRows, decode_row, root_mean_square, sum_squares};
use primal_lut::{Grid, QuantMatrix, TensorFile};
use rayon::prelude::*;

use crate::classic::Classic;
use crate::consensus::{Consensus, Counted};
use crate::float::AdamState;
use crate::tiles::{TILE_ROWS, for_each_tile};
pub(crate) use rows::GradientRow;
pub use rows::tile_bytes_per_thread;
use rows::{GradRows, RowCount, ScaleRows, with_tile};

use crate::{
    CodeRule, Footprint, OptimError, Rule, StatePart, StateVisitor, StepContext, StepSums,
    WeightBytes, WeightParts,
};

/// What a step did to a matrix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlipStats {
    /// Weights that moved to a neighbouring grid value.
    pub flips: u64,
    /// Weights on the grid.
    pub weights: u64,
}

/// How a matrix is created.
#[derive(Clone, Copy, Debug)]
pub struct WeightSpec<'a> {
    /// The rule of the run.
    pub rule: Rule,
    /// The grid, or `None` for a float matrix.
    pub grid: Option<&'a Grid>,
    /// Standard deviation σ of the initial values.
    pub std: f32,
    /// Initial scale in units of σ.
    pub scale_per_std: f32,
    /// Columns that share a scale; 0, or more than there are, is one scale a row.
    pub group: usize,
    /// Whether a step has more than one micro-batch, so that votes are summed wide first.
    pub many_micro_batches: bool,
}

/// A (rows, cols) matrix `W`, used as `y = x Wᵀ`.
#[derive(Clone, Debug)]
pub struct Weight {
    name: String,
    tensor: u16,
    rows: usize,
    cols: usize,
    values: Values,
    learner: Learner,
    /// Flips since this value was made; a statistic, no part of the state.
    flips: u64,
}

#[derive(Clone, Debug)]
enum Values {
    Grid(QuantMatrix),
    /// (rows, cols) f32, row-major.
    Dense(Vec<f32>),
}

#[derive(Clone, Debug)]
enum Learner {
    /// Inference: nothing learns.
    Absent,
    /// Codes stay; row scales learn.
    Frozen {
        scales: AdamState,
    },
    Classic {
        scales: AdamState,
        rule: Classic,
    },
    Consensus {
        scales: AdamState,
        rule: Box<Consensus>,
    },
    /// A float latent matrix behind the grid.
    Shadow {
        latent: Vec<f32>,
        adam: AdamState,
        scale_per_std: f32,
    },
    /// Float weights.
    Dense {
        adam: AdamState,
    },
}

impl Weight {
    /// A trainable matrix from initial values `initial` (rows × cols, row-major, ~ N(0, σ²)).
    ///
    /// `tensor` is the matrix's number in the run: it selects its random numbers.
    pub fn new(
        name: impl Into<String>,
        tensor: u16,
        (rows, cols): (usize, usize),
        initial: Vec<f32>,
        spec: &WeightSpec<'_>,
    ) -> Result<Self, OptimError> {
        let name = name.into();
        let (values, learner) = match (spec.grid, spec.rule) {
            (None, _) | (_, Rule::Adamw) => (
                Values::Dense(initial),
                Learner::Dense {
                    adam: AdamState::new(rows * cols),
                },
            ),
            (Some(grid), rule) => {
                let scale = spec.scale_per_std * spec.std;
                let group = group_or_row(spec.group, cols);
                let scales = vec![scale; rows * cols.div_ceil(group)];
                let mut matrix = QuantMatrix::quantise(grid, rows, cols, group, &initial, scales)?;
                let scales = AdamState::new(matrix.scales().len());
                let learner = match rule {
                    Rule::Frozen => Learner::Frozen { scales },
                    Rule::Classic => Learner::Classic {
                        scales,
                        rule: Classic::new(rows, cols),
                    },
                    Rule::Shadow => {
                        snap_latent(Isa::best(), &initial, spec.scale_per_std, &mut matrix);
                        Learner::Shadow {
                            latent: initial,
                            adam: AdamState::new(rows * cols),
                            scale_per_std: spec.scale_per_std,
                        }
                    }
                    Rule::Consensus | Rule::Adamw => Learner::Consensus {
                        scales,
                        rule: Box::new(Consensus::new(grid, rows, cols, spec.many_micro_batches)),
                    },
                };
                (Values::Grid(matrix), learner)
            }
        };
        Ok(Weight {
            name,
            tensor,
            rows,
            cols,
            values,
            learner,
            flips: 0,
        })
    }

    /// Drops what learns: the values stay as they are in a model whose other parts learn.
    pub fn keep_still(&mut self) {
        self.learner = Learner::Absent;
    }

    /// A matrix for inference only.
    pub fn from_quant(name: impl Into<String>, matrix: QuantMatrix) -> Self {
        let (rows, cols) = (matrix.rows(), matrix.cols());
        let values = Values::Grid(matrix);
        Weight {
            name: name.into(),
            tensor: 0,
            rows,
            cols,
            values,
            learner: Learner::Absent,
            flips: 0,
        }
    }

    /// A float matrix for inference only; `values` has rows × cols elements.
    pub fn from_dense(name: impl Into<String>, rows: usize, cols: usize, values: Vec<f32>) -> Self {
        debug_assert_eq!(values.len(), rows * cols);
        let values = Values::Dense(values);
        Weight {
            name: name.into(),
            tensor: 0,
            rows,
            cols,
            values,
            learner: Learner::Absent,
            flips: 0,
        }
    }

    /// The parameter's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Output features.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input features.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The matrix on the grid, if it lives there.
    pub fn quant(&self) -> Option<&QuantMatrix> {
        match &self.values {
            Values::Grid(matrix) => Some(matrix),
            Values::Dense(_) => None,
        }
    }

    /// The float values (rows × cols), if the matrix is not on the grid.
    pub fn dense(&self) -> Option<&[f32]> {
        match &self.values {
            Values::Grid(_) => None,
            Values::Dense(values) => Some(values),
        }
    }

    /// The persistent votes (rows × cols, i8), under rule `consensus`.
    pub fn ballot(&self) -> Option<&[i8]> {
        match &self.learner {
            Learner::Consensus { rule, .. } => Some(&rule.ballot),
            _ => None,
        }
    }

    /// The matrix's number in the run, which selects its random numbers.
    pub fn tensor(&self) -> u16 {
        self.tensor
    }

    /// The state, for another device to take and give back.
    pub fn parts_mut(&mut self) -> WeightParts<'_> {
        let (matrix, scales, rule) = match (&mut self.values, &mut self.learner) {
            (Values::Grid(matrix), Learner::Frozen { scales }) => {
                (matrix, scales, CodeRule::Frozen)
            }
            (Values::Grid(matrix), Learner::Classic { scales, .. }) => {
                (matrix, scales, CodeRule::Classic)
            }
            (Values::Grid(matrix), Learner::Consensus { scales, rule }) => {
                (matrix, scales, CodeRule::Consensus(rule.parts()))
            }
            (
                Values::Grid(matrix),
                Learner::Shadow {
                    latent,
                    adam,
                    scale_per_std,
                },
            ) => {
                return WeightParts::Shadow {
                    matrix,
                    latent: adam.parts(latent),
                    scale_per_std: *scale_per_std,
                };
            }
            (Values::Dense(values), Learner::Dense { adam }) => {
                return WeightParts::Dense(adam.parts(values));
            }
            // A learner is created together with its values; no other pairs exist.
            _ => return WeightParts::Still,
        };
        WeightParts::Codes {
            matrix,
            scale_moments: scales.moments_mut(),
            rule,
        }
    }

    /// Prepares the step's factors; call once before the step's first micro-batch.
    pub fn begin_step(&mut self, ctx: &StepContext<'_>) {
        if let Learner::Consensus { rule, .. } = &mut self.learner {
            rule.begin_step(ctx);
        }
    }

    /// Takes the gradient of one micro-batch's mean loss for `rows` (starting at a multiple of
    /// [`TILE_ROWS`]), tile by tile in parallel: `make(rows, out)` writes dL/dW of a tile,
    /// (rows, cols) row-major, and `out` is dropped after use. Returns false if a gradient was
    /// not finite; such rows cast no vote.
    ///
    /// Micro-batches come one after the other; each ends with [`Weight::end_micro_batch`].
    pub fn accumulate(
        &mut self,
        ctx: &StepContext<'_>,
        micro_batch: u16,
        rows: Range<usize>,
        make: &(impl Fn(Range<usize>, &mut [f32]) + Sync),
    ) -> bool {
        debug_assert!(rows.start.is_multiple_of(TILE_ROWS) && rows.end <= self.rows);
        let cols = self.cols;
        let n_rows = rows.len();
        let bad = match (&self.values, &mut self.learner) {
            (_, Learner::Absent) => return true,
            (Values::Grid(matrix), Learner::Frozen { scales }) => {
                let tiles = ScaleRows::new(matrix, rows, &mut scales.grad);
                for_each_tile(tiles, &|tile: ScaleRows<'_>| {
                    tile.accumulate(ctx.isa, matrix, make, |_| true)
                })
            }
            (Values::Grid(matrix), Learner::Classic { scales, rule }) => {
                let tiles = (
                    ScaleRows::new(matrix, rows.clone(), &mut scales.grad),
                    GradRows {
                        cols,
                        grad: &mut rule.grad[rows.start * cols..rows.end * cols],
                    },
                );
                for_each_tile(tiles, &|(tile, kept): (ScaleRows<'_>, GradRows<'_>)| {
                    let mut kept_rows = kept.grad.chunks_exact_mut(cols);
                    tile.accumulate(ctx.isa, matrix, make, |row| {
                        if let Some(kept) = kept_rows.next() {
                            kept.copy_from_slice(row.grad);
                        }
                        true
                    })
                })
            }
            (Values::Grid(matrix), Learner::Consensus { scales, rule }) => {
                let caster = rule.caster(ctx, self.tensor, micro_batch);
                let tiles = (
                    ScaleRows::new(matrix, rows.clone(), &mut scales.grad),
                    rule.rows(rows),
                );
                for_each_tile(tiles, &|(tile, mut votes)| {
                    tile.accumulate(ctx.isa, matrix, make, |row| caster.cast(&row, &mut votes))
                })
            }
            (_, Learner::Shadow { adam, .. } | Learner::Dense { adam }) => {
                let grad = &mut adam.grad[rows.start * cols..rows.end * cols];
                let tiles = (
                    RowCount {
                        first_row: rows.start,
                        rows: n_rows,
                    },
                    GradRows { cols, grad },
                );
                for_each_tile(tiles, &|(tile, sum): (RowCount, GradRows<'_>)| {
                    with_tile(tile.rows * cols, |grad| {
                        make(tile.first_row..tile.first_row + tile.rows, grad);
                        primal_kernels::add(ctx.isa, grad, sum.grad);
                        u32::from(!primal_kernels::all_finite(ctx.isa, grad))
                    })
                })
            }
            // A learner is created together with its values; no other pairs exist.
            (Values::Dense(_), _) => 0,
        };
        bad == 0
    }

    /// Ends a micro-batch: folds its partial sums in tile order.
    pub fn end_micro_batch(&mut self, ctx: &StepContext<'_>) {
        match &mut self.learner {
            Learner::Consensus { rule, .. } => rule.end_micro_batch(),
            Learner::Classic { rule, .. } => rule.end_micro_batch(ctx),
            _ => {}
        }
    }

    /// Sum of the squared float gradient (row scales, or the whole matrix when it is float).
    pub fn grad_sum_squares(&self, isa: Isa) -> f64 {
        match &self.learner {
            Learner::Absent => 0.0,
            Learner::Frozen { scales }
            | Learner::Classic { scales, .. }
            | Learner::Consensus { scales, .. } => sum_squares(isa, &scales.grad),
            // Fixed chunks folded in order: the same sum for any thread count.
            Learner::Shadow { adam, .. } | Learner::Dense { adam } => adam
                .grad
                .chunks(1 << 20)
                .map(|chunk| sum_squares(isa, chunk))
                .sum(),
        }
    }

    /// Walks over the float sums of the step so far.
    pub fn step_sums(&mut self, to: &mut dyn StepSums) {
        match &mut self.learner {
            Learner::Absent => {}
            Learner::Frozen { scales } => to.f32(&mut scales.grad),
            Learner::Classic { scales, .. } => to.f32(&mut scales.grad),
            Learner::Consensus { scales, rule } => {
                to.f32(&mut scales.grad);
                rule.step_sums(to);
            }
            Learner::Shadow { adam, .. } | Learner::Dense { adam } => to.f32(&mut adam.grad),
        }
    }

    /// The votes of the step so far, (rows, cols); empty where none are summed: in a step of one
    /// micro-batch, and under rules without votes.
    pub fn votes_mut(&mut self) -> &mut [i16] {
        match &mut self.learner {
            Learner::Classic { rule, .. } => &mut rule.votes,
            Learner::Consensus { rule, .. } => &mut rule.votes,
            _ => &mut [],
        }
    }

    /// The persistent votes (rows × cols); empty under other rules than `consensus`.
    pub fn ballot_mut(&mut self) -> &mut [i8] {
        match &mut self.learner {
            Learner::Consensus { rule, .. } => &mut rule.ballot,
            _ => &mut [],
        }
    }

    /// The matrix on the grid, if it lives there.
    pub fn quant_mut(&mut self) -> Option<&mut QuantMatrix> {
        match &mut self.values {
            Values::Grid(matrix) => Some(matrix),
            Values::Dense(_) => None,
        }
    }

    /// Takes the step: counts the votes and flips, moves the float parts. `grad_factor` is
    /// 1 / micro-batches times the clip of the float gradient.
    pub fn step(&mut self, ctx: &StepContext<'_>, grad_factor: f32) -> FlipStats {
        let counted = self.count(ctx, 0..self.rows);
        self.finish_step(ctx, grad_factor, counted)
    }

    /// The first half of [`Weight::step`] for `rows` alone: counts their votes and flips.
    pub fn count(&mut self, ctx: &StepContext<'_>, rows: Range<usize>) -> Counted {
        match (&mut self.values, &mut self.learner) {
            (Values::Grid(matrix), Learner::Classic { rule, .. }) => Counted {
                flips: rule.count(ctx, self.tensor, matrix, rows),
                sum_votes_sq: 0,
            },
            (Values::Grid(matrix), Learner::Consensus { rule, .. }) => {
                rule.count(ctx, self.tensor, matrix, rows)
            }
            _ => Counted::default(),
        }
    }

    /// The second half of [`Weight::step`]: `counted` of all rows together.
    pub fn finish_step(
        &mut self,
        ctx: &StepContext<'_>,
        grad_factor: f32,
        counted: Counted,
    ) -> FlipStats {
        let config = ctx.config;
        let lr = config.lr * ctx.rate;
        let scale_lr = lr * config.scale_lr_ratio;
        let mut stats = FlipStats {
            flips: counted.flips,
            weights: (self.rows * self.cols) as u64,
        };
        match (&mut self.values, &mut self.learner) {
            (
                Values::Grid(matrix),
                Learner::Frozen { scales } | Learner::Classic { scales, .. },
            ) => {
                scales.step(ctx, matrix.scales_mut(), grad_factor, scale_lr, 0.0);
            }
            (Values::Grid(matrix), Learner::Consensus { scales, rule }) => {
                rule.update_statistics(ctx, counted.sum_votes_sq);
                scales.step(ctx, matrix.scales_mut(), grad_factor, scale_lr, 0.0);
            }
            (
                Values::Grid(matrix),
                Learner::Shadow {
                    latent,
                    adam,
                    scale_per_std,
                },
            ) => {
                adam.step(ctx, latent, grad_factor, lr, config.weight_decay);
                stats.flips = snap_latent(ctx.isa, latent, *scale_per_std, matrix);
            }
            (Values::Dense(values), Learner::Dense { adam }) => {
                adam.step(ctx, values, grad_factor, lr, config.weight_decay);
                stats.weights = 0;
            }
            _ => stats.weights = 0,
        }
        self.flips += stats.flips;
        stats
    }

    /// Flips of all steps since the matrix was created or loaded.
    pub fn flips(&self) -> u64 {
        self.flips
    }

    /// Drops the gradients of a step that is not taken. Votes that were summed wide are dropped
    /// with them; votes already in the ballot (a step of one micro-batch) stay: each came from a
    /// finite gradient.
    pub fn discard(&mut self) {
        match &mut self.learner {
            Learner::Absent => {}
            Learner::Frozen { scales } => scales.grad.fill(0.0),
            Learner::Classic { scales, rule } => {
                scales.grad.fill(0.0);
                rule.votes.fill(0);
            }
            Learner::Consensus { scales, rule } => {
                scales.grad.fill(0.0);
                rule.discard();
            }
            Learner::Shadow { adam, .. } | Learner::Dense { adam } => adam.grad.fill(0.0),
        }
    }

    /// Walks over the state.
    pub fn visit<'a>(&'a self, part: StatePart, to: &mut dyn StateVisitor<'a>) {
        let shape = [self.rows, self.cols];
        if part == StatePart::Model {
            match &self.values {
                Values::Grid(matrix) => to.quant(&self.name, matrix),
                Values::Dense(values) => to.f32(&self.name, &shape, values),
            }
            return;
        }
        let scale_name = format!("{}.scales", self.name);
        match &self.learner {
            Learner::Absent => {}
            Learner::Frozen { scales } | Learner::Classic { scales, .. } => {
                scales.visit(&scale_name, &self.scale_shape(), to);
            }
            Learner::Consensus { scales, rule } => {
                scales.visit(&scale_name, &self.scale_shape(), to);
                rule.visit(&self.name, self.rows, to);
            }
            Learner::Shadow { latent, adam, .. } => {
                to.f32(&format!("{}.latent", self.name), &shape, latent);
                adam.visit(&self.name, &shape, to);
            }
            Learner::Dense { adam } => adam.visit(&self.name, &shape, to),
        }
    }

    /// Reads one half of the state back; shapes and grids must agree.
    pub fn load(&mut self, part: StatePart, file: &TensorFile) -> Result<(), OptimError> {
        let shape = [self.rows, self.cols];
        if part == StatePart::Model {
            match &mut self.values {
                Values::Grid(matrix) => {
                    let found = file.quant(&self.name)?;
                    let fits = found.rows() == self.rows
                        && found.cols() == self.cols
                        && found.group() == matrix.group()
                        && found.grid() == matrix.grid();
                    if !fits {
                        return Err(OptimError::MatrixMismatch {
                            name: self.name.clone(),
                            found_rows: found.rows(),
                            found_cols: found.cols(),
                            found_grid: found.grid().id().to_string(),
                            rows: self.rows,
                            cols: self.cols,
                            grid: matrix.grid().id().to_string(),
                        });
                    }
                    *matrix = found;
                }
                Values::Dense(values) => *values = file.f32(&self.name, &shape)?,
            }
            return Ok(());
        }
        let scale_name = format!("{}.scales", self.name);
        let scale_shape = self.scale_shape();
        match &mut self.learner {
            Learner::Absent => {}
            Learner::Frozen { scales } | Learner::Classic { scales, .. } => {
                scales.load(&scale_name, &scale_shape, file)?;
            }
            Learner::Consensus { scales, rule } => {
                scales.load(&scale_name, &scale_shape, file)?;
                rule.load(&self.name, (self.rows, self.cols), file)?;
            }
            Learner::Shadow { latent, adam, .. } => {
                *latent = file.f32(&format!("{}.latent", self.name), &shape)?;
                adam.load(&self.name, &shape, file)?;
            }
            Learner::Dense { adam } => adam.load(&self.name, &shape, file)?,
        }
        Ok(())
    }

    /// (rows) of one scale a row, else (rows, groups).
    fn scale_shape(&self) -> Vec<usize> {
        match self.quant().map(QuantMatrix::groups_per_row) {
            None | Some(1) => vec![self.rows],
            Some(groups) => vec![self.rows, groups],
        }
    }

    /// Bytes in memory, as allocated; equals [`WeightBytes::plan`].
    pub fn allocated_bytes(&self) -> WeightBytes {
        let mut bytes = WeightBytes::default();
        match &self.values {
            Values::Grid(matrix) => {
                bytes.values =
                    (matrix.nibbles().len() + matrix.high().map_or(0, <[u8]>::len)) as u64;
                bytes.float_state = 4 * matrix.scales().len() as u64;
            }
            Values::Dense(values) => bytes.values = 4 * values.len() as u64,
        }
        match &self.learner {
            Learner::Absent => {}
            Learner::Frozen { scales } => bytes.float_state += scales.allocated_bytes(),
            Learner::Classic { scales, rule } => {
                bytes.votes = 2 * rule.votes.len() as u64;
                bytes.float_state += scales.allocated_bytes() + 4 * rule.grad.len() as u64;
            }
            Learner::Consensus { scales, rule } => {
                bytes.float_state += scales.allocated_bytes();
                (bytes.ballots, bytes.votes, bytes.statistics) = rule.allocated_bytes();
            }
            Learner::Shadow { latent, adam, .. } => {
                bytes.float_state += 4 * latent.len() as u64 + adam.allocated_bytes();
            }
            Learner::Dense { adam } => bytes.float_state += adam.allocated_bytes(),
        }
        bytes
    }

    /// dL/dW (rows × cols) of a float matrix, or dL/ds (rows) of the row scales: the sum over the
    /// micro-batches so far of the gradient of their mean losses. Cleared by a step.
    pub fn float_gradient(&self) -> &[f32] {
        match &self.learner {
            Learner::Absent => &[],
            Learner::Frozen { scales }
            | Learner::Classic { scales, .. }
            | Learner::Consensus { scales, .. } => &scales.grad,
            Learner::Shadow { adam, .. } | Learner::Dense { adam } => &adam.grad,
        }
    }

    /// Bytes of the persistent state.
    pub fn footprint(&self) -> Footprint {
        let weights = (self.rows * self.cols) as u64;
        match (&self.values, &self.learner) {
            (Values::Dense(_), learner) => Footprint {
                float_weights: weights,
                float_bytes: 4 * weights
                    + if let Learner::Dense { adam } = learner {
                        adam.bytes()
                    } else {
                        0
                    },
                ..Default::default()
            },
            (Values::Grid(matrix), learner) => {
                let scale_bytes = 4 * matrix.scales().len() as u64;
                let codes = matrix.bytes() as u64 - scale_bytes;
                let (grid_extra, float_extra) = match learner {
                    Learner::Absent | Learner::Dense { .. } => (0, 0),
                    Learner::Frozen { scales } | Learner::Classic { scales, .. } => {
                        (0, scales.bytes())
                    }
                    Learner::Consensus { scales, rule } => (
                        rule.ballot.len() as u64,
                        scales.bytes() + rule.statistics_bytes(),
                    ),
                    Learner::Shadow { adam, .. } => (4 * weights + adam.bytes(), 0),
                };
                Footprint {
                    grid_weights: weights,
                    grid_bytes: codes + grid_extra,
                    float_weights: matrix.scales().len() as u64,
                    float_bytes: scale_bytes + float_extra,
                }
            }
        }
    }
}

impl MatrixRows for Weight {
    fn quant(&self) -> Option<&QuantMatrix> {
        Weight::quant(self)
    }

    fn rows(&self) -> usize {
        self.rows
    }

    fn cols(&self) -> usize {
        self.cols
    }

    fn fill_row(&self, isa: Isa, row: usize, out: &mut [f32]) {
        match &self.values {
            Values::Grid(matrix) => decode_row(isa, matrix, row, out),
            Values::Dense(values) => {
                out.copy_from_slice(&values[row * self.cols..(row + 1) * self.cols])
            }
        }
    }
}

/// The columns that share a scale in a matrix of `cols` columns.
pub(crate) fn group_or_row(group: usize, cols: usize) -> usize {
    if group == 0 { cols } else { group.min(cols) }
}

/// Quantises a latent matrix with scale = `scale_per_std` · rms of its columns; returns moved weights.
fn snap_latent(isa: Isa, latent: &[f32], scale_per_std: f32, matrix: &mut QuantMatrix) -> u64 {
    let cols = matrix.cols();
    let grid = matrix.grid().clone();
    let scales: Vec<f32> = latent
        .par_chunks(cols)
        .flat_map_iter(|row| row.chunks(matrix.group()))
        .map(|part| (scale_per_std * root_mean_square(isa, part)).max(f32::MIN_POSITIVE))
        .collect();
    let before = matrix.nibbles().to_vec();
    let (rows, group) = (matrix.rows(), matrix.group());
    if let Ok(snapped) = QuantMatrix::quantise(&grid, rows, cols, group, latent, scales) {
        *matrix = snapped;
    }
    let moved = |(a, b): (&u8, &u8)| u64::from(a & 15 != b & 15) + u64::from(a >> 4 != b >> 4);
    before.iter().zip(matrix.nibbles()).map(moved).sum()
}
