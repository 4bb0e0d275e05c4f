// Layer and root-mean-square normalisation: half a warp a row, as norm.rs.

// y = (x - mean) rstd weight + bias; mean 0 for a root-mean-square norm. bias may be null.
KERNEL __launch_bounds__(256)
    norm_forward(const float* __restrict__ x, const float* __restrict__ weight,
                 const float* __restrict__ bias, float eps, int rms, int n, int width, float* y,
                 float* mean_out, float* rstd_out) {
    int row = half_warp_row(), lane = lane_of_row();
    if (row >= n) return;
    x += (size_t)row * width;
    y += (size_t)row * width;
    float mean = 0.0f;
    if (!rms) {
        float sum = 0.0f;
        for (int c = lane; c < width; c += LANES) sum = sum + x[c];
        mean = sum_lanes(sum) / (float)width;
    }
    float squares = 0.0f;
    for (int c = lane; c < width; c += LANES) {
        float centred = x[c] - mean;
        squares = centred * centred + squares;
    }
    float rstd = 1.0f / sqrtf(sum_lanes(squares) / (float)width + eps);
    for (int c = lane; c < width; c += LANES) {
        float scaled = (x[c] - mean) * rstd * weight[c];
        y[c] = bias ? scaled + bias[c] : scaled;
    }
    if (lane == 0) {
        mean_out[row] = mean;
        rstd_out[row] = rstd;
    }
}

// dx += rstd (g - mean(g) - x^ mean(g x^)) with g = dy weight, x^ = (x - mean) rstd.
KERNEL __launch_bounds__(256)
    norm_backward(const float* __restrict__ dy, const float* __restrict__ x,
                  const float* __restrict__ weight, const float* __restrict__ mean_of,
                  const float* __restrict__ rstd_of, int rms, int n, int width, float* dx) {
    int row = half_warp_row(), lane = lane_of_row();
    if (row >= n) return;
    x += (size_t)row * width;
    dy += (size_t)row * width;
    dx += (size_t)row * width;
    float mean = mean_of[row], rstd = rstd_of[row];
    float sum = 0.0f, dot = 0.0f;
    for (int c = lane; c < width; c += LANES) {
        float g = dy[c] * weight[c];
        sum = sum + g;
        dot = g * ((x[c] - mean) * rstd) + dot;
    }
    float mean_g = rms ? 0.0f : sum_lanes(sum) / (float)width;
    float mean_dot = sum_lanes(dot) / (float)width;
    for (int c = lane; c < width; c += LANES) {
        float normal = (x[c] - mean) * rstd;
        float straight = dy[c] * weight[c] - mean_g - normal * mean_dot;
        dx[c] = straight * rstd + dx[c];
    }
}

// Sums over blocks of 64 rows by column: partial[block] = sum of dy x^ (or of dy, without x).
// A thread has a column of a block; fold_columns adds the blocks up in order.
KERNEL __launch_bounds__(256)
    column_partials(const float* __restrict__ dy, const float* __restrict__ x,
                    const float* __restrict__ mean_of, const float* __restrict__ rstd_of, int n,
                    int width, float* partial) {
    int col = blockIdx.x * blockDim.x + threadIdx.x;
    int first = blockIdx.y * SUM_BLOCK_ROWS;
    if (col >= width) return;
    int end = min(first + SUM_BLOCK_ROWS, n);
    float sum = 0.0f;
    for (int row = first; row < end; ++row) {
        size_t at = (size_t)row * width + col;
        sum = x ? dy[at] * ((x[at] - mean_of[row]) * rstd_of[row]) + sum : sum + dy[at];
    }
    partial[(size_t)blockIdx.y * width + col] = sum;
}

// out (width) += the sum of the rows of partial (blocks, width), in order. A micro-batch is summed
// on its own first: GPUs and ranks compute theirs apart from each other.
KERNEL __launch_bounds__(256) fold_columns(const float* __restrict__ partial, int blocks, int width, float* out) {
    int col = blockIdx.x * blockDim.x + threadIdx.x;
    if (col >= width) return;
    float sum = 0.0f;
    for (int block = 0; block < blocks; ++block) sum = sum + partial[(size_t)block * width + col];
    out[col] = out[col] + sum;
}
