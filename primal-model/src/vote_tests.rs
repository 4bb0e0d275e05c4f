//! How many votes change when a weight gradient is computed with fewer bits.

use primal_kernels::Isa;
use primal_optim::{OptimConfig, StepContext};

use crate::activations::{Activations, PassPlan};
use crate::config::{Compute, Config};
use crate::layers::ParamMut;
use crate::model::{Model, Pass};
use crate::parameters::Parameters;

/// English prose to learn.
const TEXT: &[u8] = include_bytes!("../../README.md");

/// A small model that has learned for a while, the same forward pass whatever `compute`.
struct Learner {
    model: Model,
    config: Config,
    optim: OptimConfig,
    time: usize,
    sequences: usize,
}

impl Learner {
    fn new() -> Learner {
        let mut config = Config::default();
        for change in ["n_layer=2", "n_head=2", "width=96", "context=64"] {
            config.set(&format!("model.{change}")).unwrap();
        }
        Learner {
            model: Model::new(&config, 256).unwrap(),
            config,
            optim: OptimConfig::default(),
            time: 64,
            sequences: 8,
        }
    }

    /// One step's forward and backward pass; with `take`, the step. Returns its votes.
    fn step(&mut self, isa: Isa, compute: Compute, step: u32, take: bool) -> Vec<i16> {
        let plan = PassPlan {
            sequences: self.sequences,
            pieces: 1,
            recompute: Some(0),
            compute,
        };
        let mut acts = Activations::new(self.model.shape(), &plan);
        let ctx = StepContext {
            isa,
            config: &self.optim,
            seed: self.config.train.seed,
            step,
            rate: 1.0,
            micro_batches: 1,
        };
        let starts = (0..self.sequences).map(|s| {
            let place = (step as usize * self.sequences + s) * 997;
            place % (TEXT.len() - self.time - 1)
        });
        let windows: Vec<&[u8]> = starts.map(|s| &TEXT[s..=s + self.time]).collect();
        let column = |from: usize| -> Vec<u32> {
            let tokens = windows.iter().flat_map(|w| &w[from..from + self.time]);
            tokens.map(|&byte| u32::from(byte)).collect()
        };
        let pass = Pass {
            first_micro_batch: 0,
            micro_batches: 1,
            time: self.time,
            tokens: &column(0),
            targets: &column(1),
        };
        self.model.begin_step(&ctx).unwrap();
        assert!(
            self.model
                .forward_backward(&ctx, &pass, &mut acts, &mut [0.0], &mut |_| {})
                .unwrap()
        );
        let mut votes = Vec::new();
        self.model.for_each_mut(&mut |param| {
            if let ParamMut::Matrix(weight) = param {
                votes.extend_from_slice(weight.votes_mut());
            }
        });
        if take {
            self.model.step(&ctx, 1.0);
        } else {
            self.model.discard();
        }
        votes
    }
}

/// Of the weights for which either casts votes: the share with equal votes, and with votes of
/// opposite sign.
fn agreement(a: &[i16], b: &[i16]) -> (f64, f64) {
    assert_eq!(a.len(), b.len());
    let cast = a.iter().zip(b).filter(|(a, b)| **a != 0 || **b != 0);
    let (mut count, mut equal, mut opposite) = (0, 0, 0);
    for (a, b) in cast {
        count += 1;
        equal += usize::from(a == b);
        opposite += usize::from(i32::from(*a) * i32::from(*b) < 0);
    }
    assert!(count > 1000, "{count}");
    let share = |n| n as f64 / count as f64;
    (share(equal), share(opposite))
}

#[test]
fn rounded_weight_gradients_cast_nearly_the_same_votes() {
    let mut learner = Learner::new();
    let isa = Isa::best();
    for step in 0..40 {
        learner.step(isa, Compute::Int8, step, true);
    }
    let exact = learner.step(isa, Compute::Int8FloatGradients, 40, false);
    assert_eq!(
        exact,
        learner.step(isa, Compute::Int8FloatGradients, 40, false)
    );
    for (compute, least) in [(Compute::Int8, 0.9), (Compute::Int8Blocks, 0.8)] {
        let votes = learner.step(isa, compute, 40, false);
        let (equal, opposite) = agreement(&exact, &votes);
        println!(
            "{compute:?}: {:.2} % of votes equal, {:.4} % opposite",
            100.0 * equal,
            100.0 * opposite
        );
        assert!(
            equal > least && opposite < 0.01,
            "{compute:?}: {equal} {opposite}"
        );
    }
}
