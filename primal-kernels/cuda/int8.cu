// Products of int8 activations with weights from the grid, summed exactly in int32 by dp4a.
// The sums have no order, so they equal the CPU's on every device; scaling comes once, at the end.

DEVICE int dot4(int a, int b, int c) {
    // As inline PTX: NVRTC 11.8 leaves the __dp4a builtin unresolved.
    int d;
    asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}

// q (n, stride) i8 = x (n, cols), each `group` columns of a row in units of their largest magnitude
// / 127, ties to even, padded with zeros; scale_out (n, groups) are those units. With row_scales, column c of x is first
// multiplied by row_scales[c]: the gradient of a product whose weights have scales by row.
KERNEL __launch_bounds__(256)
    quantise_rows(const float* __restrict__ x, const float* __restrict__ row_scales, int n, int cols,
                  int group, int groups, int stride, i8* q, float* scale_out) {
    int item = half_warp_row(), lane = lane_of_row();
    if (item >= n * groups) return;
    int row = item / groups, start = item % groups * group;
    int end = min(start + group, cols), padded_end = end == cols ? stride : end;
    x += (size_t)row * cols;
    q += (size_t)row * stride;
    float most = 0.0f, nothing = 0.0f;
    for (int c = start + lane; c < end; c += LANES) {
        float value = row_scales ? x[c] * row_scales[c] : x[c];
        most = max_of(fabsf(value), most);
        nothing = value * 0.0f + nothing;
    }
    most = max_lane(most);
    // Zero if every value is finite, else NaN, which makes all products of the row NaN. A row of
    // zeros, or of numbers too small to invert, is zero.
    bool finite = sum_lanes(nothing) == 0.0f;
    float inverse = 127.0f / most;
    bool usable = finite && inverse < INFINITE;
    for (int c = start + lane; c < padded_end; c += LANES) {
        float value = c < end && usable ? (row_scales ? x[c] * row_scales[c] : x[c]) : 0.0f;
        float rounded = usable ? rintf(value * inverse) : 0.0f;
        q[c] = (i8)max(min((int)rounded, 127), -127);
    }
    if (lane == 0) scale_out[item] = usable ? most / 127.0f : (finite ? 0.0f : __int_as_float(0x7fc00000));
}

// Four values of the grid in units of 1 / unit, for four codes.
DEVICE int pack4(int a, int b, int c, int d) {
    return (a & 0xff) | (b & 0xff) << 8 | (c & 0xff) << 16 | d << 24;
}

// Four weights of a row from column `col` on, zeros past its end.
DEVICE int weights4(const Weights& w, const i8* table, int row, int col) {
    int v[4];
    #pragma unroll
    for (int j = 0; j < 4; ++j) v[j] = col + j < w.cols ? table[code_at(w, row, col + j)] : 0;
    return pack4(v[0], v[1], v[2], v[3]);
}

// y (tokens, rows) = x W^T for a few tokens q: half a warp a row of W, of which a step reads eight weights once for
// TOKENS tokens, those of block y. Groups of columns are folded in order.
template <int TOKENS>
DEVICE void multiply_tokens(const i8* __restrict__ q, const float* __restrict__ x_scale, const Weights& w,
                            const i8* __restrict__ table8, float* y, int rows, int tokens, int stride,
                            float unit_value) {
    __shared__ u16 pair_of[256];  // the two weights of a byte of codes
    __shared__ i8 table[32];
    int low_value = table8[threadIdx.x & 15] & 0xff, high_value = table8[threadIdx.x >> 4] & 0xff;
    pair_of[threadIdx.x] = (u16)(low_value | high_value << 8);
    if (threadIdx.x < 32) table[threadIdx.x] = table8[threadIdx.x];
    __syncthreads();
    int row = half_warp_row(), lane = lane_of_row();
    if (row >= rows) return;
    int first_token = blockIdx.y * TOKENS, count = min(TOKENS, tokens - first_token);
    q += (size_t)first_token * stride;
    x_scale += (size_t)first_token * w.groups;
    y += (size_t)first_token * rows + row;
    const u8* codes = w.nibbles + (size_t)row * w.row_bytes;
    bool whole_words = !w.high && w.row_bytes % 4 == 0;
    float total[TOKENS] = {};
    for (int group = 0; group < w.groups; ++group) {
        int sum[TOKENS] = {}, end = min((group + 1) * w.group, w.cols);
        #pragma unroll 2
        for (int c = group * w.group + lane * 8; c < end; c += LANES * 8) {
            int first, second;
            if (whole_words) {
                u32 eight = *(const u32*)(codes + c / 2);
                first = pair_of[eight & 0xff] | pair_of[eight >> 8 & 0xff] << 16;
                second = pair_of[eight >> 16 & 0xff] | pair_of[eight >> 24] << 16;
            } else {
                first = weights4(w, table, row, c);
                second = weights4(w, table, row, c + 4);
            }
            #pragma unroll
            for (int t = 0; t < TOKENS; ++t) {
                if (t >= count) break;
                int2 x = *(const int2*)(q + (size_t)t * stride + c);
                sum[t] = dot4(x.y, second, dot4(x.x, first, sum[t]));
            }
        }
        float scale = w.scales[(size_t)row * w.groups + group];
        #pragma unroll
        for (int t = 0; t < TOKENS; ++t) {
            if (t >= count) break;
            for (int half = 8; half > 0; half /= 2) sum[t] += __shfl_xor_sync(half_mask(), sum[t], half, LANES);
            total[t] = (float)sum[t] * scale * (x_scale[t * w.groups + group] * unit_value) + total[t];
        }
    }
    if (lane != 0) return;
    #pragma unroll
    for (int t = 0; t < TOKENS; ++t) {
        if (t < count) y[(size_t)t * rows] = total[t];
    }
}

#define INT8_MATVEC(NAME, TOKENS, BLOCKS)                                                             \
    KERNEL __launch_bounds__(256, BLOCKS)                                                             \
        NAME(const i8* q, const float* x_scale, Weights w, const i8* table8, float* y, int rows,      \
             int tokens, int stride, float unit_value) {                                              \
        multiply_tokens<TOKENS>(q, x_scale, w, table8, y, rows, tokens, stride, unit_value);          \
    }

INT8_MATVEC(int8_matvec, 1, 4)
INT8_MATVEC(int8_matvecs, 8, 2)

#define WORDS 16  // words of four summands of a tile

// out (n, cols) = or += (sum of q w8) * scale * (x_scale[n] * unit_value) for q (n, stride), in tiles
// of 64 x 64; a thread has four rows and columns. Forward, summands are the columns of w, and its rows
// are columns of the result with a scale each; BACK, summands are the rows of w, whose scales q holds.
template <bool BACK>
DEVICE void multiply_int8(const i8* __restrict__ q, const float* __restrict__ x_scale, const Weights& w,
                          const i8* __restrict__ table8, float* out, int n, int rows_of_w, int stride,
                          float unit_value, int accumulate) {
    __shared__ __align__(16) int a_tile[WORDS][68];
    __shared__ __align__(16) int b_tile[WORDS][68];
    __shared__ i8 table[32];
    if (threadIdx.x < 32) table[threadIdx.x] = table8[threadIdx.x];
    int first_row = blockIdx.y * 64, first_col = blockIdx.x * 64;
    int ty = threadIdx.x / 16 * 4, tx = threadIdx.x % 16 * 4, words = stride / 4;
    int cols = BACK ? w.cols : rows_of_w, depth = BACK ? rows_of_w : w.cols;
    int sum[4][4] = {};
    const int* q_words = (const int*)q;
    for (int k0 = 0; k0 < words; k0 += WORDS) {
        __syncthreads();
        #pragma unroll
        for (int i = threadIdx.x; i < 64 * WORDS; i += 256) {
            int k = k0 + i % WORDS, row = first_row + i / WORDS;
            a_tile[i % WORDS][i / WORDS] = row < n && k < words ? q_words[(size_t)row * words + k] : 0;
            // Neighbouring threads take neighbouring codes of w.
            int b_word = BACK ? i / 64 : i % WORDS, b_col = BACK ? i % 64 : i / WORDS;
            int first = (k0 + b_word) * 4, col = first_col + b_col, v[4];
            #pragma unroll
            for (int j = 0; j < 4; ++j) {
                bool inside = col < cols && first + j < depth;
                v[j] = inside ? table[BACK ? code_at(w, first + j, col) : code_at(w, col, first + j)] : 0;
            }
            b_tile[b_word][b_col] = pack4(v[0], v[1], v[2], v[3]);
        }
        __syncthreads();
        #pragma unroll
        for (int k = 0; k < WORDS; ++k) {
            int4 a = *(const int4*)&a_tile[k][ty], b = *(const int4*)&b_tile[k][tx];
            int x[4] = {a.x, a.y, a.z, a.w}, z[4] = {b.x, b.y, b.z, b.w};
            #pragma unroll
            for (int i = 0; i < 4; ++i) {
                #pragma unroll
                for (int j = 0; j < 4; ++j) sum[i][j] = dot4(x[i], z[j], sum[i][j]);
            }
        }
    }
    #pragma unroll
    for (int i = 0; i < 4; ++i) {
        #pragma unroll
        for (int j = 0; j < 4; ++j) {
            int row = first_row + ty + i, col = first_col + tx + j;
            if (row >= n || col >= cols) continue;
            write_product<BACK>(out, cols, row, col, sum[i][j], w, x_scale, unit_value, accumulate);
        }
    }
}

#define INT8_GEMM(NAME, BACK)                                                                       \
    KERNEL __launch_bounds__(256, 4)                                                                \
        NAME(const i8* q, const float* x_scale, Weights w, const i8* table8, float* out, int n,     \
             int rows_of_w, int stride, float unit_value, int accumulate) {                         \
        multiply_int8<BACK>(q, x_scale, w, table8, out, n, rows_of_w, stride, unit_value, accumulate); \
    }

// y (n, m) = x (n, k) w (m, k)^T: forward.
INT8_GEMM(int8_gemm_nt, false)
// dx (n, k) = dy (n, m) w (m, k): gradient of the input.
INT8_GEMM(int8_gemm_nn, true)
