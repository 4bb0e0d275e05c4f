// Dense float32 products, register-tiled: every element is one chain of fmaf over the depth in
// ascending order, from zero, whatever the tile. A chain restarts every `chunk` steps and is added
// to the result there; 0 means never.

// Where an operand's element (row or column `i`, summand `k`) lies.
enum Layout { SUMMANDS_TOGETHER, SUMMANDS_APART };

// This thread's elements of a tile of SIZE rows (or columns) by DEPTH summands, zero outside the
// matrix. Neighbouring threads take neighbouring addresses; one pointer walks over a thread's.
template <int SIZE, int DEPTH, Layout LAYOUT>
struct Fragment {
    // As enumerators: static members would be variables of the module.
    enum { COUNT = SIZE * DEPTH / 256, FAST = LAYOUT == SUMMANDS_TOGETHER ? DEPTH : SIZE, STEP = 256 / FAST };
    float x[COUNT];
    const float* from;
    int stride, i, k, size, depth;

    DEVICE void begin(const float* __restrict__ matrix, int first, int size_, int depth_, int stride_) {
        int fast = threadIdx.x % FAST, slow = threadIdx.x / FAST;
        size = size_ - first;
        depth = depth_;
        stride = stride_;
        i = LAYOUT == SUMMANDS_TOGETHER ? slow : fast;
        k = LAYOUT == SUMMANDS_TOGETHER ? fast : slow;
        from = matrix + (LAYOUT == SUMMANDS_TOGETHER ? (size_t)(first + i) * stride + k
                                                     : (size_t)k * stride + first + i);
    }
    // Loads the tile whose first summand is k0; tiles come in order.
    DEVICE void load(int k0) {
        const float* at = from;
        #pragma unroll
        for (int n = 0; n < COUNT; ++n) {
            bool inside = LAYOUT == SUMMANDS_TOGETHER ? i + n * STEP < size && k0 + k < depth
                                                      : i < size && k0 + k + n * STEP < depth;
            x[n] = inside ? *at : 0.0f;
            at += STEP * stride;
        }
        from += LAYOUT == SUMMANDS_TOGETHER ? DEPTH : DEPTH * stride;
    }
    DEVICE void store(float (*tile)[SIZE + 4]) const {
        #pragma unroll
        for (int n = 0; n < COUNT; ++n) {
            if (LAYOUT == SUMMANDS_TOGETHER) tile[k][i + n * STEP] = x[n];
            else tile[k + n * STEP][i] = x[n];
        }
    }
};

// c (rows, cols) = or += a b. 256 threads make a tile of SIZE x SIZE; a thread has SIZE / 16
// rows and columns of it, in groups of four that lie 64 apart.
template <int SIZE, int DEPTH, Layout A, Layout B>
DEVICE void multiply(const float* __restrict__ a, const float* __restrict__ b, float* c, int rows,
                     int cols, int depth, int a_stride, int b_stride, int c_stride, int chunk,
                     int accumulate) {
    const int GROUPS = SIZE / 64, OWN = GROUPS * 4;
    __shared__ __align__(16) float a_tile[DEPTH][SIZE + 4];
    __shared__ __align__(16) float b_tile[DEPTH][SIZE + 4];
    int ty = threadIdx.x / 16 * 4, tx = threadIdx.x % 16 * 4;
    float sum[OWN][OWN] = {};
    Fragment<SIZE, DEPTH, A> next_a;
    Fragment<SIZE, DEPTH, B> next_b;
    next_a.begin(a, blockIdx.y * SIZE, rows, depth, a_stride);
    next_b.begin(b, blockIdx.x * SIZE, cols, depth, b_stride);
    next_a.load(0);
    next_b.load(0);
    for (int k0 = 0; k0 < depth; k0 += DEPTH) {
        __syncthreads();
        next_a.store(a_tile);
        next_b.store(b_tile);
        __syncthreads();
        if (k0 + DEPTH < depth) {
            next_a.load(k0 + DEPTH);
            next_b.load(k0 + DEPTH);
        }
        // Unrolled further, this loop needs more registers than two blocks a multiprocessor have.
        #pragma unroll 1
        for (int k = 0; k < DEPTH; ++k) {
            float x[OWN], y[OWN];
            #pragma unroll
            for (int g = 0; g < GROUPS; ++g) {
                *(float4*)&x[g * 4] = *(const float4*)&a_tile[k][ty + g * 64];
                *(float4*)&y[g * 4] = *(const float4*)&b_tile[k][tx + g * 64];
            }
            #pragma unroll
            for (int i = 0; i < OWN; ++i) {
                #pragma unroll
                for (int j = 0; j < OWN; ++j) sum[i][j] = fmaf(x[i], y[j], sum[i][j]);
            }
        }
        bool last = k0 + DEPTH >= depth;
        if (last || (chunk > 0 && (k0 + DEPTH) % chunk == 0)) {
            int first_row = blockIdx.y * SIZE + ty, first_col = blockIdx.x * SIZE + tx;
            #pragma unroll
            for (int i = 0; i < OWN; ++i) {
                int row = first_row + i / 4 * 64 + i % 4;
                float* to = c + (size_t)row * c_stride + first_col;
                #pragma unroll
                for (int j = 0; j < OWN; ++j) {
                    int apart = j / 4 * 64 + j % 4;
                    if (row < rows && first_col + apart < cols) {
                        to[apart] = accumulate ? to[apart] + sum[i][j] : sum[i][j];
                    }
                    sum[i][j] = 0.0f;
                }
            }
            accumulate = 1;
        }
    }
}

#define GEMM(NAME, SIZE, DEPTH, BLOCKS, A, B)                                                             \
    KERNEL __launch_bounds__(256, BLOCKS)                                                          \
        NAME(const float* a, const float* b, float* c, int rows, int cols, int depth, int a_stride, \
             int b_stride, int c_stride, int chunk, int accumulate) {                               \
        multiply<SIZE, DEPTH, A, B>(a, b, c, rows, cols, depth, a_stride, b_stride, c_stride, chunk,       \
                             accumulate);                                                           \
    }

// y (n, m) = x (n, k) w (m, k)^T: forward.
GEMM(gemm_nt_64, 64, 16, 3, SUMMANDS_TOGETHER, SUMMANDS_TOGETHER)
GEMM(gemm_nt_128, 128, 8, 2, SUMMANDS_TOGETHER, SUMMANDS_TOGETHER)
// dx (n, k) = dy (n, m) w (m, k): gradient of the input.
GEMM(gemm_nn_64, 64, 16, 3, SUMMANDS_TOGETHER, SUMMANDS_APART)
GEMM(gemm_nn_128, 128, 8, 2, SUMMANDS_TOGETHER, SUMMANDS_APART)
// dw (m, k) = dy (n, m)^T x (n, k): gradient of the weights.
GEMM(gemm_tn_64, 64, 16, 3, SUMMANDS_APART, SUMMANDS_APART)
GEMM(gemm_tn_128, 128, 8, 2, SUMMANDS_APART, SUMMANDS_APART)
