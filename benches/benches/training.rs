//! Criterion over whole training steps of the preset `shakespeare-char`.

use criterion::{Criterion, criterion_group, criterion_main};
use primal_benches::training_steps;

fn training(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("training step");
    group.sample_size(10);
    for threads in [1, 2] {
        group.bench_function(format!("shakespeare-char, {threads} threads"), |bencher| {
            bencher.iter_custom(
                |steps| match training_steps("shakespeare-char", threads, steps) {
                    Ok(time) => time,
                    Err(error) => panic!("the run failed: {error}"),
                },
            );
        });
    }
}

criterion_group!(benches, training);
criterion_main!(benches);
