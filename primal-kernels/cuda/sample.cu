// Choosing the next token from one row of logits.

// best[0] = the index of the largest logit, the lowest of equals; one block.
KERNEL __launch_bounds__(256) argmax(const float* __restrict__ logits, int n, u32* best) {
    __shared__ float value_of[256];
    __shared__ int index_of[256];
    float value = -INFINITE;
    int index = 0;
    for (int i = threadIdx.x; i < n; i += 256) {
        if (logits[i] > value) {
            value = logits[i];
            index = i;
        }
    }
    value_of[threadIdx.x] = value;
    index_of[threadIdx.x] = index;
    for (int half = 128; half > 0; half /= 2) {
        __syncthreads();
        if ((int)threadIdx.x < half) {
            float other = value_of[threadIdx.x + half];
            int at = index_of[threadIdx.x + half];
            bool better = other > value_of[threadIdx.x]
                       || (other == value_of[threadIdx.x] && at < index_of[threadIdx.x]);
            if (better) {
                value_of[threadIdx.x] = other;
                index_of[threadIdx.x] = at;
            }
        }
    }
    if (threadIdx.x == 0) best[0] = (u32)index_of[0];
}
