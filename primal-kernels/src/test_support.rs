//! Shared by the tests: reproducible noise and comparison with a float64 oracle.

/// `len` numbers in -1..1 that look random, the same for the same `seed`.
pub(crate) fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(1);
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32) / (1u64 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// Asserts |got - want| <= tolerance · (largest |want|) everywhere.
pub(crate) fn assert_close(got: &[f32], want: &[f64], tolerance: f64, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    let largest = want.iter().fold(f64::MIN_POSITIVE, |m, w| m.max(w.abs()));
    for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(g) - w).abs() / largest;
        assert!(
            error <= tolerance,
            "{what}[{i}]: {g} instead of {w}, off by {error:.1e} of {largest}"
        );
    }
}

/// Central differences of `f` at `x` in float64, at every `step`-th position.
pub(crate) fn differences(x: &[f32], step: usize, f: impl Fn(&[f64]) -> f64) -> Vec<(usize, f64)> {
    const H: f64 = 1e-5;
    let mut at: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
    let mut slope = |i: usize| {
        let centre = at[i];
        at[i] = centre + H;
        let above = f(&at);
        at[i] = centre - H;
        let below = f(&at);
        at[i] = centre;
        (i, (above - below) / (2.0 * H))
    };
    (0..x.len()).step_by(step).map(&mut slope).collect()
}

/// [`assert_close`] at the positions of `want`.
pub(crate) fn assert_close_at(got: &[f32], want: &[(usize, f64)], tolerance: f64, what: &str) {
    let picked: Vec<f32> = want.iter().map(|&(i, _)| got[i]).collect();
    let values: Vec<f64> = want.iter().map(|&(_, value)| value).collect();
    assert_close(&picked, &values, tolerance, what);
}

/// What `run` returns on a pool of one thread and on one of two.
pub(crate) fn on_one_and_two_threads<R: Send>(run: impl Fn() -> R + Sync) -> [R; 2] {
    [1, 2].map(|threads| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(&run)
    })
}
