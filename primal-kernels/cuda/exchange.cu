// What several GPUs exchange to take one step: NCCL adds no integers of 16 bits, and the order in
// which it adds floats is not ours.

// Turns every two votes, a word of 32 bits, into the integer high * 65536 + low. Sums of such
// words, modulo 2^32, are those of both votes as long as either fits 16 bits, which `back` undoes:
// a negative low vote has taken one off the high one. A vote beyond `most` either way, whose sum
// over the GPUs might not fit, sets bit 1 of *bad.
KERNEL __launch_bounds__(256) pair_votes(u32* pairs, int n, int back, int most, u32* bad) {
    FOR_EACH(i, n) {
        u32 word = pairs[i], borrowed = (word & 0x8000u) << 1;
        if (back) {
            pairs[i] = word + borrowed;
            continue;
        }
        int low = (i16)(word & 0xffffu), high = (i16)(word >> 16);
        if (max(abs(low), abs(high)) > most) atomicOr(bad, 2u);
        pairs[i] = word - borrowed;
    }
}

// Folds the sums of a round of micro-batches, parts (gpus, n), one after the other onto total (n),
// those of the rounds before. own (n), which this GPU has summed in, is ready for the next round
// then, or, with `last`, becomes the sums of the step, and total is ready for the next step.
template <typename T>
DEVICE void fold_round_of(const T* __restrict__ parts, int gpus, int n, T* total, T* own, int last) {
    FOR_EACH(i, n) {
        T sum = total[i];
        for (int gpu = 0; gpu < gpus; ++gpu) sum = sum + parts[(size_t)gpu * n + i];
        total[i] = last ? (T)0 : sum;
        own[i] = last ? sum : (T)0;
    }
}

KERNEL __launch_bounds__(256)
    fold_round(const float* __restrict__ parts, int gpus, int n, float* total, float* own, int last) {
    fold_round_of(parts, gpus, n, total, own, last);
}

KERNEL __launch_bounds__(256)
    fold_round_f64(const double* __restrict__ parts, int gpus, int n, double* total, double* own, int last) {
    fold_round_of(parts, gpus, n, total, own, last);
}
