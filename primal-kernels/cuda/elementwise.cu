// Element by element: GELU, SwiGLU, rotary positions, biases, sums, AdamW.

#define FOR_EACH(i, n) \
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < (n); i += gridDim.x * blockDim.x)

KERNEL __launch_bounds__(256) add(const float* __restrict__ x, float* y, int n) {
    FOR_EACH(i, n) y[i] = y[i] + x[i];
}

// Adds bias (width) to every row of y.
KERNEL __launch_bounds__(256) add_bias(const float* __restrict__ bias, float* y, int n, int width) {
    FOR_EACH(i, n) y[i] = y[i] + bias[i % width];
}

// Half of 1 + tanh u as 1 / (1 + e^(-2u)), u = sqrt(2 / pi) (x + 0.044715 x^3).
DEVICE float gelu_gate(float x, float squared) {
    float factor = squared * GELU_CUBE + 1.0f;
    float exponent = x * (-2.0f * GELU_SLOPE) * factor;
    return 1.0f / (1.0f + exp_of(exponent));
}

KERNEL __launch_bounds__(256) gelu(const float* __restrict__ x, float* y, int n) {
    FOR_EACH(i, n) y[i] = x[i] * gelu_gate(x[i], x[i] * x[i]);
}

// dy becomes the gradient of x.
KERNEL __launch_bounds__(256) gelu_backward(const float* __restrict__ x_of, float* dy, int n) {
    FOR_EACH(i, n) {
        float x = x_of[i], squared = x * x, s = gelu_gate(x, squared);
        float inner = squared * (3.0f * GELU_CUBE) + 1.0f;
        inner = x * (2.0f * GELU_SLOPE) * inner;
        dy[i] = dy[i] * (s * (1.0f - s) * inner + s);
    }
}

DEVICE float sigmoid(float x) { return 1.0f / (1.0f + exp_of(0.0f - x)); }

// y (n, width) = gate sigmoid(gate) up, for x (n, 2 width) with rows [gate | up].
KERNEL __launch_bounds__(256) swiglu(const float* __restrict__ x, float* y, int n, int width) {
    FOR_EACH(i, n * width) {
        const float* row = x + (size_t)(i / width) * 2 * width + i % width;
        y[i] = row[0] * sigmoid(row[0]) * row[width];
    }
}

// x, the input of swiglu, becomes its gradient.
KERNEL __launch_bounds__(256) swiglu_backward(float* x, const float* __restrict__ dy_of, int n, int width) {
    FOR_EACH(i, n * width) {
        float* row = x + (size_t)(i / width) * 2 * width + i % width;
        float gate = row[0], up = row[width], s = sigmoid(gate);
        float inner = gate * (1.0f - s) + 1.0f;
        float dy_s = dy_of[i] * s;
        row[0] = dy_s * up * inner;
        row[width] = dy_s * gate;
    }
}

// Turns the first `heads` heads of every row of x (n, row_width) by the angles of its position:
// element i of a head's first half and of its second are one complex number.
KERNEL __launch_bounds__(256)
    rotate(float* x, int n, int row_width, int heads, int head_dim, const float* __restrict__ cos_of,
           const float* __restrict__ sin_of, int positions, int first_position, int back) {
    int half = head_dim / 2;
    FOR_EACH(i, n * heads * half) {
        int at = i % half, head = i / half % heads, row = i / half / heads;
        float* re = x + (size_t)row * row_width + head * head_dim + at;
        float* im = re + half;
        int angle = (first_position + row) % positions * half + at;
        float c = cos_of[angle], s = sin_of[angle];
        float re_cos = *re * c, im_cos = *im * c, re_sin = *re * s, im_sin = *im * s;
        *re = back ? re_cos + im_sin : re_cos - im_sin;
        *im = back ? im_cos - re_sin : im_cos + re_sin;
    }
}

// One AdamW step, as adamw.rs; takes in grad * grad_factor and clears grad.
KERNEL __launch_bounds__(256)
    adamw(float* value_of, float* grad_of, float* m_of, float* v_of, int n, float grad_factor,
          float rate, float beta1, float beta2, float eps, float decay, float bias1, float bias2) {
    float rest1 = 1.0f - beta1, rest2 = 1.0f - beta2;
    FOR_EACH(i, n) {
        float value = value_of[i], grad = grad_of[i] * grad_factor;
        float m = beta1 * m_of[i] + rest1 * grad;
        float v = beta2 * v_of[i] + rest2 * (grad * grad);
        float root = sqrtf(v / bias2) + eps;
        float update = decay * value + m / bias1 / root;
        value_of[i] = value - rate * update;
        m_of[i] = m;
        v_of[i] = v;
        grad_of[i] = 0.0f;
    }
}

// Sums of squares of up to SUM_SQUARES_BLOCK elements each: half a warp a block. Block b covers
// elements starts[b] .. starts[b] + lengths[b] of x.
KERNEL __launch_bounds__(256)
    sum_squares(const float* __restrict__ x, const u32* __restrict__ starts,
                const u32* __restrict__ lengths, int blocks, float* sums) {
    int block = half_warp_row(), lane = lane_of_row();
    if (block >= blocks) return;
    x += starts[block];
    int length = (int)lengths[block];
    float sum = 0.0f;
    for (int i = lane; i < length; i += LANES) sum = x[i] * x[i] + sum;
    sum = sum_lanes(sum);
    if (lane == 0) sums[block] = sum;
}
