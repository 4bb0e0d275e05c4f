// The rules beside `consensus`: gradients of scales alone, the votes of `classic`, and codes that
// follow float values. Half a warp a row; the CPU's are in vote/classic.rs and in primal-optim
// (weight.rs, weight/rows.rs).

// d_scale (of the whole matrix) += dL/ds of `rows` rows from first_row on; grad (rows, cols) is
// dL/dW. Where `kept` (of the whole matrix) is not null, the gradient is copied there, and sizes
// (rows, 2) receives the sums of |g| and g^2 of each row.
KERNEL __launch_bounds__(256)
    scale_gradient(const float* __restrict__ grad, Weights w, int first_row, int rows, float* d_scale,
                   float* kept, float* sizes) {
    __shared__ float table[32];
    load_table(w, table);
    __syncthreads();
    int at = half_warp_row(), lane = lane_of_row();
    if (at >= rows) return;
    size_t row = first_row + at;
    grad += (size_t)at * w.cols;
    float dot = 0.0f, sum = 0.0f, sum_sq = 0.0f;
    for (int c = lane; c < w.cols; c += LANES) {
        float g = grad[c];
        dot = g * table[code_at(w, row, c)] + dot;
        sum = sum + fabsf(g);
        sum_sq = g * g + sum_sq;
        if (kept) kept[row * w.cols + c] = g;
    }
    dot = sum_lanes(dot);
    sum = sum_lanes(sum);
    sum_sq = sum_lanes(sum_sq);
    if (lane == 0) {
        d_scale[row] = d_scale[row] + dot;
        if (kept) {
            sizes[2 * row] = sum;
            sizes[2 * row + 1] = sum_sq;
        }
    }
}

// threshold = mean + k std of |g| over a matrix, from the sums of its rows in order. One block.
KERNEL __launch_bounds__(256)
    classic_threshold(const float* __restrict__ sizes, int rows, int cols, float k, float* threshold) {
    __shared__ float part[512];
    double sum = 0.0, sum_sq = 0.0;
    for (int start = 0; start < rows; start += 256) {
        int count = min(256, rows - start);
        __syncthreads();
        for (int i = threadIdx.x; i < 2 * count; i += 256) part[i] = sizes[2 * (size_t)start + i];
        __syncthreads();
        if (threadIdx.x == 0) {
            for (int i = 0; i < count; ++i) {
                sum = sum + (double)part[2 * i];
                sum_sq = sum_sq + (double)part[2 * i + 1];
            }
        }
    }
    if (threadIdx.x == 0) {
        double n = (double)rows * (double)cols, mean = sum / n;
        double variance = sum_sq / n - mean * mean;
        threshold[0] = (float)(mean + (double)k * sqrt(variance > 0.0 ? variance : 0.0));
    }
}

// A vote against the sign of every kept gradient that is larger than the threshold.
KERNEL __launch_bounds__(256)
    cast_classic(const float* __restrict__ kept, const float* __restrict__ threshold, i16* votes,
                 int rows, int cols) {
    int row = half_warp_row();
    if (row >= rows) return;
    float least = threshold[0];
    kept += (size_t)row * cols;
    votes += (size_t)row * cols;
    for (int c = lane_of_row(); c < cols; c += LANES) {
        float g = kept[c];
        if (!(fabsf(g) > least)) continue;
        int sum = votes[c] + (__float_as_int(g) < 0 ? 1 : -1);
        votes[c] = (i16)max(min(sum, WIDE_VOTE_LIMIT), -WIDE_VOTE_LIMIT - 1);
    }
}

// Flips by the sign of a step's votes, with a probability that falls with the scale; clears them.
// Four blocks: left alone, the compiler spills for more.
KERNEL __launch_bounds__(256, 4)
    count_classic(Weights w, u8* nibbles, u8* high, i16* votes, int last_code, float base, VoteRng rng,
                  int rows, u64* flipped) {
    int row = half_warp_row(), lane = lane_of_row(), cols = w.cols;
    if (row >= rows) return;
    CodeRow codes(w, nibbles, high, row);
    votes += (size_t)row * cols;
    float probability = base / fabsf(w.scales[row]);
    if (probability < 1e-4f) probability = 1e-4f;
    if (probability > 0.05f) probability = 0.05f;
    u32 chance = (u32)roundf(probability * 65536.0f), flips = 0;
    for (int block = 0; block * 128 < cols; ++block) {
        Words words = draw(rng, row, block, lane);
        #pragma unroll
        for (int vec = 0; vec < 8; ++vec) {
            int first = block * 128 + vec * 16, c = first + lane;
            if (first >= cols) break;
            bool real = c < cols;
            int old = codes.load(c), code = old;
            if (real) {
                int vote = votes[c];
                votes[c] = 0;
                if (vote != 0 && uniform16(words, vec) < chance) {
                    code = vote > 0 ? min(old + 1, last_code) : max(old - 1, 0);
                }
                flips += code != old;
            }
            codes.store(c, code, real);
        }
    }
    flips = total_of_lanes(flips);
    if (lane == 0) atomicAdd(flipped, (u64)flips);
}

// Midpoints between a grid's values from zero outward, rounded down, then infinities.
struct Midpoints { float at[15]; };

// Codes and scales (rows) of float values (rows, cols): a scale is scale_per_std times the root
// mean square of its row, a code that of the nearest value, of two the one nearer to zero.
KERNEL __launch_bounds__(256)
    snap_rows(const float* __restrict__ latent, Weights w, u8* nibbles, u8* high, float* scales,
              Midpoints midpoints, int zero_code, float scale_per_std, int rows, u64* moved) {
    int row = half_warp_row(), lane = lane_of_row(), cols = w.cols;
    if (row >= rows) return;
    CodeRow codes(w, nibbles, high, row);
    latent += (size_t)row * cols;
    double squares = 0.0;
    for (int start = 0; start < cols; start += SUM_SQUARES_BLOCK) {
        int end = min(start + SUM_SQUARES_BLOCK, cols);
        float sum = 0.0f;
        for (int c = start + lane; c < end; c += LANES) sum = latent[c] * latent[c] + sum;
        squares = squares + (double)sum_lanes(sum);
    }
    float scale = max_of(scale_per_std * sqrtf((float)squares / (float)cols), SMALLEST_SCALE);
    // No scale is infinite: such a row stays as it is.
    if (scale == INFINITE) return;
    if (lane == 0) scales[row] = scale;
    u32 changed = 0;
    for (int first = 0; first < cols; first += LANES) {
        int c = first + lane;
        bool real = c < cols;
        int old = codes.load(c), code = old;
        if (real) {
            float x = latent[c] / scale, size = fabsf(x);
            int steps = 0;
            #pragma unroll
            for (int i = 0; i < 15; ++i) steps += size > midpoints.at[i];
            code = zero_code + (x < 0.0f ? -steps : steps);
            changed += code != old;
        }
        codes.store(c, code, real);
    }
    changed = total_of_lanes(changed);
    if (lane == 0) atomicAdd(moved, (u64)changed);
}
