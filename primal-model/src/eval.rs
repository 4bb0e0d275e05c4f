//! Held-out loss over fixed windows: nats a token, perplexity, bits a byte; and how far a model
//! is from a reference.

use std::ops::Range;

use primal_kernels::{Isa, fill_rows, matmul_nt, vocab_tiles};
use rayon::prelude::*;

use crate::activations::{Activations, PassPlan};
use crate::config::Compute;
use crate::data::TokenStream;
use crate::error::ModelError;
use crate::model::{Model, Pass};
use crate::shape::ModelShape;

/// Tokens that are read at once.
const PASS_TOKENS: usize = 2048;

/// The loss over a set of windows.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct EvalLoss {
    /// Predicted tokens.
    pub tokens: u64,
    /// Mean loss in nats a token.
    pub loss: f64,
    /// Loss in bits a byte, with the mean bytes a token of the whole text.
    pub bits_per_byte: f64,
}

impl EvalLoss {
    /// e^loss.
    pub fn perplexity(&self) -> f64 {
        self.loss.exp()
    }
}

/// How far a model's predictions are from those of a reference, over the same tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Divergence {
    /// Predictions compared.
    pub tokens: u64,
    /// Mean of Σ p · ln(p / q), p the reference's probabilities and q the model's, in nats.
    pub kl: f64,
    /// Fraction of predictions whose likeliest token is the same.
    pub same_top: f64,
}

/// Where a text is read and what of it counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Windows {
    /// First token of each window.
    starts: Vec<usize>,
    /// Tokens of a window.
    time: usize,
    /// Predictions at the end of each window that count; all of them in the first one.
    counted: usize,
}

impl Windows {
    /// Windows of `time` tokens that begin every `stride` tokens. A prediction is counted once, by
    /// the first window that holds it, so that it sees at least `time - stride` tokens before it
    /// (but for those of the first window). At most `most` predictions are counted, in windows
    /// spread evenly over the text.
    ///
    /// # Errors
    /// [`ModelError::Eval`] for a stride of 0 or above `time`, and for a text of one token.
    pub fn new(
        n_tokens: usize,
        time: usize,
        stride: usize,
        most: usize,
    ) -> Result<Windows, ModelError> {
        let time = time.min(n_tokens.saturating_sub(1));
        if time == 0 {
            return Err(ModelError::Eval(
                "the text is shorter than two tokens".into(),
            ));
        }
        let stride = stride.min(time);
        if stride == 0 {
            return Err(ModelError::Eval("the stride is 0".into()));
        }
        let all = (n_tokens - 1 - time) / stride + 1;
        let wanted = (most / stride).clamp(1, all);
        let starts = (0..wanted).map(|window| window * all / wanted * stride);
        Ok(Windows {
            starts: starts.collect(),
            time,
            counted: stride,
        })
    }

    /// Whole windows that do not overlap, given by their starts.
    pub(crate) fn apart(starts: &[usize], time: usize) -> Windows {
        Windows {
            starts: starts.to_vec(),
            time,
            counted: time,
        }
    }

    /// Tokens of a window.
    pub fn time(&self) -> usize {
        self.time
    }

    /// Number of windows.
    pub(crate) fn len(&self) -> usize {
        self.starts.len()
    }

    /// Some of the windows.
    pub(crate) fn slice(&self, range: Range<usize>) -> Windows {
        Windows {
            starts: self.starts[range].to_vec(),
            ..*self
        }
    }

    /// Predictions that count.
    fn predictions(&self) -> u64 {
        let counted = |&start| self.counted(start).len() as u64;
        self.starts.iter().map(counted).sum()
    }

    /// The predictions of a window that count.
    fn counted(&self, start: usize) -> Range<usize> {
        if start == 0 {
            0..self.time
        } else {
            self.time - self.counted..self.time
        }
    }
}

/// Measures `model` on the windows of `tokens`, its matrices on the grid multiplied as `compute`
/// says. Allocates its own buffers.
///
/// # Errors
/// [`ModelError::Eval`] for a loss that is not finite and for a text of nothing that counts.
pub fn evaluate(
    model: &Model,
    isa: Isa,
    compute: Compute,
    tokens: &TokenStream,
    windows: &Windows,
) -> Result<EvalLoss, ModelError> {
    let mut acts = buffers(model, compute, windows);
    let sums = window_losses(model, isa, tokens, windows, &mut acts)?;
    mean_loss(tokens, windows, &sums)
}

/// Buffers for some windows at once.
fn buffers(model: &Model, compute: Compute, windows: &Windows) -> Activations {
    let shape = ModelShape {
        context: windows.time,
        ..*model.shape()
    };
    let sequences = (PASS_TOKENS / windows.time).clamp(1, windows.starts.len().max(1));
    Activations::new(&shape, &PassPlan::for_inference(sequences, compute))
}

/// [`evaluate`] by whatever computes the sum of the losses of a pass of up to `rows` tokens.
pub(crate) fn evaluate_by(
    tokens: &TokenStream,
    windows: &Windows,
    rows: usize,
    sum_of_losses: &mut dyn FnMut(&Pass<'_>) -> Result<f64, ModelError>,
) -> Result<EvalLoss, ModelError> {
    let mut sums = Vec::new();
    for_each_pass(tokens, windows, rows, &mut |pass| {
        sums.push(sum_of_losses(pass)?);
        Ok(())
    })?;
    mean_loss(tokens, windows, &sums)
}

/// The sum of the losses in nats of each window, with the caller's buffers: to be folded by
/// [`mean_loss`], no matter who computed which of them.
pub(crate) fn window_losses(
    model: &Model,
    isa: Isa,
    tokens: &TokenStream,
    windows: &Windows,
    acts: &mut Activations,
) -> Result<Vec<f64>, ModelError> {
    let mut sums = Vec::with_capacity(windows.len());
    for_each_pass(tokens, windows, acts.losses().len(), &mut |pass| {
        model.forward(isa, pass, acts);
        sums.extend(sums_by_window(pass, acts));
        Ok(())
    })?;
    Ok(sums)
}

/// The sum of the losses of each window of a pass that was just computed.
fn sums_by_window<'a>(
    pass: &'a Pass<'_>,
    acts: &'a Activations,
) -> impl Iterator<Item = f64> + use<'a> {
    let windows = pass.targets.chunks_exact(pass.time);
    let losses = acts.losses().chunks_exact(pass.time);
    windows.zip(losses).map(|(targets, losses)| {
        let pairs = losses.iter().zip(targets);
        let counted = pairs.filter(|&(_, &target)| target != u32::MAX);
        counted.map(|(&loss, _)| f64::from(loss)).sum()
    })
}

/// The loss over `windows` from its parts in their order.
pub(crate) fn mean_loss(
    tokens: &TokenStream,
    windows: &Windows,
    sums: &[f64],
) -> Result<EvalLoss, ModelError> {
    let count = windows.predictions();
    if count == 0 {
        return Err(ModelError::Eval("no token of the text counts".into()));
    }
    let loss = sums.iter().sum::<f64>() / count as f64;
    if !loss.is_finite() {
        return Err(ModelError::Eval(format!(
            "the loss is {loss}: the model is damaged"
        )));
    }
    Ok(EvalLoss {
        tokens: count,
        loss,
        bits_per_byte: loss / (std::f64::consts::LN_2 * tokens.bytes_per_token()),
    })
}

/// [`evaluate`], and the divergence from `reference`, which knows the same tokens and is computed
/// in float.
///
/// # Errors
/// Those of [`evaluate`]; [`ModelError::Eval`] for another vocabulary.
pub fn compare(
    model: &Model,
    reference: &Model,
    isa: Isa,
    compute: Compute,
    tokens: &TokenStream,
    windows: &Windows,
) -> Result<(EvalLoss, Divergence), ModelError> {
    let vocab = model.shape().vocab;
    if reference.shape().vocab != vocab {
        let other = reference.shape().vocab;
        let reason = format!("the reference has {other} tokens, the model {vocab}");
        return Err(ModelError::Eval(reason));
    }
    let mut acts = buffers(model, compute, windows);
    let mut reference_acts = buffers(reference, Compute::Float, windows);
    let (mut sums, mut total) = (Vec::with_capacity(windows.len()), Divergence::default());
    let n = acts.losses().len();
    let mut tiles = Tiles::new(n, vocab);
    for_each_pass(tokens, windows, n, &mut |pass| {
        model.forward(isa, pass, &mut acts);
        reference.forward(isa, pass, &mut reference_acts);
        sums.extend(sums_by_window(pass, &acts));
        tiles.divergence(
            isa,
            (reference, &reference_acts),
            (model, &acts),
            pass,
            &mut total,
        );
        Ok(())
    })?;
    let count = total.tokens.max(1) as f64;
    total.kl /= count;
    total.same_top /= count;
    if !total.kl.is_finite() {
        return Err(ModelError::Eval(format!("the divergence is {}", total.kl)));
    }
    Ok((mean_loss(tokens, windows, &sums)?, total))
}

/// Hands over the windows in passes of up to `rows` tokens; targets that do not count are
/// `u32::MAX`.
fn for_each_pass(
    tokens: &TokenStream,
    windows: &Windows,
    rows: usize,
    each: &mut dyn FnMut(&Pass<'_>) -> Result<(), ModelError>,
) -> Result<(), ModelError> {
    let time = windows.time;
    if tokens.len() <= time {
        return Err(ModelError::Eval(
            "the text is shorter than one window".into(),
        ));
    }
    let per_pass = (rows / time).max(1);
    let mut inputs = vec![0u32; per_pass * time];
    let mut targets = vec![0u32; per_pass * time];
    for starts in windows.starts.chunks(per_pass) {
        let n = starts.len() * time;
        let places = inputs
            .chunks_exact_mut(time)
            .zip(targets.chunks_exact_mut(time));
        for (&start, (input, target)) in starts.iter().zip(places) {
            tokens.copy_window(start, input, target);
            let counted = windows.counted(start);
            target[..counted.start].fill(u32::MAX);
        }
        each(&Pass {
            first_micro_batch: 0,
            micro_batches: starts.len(),
            time,
            tokens: &inputs[..n],
            targets: &targets[..n],
        })?;
    }
    Ok(())
}

/// The logits of two models, a tile of the vocabulary at a time.
struct Tiles {
    /// (rows, tile) each.
    logits: [Vec<f32>; 2],
    /// (tile, C), decoded rows of a head.
    head: Vec<f32>,
    /// (rows): what a row sums up to.
    rows: Vec<RowSums>,
}

#[derive(Clone, Copy)]
struct RowSums {
    kl: f64,
    /// Largest logit and its token, of each model.
    best: [(f32, usize); 2],
}

impl Tiles {
    fn new(rows: usize, vocab: usize) -> Tiles {
        let tile = vocab_tiles(vocab).next().map_or(0, |tile| tile.len());
        let none = RowSums {
            kl: 0.0,
            best: [(f32::NEG_INFINITY, 0); 2],
        };
        Tiles {
            logits: [vec![0.0; rows * tile], vec![0.0; rows * tile]],
            head: Vec::new(),
            rows: vec![none; rows],
        }
    }

    fn divergence(
        &mut self,
        isa: Isa,
        reference: (&Model, &Activations),
        model: (&Model, &Activations),
        pass: &Pass<'_>,
        total: &mut Divergence,
    ) {
        let n = pass.tokens.len();
        for row in &mut self.rows[..n] {
            row.kl = 0.0;
            row.best = [(f32::NEG_INFINITY, 0); 2];
        }
        for tile in vocab_tiles(model.0.shape().vocab) {
            for (logits, (model, acts)) in self.logits.iter_mut().zip([reference, model]) {
                let c = model.shape().width;
                let head = model.head.as_ref().unwrap_or(&model.tok_embedding);
                self.head.resize(tile.len() * c, 0.0);
                fill_rows(isa, head, tile.clone(), &mut self.head);
                let out = &mut logits[..n * tile.len()];
                let x = &acts.output[..n * c];
                matmul_nt(x, &self.head, out, n, tile.len(), c, pass.time, false);
            }
            let [p, q] = &self.logits;
            let lse = (&reference.1.loss_lse[..n], &model.1.loss_lse[..n]);
            let work = self.rows[..n].par_iter_mut().enumerate();
            let len = tile.len();
            work.with_min_len(16).for_each(|(row, sums)| {
                let part = row * len..(row + 1) * len;
                let pairs = p[part.clone()].iter().zip(&q[part]);
                for (token, (&p, &q)) in tile.clone().zip(pairs) {
                    let log_p = f64::from(p - lse.0[row]);
                    let log_q = f64::from(q - lse.1[row]);
                    sums.kl += log_p.exp() * (log_p - log_q);
                    for (best, logit) in sums.best.iter_mut().zip([p, q]) {
                        if logit > best.0 {
                            *best = (logit, token);
                        }
                    }
                }
            });
        }
        for (sums, &target) in self.rows[..n].iter().zip(pass.targets) {
            if target != u32::MAX {
                total.tokens += 1;
                total.kl += sums.kl;
                total.same_top += f64::from(u8::from(sums.best[0].1 == sums.best[1].1));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_count_every_prediction_once() {
        for (n, time, stride) in [
            (101, 20, 20),
            (101, 20, 7),
            (9, 20, 20),
            (50, 49, 1),
            (64, 8, 3),
        ] {
            let windows = Windows::new(n, time, stride, usize::MAX).unwrap();
            let mut counted = vec![0; n];
            for &start in &windows.starts {
                assert!(start + windows.time < n);
                for at in windows.counted(start) {
                    counted[start + at + 1] += 1;
                }
            }
            let last = windows.starts[windows.starts.len() - 1] + windows.time;
            assert!(
                counted[1..=last].iter().all(|n| *n == 1),
                "{n} {time} {stride}: {counted:?}"
            );
            assert!(n - 1 - last < stride.min(windows.time));
        }
        assert_eq!(Windows::new(1001, 10, 10, 200).unwrap().starts.len(), 20);
        assert!(Windows::new(1, 10, 10, 200).is_err());
        assert!(Windows::new(100, 10, 0, 200).is_err());
    }
}
