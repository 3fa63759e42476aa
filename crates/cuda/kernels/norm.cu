// y = x r w with r = (mean(x^2) + eps)^-1/2, or w + 1 in place of w; a block a row of d values.
extern "C" __global__ void rms_norm(const float *x, const float *w, float eps, int plus_one, int d, float *y) {
    size_t row = (size_t)blockIdx.x * d;
    float squares = 0.0f;
    for (int i = threadIdx.x; i < d; i += THREADS) squares += x[row + i] * x[row + i];
    float r = 1.0f / sqrtf(block_sum(squares) / d + eps);
    for (int i = threadIdx.x; i < d; i += THREADS) y[row + i] = x[row + i] * r * (plus_one ? 1.0f + w[i] : w[i]);
}

// dx = r w dy - x r^3 / d sum(x w dy), written over what was in dx.
extern "C" __global__ void rms_norm_backward(const float *x, const float *w, const float *dy, float eps, int plus_one,
                                             int d, float *dx) {
    size_t row = (size_t)blockIdx.x * d;
    float squares = 0.0f, inner = 0.0f;
    for (int i = threadIdx.x; i < d; i += THREADS) {
        float weight = plus_one ? 1.0f + w[i] : w[i];
        squares += x[row + i] * x[row + i];
        inner += x[row + i] * weight * dy[row + i];
    }
    float r = 1.0f / sqrtf(block_sum(squares) / d + eps);
    float along = r * r * r / d * block_sum(inner);
    for (int i = threadIdx.x; i < d; i += THREADS) {
        float weight = plus_one ? 1.0f + w[i] : w[i];
        dx[row + i] = r * weight * dy[row + i] - x[row + i] * along;
    }
}
