// Products of int8 activations with weights from the grid, summed exactly in int32 by dp4a.
// The sums have no order, so they equal the CPU's on every device; scaling comes once, at the end.

DEVICE int dot4(int a, int b, int c) {
    // As inline PTX: NVRTC 11.8 leaves the __dp4a builtin unresolved.
    int d;
    asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}

// q (n, stride) i8 = x (n, cols) in units of its row's largest magnitude / 127, ties to even,
// padded with zeros; scale_out (n) is that unit. With row_scales, column c of x is first
// multiplied by row_scales[c]: the gradient of a product whose weights have scales by row.
KERNEL __launch_bounds__(256)
    quantise_rows(const float* __restrict__ x, const float* __restrict__ row_scales, int n, int cols,
                  int stride, i8* q, float* scale_out) {
    int row = half_warp_row(), lane = lane_of_row();
    if (row >= n) return;
    x += (size_t)row * cols;
    q += (size_t)row * stride;
    float most = 0.0f, nothing = 0.0f;
    for (int c = lane; c < cols; c += LANES) {
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
    for (int c = lane; c < stride; c += LANES) {
        float value = c < cols && usable ? (row_scales ? x[c] * row_scales[c] : x[c]) : 0.0f;
        float rounded = usable ? rintf(value * inverse) : 0.0f;
        q[c] = (i8)max(min((int)rounded, 127), -127);
    }
    if (lane == 0) scale_out[row] = usable ? most / 127.0f : (finite ? 0.0f : __int_as_float(0x7fc00000));
}

// Four values of the grid in units of 1 / unit, for four codes.
DEVICE int pack4(int a, int b, int c, int d) {
    return (a & 0xff) | (b & 0xff) << 8 | (c & 0xff) << 16 | d << 24;
}

#define WORDS 16  // words of four summands of a tile

// y (n, m) = (sum of q w8 over the columns) * scales[m] * (x_scale[n] * unit_value): forward. A
// thread has four rows and columns of a tile of 64 x 64; one scale a row of w.
KERNEL __launch_bounds__(256, 4)
    int8_gemm_nt(const i8* __restrict__ q, const float* __restrict__ x_scale, Weights w,
                 const i8* __restrict__ table8, float* y, int n, int m, int stride, float unit_value) {
    __shared__ __align__(16) int a_tile[WORDS][68];
    __shared__ __align__(16) int b_tile[WORDS][68];
    __shared__ i8 table[32];
    if (threadIdx.x < 32) table[threadIdx.x] = table8[threadIdx.x];
    int first_row = blockIdx.y * 64, first_col = blockIdx.x * 64;
    int ty = threadIdx.x / 16 * 4, tx = threadIdx.x % 16 * 4, words = stride / 4;
    int sum[4][4] = {};
    const int* q_words = (const int*)q;
    for (int k0 = 0; k0 < words; k0 += WORDS) {
        __syncthreads();
        #pragma unroll
        for (int i = threadIdx.x; i < 64 * WORDS; i += 256) {
            int k = k0 + i % WORDS, at = i / WORDS;
            int row = first_row + at, col = first_col + at;
            a_tile[i % WORDS][at] = row < n && k < words ? q_words[(size_t)row * words + k] : 0;
            int packed = 0;
            if (col < m && k < words) {
                int v[4];
                #pragma unroll
                for (int j = 0; j < 4; ++j) v[j] = k * 4 + j < w.cols ? table[code_at(w, col, k * 4 + j)] : 0;
                packed = pack4(v[0], v[1], v[2], v[3]);
            }
            b_tile[i % WORDS][at] = packed;
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
            if (row < n && col < m) {
                float total = (float)sum[i][j] * w.scales[col] + 0.0f;
                y[(size_t)row * m + col] = total * (x_scale[row] * unit_value);
            }
        }
    }
}

// dx (n, w.cols) = (sum of q w8 over the rows of w) * (x_scale[n] * unit_value), for q (n, stride)
// of dy * scales of w's rows: gradient of the input.
KERNEL __launch_bounds__(256, 4)
    int8_gemm_nn(const i8* __restrict__ q, const float* __restrict__ x_scale, Weights w,
                 const i8* __restrict__ table8, float* dx, int n, int m, int stride, float unit_value) {
    __shared__ __align__(16) int a_tile[WORDS][68];
    __shared__ __align__(16) int b_tile[WORDS][68];
    __shared__ i8 table[32];
    if (threadIdx.x < 32) table[threadIdx.x] = table8[threadIdx.x];
    int first_row = blockIdx.y * 64, first_col = blockIdx.x * 64;
    int ty = threadIdx.x / 16 * 4, tx = threadIdx.x % 16 * 4, words = stride / 4;
    int sum[4][4] = {};
    const int* q_words = (const int*)q;
    for (int k0 = 0; k0 < words; k0 += WORDS) {
        __syncthreads();
        #pragma unroll
        for (int i = threadIdx.x; i < 64 * WORDS; i += 256) {
            int k = k0 + i % WORDS, row = first_row + i / WORDS;
            a_tile[i % WORDS][i / WORDS] = row < n && k < words ? q_words[(size_t)row * words + k] : 0;
            // Summands are rows of w: neighbouring threads take neighbouring columns.
            int col = first_col + i % 64, wk = k0 + i / 64, packed = 0;
            if (col < w.cols && wk < words) {
                int v[4];
                #pragma unroll
                for (int j = 0; j < 4; ++j) v[j] = wk * 4 + j < m ? table[code_at(w, wk * 4 + j, col)] : 0;
                packed = pack4(v[0], v[1], v[2], v[3]);
            }
            b_tile[i / 64][i % 64] = packed;
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
            if (row < n && col < w.cols) {
                dx[(size_t)row * w.cols + col] = (float)sum[i][j] * (x_scale[row] * unit_value);
            }
        }
    }
}
