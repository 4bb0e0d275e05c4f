//! What a learning rule is, and the table of all of them. A new rule is one file in `rules/` and
//! one line in the table below.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use primal_kernels::{Isa, sum_squares};
use primal_lut::{Grid, QuantMatrix, TensorFile};
use serde::{Deserialize, Serialize};

use crate::rules::{adamw, classic, consensus, frozen, muon, shadow, spectral};
use crate::{OptimError, StateVisitor, StepContext, StepSums, WeightBytes, WeightParts};

/// Makes [`Rule`] of the table of rules: what each is for, its name, its file, and where the
/// weights live that it moves.
macro_rules! rules {
    ($($(#[doc = $about:literal])+ $rule:ident, $name:literal, $file:ident, on $home:ident;)+) => {
        /// How a weight matrix learns.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case")]
        pub enum Rule {
            $($(#[doc = $about])+ $rule,)+
        }

        impl Rule {
            /// Every rule, in the order of the documentation.
            pub const ALL: &'static [Rule] = &[$(Rule::$rule),+];

            /// The name used on the command line and in files.
            pub fn name(self) -> &'static str {
                match self { $(Rule::$rule => $name),+ }
            }

            /// Whether weights live on a grid under this rule.
            pub fn is_on_grid(self) -> bool {
                match self { $(Rule::$rule => rules!(@home $home)),+ }
            }

            /// A matrix that learns by this rule.
            pub(crate) fn begin(
                self,
                matrix: NewMatrix<'_>,
            ) -> Result<Box<dyn LearningRule>, OptimError> {
                match self { $(Rule::$rule => $file::begin(matrix)),+ }
            }

            /// The bytes of such a matrix.
            pub(crate) fn plan(self, matrix: &MatrixPlan<'_>) -> WeightBytes {
                match self { $(Rule::$rule => $file::plan(matrix)),+ }
            }
        }
    };
    (@home grid) => { true };
    (@home floats) => { false };
}

rules! {
    /// Votes along the orthogonalised gradient of a whole matrix, into a persistent ballot.
    Spectral, "spectral", spectral, on grid;
    /// Votes along the gradient over its running scale, element by element, into a ballot.
    Consensus, "consensus", consensus, on grid;
    /// The original project's rule: votes above mean + k·std, random flips, no memory.
    Classic, "classic", classic, on grid;
    /// No flips at all: what the float parts reach alone.
    Frozen, "frozen", frozen, on grid;
    /// A float32 latent weight, straight-through estimator, AdamW: for comparison only.
    Shadow, "shadow", shadow, on grid;
    /// Float weights under AdamW, no grid: for comparison only.
    Adamw, "adamw", adamw, on floats;
    /// Float weights under Muon, embeddings and head under AdamW: for comparison only.
    Muon, "muon", muon, on floats;
}

impl Rule {
    /// The rule of a matrix, which may be kept in float under a rule of grids.
    pub(crate) fn of_matrix(self, is_on_grid: bool) -> Self {
        if self.is_on_grid() && !is_on_grid {
            Rule::Adamw
        } else {
            self
        }
    }
}

impl Default for Rule {
    /// The best that is known.
    fn default() -> Self {
        Rule::Spectral
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Rule {
    type Err = OptimError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = || Rule::ALL.iter().copied();
        known()
            .find(|rule| rule.name() == text)
            .ok_or_else(|| OptimError::UnknownRule {
                name: text.to_string(),
                known: known().map(Rule::name).collect::<Vec<_>>().join(", "),
            })
    }
}

/// What a matrix does in a network, which decides how it votes under [`Rule::Spectral`] and
/// [`Rule::Muon`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role<'a> {
    /// It maps hidden activations to hidden activations. Several such matrices may be stacked in
    /// one, with these rows each (queries, keys and values); an empty list is one matrix.
    Hidden(&'a [usize]),
    /// It borders on tokens: an embedding, the head.
    Edge,
}

/// A matrix that begins to learn.
pub(crate) struct NewMatrix<'a> {
    pub(crate) size: (usize, usize),
    /// (rows, cols) values ~ N(0, std²).
    pub(crate) initial: Vec<f32>,
    /// The grid, where the rule wants one.
    pub(crate) grid: Option<&'a Grid>,
    pub(crate) std: f32,
    pub(crate) scale_per_std: f32,
    /// Columns that share a scale, at most all.
    pub(crate) group: usize,
    pub(crate) many_micro_batches: bool,
    pub(crate) role: Role<'a>,
}

/// A matrix that is not there yet.
#[derive(Clone, Copy, Debug)]
pub struct MatrixPlan<'a> {
    /// (rows, cols).
    pub size: (usize, usize),
    /// The grid, or `None` for a float matrix.
    pub grid: Option<&'a Grid>,
    /// Columns that share a scale; 0, or more than there are, is one scale per row.
    pub group: usize,
    /// Whether a step has more than one micro-batch.
    pub many_micro_batches: bool,
    /// What it does in its network.
    pub role: Role<'a>,
}

/// The values of a matrix.
#[derive(Clone, Debug)]
pub(crate) enum Values {
    Grid(QuantMatrix),
    /// (rows, cols) f32, row-major.
    Dense(Vec<f32>),
}

/// The same, borrowed.
pub(crate) enum ValuesRef<'a> {
    Grid(&'a QuantMatrix),
    Dense(&'a [f32]),
}

/// The same, borrowed to be changed.
pub(crate) enum ValuesMut<'a> {
    Grid(&'a mut QuantMatrix),
    Dense(&'a mut Vec<f32>),
}

/// Where a gradient belongs.
pub(crate) struct Place {
    /// The matrix's number in the run, which selects its random numbers.
    pub(crate) tensor: u16,
    pub(crate) micro_batch: u16,
    /// Rows, from a multiple of [`crate::TILE_ROWS`] on.
    pub(crate) rows: Range<usize>,
}

/// Writes dL/dW of some rows, row-major.
pub(crate) type MakeRows<'a> = &'a (dyn Fn(Range<usize>, &mut [f32]) + Sync);

/// What a count of some rows of a matrix gave: sums whose order does not matter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Weights that moved.
    pub flips: u64,
    /// Sum of the squares of their summed votes, 0 where the rule does not use it.
    pub sum_votes_sq: i64,
}

impl std::ops::Add for Counted {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Counted {
            flips: self.flips + other.flips,
            sum_votes_sq: self.sum_votes_sq + other.sum_votes_sq,
        }
    }
}

/// A matrix that learns by one rule: its values and all that the rule remembers of it.
///
/// A step is [`begin_step`](LearningRule::begin_step), then for each micro-batch
/// [`accumulate`](LearningRule::accumulate) tile by tile and
/// [`end_micro_batch`](LearningRule::end_micro_batch), then [`count`](LearningRule::count) of
/// all rows, possibly spread over ranks, and [`finish_step`](LearningRule::finish_step);
/// [`discard`](LearningRule::discard) takes the place of the last two where a number was not
/// finite.
pub(crate) trait LearningRule: fmt::Debug + Send + Sync {
    /// The values.
    fn values(&self) -> ValuesRef<'_>;

    /// The values, for a checkpoint or another device to replace.
    fn values_mut(&mut self) -> ValuesMut<'_>;

    /// The values alone.
    fn into_values(self: Box<Self>) -> Values;

    /// Prepares the factors of a step.
    ///
    /// # Errors
    /// [`OptimError::MicroBatches`] where the step has more than the matrix was made for.
    fn begin_step(&mut self, _ctx: &StepContext<'_>) -> Result<(), OptimError> {
        Ok(())
    }

    /// Takes a gradient; returns how many of its rows or tiles were not finite and do not count.
    fn accumulate(&mut self, ctx: &StepContext<'_>, at: Place, make: MakeRows<'_>) -> u32;

    /// Ends a micro-batch: folds its partial sums in tile order.
    fn end_micro_batch(&mut self, _ctx: &StepContext<'_>) {}

    /// Moves codes by the votes of `rows`.
    fn count(&mut self, _ctx: &StepContext<'_>, _tensor: u16, _rows: Range<usize>) -> Counted {
        Counted::default()
    }

    /// Moves float parts after all rows are counted. Returns flips beyond the `counted` ones.
    fn finish_step(&mut self, ctx: &StepContext<'_>, grad_factor: f32, counted: Counted) -> u64;

    /// Drops the gradients and votes of a step that is not taken.
    fn discard(&mut self);

    /// Begins anew with values that replaced the old ones: what was remembered is of no use.
    fn forget(&mut self) {}

    /// The float gradient of the step so far, a sum over micro-batches.
    fn float_gradient(&self) -> &[f32];

    /// The sum of its squares, as far as it counts for the clip of the global norm.
    fn grad_sum_squares(&self, isa: Isa) -> f64 {
        sum_squares(isa, self.float_gradient())
    }

    /// Walks over the float sums of the step so far.
    fn step_sums(&mut self, to: &mut dyn StepSums);

    /// (rows, cols) summed votes of the step so far; empty without.
    fn votes_mut(&mut self) -> &mut [i16] {
        &mut []
    }

    /// (rows, cols) persistent votes; empty without.
    fn ballot(&self) -> &[i8] {
        &[]
    }

    /// The same, to be replaced.
    fn ballot_mut(&mut self) -> &mut [i8] {
        &mut []
    }

    /// Whether all rows have to be counted at once.
    fn counts_whole(&self) -> bool {
        false
    }

    /// Walks over what the rule remembers; `name` is the matrix's.
    fn visit<'a>(&'a self, name: &str, to: &mut dyn StateVisitor<'a>);

    /// Reads it back.
    fn load(&mut self, name: &str, file: &TensorFile) -> Result<(), OptimError>;

    /// What is allocated beside the codes or float values; scales count as float state.
    fn bytes(&self) -> WeightBytes;

    /// Bytes of what a checkpoint stores beside the values and scales: of the kind that grows
    /// with the weights, and float state of scales and statistics.
    fn persistent_bytes(&self) -> (u64, u64);

    /// The state, for another device to take and give back.
    fn parts_mut(&mut self) -> WeightParts<'_>;

    /// A copy.
    fn boxed(&self) -> Box<dyn LearningRule>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for &rule in Rule::ALL {
            assert_eq!(rule.name().parse::<Rule>().unwrap(), rule);
            assert_eq!(serde_json::to_string(&rule).unwrap(), format!("\"{rule}\""));
        }
        let error = "consensu".parse::<Rule>().unwrap_err().to_string();
        assert!(error.contains("consensus"), "{error}");
    }
}
