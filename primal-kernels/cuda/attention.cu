// Causal attention that never holds the (T, T) scores, in the order of attention.rs: keys come in
// tiles of ATTENTION_TILE, a running softmax in sixteen lanes, one chain of fmaf a product and
// tile, tiles added in order.
//
// qkv is (B, T, (H + 2 KV) D), rows [query heads | key heads | value heads]; out (B, T, H D);
// lse (B, H, T). Half a warp works on OWN rows, its lanes on the keys (or queries) of a tile;
// blockIdx = (tile of rows, head, sequence).

struct Attention { int time, heads, kv_heads, head_dim; float scale; };

DEVICE int qkv_width(const Attention& a) { return (a.heads + 2 * a.kv_heads) * a.head_dim; }
DEVICE int kv_head_of(const Attention& a, int head) { return head / (a.heads / a.kv_heads); }

// Rows first.. of one head to shared memory, zero from `end` on.
template <int ROWS, int MAX_DIM, int THREADS>
DEVICE void load_rows(float (*to)[MAX_DIM + 1], const float* __restrict__ from, int stride, int dim, int first, int end) {
    for (int i = threadIdx.x; i < ROWS * dim; i += THREADS) {
        int row = i / dim, col = i % dim;
        to[row][col] = first + row < end ? from[(size_t)(first + row) * stride + col] : 0.0f;
    }
}

// s[r][j] = row (mine + r) of a times row (lane + 16 j) of b.
template <int OWN, int COUNT, int MAX_DIM>
DEVICE void scores(float (*s)[COUNT], float (*a)[MAX_DIM + 1], float (*b)[MAX_DIM + 1], int mine, int dim) {
    int lane = lane_of_row();
    #pragma unroll
    for (int r = 0; r < OWN; ++r) {
        #pragma unroll
        for (int j = 0; j < COUNT; ++j) s[r][j] = 0.0f;
    }
    for (int d = 0; d < dim; ++d) {
        float x[OWN], y[COUNT];
        #pragma unroll
        for (int r = 0; r < OWN; ++r) x[r] = a[mine + r][d];
        #pragma unroll
        for (int j = 0; j < COUNT; ++j) y[j] = b[lane + 16 * j][d];
        #pragma unroll
        for (int r = 0; r < OWN; ++r) {
            #pragma unroll
            for (int j = 0; j < COUNT; ++j) s[r][j] = fmaf(x[r], y[j], s[r][j]);
        }
    }
}

// sum[r][i] += s[r][k] of every k < count in order, times column lane + 16 i of row k of b.
template <int OWN, int COUNT, int MAX_DIM>
DEVICE void weighted_rows(float (*sum)[MAX_DIM / 16], float (*s)[COUNT], float (*b)[MAX_DIM + 1], int count, int dim) {
    int lane = lane_of_row();
    #pragma unroll
    for (int j = 0; j < COUNT; ++j) {
        int end = min(count - 16 * j, 16);
        for (int k = 0; k < end; ++k) {
            float weight[OWN];
            #pragma unroll
            for (int r = 0; r < OWN; ++r) weight[r] = from_lane(s[r][j], k);
            #pragma unroll
            for (int i = 0; i < MAX_DIM / 16; ++i) {
                if (lane + 16 * i < dim) {
                    float x = b[16 * j + k][lane + 16 * i];
                    #pragma unroll
                    for (int r = 0; r < OWN; ++r) sum[r][i] = fmaf(weight[r], x, sum[r][i]);
                }
            }
        }
    }
}

template <int OWN, int MAX_DIM>
DEVICE void clear(float (*x)[MAX_DIM / 16]) {
    #pragma unroll
    for (int r = 0; r < OWN; ++r) {
        #pragma unroll
        for (int i = 0; i < MAX_DIM / 16; ++i) x[r][i] = 0.0f;
    }
}

// total = part for the first tile, total + part after it.
template <int OWN, int MAX_DIM>
DEVICE void fold(float (*total)[MAX_DIM / 16], float (*part)[MAX_DIM / 16], bool first) {
    #pragma unroll
    for (int r = 0; r < OWN; ++r) {
        #pragma unroll
        for (int i = 0; i < MAX_DIM / 16; ++i) total[r][i] = first ? part[r][i] : total[r][i] + part[r][i];
    }
}

template <int OWN, int MAX_DIM, int THREADS>
DEVICE void forward(const float* __restrict__ qkv, float* out, float* lse, Attention a) {
    const int ROWS = THREADS / 16 * OWN, KEYS = ATTENTION_TILE / 16;
    __shared__ float q[ROWS][MAX_DIM + 1];
    __shared__ float kv[ATTENTION_TILE][MAX_DIM + 1];
    // Long rows first: they take longest.
    int first = (gridDim.x - 1 - blockIdx.x) * ROWS, head = blockIdx.y, lane = lane_of_row();
    int mine = threadIdx.x / 16 * OWN, dim = a.head_dim, stride = qkv_width(a);
    qkv += (size_t)blockIdx.z * a.time * stride;
    const float* keys = qkv + (a.heads + kv_head_of(a, head)) * dim;
    const float* values = keys + a.kv_heads * dim;
    load_rows<ROWS, MAX_DIM, THREADS>(q, qkv + head * dim, stride, dim, first, a.time);

    float result[OWN][MAX_DIM / 16], largest[OWN], total[OWN];
    clear<OWN, MAX_DIM>(result);
    #pragma unroll
    for (int r = 0; r < OWN; ++r) { largest[r] = -INFINITE; total[r] = 0.0f; }
    int last = min(first + ROWS, a.time) - 1;
    for (int start = 0; start <= last; start += ATTENTION_TILE) {
        int count = min(ATTENTION_TILE, a.time - start);
        __syncthreads();
        load_rows<ATTENTION_TILE, MAX_DIM, THREADS>(kv, keys, stride, dim, start, a.time);
        __syncthreads();
        float p[OWN][KEYS];
        scores<OWN, KEYS, MAX_DIM>(p, q, kv, mine, dim);
        #pragma unroll
        for (int r = 0; r < OWN; ++r) {
            int visible = min(count, first + mine + r - start + 1);
            if (visible <= 0) {
                // A tile behind this row, though not behind the block's last: nothing to add.
                #pragma unroll
                for (int j = 0; j < KEYS; ++j) p[r][j] = 0.0f;
                continue;
            }
            float most = -INFINITE;
            #pragma unroll
            for (int j = 0; j < KEYS; ++j) {
                if (lane + 16 * j >= visible) p[r][j] = -INFINITE;
                most = j == 0 ? p[r][0] : max_of(p[r][j], most);
            }
            float tile_most = max_lane(most) * a.scale;
            float now = largest[r] > tile_most ? largest[r] : tile_most;
            float rescale = exp_of(largest[r] - now);
            largest[r] = now;
            float sum = 0.0f;
            #pragma unroll
            for (int j = 0; j < KEYS; ++j) {
                p[r][j] = exp_of(p[r][j] * a.scale - now);
                sum = sum + p[r][j];
            }
            total[r] = total[r] * rescale + sum_lanes(sum);
            if (start > 0) {
                #pragma unroll
                for (int i = 0; i < MAX_DIM / 16; ++i) result[r][i] = result[r][i] * rescale;
            }
        }
        __syncthreads();
        load_rows<ATTENTION_TILE, MAX_DIM, THREADS>(kv, values, stride, dim, start, a.time);
        __syncthreads();
        float part[OWN][MAX_DIM / 16];
        clear<OWN, MAX_DIM>(part);
        weighted_rows<OWN, KEYS, MAX_DIM>(part, p, kv, count, dim);
        fold<OWN, MAX_DIM>(result, part, start == 0);
    }
    #pragma unroll
    for (int r = 0; r < OWN; ++r) {
        int row = first + mine + r;
        if (row >= a.time) continue;
        float inverse = 1.0f / total[r];
        float* to = out + ((size_t)blockIdx.z * a.time + row) * a.heads * dim + head * dim;
        #pragma unroll
        for (int i = 0; i < MAX_DIM / 16; ++i) {
            if (lane + 16 * i < dim) to[lane + 16 * i] = result[r][i] * inverse;
        }
        if (lane == 0) lse[((size_t)blockIdx.z * a.heads + head) * a.time + row] = largest[r] + ln_of(total[r]);
    }
}

// dots (B, H, T) = out . dout of every head and token: half a warp each.
KERNEL __launch_bounds__(256)
    attention_dots(const float* __restrict__ out, const float* __restrict__ dout, float* dots,
                   Attention a, int tokens) {
    int at = half_warp_row(), lane = lane_of_row();
    if (at >= tokens * a.heads) return;
    int head = at % a.heads, token = at / a.heads, width = a.heads * a.head_dim;
    size_t from = (size_t)token * width + head * a.head_dim;
    float sum = 0.0f;
    for (int d = lane; d < a.head_dim; d += LANES) sum = out[from + d] * dout[from + d] + sum;
    sum = sum_lanes(sum);
    int sequence = token / a.time;
    if (lane == 0) dots[((size_t)sequence * a.heads + head) * a.time + token % a.time] = sum;
}

// The probability and the score's gradient of one (query, key), from score and dp in place.
DEVICE void backward_score(float& p, float& ds, bool visible, float scale, float lse, float dot) {
    p = visible ? exp_of(p * scale - lse) : 0.0f;
    ds = p * (ds - dot) * scale;
}

// dq: blocks have rows of queries and go over the keys.
template <int OWN, int MAX_DIM, int THREADS>
DEVICE void backward_queries(const float* __restrict__ qkv, const float* __restrict__ lse,
                             const float* __restrict__ dots, const float* __restrict__ dout,
                             float* dqkv, Attention a) {
    const int ROWS = THREADS / 16 * OWN, KEYS = ATTENTION_TILE / 16;
    __shared__ float q[ROWS][MAX_DIM + 1];
    __shared__ float d_out[ROWS][MAX_DIM + 1];
    __shared__ float kv[ATTENTION_TILE][MAX_DIM + 1];
    int first = (gridDim.x - 1 - blockIdx.x) * ROWS, head = blockIdx.y, lane = lane_of_row();
    int mine = threadIdx.x / 16 * OWN, dim = a.head_dim, stride = qkv_width(a), width = a.heads * dim;
    qkv += (size_t)blockIdx.z * a.time * stride;
    dqkv += (size_t)blockIdx.z * a.time * stride;
    dout += (size_t)blockIdx.z * a.time * width;
    size_t row_data = ((size_t)blockIdx.z * a.heads + head) * a.time;
    const float* keys = qkv + (a.heads + kv_head_of(a, head)) * dim;
    const float* values = keys + a.kv_heads * dim;
    load_rows<ROWS, MAX_DIM, THREADS>(q, qkv + head * dim, stride, dim, first, a.time);
    load_rows<ROWS, MAX_DIM, THREADS>(d_out, dout + head * dim, width, dim, first, a.time);

    float result[OWN][MAX_DIM / 16];
    clear<OWN, MAX_DIM>(result);
    int last = min(first + ROWS, a.time) - 1;
    for (int start = 0; start <= last; start += ATTENTION_TILE) {
        int count = min(ATTENTION_TILE, a.time - start);
        float p[OWN][KEYS], ds[OWN][KEYS];
        __syncthreads();
        load_rows<ATTENTION_TILE, MAX_DIM, THREADS>(kv, values, stride, dim, start, a.time);
        __syncthreads();
        scores<OWN, KEYS, MAX_DIM>(ds, d_out, kv, mine, dim);
        __syncthreads();
        load_rows<ATTENTION_TILE, MAX_DIM, THREADS>(kv, keys, stride, dim, start, a.time);
        __syncthreads();
        scores<OWN, KEYS, MAX_DIM>(p, q, kv, mine, dim);
        #pragma unroll
        for (int r = 0; r < OWN; ++r) {
            int row = first + mine + r;
            bool real = row < a.time;
            float row_lse = real ? lse[row_data + row] : 0.0f, dot = real ? dots[row_data + row] : 0.0f;
            #pragma unroll
            for (int j = 0; j < KEYS; ++j) {
                bool visible = real && start + lane + 16 * j <= row;
                backward_score(p[r][j], ds[r][j], visible, a.scale, row_lse, dot);
            }
        }
        float part[OWN][MAX_DIM / 16];
        clear<OWN, MAX_DIM>(part);
        weighted_rows<OWN, KEYS, MAX_DIM>(part, ds, kv, count, dim);
        fold<OWN, MAX_DIM>(result, part, start == 0);
    }
    #pragma unroll
    for (int r = 0; r < OWN; ++r) {
        int row = first + mine + r;
        if (row >= a.time) continue;
        #pragma unroll
        for (int i = 0; i < MAX_DIM / 16; ++i) {
            if (lane + 16 * i < dim) dqkv[(size_t)row * stride + head * dim + lane + 16 * i] = result[r][i];
        }
    }
}

// dk and dv: blocks have rows of keys and go over the queries that see them, of every query head
// of the group; queries come to shared memory CHUNK at a time.
template <int OWN, int MAX_DIM, int THREADS, int CHUNK>
DEVICE void backward_keys(const float* __restrict__ qkv, const float* __restrict__ lse,
                          const float* __restrict__ dots, const float* __restrict__ dout,
                          float* dqkv, Attention a) {
    const int ROWS = THREADS / 16 * OWN, QUERIES = CHUNK / 16;
    __shared__ float k[ROWS][MAX_DIM + 1];
    __shared__ float v[ROWS][MAX_DIM + 1];
    __shared__ float q[CHUNK][MAX_DIM + 1];
    __shared__ float d_out[CHUNK][MAX_DIM + 1];
    int first = blockIdx.x * ROWS, kv_head = blockIdx.y, lane = lane_of_row();
    int mine = threadIdx.x / 16 * OWN, dim = a.head_dim, stride = qkv_width(a), width = a.heads * dim;
    int group = a.heads / a.kv_heads;
    qkv += (size_t)blockIdx.z * a.time * stride;
    dqkv += (size_t)blockIdx.z * a.time * stride;
    dout += (size_t)blockIdx.z * a.time * width;
    int key_column = (a.heads + kv_head) * dim, value_column = key_column + a.kv_heads * dim;
    load_rows<ROWS, MAX_DIM, THREADS>(k, qkv + key_column, stride, dim, first, a.time);
    load_rows<ROWS, MAX_DIM, THREADS>(v, qkv + value_column, stride, dim, first, a.time);

    float dk[OWN][MAX_DIM / 16], dv[OWN][MAX_DIM / 16];
    clear<OWN, MAX_DIM>(dk);
    clear<OWN, MAX_DIM>(dv);
    int first_tile = first / ATTENTION_TILE * ATTENTION_TILE;
    for (int head = kv_head * group; head < (kv_head + 1) * group; ++head) {
        size_t row_data = ((size_t)blockIdx.z * a.heads + head) * a.time;
        for (int tile = first_tile; tile < a.time; tile += ATTENTION_TILE) {
            int end = min(tile + ATTENTION_TILE, a.time);
            float dk_part[OWN][MAX_DIM / 16], dv_part[OWN][MAX_DIM / 16];
            clear<OWN, MAX_DIM>(dk_part);
            clear<OWN, MAX_DIM>(dv_part);
            for (int start = tile; start < end; start += CHUNK) {
                __syncthreads();
                load_rows<CHUNK, MAX_DIM, THREADS>(q, qkv + head * dim, stride, dim, start, a.time);
                load_rows<CHUNK, MAX_DIM, THREADS>(d_out, dout + head * dim, width, dim, start, a.time);
                __syncthreads();
                float p[OWN][QUERIES], ds[OWN][QUERIES];
                scores<OWN, QUERIES, MAX_DIM>(p, k, q, mine, dim);
                scores<OWN, QUERIES, MAX_DIM>(ds, v, d_out, mine, dim);
                #pragma unroll
                for (int j = 0; j < QUERIES; ++j) {
                    int query = start + lane + 16 * j;
                    bool real = query < end;
                    float row_lse = real ? lse[row_data + query] : 0.0f;
                    float dot = real ? dots[row_data + query] : 0.0f;
                    #pragma unroll
                    for (int r = 0; r < OWN; ++r) {
                        bool visible = real && first + mine + r <= query;
                        backward_score(p[r][j], ds[r][j], visible, a.scale, row_lse, dot);
                    }
                }
                int count = min(CHUNK, end - start);
                weighted_rows<OWN, QUERIES, MAX_DIM>(dk_part, ds, q, count, dim);
                weighted_rows<OWN, QUERIES, MAX_DIM>(dv_part, p, d_out, count, dim);
            }
            bool is_first = head == kv_head * group && tile == first_tile;
            fold<OWN, MAX_DIM>(dk, dk_part, is_first);
            fold<OWN, MAX_DIM>(dv, dv_part, is_first);
        }
    }
    #pragma unroll
    for (int r = 0; r < OWN; ++r) {
        int row = first + mine + r;
        if (row >= a.time) continue;
        float* to = dqkv + (size_t)row * stride;
        #pragma unroll
        for (int i = 0; i < MAX_DIM / 16; ++i) {
            if (lane + 16 * i < dim) {
                to[key_column + lane + 16 * i] = dk[r][i];
                to[value_column + lane + 16 * i] = dv[r][i];
            }
        }
    }
}

// A cache of keys (KV, S / 64, D, 64) and values (KV, S, W), S tokens rounded up to 64 and W = D rounded up to 16, in f16, f32 or
// i8, the last with scales (KV, S) of both: the CPU's KvCache. Of n new tokens, blocks y of the grid, the first is the last of
// `time`.

DEVICE float number(float x) { return x; }
DEVICE float number(u16 bits) { return from_half(bits); }
DEVICE float number(i8 x) { return (float)x; }
DEVICE void put(float* to, float x) { *to = x; }
DEVICE void put(u16* to, float x) { *to = to_half(x); }

// Where element d of the key of a slot lies: transposed within its tile.
DEVICE size_t key_place(size_t slot, int dim, int d) {
    return slot / ATTENTION_TILE * ATTENTION_TILE * dim + d * ATTENTION_TILE + slot % ATTENTION_TILE;
}

DEVICE int padded_width(int dim) { return (dim + LANES - 1) / LANES * LANES; }

// Stores the new tokens' keys and values, which follow their queries in qkv (n, (H + 2 KV) D).
template <typename E>
DEVICE void store(const float* __restrict__ qkv, E* keys, E* values, const Attention& a, int stored) {
    int i = blockIdx.x * blockDim.x + threadIdx.x, dim = a.head_dim, width = a.kv_heads * dim;
    if (i >= width) return;
    size_t slot = (size_t)(i / dim) * stored + a.time - 1 + blockIdx.y;
    qkv += blockIdx.y * (a.heads * dim + 2 * width) + a.heads * dim;
    put(keys + key_place(slot, dim, i % dim), qkv[i]);
    put(values + slot * padded_width(dim) + i % dim, qkv[width + i]);
}

#define STORE(NAME, E)                                                                             \
    KERNEL __launch_bounds__(256)                                                                   \
        NAME(const float* qkv, E* keys, E* values, float*, float*, Attention a, int stored) {       \
        store(qkv, keys, values, a, stored);                                                        \
    }

STORE(store_token, u16)
STORE(store_token_f32, float)

// The same in units of the largest magnitude of a token's key or value of a head / 127: half a warp each.
KERNEL __launch_bounds__(256)
    store_token_i8(const float* __restrict__ qkv, i8* keys, i8* values, float* key_scales,
                   float* value_scales, Attention a, int stored) {
    int item = half_warp_row(), lane = lane_of_row(), dim = a.head_dim;
    if (item >= 2 * a.kv_heads) return;
    bool is_key = item < a.kv_heads;
    size_t slot = (size_t)(item % a.kv_heads) * stored + a.time - 1 + blockIdx.y;
    qkv += (size_t)(blockIdx.y * (a.heads + 2 * a.kv_heads) + a.heads + item) * dim;
    float most = 0.0f, nothing = 0.0f;
    for (int d = lane; d < dim; d += LANES) {
        most = max_of(fabsf(qkv[d]), most);
        nothing = qkv[d] * 0.0f + nothing;
    }
    most = max_lane(most);
    bool finite = sum_lanes(nothing) == 0.0f;
    float scale = finite ? most / 127.0f : __int_as_float(0x7fc00000);
    for (int d = lane; d < dim; d += LANES) {
        float units = rintf(qkv[d] / scale);
        // Zero by zero is zero.
        i8 byte = units == units ? (i8)(int)(units < -128.0f ? -128.0f : 127.0f < units ? 127.0f : units) : 0;
        if (is_key) keys[key_place(slot, dim, d)] = byte;
        else values[slot * padded_width(dim) + d] = byte;
    }
    if (lane == 0) (is_key ? key_scales : value_scales)[slot] = scale;
}

// Attention of the new tokens' queries over the cache, each up to itself: a block a head. A thread has one token of
// a tile, then up to two columns of the sum of values; sums run in the order of attention/cached.rs.
template <typename E, bool SCALED>
DEVICE void attend(const float* __restrict__ qkv, const E* __restrict__ keys, const E* __restrict__ values,
                   const float* __restrict__ key_scales, const float* __restrict__ value_scales, float* out,
                   const Attention& a, int stored) {
    __shared__ float query[128];
    __shared__ float p[ATTENTION_TILE];
    int head = blockIdx.x, own = threadIdx.x, lane = lane_of_row(), dim = a.head_dim;
    int padded = padded_width(dim), time = a.time + blockIdx.y;
    qkv += blockIdx.y * (a.heads + 2 * a.kv_heads) * dim;
    out += blockIdx.y * a.heads * dim;
    size_t first_slot = (size_t)kv_head_of(a, head) * stored;
    keys += first_slot * dim + own;
    values += first_slot * padded + own;
    if (SCALED) {
        key_scales += first_slot + own;
        value_scales += first_slot + own;
    }
    for (int d = own; d < dim; d += ATTENTION_TILE) query[d] = qkv[head * dim + d];
    float largest = -INFINITE, total = 0.0f, column[2] = {0.0f, 0.0f};
    for (int start = 0; start < time; start += ATTENTION_TILE) {
        int count = min(ATTENTION_TILE, time - start);
        __syncthreads();
        float score = 0.0f;
        const E* key = keys + (size_t)start * dim;
        #pragma unroll 8
        for (int d = 0; d < dim; ++d) score = number(key[d * ATTENTION_TILE]) * query[d] + score;
        if (SCALED) score = score * key_scales[start];
        p[own] = own < count ? score : -INFINITE;
        __syncthreads();
        // Every half-warp goes over the whole tile.
        float most = p[lane];
        #pragma unroll
        for (int t = LANES; t < ATTENTION_TILE; t += LANES) most = max_of(p[t + lane], most);
        float tile_most = max_lane(most) * a.scale;
        float now = largest > tile_most ? largest : tile_most;
        float rescale = exp_of(largest - now), probability = exp_of(p[own] * a.scale - now);
        largest = now;
        __syncthreads();
        p[own] = probability;
        __syncthreads();
        float sum = 0.0f;
        #pragma unroll
        for (int t = 0; t < ATTENTION_TILE; t += LANES) sum = sum + p[t + lane];
        total = total * rescale + sum_lanes(sum);
        if (SCALED) {
            __syncthreads();
            p[own] = probability * value_scales[start];
            __syncthreads();
        }
        const E* value = values + (size_t)start * padded;
        #pragma unroll
        for (int i = 0; i < 2; ++i) {
            if (own + i * ATTENTION_TILE >= dim) continue;
            float x = column[i] * rescale;
            #pragma unroll 8
            for (int t = 0; t < count; ++t) {
                x = p[t] * number(value[(size_t)t * padded + i * ATTENTION_TILE]) + x;
            }
            column[i] = x;
        }
    }
    float inverse = 1.0f / total;
    #pragma unroll
    for (int i = 0; i < 2; ++i) {
        int d = own + i * ATTENTION_TILE;
        if (d < dim) out[head * dim + d] = column[i] * inverse;
    }
}

#define ATTEND(NAME, E, SCALED)                                                                     \
    KERNEL __launch_bounds__(ATTENTION_TILE)                                                         \
        NAME(const float* qkv, const E* keys, const E* values, const float* key_scales,              \
             const float* value_scales, float* out, Attention a, int stored) {                       \
        attend<E, SCALED>(qkv, keys, values, key_scales, value_scales, out, a, stored);              \
    }

ATTEND(attention_cached, u16, false)
ATTEND(attention_cached_f32, float, false)
ATTEND(attention_cached_i8, i8, true)

// Heads of up to 64 and of up to 128 elements: rows of a half-warp and threads so that shared
// memory and registers suffice.
#define ATTENTION(DIM, OWN_FORWARD, OWN_QUERIES, OWN_KEYS, THREADS_FORWARD, THREADS_KEYS, CHUNK)     \
    KERNEL __launch_bounds__(THREADS_FORWARD)                                                         \
        attention_forward_##DIM(const float* qkv, float* out, float* lse, Attention a) {              \
        forward<OWN_FORWARD, DIM, THREADS_FORWARD>(qkv, out, lse, a);                                 \
    }                                                                                                 \
    KERNEL __launch_bounds__(THREADS_FORWARD)                                                         \
        attention_backward_queries_##DIM(const float* qkv, const float* lse, const float* dots,       \
                                         const float* dout, float* dqkv, Attention a) {               \
        backward_queries<OWN_QUERIES, DIM, THREADS_FORWARD>(qkv, lse, dots, dout, dqkv, a);           \
    }                                                                                                 \
    KERNEL __launch_bounds__(THREADS_KEYS)                                                            \
        attention_backward_keys_##DIM(const float* qkv, const float* lse, const float* dots,          \
                                      const float* dout, float* dqkv, Attention a) {                  \
        backward_keys<OWN_KEYS, DIM, THREADS_KEYS, CHUNK>(qkv, lse, dots, dout, dqkv, a);             \
    }

ATTENTION(64, 4, 2, 4, 256, 128, 32)
ATTENTION(128, 2, 1, 2, 128, 128, 16)
