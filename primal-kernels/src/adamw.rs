//! The float part's update, and the small reductions that go with it.

use crate::isa::{Isa, dispatch};
use crate::lanes::{LANES, Lanes};

/// Elements summed in f32 before [`sum_squares`] goes on in f64.
pub(crate) const SUM_BLOCK: usize = 4096;

/// One step's numbers of AdamW (Loshchilov and Hutter 2019, algorithm 2).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamStep {
    /// Learning rate of this step.
    pub rate: f32,
    /// Decay of the running mean of gradients.
    pub beta1: f32,
    /// Decay of the running mean of squared gradients.
    pub beta2: f32,
    /// Added to the root mean square.
    pub eps: f32,
    /// Decoupled weight decay; a step takes `rate * decay` of the value.
    pub decay: f32,
    /// Bias correction of the mean, `1 - beta1^t`.
    pub bias1: f32,
    /// Bias correction of the squares, `1 - beta2^t`.
    pub bias2: f32,
}

/// One AdamW step: `m` and `v` take in `grad`, then
/// `value -= rate * ((m / bias1) / (sqrt(v / bias2) + eps) + decay * value)`. All (n) f32.
///
/// # Panics
/// If the lengths differ.
pub fn adamw(
    isa: Isa,
    value: &mut [f32],
    grad: &[f32],
    m: &mut [f32],
    v: &mut [f32],
    step: &AdamStep,
) {
    let len = value.len();
    assert_eq!(
        [grad.len(), m.len(), v.len()],
        [len; 3],
        "gradient and moments of {len} values"
    );
    dispatch!(isa, adamw_lanes(value, grad, m, v, step));
}

/// The sum of x^2: blocks of 4096 in f32 lanes, added up in f64.
pub fn sum_squares(isa: Isa, x: &[f32]) -> f64 {
    dispatch!(isa, sum_squares_lanes(x))
}

/// √(Σ x² / n) by [`sum_squares`]; `x` is not empty.
pub fn root_mean_square(isa: Isa, x: &[f32]) -> f32 {
    (sum_squares(isa, x) as f32 / x.len() as f32).sqrt()
}

/// x *= factor.
pub fn scale(isa: Isa, x: &mut [f32], factor: f32) {
    dispatch!(isa, scale_lanes(x, factor));
}

/// Whether no element is NaN or infinite.
pub fn all_finite(isa: Isa, x: &[f32]) -> bool {
    dispatch!(isa, all_finite_lanes(x))
}

#[inline(always)]
fn adamw_lanes<L: Lanes>(
    lanes: L,
    value: &mut [f32],
    grad: &[f32],
    m: &mut [f32],
    v: &mut [f32],
    step: &AdamStep,
) {
    let update = AdamLanes {
        beta1: lanes.splat(step.beta1),
        rest1: lanes.splat(1.0 - step.beta1),
        beta2: lanes.splat(step.beta2),
        rest2: lanes.splat(1.0 - step.beta2),
        bias1: lanes.splat(step.bias1),
        bias2: lanes.splat(step.bias2),
        eps: lanes.splat(step.eps),
        decay: lanes.splat(step.decay),
        rate: lanes.splat(step.rate),
    };
    let (value, value_tail) = value.as_chunks_mut::<LANES>();
    let (grad, grad_tail) = grad.as_chunks::<LANES>();
    let (m, m_tail) = m.as_chunks_mut::<LANES>();
    let (v, v_tail) = v.as_chunks_mut::<LANES>();
    for (((value, grad), m), v) in value.iter_mut().zip(grad).zip(m).zip(v) {
        let old = [
            lanes.load(value),
            lanes.load(grad),
            lanes.load(m),
            lanes.load(v),
        ];
        let [new_value, new_m, new_v] = update.step(lanes, old);
        lanes.store(new_value, value);
        lanes.store(new_m, m);
        lanes.store(new_v, v);
    }
    if !value_tail.is_empty() {
        let old = [
            lanes.load_tail(value_tail),
            lanes.load_tail(grad_tail),
            lanes.load_tail(m_tail),
            lanes.load_tail(v_tail),
        ];
        let [new_value, new_m, new_v] = update.step(lanes, old);
        lanes.store_tail(new_value, value_tail);
        lanes.store_tail(new_m, m_tail);
        lanes.store_tail(new_v, v_tail);
    }
}

/// [`AdamStep`] in every lane.
struct AdamLanes<L: Lanes> {
    beta1: L::F,
    rest1: L::F,
    beta2: L::F,
    rest2: L::F,
    bias1: L::F,
    bias2: L::F,
    eps: L::F,
    decay: L::F,
    rate: L::F,
}

impl<L: Lanes> AdamLanes<L> {
    /// Old value, gradient, m and v to new value, m and v.
    #[inline(always)]
    fn step(&self, lanes: L, [value, grad, m, v]: [L::F; 4]) -> [L::F; 3] {
        let m = lanes.mul_then_add(self.beta1, m, lanes.mul(self.rest1, grad));
        let squared = lanes.mul(grad, grad);
        let v = lanes.mul_then_add(self.beta2, v, lanes.mul(self.rest2, squared));
        let root = lanes.add(lanes.sqrt(lanes.div(v, self.bias2)), self.eps);
        let update = lanes.div(lanes.div(m, self.bias1), root);
        let update = lanes.mul_then_add(self.decay, value, update);
        [lanes.sub(value, lanes.mul(self.rate, update)), m, v]
    }
}

#[inline(always)]
fn sum_squares_lanes<L: Lanes>(lanes: L, x: &[f32]) -> f64 {
    let mut total = 0.0;
    for block in x.chunks(SUM_BLOCK) {
        let mut sum = lanes.zero();
        let (whole, tail) = block.as_chunks::<LANES>();
        for x in whole {
            let x = lanes.load(x);
            sum = lanes.mul_then_add(x, x, sum);
        }
        let x = lanes.load_tail(tail);
        total += f64::from(lanes.sum(lanes.mul_then_add(x, x, sum)));
    }
    total
}

#[inline(always)]
fn scale_lanes<L: Lanes>(lanes: L, x: &mut [f32], factor: f32) {
    let factor = lanes.splat(factor);
    let (x, tail) = x.as_chunks_mut::<LANES>();
    for x in x {
        lanes.store(lanes.mul(lanes.load(x), factor), x);
    }
    lanes.store_tail(lanes.mul(lanes.load_tail(tail), factor), tail);
}

#[inline(always)]
fn all_finite_lanes<L: Lanes>(lanes: L, x: &[f32]) -> bool {
    // x * 0 is zero for a finite x and NaN otherwise, and NaN stays in a sum.
    let mut sum = lanes.zero();
    let (x, tail) = x.as_chunks::<LANES>();
    for x in x {
        sum = lanes.mul_then_add(lanes.load(x), lanes.zero(), sum);
    }
    sum = lanes.mul_then_add(lanes.load_tail(tail), lanes.zero(), sum);
    lanes.sum(sum) == 0.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::noise;

    const LENGTHS: [usize; 9] = [0, 1, 15, 16, 17, 65, 128, 300, 9000];

    #[test]
    fn adamw_equals_the_plain_update() {
        let step = AdamStep {
            rate: 3e-3,
            beta1: 0.9,
            beta2: 0.99,
            eps: 1e-8,
            decay: 0.1,
            bias1: 0.19,
            bias2: 0.0199,
        };
        for len in LENGTHS {
            let value = noise(len, 1);
            let grad = noise(len + 1, 2);
            let grad = &grad[1..];
            let m = noise(len, 3);
            let v: Vec<f32> = noise(len, 4).iter().map(|v| v * v).collect();
            let mut want = [value.clone(), m.clone(), v.clone()];
            for i in 0..len {
                let m = step.beta1 * m[i] + (1.0 - step.beta1) * grad[i];
                let v = step.beta2 * v[i] + (1.0 - step.beta2) * (grad[i] * grad[i]);
                let root = (v / step.bias2).sqrt() + step.eps;
                let update = step.decay * value[i] + m / step.bias1 / root;
                (want[0][i], want[1][i], want[2][i]) = (value[i] - step.rate * update, m, v);
            }
            for isa in Isa::available() {
                let mut got = [value.clone(), m.clone(), v.clone()];
                let [got_value, got_m, got_v] = &mut got;
                adamw(isa, got_value, grad, got_m, got_v, &step);
                assert_eq!(got, want, "{}: {len}", isa.name());
            }
        }
    }

    #[test]
    fn squares_and_scaling_equal_plain_loops() {
        for len in LENGTHS {
            let x = noise(len + 1, 5);
            let x = &x[1..];
            let exact: f64 = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
            let first = sum_squares(Isa::available()[0], x);
            let scaled: Vec<f32> = x.iter().map(|x| x * -1.7).collect();
            for isa in Isa::available() {
                let name = isa.name();
                assert_eq!(sum_squares(isa, x), first, "{name}: {len}");
                assert!(
                    (first - exact).abs() <= 1e-5 * exact,
                    "{name}: {first} of {exact}"
                );
                let mut got = x.to_vec();
                scale(isa, &mut got, -1.7);
                assert_eq!(got, scaled, "{name}: {len}");
            }
        }
    }

    #[test]
    fn one_bad_number_anywhere_is_found() {
        for isa in Isa::available() {
            for len in LENGTHS {
                let mut x = vec![f32::MAX; len];
                assert!(all_finite(isa, &x), "{}: {len}", isa.name());
                for at in (0..len).step_by(7) {
                    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                        let good = std::mem::replace(&mut x[at], bad);
                        assert!(!all_finite(isa, &x), "{}: {bad} at {at}", isa.name());
                        x[at] = good;
                    }
                }
            }
        }
    }
}
