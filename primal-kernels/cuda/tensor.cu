// The products of matrices of int8.cu on tensor cores: the same exact sums, so the same bits. A
// module of its own, for cards from Turing (sm_75) on; int8.cu serves where it cannot be loaded.

// sum (16, 8) += a (16, 32) b (32, 8), by a whole warp. With g = lane / 4 and t = lane % 4, a word
// holding four summands: a has rows g and g + 8 of word t, then of word t + 4; b has words t and
// t + 4 of column g; sum has columns 2 t and 2 t + 1 of row g, then of row g + 8 (PTX ISA, "Matrix
// Fragments for mma.m16n8k32" and "mma.m8n8k16").
DEVICE void multiply_add(int (&sum)[4], const int (&a)[4], const int (&b)[2]) {
    // Volatile, as all lanes must come to it together.
#if __CUDA_ARCH__ >= 800
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+r"(sum[0]), "+r"(sum[1]), "+r"(sum[2]), "+r"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    // Turing has a quarter of it: eight rows and half of the summands.
    #pragma unroll
    for (int i = 0; i < 4; ++i) {
        asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
                     : "+r"(sum[i % 2 * 2]), "+r"(sum[i % 2 * 2 + 1])
                     : "r"(a[i]), "r"(b[i / 2]));
    }
#endif
}

// Codes of four weights of a row from column `col`, a multiple of four, on: their low bits in
// sixteen bits, the fifth ones above. Past the end of the row they are any codes.
DEVICE u32 four_codes(const Weights& w, int row, int col) {
    const u8* at = w.nibbles + (size_t)row * w.row_bytes + col / 2;
    u32 codes;
    if (w.row_bytes % 2 == 0) codes = *(const u16*)at;
    else codes = at[0] | (col / 2 + 1 < w.row_bytes ? at[1] << 8 : 0);
    if (w.high) codes |= (w.high[(size_t)row * w.high_row_bytes + col / 8] >> col % 8 & 15) << 16;
    return codes;
}

// The weights of four codes, in units, from a table of 32 bytes: a byte permutation looks up eight.
DEVICE int four_weights(u32 codes, const int* table, bool wide) {
    u32 in_eight = codes & 0x7777, eighth = 0x3210 | codes >> 1 & 0x4444;
    u32 weights = __byte_perm(__byte_perm(table[0], table[1], in_eight),
                              __byte_perm(table[2], table[3], in_eight), eighth);
    if (!wide) return weights;
    u32 upper = __byte_perm(__byte_perm(table[4], table[5], in_eight),
                            __byte_perm(table[6], table[7], in_eight), eighth);
    u32 fifth = codes >> 16;
    fifth = fifth << 2 & 0x4 | fifth << 5 & 0x40 | fifth << 8 & 0x400 | fifth << 11 & 0x4000;
    return __byte_perm(weights, upper, 0x3210 | fifth);
}

// Byte j of word i to byte i of word j.
DEVICE void transpose(int (&x)[4]) {
    int a = __byte_perm(x[0], x[1], 0x5140), b = __byte_perm(x[2], x[3], 0x5140);
    int c = __byte_perm(x[0], x[1], 0x7362), d = __byte_perm(x[2], x[3], 0x7362);
    x[0] = __byte_perm(a, b, 0x5410);
    x[1] = __byte_perm(a, b, 0x7632);
    x[2] = __byte_perm(c, d, 0x5410);
    x[3] = __byte_perm(c, d, 0x7632);
}

// A tile has SIZE lines, rows of q or columns of the result, by 16 words of four summands.
#define TILE_WORDS 16
// Words from line to line: any eight neighbouring lines by four neighbouring words, as a warp
// reads them, lie in 32 banks; so do two lines four apart by 16 words, as it writes them.
#define LINE 20

// As multiply_int8 in int8.cu, in tiles of SIZE x SIZE by two by four warps.
template <bool BACK, int SIZE>
DEVICE void multiply_int8(const i8* __restrict__ q, const float* __restrict__ x_scale, const Weights& w,
                          const i8* __restrict__ table8, float* out, int n, int rows_of_w, int stride,
                          float unit_value, int accumulate) {
    // Products of 16 x 8 of a warp, down and across; blocks of four lines by a word that a thread
    // brings of each tile.
    const int PRODUCTS = SIZE / 32, BLOCKS = SIZE / 64;
    __shared__ int a_tile[SIZE][LINE];
    __shared__ int b_tile[SIZE][LINE];
    __shared__ int table[8];
    // Eight words that the first barrier of the loop shows to all.
    if (threadIdx.x < 8) table[threadIdx.x] = ((const int*)table8)[threadIdx.x];
    const int* q_words = (const int*)q;
    int cols = BACK ? w.cols : rows_of_w, words = stride / 4;
    int first_row = blockIdx.y * SIZE, first_col = blockIdx.x * SIZE;
    int own_line = threadIdx.x / TILE_WORDS * 4, own_word = threadIdx.x % TILE_WORDS;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int warp_row = warp / 4 * (SIZE / 2), warp_col = warp % 4 * (SIZE / 4);

    int sum[PRODUCTS][PRODUCTS][4] = {};
    for (int k0 = 0; k0 < words; k0 += TILE_WORDS) {
        __syncthreads();
        int word = k0 + own_word;
        #pragma unroll
        for (int block = 0; block < BLOCKS; ++block) {
            int line = own_line + block * 64, b[4];
            // Four rows of w by four columns. Outside of w any code does: q has zeros there, or the
            // result is not written.
            int row_of_w = BACK ? word * 4 : first_col + line, col = BACK ? first_col + line : word * 4;
            #pragma unroll
            for (int j = 0; j < 4; ++j) {
                bool inside = row_of_w + j < rows_of_w && col < w.cols;
                b[j] = four_weights(inside ? four_codes(w, row_of_w + j, col) : 0, table, w.high);
            }
            if (BACK) transpose(b);
            #pragma unroll
            for (int j = 0; j < 4; ++j) {
                int row = first_row + line + j;
                a_tile[line + j][own_word] = row < n && word < words ? q_words[(size_t)row * words + word] : 0;
                b_tile[line + j][own_word] = b[j];
            }
        }
        __syncthreads();
        #pragma unroll
        for (int k = 0; k < TILE_WORDS; k += 8) {
            int from = k + lane % 4, a[PRODUCTS][4];
            #pragma unroll
            for (int i = 0; i < PRODUCTS; ++i) {
                #pragma unroll
                for (int part = 0; part < 4; ++part) {
                    a[i][part] = a_tile[warp_row + i * 16 + part % 2 * 8 + lane / 4][from + part / 2 * 4];
                }
            }
            #pragma unroll
            for (int j = 0; j < PRODUCTS; ++j) {
                const int* column = b_tile[warp_col + j * 8 + lane / 4];
                int b[2] = {column[from], column[from + 4]};
                #pragma unroll
                for (int i = 0; i < PRODUCTS; ++i) multiply_add(sum[i][j], a[i], b);
            }
        }
    }
    #pragma unroll
    for (int i = 0; i < PRODUCTS; ++i) {
        #pragma unroll
        for (int j = 0; j < PRODUCTS; ++j) {
            #pragma unroll
            for (int part = 0; part < 4; ++part) {
                int row = first_row + warp_row + i * 16 + part / 2 * 8 + lane / 4;
                int col = first_col + warp_col + j * 8 + lane % 4 * 2 + part % 2;
                if (row >= n || col >= cols) continue;
                write_product<BACK>(out, cols, row, col, sum[i][j][part], w, x_scale, unit_value, accumulate);
            }
        }
    }
}

#define INT8_MMA(NAME, BACK, SIZE, BLOCKS)                                                          \
    KERNEL __launch_bounds__(256, BLOCKS)                                                           \
        NAME(const i8* q, const float* x_scale, Weights w, const i8* table8, float* out, int n,     \
             int rows_of_w, int stride, float unit_value, int accumulate) {                         \
        multiply_int8<BACK, SIZE>(q, x_scale, w, table8, out, n, rows_of_w, stride, unit_value,     \
                                  accumulate);                                                      \
    }

// y (n, m) = x (n, k) w (m, k)^T: forward.
INT8_MMA(int8_mma_nt_64, false, 64, 4)
INT8_MMA(int8_mma_nt_128, false, 128, 2)
// dx (n, k) = dy (n, m) w (m, k): gradient of the input.
INT8_MMA(int8_mma_nn_64, true, 64, 4)
INT8_MMA(int8_mma_nn_128, true, 128, 2)
