// Kernels with one deliberate bug each, and correct ones beside them. Compiled by NVRTC 11.8 for
// compute_61 to bugs.ptx: `cargo xtask ptx` makes it anew.

extern "C" __global__ void leaves_global(float* x, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i <= n) x[i] = 1.0f;
}

extern "C" __global__ void leaves_shared(float* x, int at) {
    __shared__ float part[32];
    part[threadIdx.x + at] = x[threadIdx.x];
    __syncthreads();
    x[threadIdx.x] = part[31 - threadIdx.x];
}

extern "C" __global__ void misaligned(const char* from, float* to) {
    to[threadIdx.x] = *(const float*)(from + threadIdx.x * 4 + 2);
}

extern "C" __global__ void divergent_barrier(float* x) {
    if (threadIdx.x < 40) {
        x[threadIdx.x] = 1.0f;
        __syncthreads();
        x[threadIdx.x] = 2.0f;
    }
}

extern "C" __global__ void two_barriers(float* x) {
    if (threadIdx.x < 32) {
        __syncthreads();
        x[threadIdx.x] = 1.0f;
    } else {
        x[threadIdx.x] = 2.0f;
        __syncthreads();
    }
}

extern "C" __global__ void absent_lanes(float* x) {
    if (threadIdx.x < 16) x[threadIdx.x] += __shfl_xor_sync(0xffffffffu, x[threadIdx.x], 1);
}

extern "C" __global__ void outside_mask(float* x) {
    if (threadIdx.x < 16) x[threadIdx.x] += __shfl_xor_sync(0xffffu, x[threadIdx.x], 16);
}

// Sums a block; with `sync` 0 one barrier is left out.
extern "C" __global__ void shared_race(const float* x, float* sum, int sync) {
    __shared__ float part[64];
    part[threadIdx.x] = x[threadIdx.x];
    if (sync) __syncthreads();
    if (threadIdx.x == 63) {
        float total = 0.0f;
        for (int i = 0; i < 64; ++i) total += part[i];
        sum[0] = total;
    }
}

// The same within a warp.
extern "C" __global__ void warp_race(const float* x, float* y, int sync) {
    __shared__ float part[32];
    part[threadIdx.x] = 0.0f;
    __syncwarp();
    part[threadIdx.x] = x[threadIdx.x];
    if (sync) __syncwarp();
    y[threadIdx.x] = part[31 - threadIdx.x];
}

// A barrier between writing and reading, none before the next round's writing.
extern "C" __global__ void write_after_read(const float* x, float* y, int rounds, int sync) {
    __shared__ float part[64];
    float sum = 0.0f;
    for (int round = 0; round < rounds; ++round) {
        part[threadIdx.x] = x[threadIdx.x];
        __syncthreads();
        sum += part[63 - threadIdx.x];
        if (sync) __syncthreads();
    }
    y[threadIdx.x] = sum;
}

extern "C" __global__ void global_race(int* total) { total[0] = total[0] + 1; }

extern "C" __global__ void blocks_race(int* x) {
    if (threadIdx.x == 0) x[blockIdx.x] = 1;
    if (threadIdx.x == 0 && blockIdx.x > 0) x[8] = x[blockIdx.x - 1];
}

extern "C" __global__ void atomic_total(int* total) { atomicAdd(total, 1); }

extern "C" __global__ void uninitialised_shared(float* x) {
    __shared__ float part[64];
    if (threadIdx.x < 63) part[threadIdx.x] = 1.0f;
    __syncthreads();
    x[threadIdx.x] = part[threadIdx.x];
}

extern "C" __global__ void copy(const float* from, float* to) { to[threadIdx.x] = from[threadIdx.x]; }

extern "C" __global__ void divides(int* x, int by) { x[threadIdx.x] /= by; }

// Nibble neighbours in one byte, written by two threads.
extern "C" __global__ void byte_race(unsigned char* codes) {
    int i = threadIdx.x;
    codes[i / 2] = (unsigned char)(codes[i / 2] | i << (i % 2 * 4));
}

// Right: votes, local arrays, half floats, and every lane of a warp.
extern "C" __global__ void correct(const float* x, float* y, unsigned* ballots) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    float own[8];
    for (int k = 0; k < 8; ++k) own[k] = x[(i + k) % 64] * (float)k;
    float sum = 0.0f;
    for (int k = 0; k < 8; ++k) sum += own[(k + (int)x[0]) & 7];
    unsigned short half;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(sum));
    asm("cvt.f32.f16 %0, %1;" : "=f"(sum) : "h"(half));
    unsigned ballot = __ballot_sync(0xffffffffu, x[i] > 0.0f);
    for (int lane = 16; lane > 0; lane /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lane);
    y[i] = sum;
    if (threadIdx.x % 32 == 0) ballots[i / 32] = ballot;
}
