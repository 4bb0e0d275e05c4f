//! Splitting the rows of a matrix into tiles that run in parallel, without allocating.

/// Rows of a tile: the unit in which weight gradients are computed, used and dropped.
/// Fixed, so partial sums by tile do not depend on the thread count.
pub const TILE_ROWS: usize = 64;

/// Per-row buffers that can be cut at a row.
pub(crate) trait SplitRows: Sized + Send {
    /// Rows covered.
    fn rows(&self) -> usize;
    /// Cuts at `row`, a multiple of [`TILE_ROWS`].
    fn split_at(self, row: usize) -> (Self, Self);
}

/// Runs `work` on every tile and adds up what it returns. Only order-free sums (integers,
/// flags) may be returned; float partial sums go into one slot a tile.
pub(crate) fn for_each_tile<S, R>(rows: S, work: &(impl Fn(S) -> R + Sync)) -> R
where
    S: SplitRows,
    R: std::ops::Add<Output = R> + Send,
{
    let n_tiles = rows.rows().div_ceil(TILE_ROWS);
    if n_tiles <= 1 {
        return work(rows);
    }
    let (left, right) = rows.split_at(n_tiles / 2 * TILE_ROWS);
    let (a, b) = rayon::join(|| for_each_tile(left, work), || for_each_tile(right, work));
    a + b
}

/// Cuts `rows * width` elements off the front of a slice.
pub(crate) fn cut<T>(slice: &mut [T], rows: usize, width: usize) -> (&mut [T], &mut [T]) {
    let at = (rows * width).min(slice.len());
    slice.split_at_mut(at)
}
