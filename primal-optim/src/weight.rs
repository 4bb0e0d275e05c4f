//! A weight matrix together with the rule that trains it.

use std::ops::Range;

use primal_kernels::{Isa, MatrixRows, decode_row};
use primal_lut::{Grid, QuantMatrix, TensorFile};

use crate::rule::{Counted, LearningRule, NewMatrix, Place, Role, Values, ValuesMut, ValuesRef};
use crate::rules::still::Still;
use crate::tiles::TILE_ROWS;
use crate::{
    Footprint, OptimError, Rule, StatePart, StateVisitor, StepContext, StepSums, WeightBytes,
    WeightParts,
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
    /// Columns that share a scale; 0, or more than there are, is one scale per row.
    pub group: usize,
    /// Whether a step has more than one micro-batch, so that votes are summed wide first.
    pub many_micro_batches: bool,
    /// What the matrix does in its network.
    pub role: Role<'a>,
}

/// A (rows, cols) matrix `W`, used as `y = x Wᵀ`.
#[derive(Debug)]
pub struct Weight {
    name: String,
    tensor: u16,
    rows: usize,
    cols: usize,
    rule: Box<dyn LearningRule>,
    /// The step that is begun and neither taken nor dropped.
    step: Option<u32>,
    /// Flips since this value was made; a statistic, no part of the state.
    flips: u64,
}

impl Clone for Weight {
    fn clone(&self) -> Self {
        Weight {
            name: self.name.clone(),
            rule: self.rule.boxed(),
            ..*self
        }
    }
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
        let rule = spec.rule.of_matrix(spec.grid.is_some()).begin(NewMatrix {
            size: (rows, cols),
            initial,
            grid: spec.grid,
            std: spec.std,
            scale_per_std: spec.scale_per_std,
            group: group_or_row(spec.group, cols),
            many_micro_batches: spec.many_micro_batches,
            role: spec.role,
        })?;
        Ok(Weight {
            name: name.into(),
            tensor,
            rows,
            cols,
            rule,
            step: None,
            flips: 0,
        })
    }

    /// Drops what learns: the values stay as they are in a model whose other parts learn.
    pub fn keep_still(&mut self) {
        let nothing = Box::new(Still(Values::Dense(Vec::new())));
        let rule: Box<dyn LearningRule> = std::mem::replace(&mut self.rule, nothing);
        self.rule = Box::new(Still(rule.into_values()));
    }

    /// A matrix for inference only.
    pub fn from_quant(name: impl Into<String>, matrix: QuantMatrix) -> Self {
        let size = (matrix.rows(), matrix.cols());
        Weight::still(name.into(), size, Values::Grid(matrix))
    }

    /// A float matrix for inference only; `values` has rows × cols elements.
    pub fn from_dense(name: impl Into<String>, rows: usize, cols: usize, values: Vec<f32>) -> Self {
        debug_assert_eq!(values.len(), rows * cols);
        Weight::still(name.into(), (rows, cols), Values::Dense(values))
    }

    fn still(name: String, (rows, cols): (usize, usize), values: Values) -> Self {
        Weight {
            name,
            tensor: 0,
            rows,
            cols,
            rule: Box::new(Still(values)),
            step: None,
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
        match self.rule.values() {
            ValuesRef::Grid(matrix) => Some(matrix),
            ValuesRef::Dense(_) => None,
        }
    }

    /// The float values (rows × cols), if the matrix is not on the grid.
    pub fn dense(&self) -> Option<&[f32]> {
        match self.rule.values() {
            ValuesRef::Grid(_) => None,
            ValuesRef::Dense(values) => Some(values),
        }
    }

    /// The persistent votes (rows × cols, i8), under rules with ballots.
    pub fn ballot(&self) -> Option<&[i8]> {
        Some(self.rule.ballot()).filter(|ballot| !ballot.is_empty())
    }

    /// The matrix's number in the run, which selects its random numbers.
    pub fn tensor(&self) -> u16 {
        self.tensor
    }

    /// The state, for another device to take and give back.
    pub fn parts_mut(&mut self) -> WeightParts<'_> {
        self.rule.parts_mut()
    }

    /// Begins a step, before its first micro-batch.
    ///
    /// # Errors
    /// [`OptimError::MicroBatches`] where the step has several and the matrix was made for one.
    pub fn begin_step(&mut self, ctx: &StepContext<'_>) -> Result<(), OptimError> {
        self.rule.begin_step(ctx)?;
        self.step = Some(ctx.step);
        Ok(())
    }

    /// Takes the gradient of one micro-batch's mean loss for `rows` (starting at a multiple of
    /// [`TILE_ROWS`]), tile by tile in parallel: `make(rows, out)` writes dL/dW of a tile,
    /// (rows, cols) row-major, and `out` is dropped after use. Returns false if a gradient was
    /// not finite; such rows cast no vote.
    ///
    /// Micro-batches come one after the other; each ends with [`Weight::end_micro_batch`].
    ///
    /// # Errors
    /// [`OptimError::NotBegun`] outside a step, [`OptimError::Tiles`] where `rows` begin inside a
    /// tile or end beyond the matrix.
    pub fn accumulate(
        &mut self,
        ctx: &StepContext<'_>,
        micro_batch: u16,
        rows: Range<usize>,
        make: &(impl Fn(Range<usize>, &mut [f32]) + Sync),
    ) -> Result<bool, OptimError> {
        if self.step != Some(ctx.step) {
            return Err(OptimError::NotBegun {
                name: self.name.clone(),
                step: ctx.step,
            });
        }
        if !rows.start.is_multiple_of(TILE_ROWS) || rows.end > self.rows || rows.is_empty() {
            return Err(OptimError::Tiles {
                name: self.name.clone(),
                from: rows.start,
                to: rows.end,
                rows: self.rows,
            });
        }
        let place = Place {
            tensor: self.tensor,
            micro_batch,
            rows,
        };
        Ok(self.rule.accumulate(ctx, place, make) == 0)
    }

    /// Ends a micro-batch: folds its partial sums in tile order.
    pub fn end_micro_batch(&mut self, ctx: &StepContext<'_>) {
        self.rule.end_micro_batch(ctx);
    }

    /// Sum of the squared float gradient (scales, or the whole matrix when it is float).
    pub fn grad_sum_squares(&self, isa: Isa) -> f64 {
        self.rule.grad_sum_squares(isa)
    }

    /// Walks over the float sums of the step so far.
    pub fn step_sums(&mut self, to: &mut dyn StepSums) {
        self.rule.step_sums(to);
    }

    /// What the step has summed in integers so far, (rows, cols); empty where nothing is: in a
    /// step of one micro-batch under rule `consensus`, and under rules without votes.
    pub fn votes_mut(&mut self) -> &mut [i16] {
        self.rule.votes_mut()
    }

    /// The persistent votes (rows × cols); empty under rules without ballots.
    pub fn ballot_mut(&mut self) -> &mut [i8] {
        self.rule.ballot_mut()
    }

    /// The matrix on the grid, if it lives there.
    pub fn quant_mut(&mut self) -> Option<&mut QuantMatrix> {
        match self.rule.values_mut() {
            ValuesMut::Grid(matrix) => Some(matrix),
            ValuesMut::Dense(_) => None,
        }
    }

    /// The rows that rank `rank` of `ranks` counts when a step is shared: a stretch of them, or
    /// all where the rule looks at the matrix as a whole, which then take turns by their numbers.
    pub fn rows_of_rank(&self, rank: usize, ranks: usize) -> Range<usize> {
        if !self.rule.counts_whole() {
            return rank * self.rows / ranks..(rank + 1) * self.rows / ranks;
        }
        let tensor = usize::from(self.tensor);
        // Blocks have the same matrices in the same order: each begins its turn one rank later.
        if (tensor + tensor / ranks) % ranks == rank {
            0..self.rows
        } else {
            0..0
        }
    }

    /// Takes the step: counts the votes and flips, moves the float parts. `grad_factor` is
    /// 1 / micro-batches times the clip of the float gradient.
    pub fn step(&mut self, ctx: &StepContext<'_>, grad_factor: f32) -> FlipStats {
        let counted = self.count(ctx, 0..self.rows);
        self.finish_step(ctx, grad_factor, counted)
    }

    /// The first half of [`Weight::step`] for `rows` alone, see [`Weight::rows_of_rank`]: counts
    /// their votes and flips.
    pub fn count(&mut self, ctx: &StepContext<'_>, rows: Range<usize>) -> Counted {
        self.rule.count(ctx, self.tensor, rows)
    }

    /// The second half of [`Weight::step`]: `counted` of all rows together.
    pub fn finish_step(
        &mut self,
        ctx: &StepContext<'_>,
        grad_factor: f32,
        counted: Counted,
    ) -> FlipStats {
        let moved = self.rule.finish_step(ctx, grad_factor, counted);
        self.step = None;
        let stats = FlipStats {
            flips: counted.flips + moved,
            weights: if self.quant().is_some() && !self.float_gradient().is_empty() {
                (self.rows * self.cols) as u64
            } else {
                0
            },
        };
        self.flips += stats.flips;
        stats
    }

    /// Flips of all steps since the matrix was created or loaded.
    pub fn flips(&self) -> u64 {
        self.flips
    }

    /// Drops the gradients of a step that is not taken. Votes that were summed wide are dropped
    /// with them; votes already in the ballot (a step of one micro-batch under rule `consensus`)
    /// stay: each came from a finite gradient.
    pub fn discard(&mut self) {
        self.rule.discard();
        self.step = None;
    }

    /// Walks over the state.
    pub fn visit<'a>(&'a self, part: StatePart, to: &mut dyn StateVisitor<'a>) {
        if part == StatePart::Optimizer {
            return self.rule.visit(&self.name, to);
        }
        match self.rule.values() {
            ValuesRef::Grid(matrix) => to.quant(&self.name, matrix),
            ValuesRef::Dense(values) => to.f32(&self.name, &[self.rows, self.cols], values),
        }
    }

    /// Reads one half of the state back; shapes and grids must agree. New values without the
    /// optimizer's half begin to learn anew.
    pub fn load(&mut self, part: StatePart, file: &TensorFile) -> Result<(), OptimError> {
        if part == StatePart::Optimizer {
            return self.rule.load(&self.name, file);
        }
        match self.rule.values_mut() {
            ValuesMut::Grid(matrix) => {
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
            ValuesMut::Dense(values) => {
                *values = file.f32(&self.name, &[self.rows, self.cols])?;
            }
        }
        self.rule.forget();
        Ok(())
    }

    /// Bytes in memory, as allocated; equals [`WeightBytes::plan`].
    pub fn allocated_bytes(&self) -> WeightBytes {
        let values = match self.rule.values() {
            ValuesRef::Grid(matrix) => {
                matrix.nibbles().len() + matrix.high().map_or(0, <[u8]>::len)
            }
            ValuesRef::Dense(values) => 4 * values.len(),
        };
        WeightBytes {
            values: values as u64,
            ..self.rule.bytes()
        }
    }

    /// dL/dW (rows × cols) of a float matrix, or dL/ds of the scales: the sum over the
    /// micro-batches so far of the gradient of their mean losses. Cleared by a step.
    pub fn float_gradient(&self) -> &[f32] {
        self.rule.float_gradient()
    }

    /// Bytes of the persistent state.
    pub fn footprint(&self) -> Footprint {
        let weights = (self.rows * self.cols) as u64;
        let (per_weight, float_state) = self.rule.persistent_bytes();
        match self.rule.values() {
            ValuesRef::Dense(_) => Footprint {
                float_weights: weights,
                float_bytes: 4 * weights + per_weight + float_state,
                ..Default::default()
            },
            ValuesRef::Grid(matrix) => {
                let scale_bytes = 4 * matrix.scales().len() as u64;
                Footprint {
                    grid_weights: weights,
                    grid_bytes: matrix.bytes() as u64 - scale_bytes + per_weight,
                    float_weights: matrix.scales().len() as u64,
                    float_bytes: scale_bytes + float_state,
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
        match self.rule.values() {
            ValuesRef::Grid(matrix) => decode_row(isa, matrix, row, out),
            ValuesRef::Dense(values) => {
                out.copy_from_slice(&values[row * self.cols..(row + 1) * self.cols])
            }
        }
    }
}

/// The columns that share a scale in a matrix of `cols` columns.
pub(crate) fn group_or_row(group: usize, cols: usize) -> usize {
    if group == 0 { cols } else { group.min(cols) }
}
