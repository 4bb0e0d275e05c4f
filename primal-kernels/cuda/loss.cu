// Cross-entropy over tiles of the vocabulary, as loss.rs: half a warp a row.

struct Running { float max, sum; };

// Before the first tile.
KERNEL __launch_bounds__(256) loss_begin(Running* running, float* losses, int n) {
    int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= n) return;
    Running start = {-INFINITE, 0.0f};
    running[row] = start;
    losses[row] = 0.0f;
}

// The running softmax after the logits (n, width) of vocabulary rows start.. .
KERNEL __launch_bounds__(256)
    loss_tile(const float* __restrict__ logits, const u32* __restrict__ targets, int n, int width,
              int start, Running* running, float* losses) {
    int row = half_warp_row(), lane = lane_of_row();
    if (row >= n) return;
    logits += (size_t)row * width;
    // The last vector, which may be short, comes first.
    int whole = width / LANES * LANES;
    float last = whole + lane < width ? logits[whole + lane] : -INFINITE;
    float most = last;
    for (int c = lane; c < whole; c += LANES) most = max_of(logits[c], most);
    float tile_most = max_lane(most);
    Running before = running[row];
    float now = before.max > tile_most ? before.max : tile_most;
    float sum = 0.0f;
    for (int c = lane; c < whole; c += LANES) sum = sum + exp_of(logits[c] - now);
    sum = sum + exp_of(last - now);
    sum = sum_lanes(sum);
    if (lane == 0) {
        Running after = {now, before.sum * exp_of(before.max - now) + sum};
        running[row] = after;
        u32 at = targets[row] - (u32)start;
        if (at < (u32)width) losses[row] = -logits[at];
    }
}

// lse = max + ln sum; the loss of a row that counts is complete.
KERNEL __launch_bounds__(256)
    loss_end(const Running* __restrict__ running, const u32* __restrict__ targets, int n, float* losses, float* lse) {
    int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= n) return;
    float x = running[row].max + ln_of(running[row].sum);
    lse[row] = x;
    if (targets[row] != IGNORED_TARGET) losses[row] = losses[row] + x;
}

// logits = (softmax - one-hot) grad_scale; zero where there is no target.
KERNEL __launch_bounds__(256)
    loss_gradient(float* logits, const u32* __restrict__ targets, const float* __restrict__ lse,
                  int n, int width, int start, float grad_scale) {
    int total = n * width;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < total; i += gridDim.x * blockDim.x) {
        int row = i / width;
        u32 target = targets[row];
        float x = exp_of(logits[i] - lse[row]) * grad_scale;
        if (target - (u32)start == (u32)(i % width)) x = x - grad_scale;
        logits[i] = target == IGNORED_TARGET ? 0.0f : x;
    }
}

// sums[p] = the losses of piece p added up in float64, in order: a block a piece.
KERNEL __launch_bounds__(256) sum_losses(const float* __restrict__ losses, int piece_rows, double* sums) {
    __shared__ float part[256];
    losses += (size_t)blockIdx.x * piece_rows;
    double sum = 0.0;
    for (int start = 0; start < piece_rows; start += 256) {
        int count = min(256, piece_rows - start);
        __syncthreads();
        if ((int)threadIdx.x < count) part[threadIdx.x] = losses[start + threadIdx.x];
        __syncthreads();
        if (threadIdx.x == 0) {
            for (int i = 0; i < count; ++i) sum = sum + (double)part[i];
        }
    }
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// grad (rows, C) of tokens first_token.. : += (or =, `overwrite`) the rows of d_stream that hold
// each token, in order. order lists rows by token, starts where each token's begin.
KERNEL __launch_bounds__(256)
    embedding_gradient(const float* __restrict__ d_stream, const u32* __restrict__ starts,
                       const u32* __restrict__ order, int first_token, int rows, int width,
                       int overwrite, float* grad) {
    int total = rows * width;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < total; i += gridDim.x * blockDim.x) {
        int row = i / width, col = i % width;
        float sum = overwrite ? 0.0f : grad[i];
        u32 end = starts[first_token + row + 1];
        for (u32 at = starts[first_token + row]; at < end; ++at) {
            sum = sum + d_stream[(size_t)order[at] * width + col];
        }
        grad[i] = sum;
    }
}

// grad (rows, C) of positions first.. = the sum over sequences of d_stream (sequences, time, C).
KERNEL __launch_bounds__(256)
    position_gradient(const float* __restrict__ d_stream, int sequences, int time, int first,
                      int rows, int width, float* grad) {
    int total = rows * width;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < total; i += gridDim.x * blockDim.x) {
        int row = i / width, col = i % width;
        float sum = 0.0f;
        for (int b = 0; b < sequences; ++b) {
            sum = sum + d_stream[((size_t)b * time + first + row) * width + col];
        }
        grad[i] = sum;
    }
}
