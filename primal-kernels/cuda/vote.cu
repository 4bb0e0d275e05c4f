// Votes: casting, counting and flipping, and the statistics that normalise them. Integers and
// float sums both equal the CPU's (vote/cast.rs, vote/count.rs, primal-optim consensus.rs).
//
// A weight gradient exists for a group of rows at a time, in a buffer that fits the L2 cache:
// the product writes it, two launches use it up. It cannot be used up in the epilogue of the
// product itself, since a row's votes are normalised by the squares of the whole row, which
// several tiles make.

// What lives with a matrix from step to step, and for a step.
struct Ballots {
    i8* ballot;        // (rows, cols)
    i16* votes;        // (rows, cols), summed over a step's micro-batches; null if there is one
    float* row_mean;   // (rows)
    float* col_mean;   // (cols)
    float* row_sum;    // (rows) sums over the micro-batches
    float* col_sum;    // (cols)
    float* tile_col;   // (tiles of 64 rows, cols) sums of squares by column
    float* row_u_sq;   // (rows) sums of squared expected votes of a micro-batch
    float* row_var;    // (rows) and of the variance that rounding adds
    float* col_factor; // (cols) 1 / sqrt(C_j / mean(C))
    float* moments;    // (4): running A, B, updates made; 1 / sqrt(c)
    double* cast_sums; // (2): expected squares, rounding variance of a step
    u64* counted;      // (2): flips, sum of squared votes
};

// 1 / sqrt(C_j / mean(C)) and 1 / sqrt(c) for a step; clears the step's sums. One block.
KERNEL __launch_bounds__(256)
    begin_votes(Ballots b, int rows, int cols, float micro_batches) {
    __shared__ float part[256];
    __shared__ float mean_of_columns;
    float sum = 0.0f;
    for (int start = 0; start < cols; start += 256) {
        int count = min(256, cols - start);
        __syncthreads();
        if ((int)threadIdx.x < count) part[threadIdx.x] = b.col_mean[start + threadIdx.x];
        __syncthreads();
        // In order, as an iterator on the CPU adds.
        if (threadIdx.x == 0) {
            for (int i = 0; i < count; ++i) sum = sum + part[i];
        }
    }
    if (threadIdx.x == 0) {
        mean_of_columns = sum / (float)cols;
        float a = b.moments[0], expected = b.moments[1], ratio = 1.0f;
        if (micro_batches > 1.0f && expected > 0.0f) {
            ratio = a / (micro_batches * expected);
            float least = 1.0f / micro_batches;
            if (ratio < least) ratio = least;
            if (ratio > 1.0f) ratio = 1.0f;
        }
        b.moments[3] = 1.0f / sqrtf(ratio);
        b.cast_sums[0] = 0.0;
        b.cast_sums[1] = 0.0;
        b.counted[0] = 0;
        b.counted[1] = 0;
    }
    __syncthreads();
    float mean = mean_of_columns;
    for (int c = threadIdx.x; c < cols; c += 256) {
        float relative = b.col_mean[c] / mean;
        if (!(relative >= MIN_COLUMN)) relative = MIN_COLUMN;
        b.col_factor[c] = mean > 0.0f ? 1.0f / sqrtf(relative) : 1.0f;
        b.col_sum[c] = 0.0f;
    }
    for (int r = threadIdx.x; r < rows; r += 256) b.row_sum[r] = 0.0f;
}

// tile_col = sums over tiles of 64 rows of (grad scale)^2 by column; a thread has a column.
KERNEL __launch_bounds__(256)
    vote_columns(const float* __restrict__ grad, Weights w, Ballots b, int first_row, int rows) {
    int col = blockIdx.x * blockDim.x + threadIdx.x;
    if (col >= w.cols) return;
    int first = blockIdx.y * TILE_ROWS, end = min(first + TILE_ROWS, rows);
    float sum = 0.0f;
    for (int row = first; row < end; ++row) {
        float scaled = grad[(size_t)row * w.cols + col] * w.scales[first_row + row];
        sum = sum + scaled * scaled;
    }
    b.tile_col[(size_t)(first_row / TILE_ROWS + blockIdx.y) * w.cols + col] = sum;
}

// Casts the votes of `rows` rows from first_row on (a multiple of TILE_ROWS): half a warp a row.
// grad (rows, cols) is dL/dW; d_scale (of the whole matrix) receives dL/ds. A row that is not
// finite casts nothing and sets *bad.
KERNEL __launch_bounds__(256)
    cast_votes(const float* __restrict__ grad, Weights w, Ballots b, int first_row, int rows,
               float votes_per_unit, float vote_clip, float blend_old, float blend_new, VoteRng rng,
               float* d_scale, u32* bad) {
    __shared__ float table[32];
    load_table(w, table);
    __syncthreads();
    int at = half_warp_row(), lane = lane_of_row(), cols = w.cols;
    if (at >= rows) return;
    int row = first_row + at;
    grad += (size_t)at * cols;
    float scale = w.scales[row];
    float sum_sq = 0.0f, dot = 0.0f, nothing = 0.0f;
    for (int c = lane; c < cols; c += LANES) {
        float g = grad[c], scaled = g * scale;
        sum_sq = sum_sq + scaled * scaled;
        dot = g * table[code_at(w, row, c)] + dot;
        // Zero for a finite number, NaN for any other.
        nothing = g * 0.0f + nothing;
    }
    sum_sq = sum_lanes(sum_sq);
    dot = sum_lanes(dot);
    nothing = sum_lanes(nothing);
    bool finite = nothing == 0.0f && dot - dot == 0.0f && sum_sq - sum_sq == 0.0f;
    float row_sq = sum_sq / (float)cols;
    float scale_sq = blend_old * b.row_mean[row] + blend_new * row_sq;
    if (lane == 0) {
        b.row_u_sq[row] = 0.0f;
        b.row_var[row] = 0.0f;
        if (finite) {
            d_scale[row] = d_scale[row] + dot;
            b.row_sum[row] = b.row_sum[row] + row_sq;
        } else {
            atomicOr(bad, 1u);
        }
    }
    if (!finite || scale_sq <= 0.0f) return;

    float unit = votes_per_unit * b.moments[3];
    float limit = min_of(vote_clip * unit, 32767.0f);
    float row_factor = scale * unit / sqrtf(scale_sq);
    float sum_u_sq = 0.0f, sum_var = 0.0f;
    for (int block = 0; block * 128 < cols; ++block) {
        Words words = draw(rng, row, block, lane);
        #pragma unroll
        for (int vec = 0; vec < 8; ++vec) {
            int c = block * 128 + vec * 16 + lane;
            if (c >= cols) continue;
            float minus_u = grad[c] * row_factor * b.col_factor[c];
            float size = min_of(max_of(fabsf(minus_u), 0.0f), limit);
            sum_u_sq = size * size + sum_u_sq;
            // |u| in 16.16 fixed point: below 2^31 even with the uniform added.
            int fixed = (int)(size * 65536.0f);
            float fraction = (float)(fixed & 0xffff);
            sum_var = fraction * (65536.0f - fraction) + sum_var;
            int vote = (int)((u32)(fixed + (int)uniform16(words, vec)) >> 16);
            int sign = __float_as_int(minus_u) >> 31;
            vote = sign - (vote ^ sign);
            size_t element = (size_t)row * cols + c;
            if (b.votes) {
                int sum = b.votes[element] + vote;
                b.votes[element] = (i16)max(min(sum, WIDE_VOTE_LIMIT), -WIDE_VOTE_LIMIT);
            } else {
                int sum = b.ballot[element] + vote;
                b.ballot[element] = (i8)max(min(sum, BALLOT_LIMIT), -BALLOT_LIMIT);
            }
        }
    }
    sum_u_sq = sum_lanes(sum_u_sq);
    sum_var = sum_lanes(sum_var);
    if (lane == 0) {
        b.row_u_sq[row] = sum_u_sq;
        b.row_var[row] = sum_var * (1.0f / (65536.0f * 65536.0f));
    }
}

// Ends a micro-batch: folds the partial sums of its tiles in order, and adds that to the sums of the
// step. Block 0 does the scalars too.
KERNEL __launch_bounds__(256) end_votes(Ballots b, int rows, int cols) {
    int tiles = (rows + TILE_ROWS - 1) / TILE_ROWS;
    int col = blockIdx.x * blockDim.x + threadIdx.x;
    if (col < cols) {
        float sum = 0.0f;
        for (int tile = 0; tile < tiles; ++tile) sum = sum + b.tile_col[(size_t)tile * cols + col];
        b.col_sum[col] = b.col_sum[col] + sum;
    }
    if (blockIdx.x == 0) {
        // 256 tiles at a time: a thread adds the rows of one up, thread 0 folds them.
        __shared__ float u_sq[256], var[256];
        double expected = 0.0, rounding = 0.0;
        for (int start = 0; start < tiles; start += 256) {
            int tile = start + threadIdx.x;
            float u = 0.0f, v = 0.0f;
            for (int row = tile * TILE_ROWS; row < min((tile + 1) * TILE_ROWS, rows); ++row) {
                u = u + b.row_u_sq[row];
                v = v + b.row_var[row];
            }
            __syncthreads();
            u_sq[threadIdx.x] = u;
            var[threadIdx.x] = v;
            __syncthreads();
            if (threadIdx.x == 0) {
                for (int i = 0; i < min(256, tiles - start); ++i) {
                    expected = expected + (double)u_sq[i];
                    rounding = rounding + (double)var[i];
                }
            }
        }
        if (threadIdx.x == 0) {
            b.cast_sums[0] = b.cast_sums[0] + expected;
            b.cast_sums[1] = b.cast_sums[1] + rounding;
        }
    }
}

// A row of codes that a half-warp changes: a lane has a column of every vector of sixteen, so
// neighbouring lanes share a byte.
struct CodeRow {
    u8* nibbles;  // (row_bytes)
    u8* high;     // (high_row_bytes), null for a narrow grid
    int row_bytes, high_row_bytes;

    DEVICE CodeRow(const Weights& w, u8* all_nibbles, u8* all_high, size_t row)
        : nibbles(all_nibbles + row * w.row_bytes),
          high(all_high ? all_high + row * w.high_row_bytes : all_high),
          row_bytes(w.row_bytes), high_row_bytes(w.high_row_bytes) {}

    // Codes behind the last column fill its byte; they stay.
    DEVICE int load(int c) const {
        int code = 0;
        if (c / 2 < row_bytes) code = (nibbles[c / 2] >> (c % 2 * 4)) & 15;
        if (high && c / 8 < high_row_bytes) code |= ((high[c / 8] >> (c % 8)) & 1) << 4;
        return code;
    }
    // All lanes store their columns at once; `real` says whether there is such a column.
    DEVICE void store(int c, int code, bool real) const {
        // The whole half-warp has read its codes before any of them changes.
        u32 mask = half_mask();
        int neighbour = __shfl_xor_sync(mask, code, 1, LANES);
        u32 bits = __ballot_sync(mask, code & 16) >> (threadIdx.x & 16);
        if (!real) return;
        int lane = c % LANES;
        if (lane % 2 == 0) nibbles[c / 2] = (u8)((code & 15) | (neighbour & 15) << 4);
        if (high && lane % 8 == 0) high[c / 8] = (u8)(bits >> lane);
    }
};

// Counts every row: votes into the ballot, leak, flip where the threshold is reached. Half a warp
// a row; a lane has a column of every vector, neighbouring lanes share a byte of codes.
// thresholds: (2, 32), down then up, none as a number that no ballot reaches.
KERNEL __launch_bounds__(256)
    count_votes(Weights w, u8* nibbles, u8* high, Ballots b, const int* __restrict__ thresholds,
                u32 leak_q24, VoteRng rng, int rows) {
    __shared__ int threshold_of[64];
    if (threadIdx.x < 64) threshold_of[threadIdx.x] = thresholds[threadIdx.x];
    __syncthreads();
    int row = half_warp_row(), lane = lane_of_row(), cols = w.cols;
    if (row >= rows) return;
    CodeRow codes(w, nibbles, high, row);
    u32 flips = 0;
    u64 votes_sq = 0;
    for (int block = 0; block * 128 < cols; ++block) {
        Words words = draw(rng, row, block, lane);
        #pragma unroll 1
        for (int vec = 0; vec < 8; ++vec) {
            int first = block * 128 + vec * 16, c = first + lane;
            if (first >= cols) break;
            bool real = c < cols;
            size_t element = (size_t)row * cols + c;
            int code = codes.load(c), ballot = 0;
            if (real) {
                ballot = b.ballot[element];
                if (b.votes) {
                    int vote = b.votes[element];
                    b.votes[element] = 0;
                    ballot += vote;
                    votes_sq += (u64)((i64)vote * vote);
                }
            }
            ballot = max(min(ballot, BALLOT_LIMIT), -BALLOT_LIMIT);
            int sign = ballot >> 31;
            u32 size = (u32)abs(ballot);
            // At most 127 * 2^24 + 2^24 - 256: below 2^31.
            u32 uniform = vec % 2 ? words.w[vec / 2] >> 16 : words.w[vec / 2] & 0xffffu;
            size -= (size * leak_q24 + (uniform << 8)) >> 24;
            u32 threshold = (u32)threshold_of[code + (sign ? 0 : 32)];
            if (real && size >= threshold) {
                size -= threshold;
                code += sign | 1;
                flips += 1;
            }
            if (real) b.ballot[element] = (i8)(((int)size ^ sign) - sign);
            codes.store(c, code, real);
        }
    }
    flips = total_of_lanes(flips);
    votes_sq = total_of_lanes(votes_sq);
    if (lane == 0) {
        atomicAdd(&b.counted[0], (u64)flips);
        atomicAdd(&b.counted[1], votes_sq);
    }
}

// Moves the running statistics after a step.
KERNEL __launch_bounds__(256)
    update_statistics(Ballots b, int rows, int cols, float decay, float micro_batches, double unit) {
    float rest = 1.0f - decay;
    float per_row = 1.0f / (micro_batches * (float)rows);
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < rows) b.row_mean[i] = decay * b.row_mean[i] + rest * (b.row_sum[i] / micro_batches);
    if (i < cols) b.col_mean[i] = decay * b.col_mean[i] + rest * (b.col_sum[i] * per_row);
    if (i == 0) {
        if (b.votes && unit > 0.0) {
            double summed = ((double)(i64)b.counted[1] - b.cast_sums[1]) / (unit * unit);
            b.moments[0] = decay * b.moments[0] + rest * (float)summed;
            b.moments[1] = decay * b.moments[1] + rest * (float)(b.cast_sums[0] / (unit * unit));
        }
        b.moments[2] = b.moments[2] + 1.0f;
    }
}
