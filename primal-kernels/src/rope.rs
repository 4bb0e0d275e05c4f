//! Rotary position embedding: queries and keys turned by an angle that grows with the position.

use rayon::prelude::*;

use crate::isa::{Isa, dispatch};
use crate::lanes::{LANES, Lanes};

/// Rows of a task.
const CHUNK_ROWS: usize = 32;

/// Turns the first `heads` heads of every row of `x` by the angles of its position (Su et al.
/// 2021): element i of the first half of a head and element i of the second are one complex
/// number, as in Llama checkpoints of the Hugging Face layout.
///
/// `x` is (n, `row_width`), heads of D = `head_dim` elements come first in a row. `cos` and `sin`
/// are (T, D / 2); row r has position r % T. `back` turns the other way, which is the transpose:
/// it takes a gradient to that of the input.
///
/// # Panics
/// If `head_dim` is odd or a length does not match.
pub fn rotate(
    isa: Isa,
    x: &mut [f32],
    row_width: usize,
    heads: usize,
    head_dim: usize,
    (cos, sin): (&[f32], &[f32]),
    back: bool,
) {
    let half = head_dim / 2;
    assert!(
        head_dim.is_multiple_of(2) && half > 0,
        "a head of {head_dim} has no halves"
    );
    assert!(
        heads * head_dim <= row_width,
        "{heads} heads of {head_dim} in rows of {row_width}"
    );
    assert!(
        x.len().is_multiple_of(row_width),
        "{} elements in rows of {row_width}",
        x.len()
    );
    assert!(
        !cos.is_empty() && cos.len().is_multiple_of(half),
        "angles of whole positions"
    );
    assert_eq!(cos.len(), sin.len(), "a sine a cosine");
    let positions = cos.len() / half;
    x.par_chunks_mut(CHUNK_ROWS * row_width)
        .enumerate()
        .for_each(|(chunk, rows)| {
            for (row, x) in (chunk * CHUNK_ROWS..).zip(rows.chunks_exact_mut(row_width)) {
                let angles = row % positions * half..(row % positions + 1) * half;
                let angles = (&cos[angles.clone()], &sin[angles]);
                let heads = &mut x[..heads * head_dim];
                dispatch!(isa, rotate_heads(heads, angles, back));
            }
        });
}

#[inline(always)]
fn rotate_heads<L: Lanes>(lanes: L, heads: &mut [f32], (cos, sin): (&[f32], &[f32]), back: bool) {
    let half = cos.len();
    let (cos, cos_tail) = cos.as_chunks::<LANES>();
    let (sin, sin_tail) = sin.as_chunks::<LANES>();
    for head in heads.chunks_exact_mut(2 * half) {
        let (re, im) = head.split_at_mut(half);
        let (re, re_tail) = re.as_chunks_mut::<LANES>();
        let (im, im_tail) = im.as_chunks_mut::<LANES>();
        for ((re, im), (cos, sin)) in re.iter_mut().zip(im).zip(cos.iter().zip(sin)) {
            let by = (lanes.load(cos), lanes.load(sin));
            let turned = turn(lanes, (lanes.load(re), lanes.load(im)), by, back);
            lanes.store(turned.0, re);
            lanes.store(turned.1, im);
        }
        if !re_tail.is_empty() {
            let by = (lanes.load_tail(cos_tail), lanes.load_tail(sin_tail));
            let number = (lanes.load_tail(re_tail), lanes.load_tail(im_tail));
            let turned = turn(lanes, number, by, back);
            lanes.store_tail(turned.0, re_tail);
            lanes.store_tail(turned.1, im_tail);
        }
    }
}

/// (re + i im) · (cos ± i sin).
#[inline(always)]
fn turn<L: Lanes>(
    lanes: L,
    (re, im): (L::F, L::F),
    (cos, sin): (L::F, L::F),
    back: bool,
) -> (L::F, L::F) {
    let (re_cos, im_cos) = (lanes.mul(re, cos), lanes.mul(im, cos));
    let (re_sin, im_sin) = (lanes.mul(re, sin), lanes.mul(im, sin));
    if back {
        (lanes.add(re_cos, im_sin), lanes.sub(im_cos, re_sin))
    } else {
        (lanes.sub(re_cos, im_sin), lanes.add(im_cos, re_sin))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{
        assert_close, assert_close_at, differences, noise, on_one_and_two_threads,
    };

    /// (rows, positions, heads, other heads of a row, D).
    const SHAPES: [[usize; 5]; 6] = [
        [1, 1, 1, 0, 2],
        [3, 3, 2, 1, 6],
        [6, 3, 1, 2, 30],
        [40, 40, 3, 1, 32],
        [70, 35, 2, 1, 34],
        [66, 1, 4, 0, 128],
    ];

    struct Case {
        shape: [usize; 5],
        x: Vec<f32>,
        cos: Vec<f32>,
        sin: Vec<f32>,
    }

    impl Case {
        fn new(shape: [usize; 5]) -> Case {
            let [rows, positions, heads, others, dim] = shape;
            let angles: Vec<f64> = noise(positions * dim / 2, 1)
                .iter()
                .map(|&x| 4.0 * f64::from(x))
                .collect();
            Case {
                shape,
                x: noise(rows * (heads + others) * dim, 2),
                cos: angles.iter().map(|a| a.cos() as f32).collect(),
                sin: angles.iter().map(|a| a.sin() as f32).collect(),
            }
        }

        fn run(&self, isa: Isa, x: &[f32], back: bool) -> Vec<f32> {
            let [_, _, heads, others, dim] = self.shape;
            let mut y = x.to_vec();
            let angles = (&self.cos[..], &self.sin[..]);
            rotate(
                isa,
                &mut y,
                (heads + others) * dim,
                heads,
                dim,
                angles,
                back,
            );
            y
        }

        fn oracle(&self, x: &[f64]) -> Vec<f64> {
            let [_, positions, heads, others, dim] = self.shape;
            let mut y = x.to_vec();
            for (row, y) in y.chunks_exact_mut((heads + others) * dim).enumerate() {
                for head in y.chunks_exact_mut(dim).take(heads) {
                    for i in 0..dim / 2 {
                        let at = row % positions * dim / 2 + i;
                        let (cos, sin) = (f64::from(self.cos[at]), f64::from(self.sin[at]));
                        let (re, im) = (head[i], head[i + dim / 2]);
                        head[i] = re * cos - im * sin;
                        head[i + dim / 2] = re * sin + im * cos;
                    }
                }
            }
            y
        }
    }

    #[test]
    fn equals_the_formula_and_finite_differences() {
        for shape in SHAPES {
            let case = Case::new(shape);
            let what = format!("{shape:?}");
            let wide: Vec<f64> = case.x.iter().map(|&x| f64::from(x)).collect();
            let got = case.run(Isa::best(), &case.x, false);
            assert_close(&got, &case.oracle(&wide), 1e-6, &what);

            let dy = noise(case.x.len(), 3);
            let dx = case.run(Isa::best(), &dy, true);
            let slopes = differences(&case.x, 1 + case.x.len() / 50, |x| {
                let y = case.oracle(x);
                y.iter().zip(&dy).map(|(y, &dy)| y * f64::from(dy)).sum()
            });
            assert_close_at(&dx, &slopes, 1e-5, &what);
        }
    }

    #[test]
    fn tiers_and_threads_give_equal_bits() {
        for shape in SHAPES {
            let case = Case::new(shape);
            for back in [false, true] {
                let want = case.run(Isa::best(), &case.x, back);
                for isa in Isa::available() {
                    for got in on_one_and_two_threads(|| case.run(isa, &case.x, back)) {
                        assert_eq!(got, want, "{} at {shape:?}", isa.name());
                    }
                }
            }
        }
    }
}
