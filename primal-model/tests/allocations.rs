//! A steady training step allocates nothing of ours. What the `gemm` crate allocates for its
//! packing buffers is counted apart.

use primal_kernels::CountingAllocator;
use primal_model::config::{Config, Rule};
use primal_model::train::Trainer;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator::new();

#[test]
fn steady_steps_allocate_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text.txt");
    std::fs::write(
        &text,
        "the quick brown fox jumps over the lazy dog\n".repeat(40),
    )
    .unwrap();
    for rule in [
        Rule::Spectral,
        Rule::Consensus,
        Rule::Frozen,
        Rule::Adamw,
        Rule::Muon,
    ] {
        for micro_batches in [1, 2] {
            let mut config = Config::preset("shakespeare-char").unwrap();
            config.data.train = vec![text.clone()];
            config.train.run = folder.path().join("run");
            config.train.threads = 1;
            config.train.micro_batches = micro_batches;
            config.optim.rule = rule;
            for change in [
                "model.width=64",
                "model.n_layer=2",
                "model.context=32",
                "train.batch=4",
            ] {
                config.set(change).unwrap();
            }
            let mut trainer = Trainer::new(config).unwrap();
            // Every call enters the thread pool once, which may allocate; steps must not.
            let mut allocations = |steps| {
                let (ours, of_gemm) = ALLOCATOR.counts();
                assert_eq!(trainer.bare_steps(steps), steps);
                let (ours_after, of_gemm_after) = ALLOCATOR.counts();
                assert!(of_gemm_after > of_gemm);
                ours_after - ours
            };
            allocations(2);
            let few = allocations(1);
            assert_eq!(allocations(9), few, "{rule}, {micro_batches} micro-batches");
        }
    }
}
