//! Held-out loss over fixed windows: nats a token, perplexity, bits a byte.

use primal_kernels::Isa;

use crate::activations::{Activations, PassPlan};
use crate::config::Compute;
use crate::data::TokenStream;
use crate::error::ModelError;
use crate::model::{Model, Pass};

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

/// Measures `model` on the windows of `tokens` that start at `windows`, each one context long and
/// predicted from its own tokens alone (stride = window). Allocates its own buffers.
pub fn evaluate(
    model: &Model,
    isa: Isa,
    tokens: &TokenStream,
    windows: &[usize],
) -> Result<EvalLoss, ModelError> {
    let mut acts = Activations::new(model.shape(), &PassPlan::for_inference(8, Compute::Float));
    evaluate_with(model, isa, tokens, windows, &mut acts)
}

/// [`evaluate`] with the caller's buffers.
pub(crate) fn evaluate_with(
    model: &Model,
    isa: Isa,
    tokens: &TokenStream,
    windows: &[usize],
    acts: &mut Activations,
) -> Result<EvalLoss, ModelError> {
    let time = model.shape().context.min(tokens.len().saturating_sub(1));
    if windows.is_empty() || time == 0 {
        return Err(ModelError::Eval(
            "the text is shorter than one window".into(),
        ));
    }
    let (mut nats, mut count) = (0.0f64, 0u64);
    let per_pass = (acts.losses().len() / time).max(1);
    let mut inputs = vec![0u32; per_pass * time];
    let mut targets = vec![0u32; per_pass * time];
    for group in windows.chunks(per_pass) {
        let n = group.len() * time;
        for (&start, (input, target)) in group.iter().zip(
            inputs
                .chunks_exact_mut(time)
                .zip(targets.chunks_exact_mut(time)),
        ) {
            tokens.copy_window(start, input, target);
        }
        let pass = Pass {
            first_micro_batch: 0,
            micro_batches: group.len(),
            time,
            tokens: &inputs[..n],
            targets: &targets[..n],
        };
        model.forward(isa, &pass, acts);
        nats += acts.losses()[..n]
            .iter()
            .map(|&loss| f64::from(loss))
            .sum::<f64>();
        count += n as u64;
    }
    let loss = nats / count as f64;
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
