// What the products of int8.cu and tensor.cu share, so that both write the same bits.

// Result (row, col) of out (n, cols) = or += an exact sum in units, scaled as on the CPU: by the
// row of q, and forward by row `col` of w; BACK, q holds the scales of w.
template <bool BACK>
DEVICE void write_product(float* out, int cols, int row, int col, int sum, const Weights& w,
                          const float* __restrict__ x_scale, float unit_value, int accumulate) {
    float total = (float)sum * (BACK ? 1.0f : w.scales[col]) + 0.0f;
    float product = total * (x_scale[row] * unit_value);
    float* to = out + (size_t)row * cols + col;
    *to = accumulate ? *to + product : product;
}
