//! Walking over the complete state: one walk serves checkpoints, hashing and accounting.

use primal_lut::QuantMatrix;

/// Which half of the state a walk covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatePart {
    /// What inference needs: codes, scales, float values.
    Model,
    /// What only training needs: ballots, statistics, moments, latent weights.
    Optimizer,
}

/// Receives every tensor of a state in a fixed order.
pub trait StateVisitor<'a> {
    /// A matrix on the grid.
    fn quant(&mut self, name: &str, matrix: &'a QuantMatrix);
    /// A float32 tensor, row-major.
    fn f32(&mut self, name: &str, shape: &[usize], values: &'a [f32]);
    /// An int8 tensor, row-major.
    fn i8(&mut self, name: &str, shape: &[usize], values: &'a [i8]);
}

/// Receives the float sums of a step over its micro-batches so far, in a fixed order. The
/// micro-batches add to them one after the other, each of them once.
pub trait StepSums {
    /// Float sums.
    fn f32(&mut self, sums: &mut [f32]);
    /// A float sum in double precision.
    fn f64(&mut self, sum: &mut f64);
}

/// Bytes of a parameter's persistent state, as a checkpoint stores it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Weights that live on the grid.
    pub grid_weights: u64,
    /// Bytes of their codes and ballots (rule `shadow`: latent weights and moments too).
    pub grid_bytes: u64,
    /// Float parameters: row scales, norms, biases, float matrices.
    pub float_weights: u64,
    /// Bytes of float parameters, their moments, and the row and column statistics.
    pub float_bytes: u64,
}

impl Footprint {
    /// Adds another parameter's account.
    pub fn add(&mut self, other: Footprint) {
        self.grid_weights += other.grid_weights;
        self.grid_bytes += other.grid_bytes;
        self.float_weights += other.float_weights;
        self.float_bytes += other.float_bytes;
    }

    /// State bytes of one matrix weight: of grid weights where there are any, else of float ones.
    pub fn bytes_per_weight(&self) -> f64 {
        if self.grid_weights > 0 {
            self.grid_bytes as f64 / self.grid_weights as f64
        } else {
            self.float_bytes as f64 / self.float_weights.max(1) as f64
        }
    }
}
