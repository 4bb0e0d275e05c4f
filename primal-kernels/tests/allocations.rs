//! Batch kernels allocate nothing once they are warm; what the `gemm` crate allocates is told
//! apart.

use primal_kernels as kernels;
use primal_kernels::{AttentionShape, CountingAllocator, CrossEntropyScratch, DenseRows, Isa};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator::new();

#[test]
fn warm_kernels_allocate_nothing() {
    let shape = AttentionShape {
        batch: 3,
        time: 70,
        heads: 4,
        kv_heads: 2,
        head_dim: 16,
        causal: true,
    };
    let (n, c, vocab) = (210, 64, 600);
    let isa = Isa::best();
    let targets: Vec<u32> = (0..n as u32).collect();
    let (x, w) = (vec![0.5; n * c], vec![0.5; vocab * c]);
    let (mut y, mut wide) = (vec![0.0; n * c], vec![0.0; n * vocab]);
    let (qkv, mut dqkv) = (vec![0.5; n * 2 * c], vec![0.0; n * 2 * c]);
    let (mut mean, mut rstd) = (vec![0.0; n], vec![0.0; n]);
    let (mut dweight, mut dbias) = (vec![0.0; c], vec![0.0; c]);
    let (mut losses, mut lse) = (vec![0.0; n], vec![0.0; n * shape.heads]);
    let mut scratch = CrossEntropyScratch::new(n, vocab, c, false);
    let head = DenseRows {
        rows: vocab,
        cols: c,
        values: &w,
    };

    let mut step = || {
        kernels::norm(
            isa,
            kernels::NormKind::Layer,
            &x,
            &w[..c],
            None,
            1e-5,
            c,
            &mut y,
            &mut mean,
            &mut rstd,
        );
        kernels::matmul_nt(&x, &w, &mut wide, n, vocab, c, 70, false);
        kernels::matmul_nn(&wide, &w, &mut y, n, vocab, c, 70, true);
        kernels::matmul_tn_tile(&wide, &x, n, vocab, c, 0..64, &mut dqkv[..64 * c], false);
        kernels::attention(isa, &shape, &qkv, &mut y, &mut lse);
        kernels::attention_backward(isa, &shape, &qkv, &y, &lse, &x, &mut dqkv);
        kernels::gelu_in_place(isa, &mut y);
        kernels::gelu_backward(isa, &x, &mut y);
        kernels::add_bias(isa, &mut y, &w[..c]);
        kernels::sum_rows(isa, &y, c, &mut dbias);
        kernels::norm_backward(
            isa,
            kernels::NormKind::Layer,
            &x,
            &y,
            &w[..c],
            &mean,
            &rstd,
            c,
            &mut dqkv[..n * c],
            &mut dweight,
            Some(&mut dbias),
        );
        let lse = &mut lse[..n];
        kernels::cross_entropy_forward(
            isa,
            &x,
            &head,
            &targets,
            70,
            &mut losses,
            lse,
            &mut scratch,
        );
        for tile in kernels::vocab_tiles(vocab) {
            let dx = Some(&mut y[..]);
            kernels::cross_entropy_backward_tile(
                isa,
                &x,
                &head,
                tile,
                &targets,
                lse,
                0.1,
                70,
                dx,
                &mut scratch,
            );
        }
    };
    // One thread: rayon's own queues, which grow now and then, stay out of the count.
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(1)
        .build()
        .unwrap();
    pool.install(|| {
        step();
        let (ours, of_gemm) = ALLOCATOR.counts();
        step();
        let (ours_after, of_gemm_after) = ALLOCATOR.counts();
        assert_eq!(ours_after, ours, "allocations of ours");
        assert!(of_gemm_after > of_gemm, "the library's are seen apart");
    });
}
