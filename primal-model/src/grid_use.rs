//! How every layer uses its grid and its ballots; the metrics record it with each evaluation.

use primal_optim::Weight;

use crate::layers::Param;
use crate::metrics::{BALLOT_BINS, LayerRow};
use crate::model::Model;
use crate::parameters::Parameters;

/// Votes of a bin of the ballots' histogram.
const BIN_VOTES: i32 = 16;

/// Remembers what was flipped before, so that rates are means since the last look.
pub(crate) struct GridUse {
    step: u32,
    /// Flips by matrix, in the model's order.
    flips: Vec<u64>,
}

impl GridUse {
    /// Begins to count at `step`.
    pub(crate) fn new(model: &Model, step: u32) -> Self {
        GridUse {
            step,
            flips: grid_weights(model).map(Weight::flips).collect(),
        }
    }

    /// One row a layer that lives on a grid, in the model's order.
    pub(crate) fn rows(&mut self, model: &Model, step: u32) -> Vec<LayerRow> {
        let steps = f64::from(step.saturating_sub(self.step).max(1));
        let mut rows: Vec<LayerRow> = Vec::new();
        for (weight, before) in grid_weights(model).zip(&mut self.flips) {
            let Some(matrix) = weight.quant() else {
                continue;
            };
            let flips = weight.flips() - *before;
            *before = weight.flips();
            let layer = layer_name(weight.name());
            let grid = matrix.grid().id();
            if rows
                .last()
                .is_none_or(|row| row.layer != layer || row.grid != grid)
            {
                rows.push(LayerRow {
                    step,
                    layer: layer.to_string(),
                    grid: grid.to_string(),
                    weights: 0,
                    flip_rate: 0.0,
                    code_counts: vec![0; matrix.grid().len()],
                    ballot_counts: Vec::new(),
                    ballot_saturated: 0.0,
                });
            }
            let Some(row) = rows.last_mut() else {
                continue;
            };
            row.weights += (matrix.rows() * matrix.cols()) as u64;
            // Counts until every matrix of the layer is in; then fractions.
            row.flip_rate += flips as f64;
            add(&mut row.code_counts, &matrix.code_histogram());
            if let Some(ballot) = weight.ballot() {
                row.ballot_counts.resize(BALLOT_BINS, 0);
                let (counts, saturated) = ballot_histogram(ballot);
                add(&mut row.ballot_counts, &counts);
                row.ballot_saturated += saturated as f64;
            }
        }
        for row in &mut rows {
            row.flip_rate /= row.weights as f64 * steps;
            row.ballot_saturated /= row.weights as f64;
        }
        self.step = step;
        rows
    }
}

fn grid_weights(model: &Model) -> impl Iterator<Item = &Weight> {
    model.params().into_iter().filter_map(|param| match param {
        Param::Matrix(weight) if weight.quant().is_some() => Some(weight),
        _ => None,
    })
}

/// `blocks.3.qkv` belongs to layer `blocks.3`; what is in no block is a layer of its own.
fn layer_name(tensor: &str) -> &str {
    let mut dots = tensor.match_indices('.').map(|(at, _)| at);
    match (tensor.starts_with("blocks."), dots.next(), dots.next()) {
        (true, Some(_), Some(second)) => &tensor[..second],
        _ => tensor,
    }
}

fn add(sums: &mut [u64], counts: &[u64]) {
    for (sum, count) in sums.iter_mut().zip(counts) {
        *sum += count;
    }
}

/// Counts by bin, and ballots at the limit.
fn ballot_histogram(ballot: &[i8]) -> ([u64; BALLOT_BINS], u64) {
    let mut by_votes = [0u64; 256];
    for &votes in ballot {
        by_votes[usize::from(votes as u8)] += 1;
    }
    let mut counts = [0; BALLOT_BINS];
    for votes in i8::MIN..=i8::MAX {
        let bin = (i32::from(votes) + BIN_VOTES * 8 + BIN_VOTES / 2) / BIN_VOTES;
        counts[bin.clamp(0, BALLOT_BINS as i32 - 1) as usize] += by_votes[usize::from(votes as u8)];
    }
    let saturated = by_votes[127] + by_votes[usize::from(-127i8 as u8)];
    (counts, saturated)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_named_by_block() {
        assert_eq!(layer_name("blocks.12.qkv"), "blocks.12");
        assert_eq!(layer_name("tok_embedding"), "tok_embedding");
        assert_eq!(layer_name("blocks.odd"), "blocks.odd");
    }

    #[test]
    fn the_middle_bin_is_around_zero_and_the_ends_hold_the_limit() {
        let (counts, saturated) = ballot_histogram(&[0, -7, 7, -8, 8, 127, -127, 126, 100]);
        assert_eq!((counts[8], counts[7], counts[9]), (4, 0, 1));
        assert_eq!((counts[0], counts[16], saturated), (1, 2, 2));
        assert_eq!(counts.iter().sum::<u64>(), 9);
    }
}
