//! Criterion over every kernel workload on every tier: `cargo bench -p primal-benches`.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use primal_benches::{Size, workloads};
use primal_kernels::Isa;

fn kernels(criterion: &mut Criterion) {
    for isa in Isa::available() {
        let list = match workloads(isa, Size::Real) {
            Ok(list) => list,
            Err(error) => panic!("the workloads cannot be made: {error}"),
        };
        for mut workload in list {
            let name = workload
                .name
                .split(' ')
                .next()
                .unwrap_or_default()
                .to_string();
            let mut group = criterion.benchmark_group(name);
            group.sample_size(10);
            group.throughput(match workload.bytes {
                0 => Throughput::Elements(workload.flops),
                bytes => Throughput::Bytes(bytes),
            });
            let id = format!("{} {}", workload.name, isa.name());
            group.bench_function(id, |bencher| bencher.iter(|| workload.run()));
        }
    }
}

criterion_group!(benches, kernels);
criterion_main!(benches);
