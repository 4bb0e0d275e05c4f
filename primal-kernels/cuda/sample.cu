// The choice of a token by its logit, as sampling.rs: sums are of integers, in any order.
//
// A token's key has the order of likelihood: its logit as an integer of the same order, below it
// `low` bits in which the smaller id is the larger. Zero is no token, FAULT marks a logit that is
// NaN or plus infinity.

#define FAULT ((u64)1 << 63)
#define LARGEST __int_as_float(0x7f7fffff)

DEVICE int low_bits(int vocab) { return 32 - __clz(vocab - 1); }

DEVICE u32 ordered(float x) {
    u32 bits = (u32)__float_as_int(x);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

DEVICE float logit_of(u64 key, int low) {
    u32 bits = (u32)(key >> low);
    return __int_as_float((int)(bits >> 31 ? bits & 0x7fffffffu : ~bits));
}

// x of every thread put together; every thread gets the result. `parts` has room for 32.
template <typename Join> DEVICE u64 fold_block(u64 x, u64* parts, Join join) {
    for (int half = 16; half > 0; half /= 2) x = join(x, __shfl_xor_sync(0xffffffffu, x, half));
    __syncthreads();
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
    __syncthreads();
    x = parts[0];
    for (int warp = 1; warp < (int)blockDim.x / 32; ++warp) x = join(x, parts[warp]);
    return x;
}

// The key of the token at which weights, added up from the likeliest token on, first exceed
// `target`, or zero if they never do; weight_from(key) is what this thread has from that key on.
template <typename Weights>
DEVICE u64 find_key(u64 target, int bits, u64* parts, Weights weight_from) {
    auto add = [](u64 a, u64 b) { return a + b; };
    u64 key = 0;
    for (int bit = bits - 1; bit >= 0; --bit) {
        u64 trial = key | (u64)1 << bit;
        if (fold_block(weight_from(trial), parts, add) > target) key = trial;
    }
    return key;
}

// keys (vocab): of tokens that are neither barred nor, where there are several blocks, beaten by
// top_k others of their own.
KERNEL __launch_bounds__(256)
    sample_keys(const float* __restrict__ logits, int vocab, const u32* __restrict__ recent,
                int n_recent, float repeat_penalty, int top_k, u64* keys) {
    __shared__ u64 parts[32];
    int i = blockIdx.x * blockDim.x + threadIdx.x, low = low_bits(vocab);
    u64 key = 0;
    if (i < vocab) {
        float x = logits[i];
        u64 place = (u64)(vocab - 1 - i);
        if (!(x < INFINITE)) {
            key = FAULT | place;
        } else {
            for (int r = 0; r < n_recent; ++r) {
                if (recent[r] != (u32)i) continue;
                x = x > 0.0f ? min_of(x / repeat_penalty, LARGEST) : x * repeat_penalty;
                break;
            }
            if (x > -INFINITE) key = (u64)ordered(x) << low | place;
        }
    }
    if (gridDim.x > 1 && 0 < top_k && top_k < (int)blockDim.x) {
        u64 least = find_key(top_k - 1, 32 + low, parts, [=](u64 from) { return (u64)(key >= from); });
        if (key < least) key = 0;
    }
    if (i < vocab) keys[i] = key;
}

// The tokens that one thread has in hand: every blockDim-th key, without gaps.
struct Hand {
    u64* keys;
    int count, low;
    float best;

    DEVICE u64& at(int i) const { return keys[i * blockDim.x]; }

    DEVICE void keep_from(u64 least) {
        int kept = 0;
        for (int i = 0; i < count; ++i) {
            u64 key = at(i);
            if (key >= least) at(kept++) = key;
        }
        count = kept;
    }

    DEVICE float power(u64 key, float temperature) const {
        return exp_of((logit_of(key, low) - best) / temperature);
    }

    // What the tokens from that key on weigh at a temperature.
    DEVICE u64 weight(u64 from, float temperature) const {
        u64 sum = 0;
        for (int i = 0; i < count; ++i) {
            u64 key = at(i);
            if (key >= from) sum += (u64)(power(key, temperature) * SAMPLE_WEIGHT);
        }
        return sum;
    }
};

// One block; overwrites keys (vocab). chosen (1): a token, or NO_TOKEN, or BAD_LOGIT | its token.
KERNEL __launch_bounds__(1024)
    sample(u64* keys, int vocab, float temperature, int top_k, float top_p, float min_p, u64 random,
           u32* chosen) {
    __shared__ u64 parts[32];
    auto add = [](u64 a, u64 b) { return a + b; };
    Hand hand = {keys + threadIdx.x, 0, low_bits(vocab), 0.0f};
    int bits = 32 + hand.low;
    u64 best = 0;
    for (int i = threadIdx.x; i < vocab; i += blockDim.x) {
        u64 key = keys[i];
        if (key == 0) continue;
        hand.at(hand.count++) = key;
        if (key > best) best = key;
    }
    best = fold_block(best, parts, [](u64 a, u64 b) { return a > b ? a : b; });
    hand.best = logit_of(best, hand.low);

    u64 key = best;
    if (temperature > 0.0f && 0 < best && best < FAULT) {
        if (top_k > 0) {
            hand.keep_from(find_key(top_k - 1, bits, parts, [=](u64 from) {
                u64 count = 0;
                for (int i = 0; i < hand.count; ++i) count += hand.at(i) >= from;
                return count;
            }));
        }
        if (top_p < 1.0f) {
            u64 total = fold_block(hand.weight(0, 1.0f), parts, add);
            u64 wanted = __umul64hi(total, (u64)(top_p * 18446744073709551616.0f));
            hand.keep_from(find_key(wanted > 0 ? wanted - 1 : 0, bits, parts,
                                    [=](u64 from) { return hand.weight(from, 1.0f); }));
        }
        int kept = 0;
        for (int i = 0; i < hand.count; ++i) {
            u64 it = hand.at(i);
            if (hand.power(it, 1.0f) >= min_p) hand.at(kept++) = it;
        }
        hand.count = kept;
        u64 total = fold_block(hand.weight(0, temperature), parts, add);
        key = find_key(__umul64hi(total, random), bits, parts,
                       [=](u64 from) { return hand.weight(from, temperature); });
    }
    if (threadIdx.x == 0) {
        u32 token = (u32)vocab - 1 - (u32)(key & (((u64)1 << hand.low) - 1));
        *chosen = key == 0 ? NO_TOKEN : key >= FAULT ? BAD_LOGIT | token : token;
    }
}
