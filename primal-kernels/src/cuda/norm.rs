//! Normalisation and sums by column.

use super::buffer::View;
use super::device::{THREADS, blocks_for_rows, launch};
use super::error::CudaError;
use crate::act::BLOCK_ROWS;

/// The sizes of a norm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NormSizes {
    /// Rows.
    pub n: usize,
    /// Columns.
    pub width: usize,
    /// Added to the variance.
    pub eps: f32,
    /// Whether the mean counts as zero (a root-mean-square norm).
    pub rms: bool,
}

/// y = (x − mean) · rstd · weight + bias by row; `mean` and `rstd` (n) are kept for the backward
/// pass.
///
/// # Panics
/// If a length does not match.
pub fn norm_forward(
    sizes: NormSizes,
    x: View<'_, f32>,
    weight: View<'_, f32>,
    bias: Option<View<'_, f32>>,
    y: View<'_, f32>,
    mean: View<'_, f32>,
    rstd: View<'_, f32>,
) -> Result<(), CudaError> {
    let NormSizes { n, width, eps, rms } = sizes;
    launch!(
        y.device,
        "norm_forward",
        blocks_for_rows(n),
        THREADS,
        x.of(n * width, "x is (n, width)"),
        weight.of(width, "a weight a column"),
        bias.map_or(0, |bias| bias.of(width, "a bias a column")),
        eps,
        i32::from(rms),
        n as i32,
        width as i32,
        y.of(n * width, "y is like x"),
        mean.of(n, "a mean a row"),
        rstd.of(n, "an rstd a row"),
    )
}

/// The gradient of [`norm_forward`], **added** to `dx`, `dweight` and `dbias`. `scratch` holds
/// (n / 64 rounded up, width) f32.
///
/// # Panics
/// If a length does not match.
pub fn norm_backward(
    sizes: NormSizes,
    dy: View<'_, f32>,
    x: View<'_, f32>,
    weight: View<'_, f32>,
    (mean, rstd): (View<'_, f32>, View<'_, f32>),
    dx: View<'_, f32>,
    dweight: View<'_, f32>,
    dbias: Option<View<'_, f32>>,
    scratch: View<'_, f32>,
) -> Result<(), CudaError> {
    let NormSizes { n, width, rms, .. } = sizes;
    launch!(
        dx.device,
        "norm_backward",
        blocks_for_rows(n),
        THREADS,
        dy.of(n * width, "dy is like x"),
        x.of(n * width, "x is (n, width)"),
        weight.of(width, "a weight a column"),
        mean.of(n, "a mean a row"),
        rstd.of(n, "an rstd a row"),
        i32::from(rms),
        n as i32,
        width as i32,
        dx.of(n * width, "dx is like x"),
    )?;
    column_sums(n, dy, Some((x, mean, rstd)), dweight, scratch)?;
    match dbias {
        Some(dbias) => column_sums(n, dy, None, dbias, scratch),
        None => Ok(()),
    }
}

/// out (width) += the sums of the columns of dy (n, width): the gradient of a bias. `scratch`
/// holds (n / 64 rounded up, width) f32.
///
/// # Panics
/// If a length does not match.
pub fn fold_column_sums(
    n: usize,
    dy: View<'_, f32>,
    out: View<'_, f32>,
    scratch: View<'_, f32>,
) -> Result<(), CudaError> {
    column_sums(n, dy, None, out, scratch)
}

/// What the weight of a norm multiplies: x, mean and rstd.
type Normal<'a> = (View<'a, f32>, View<'a, f32>, View<'a, f32>);

fn column_sums(
    n: usize,
    dy: View<'_, f32>,
    normal: Option<Normal<'_>>,
    out: View<'_, f32>,
    scratch: View<'_, f32>,
) -> Result<(), CudaError> {
    let width = out.len();
    let blocks = n.div_ceil(BLOCK_ROWS);
    assert!(scratch.len() >= blocks * width, "scratch for column sums");
    let columns = width.div_ceil(THREADS as usize);
    let [x, mean, rstd] = normal.map_or([0; 3], |(x, mean, rstd)| {
        [x, mean, rstd].map(|it| it.address)
    });
    launch!(
        out.device,
        "column_partials",
        [columns, blocks, 1],
        THREADS,
        dy.of(n * width, "dy is (n, width)"),
        x,
        mean,
        rstd,
        n as i32,
        width as i32,
        scratch.address,
    )?;
    launch!(
        out.device,
        "fold_columns",
        [columns, 1, 1],
        THREADS,
        scratch.address,
        blocks as i32,
        width as i32,
        out.address,
    )
}
