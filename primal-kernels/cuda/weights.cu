// Reading weights: decoding rows, embedding tokens, the product of a matrix with one vector.

// out (rows, cols) = rows first_row.. of `w`, scale applied. A thread takes a byte: two columns.
KERNEL __launch_bounds__(256) decode_rows(Weights w, float* out, int first_row, int rows) {
    __shared__ float table[32];
    load_table(w, table);
    __syncthreads();
    int pairs = (w.cols + 1) / 2;
    int total = rows * pairs;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < total; i += gridDim.x * blockDim.x) {
        int row = i / pairs, col = i % pairs * 2;
        float* to = out + (size_t)row * w.cols + col;
        to[0] = weight_at(w, table, first_row + row, col);
        if (col + 1 < w.cols) to[1] = weight_at(w, table, first_row + row, col + 1);
    }
}

// out (n, C) = token embedding + position embedding; row i has position (first_position + i) % time.
KERNEL __launch_bounds__(256) embed(Weights tokens_of, Weights positions_of, const u32* tokens,
                                   float* out, int n, int time, int first_position) {
    __shared__ float token_table[32], position_table[32];
    load_table(tokens_of, token_table);
    if (positions_of.cols) load_table(positions_of, position_table);
    __syncthreads();
    int width = tokens_of.cols;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n * width; i += gridDim.x * blockDim.x) {
        int row = i / width, col = i % width;
        float x = weight_at(tokens_of, token_table, tokens[row], col);
        if (positions_of.cols) {
            x = x + weight_at(positions_of, position_table, (first_position + row) % time, col);
        }
        out[i] = x;
    }
}

// y (rows) = W x without writing the weights out: half a warp a row. Each group's products are
// summed before its scale is applied; groups that are not whole vectors scale every weight.
KERNEL __launch_bounds__(256) matvec(Weights w, const float* __restrict__ x, float* y, int rows) {
    __shared__ float table[32];
    load_table(w, table);
    __syncthreads();
    int row = half_warp_row(), lane = lane_of_row();
    if (row >= rows) return;
    float total = 0.0f;
    if (w.dense || (w.groups > 1 && w.group % LANES != 0)) {
        for (int c = lane; c < w.cols; c += LANES) total = weight_at(w, table, row, c) * x[c] + total;
    } else {
        for (int group = 0; group < w.groups; ++group) {
            int end = min((group + 1) * w.group, w.cols);
            float sum = 0.0f;
            #pragma unroll 4
            for (int c = group * w.group + lane; c < end; c += LANES) {
                sum = table[code_at(w, row, c)] * x[c] + sum;
            }
            total = sum * w.scales[(size_t)row * w.groups + group] + total;
        }
    }
    total = sum_lanes(total);
    if (lane == 0) y[row] = total;
}
