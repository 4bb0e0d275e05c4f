// What every kernel builds on. Comes after the generated prelude; includes nothing.
//
// A half-warp is the sixteen lanes of the CPU kernels: lane l takes the elements with
// index % 16 == l in order, and sums end in the same tree. Sources are compiled without
// contraction (--fmad=false), so results equal the CPU's bit for bit; products of matrices
// say fmaf where they mean it.

typedef unsigned char u8;
typedef signed char i8;
typedef short i16;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#define KERNEL extern "C" __global__ void
#define DEVICE __device__ __forceinline__
#define LANES 16
#define INFINITE __int_as_float(0x7f800000)

// The half-warp of this thread as a mask of its warp.
DEVICE u32 half_mask() { return 0xffffu << (threadIdx.x & 16); }

// The row that this half-warp works on, and this thread's lane in it.
DEVICE int half_warp_row() { return (int)((blockIdx.x * blockDim.x + threadIdx.x) / LANES); }
DEVICE int lane_of_row() { return (int)(threadIdx.x % LANES); }

DEVICE float from_lane(float x, int lane) { return __shfl_sync(half_mask(), x, lane, LANES); }

// Lane l with l + 8, then 4, 2, 1; every lane gets the sum.
DEVICE float sum_lanes(float x) {
    for (int half = 8; half > 0; half /= 2) x += __shfl_xor_sync(half_mask(), x, half, LANES);
    return x;
}

// For integers, which any order adds up alike.
template <class T> DEVICE T total_of_lanes(T x) {
    for (int half = 8; half > 0; half /= 2) x += __shfl_xor_sync(half_mask(), x, half, LANES);
    return x;
}

// The CPU lanes' own order of operands: b where either is NaN, and for equal zeros.
DEVICE float max_of(float a, float b) { return a > b ? a : b; }
DEVICE float min_of(float a, float b) { return a < b ? a : b; }

DEVICE float max_lane(float x) {
    for (int half = 8; half > 0; half /= 2) {
        float other = __shfl_xor_sync(half_mask(), x, half, LANES);
        x = (threadIdx.x & half) ? max_of(other, x) : max_of(x, other);
    }
    return x;
}

// e^x by Cephes' polynomial, as lanes/math.rs.
DEVICE float exp_of(float x) {
    const float lowest = -87.33f, highest = 88.37f, rounder = 12582912.0f;
    float clamped = max_of(lowest, min_of(highest, x));
    float shifted = clamped * 1.44269502f + rounder;
    float exponent = shifted - rounder;
    float r = clamped - exponent * 0.693359375f;
    r = r - exponent * -2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r;
    p = p + 1.0f;
    float result = __int_as_float(__float_as_int(p) + (__float_as_int(shifted) << 23));
    if (x < lowest) result = 0.0f;
    return highest < x ? INFINITE : result;
}

// ln x: x = m 2^e with m in [1/sqrt 2, sqrt 2), then the series of 2 artanh((m - 1) / (m + 1))
// in float64, as lanes/math.rs. What is not positive, normal and finite cannot come out of a
// softmax; infinity and NaN stay what they are.
DEVICE float ln_of(float x) {
    int bits = __float_as_int(x);
    if (bits < 0x00800000 || bits >= 0x7f800000) return x * INFINITE;
    int exponent = (bits - 0x3f3504f3) >> 23;
    double m = (double)__int_as_float(bits - (exponent << 23));
    double s = (m - 1.0) / (m + 1.0), z = s * s;
    double p = 1.0 / 19.0;
    p = p * z + 1.0 / 17.0;
    p = p * z + 1.0 / 15.0;
    p = p * z + 1.0 / 13.0;
    p = p * z + 1.0 / 11.0;
    p = p * z + 1.0 / 9.0;
    p = p * z + 1.0 / 7.0;
    p = p * z + 1.0 / 5.0;
    p = p * z + 1.0 / 3.0;
    p = p * z + 1.0;
    return (float)((double)exponent * 0.6931471805599453 + 2.0 * s * p);
}

// The nearest f16, ties to even, as bits; numbers beyond the largest become that.
DEVICE u16 to_half(float x) {
    const float most = 65504.0f;
    x = x < -most ? -most : most < x ? most : x;
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}

DEVICE float from_half(u16 bits) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
}

// Sixteen random bits a weight: Philox4x32 with ten rounds.
struct Words { u32 w[4]; };

DEVICE Words philox(u32 c0, u32 c1, u32 c2, u32 c3, u32 k0, u32 k1) {
    #pragma unroll
    for (int round = 0; round < 10; ++round) {
        u32 high0 = __umulhi(c0, PHILOX_MULTIPLIER_0), low0 = c0 * PHILOX_MULTIPLIER_0;
        u32 high1 = __umulhi(c2, PHILOX_MULTIPLIER_1), low1 = c2 * PHILOX_MULTIPLIER_1;
        c0 = high1 ^ c1 ^ k0;
        c1 = low1;
        c2 = high0 ^ c3 ^ k1;
        c3 = low0;
        k0 += PHILOX_KEY_STEP_0;
        k1 += PHILOX_KEY_STEP_1;
    }
    Words words = {{c0, c1, c2, c3}};
    return words;
}

// Names the random numbers of one matrix in one pass: see VoteRng.
struct VoteRng { u32 key0, key1, step, place; };

// The eight numbers of lane `lane` of a block of 128 columns: column block * 128 + vec * 16 + lane
// has half vec % 2 of word vec / 2.
DEVICE Words draw(const VoteRng& rng, u32 row, u32 block, u32 lane) {
    return philox(block * 16 + lane, row, rng.step, rng.place, rng.key0, rng.key1);
}
DEVICE u32 uniform16(const Words& words, int vec) { return (words.w[vec / 2] >> (vec % 2 * 16)) & 0xffffu; }

// A weight matrix: packed codes with scales, or floats. (rows, cols), row-major.
struct Weights {
    const u8* nibbles;    // (rows, row_bytes), low nibble first
    const u8* high;       // (rows, high_row_bytes), bit 4 of every code; null for a narrow grid
    const float* table;   // (32) grid values
    const float* scales;  // (rows, groups)
    const float* dense;   // (rows, cols) where the matrix is not on a grid, else null
    int cols, row_bytes, high_row_bytes, group, groups;
};

DEVICE int code_at(const Weights& w, size_t row, int col) {
    int code = (w.nibbles[row * w.row_bytes + col / 2] >> (col % 2 * 4)) & 15;
    if (w.high) code |= ((w.high[row * w.high_row_bytes + col / 8] >> (col % 8)) & 1) << 4;
    return code;
}

// The weight, scale applied; `table` may be a copy in shared memory.
DEVICE float weight_at(const Weights& w, const float* table, size_t row, int col) {
    if (w.dense) return w.dense[row * w.cols + col];
    float scale = w.scales[row * w.groups + (w.groups == 1 ? 0 : col / w.group)];
    return table[code_at(w, row, col)] * scale;
}

// Copies the grid's values to shared memory; the caller synchronises.
DEVICE void load_table(const Weights& w, float* table) {
    if (threadIdx.x < 32 && !w.dense) table[threadIdx.x] = w.table[threadIdx.x];
}
