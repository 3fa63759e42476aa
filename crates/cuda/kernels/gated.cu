// The gated activation of an MLP; kind 0: SiLU, 1: GELU by tanh.

static __device__ float activate(float x, int kind) {
    if (kind == 0) return x / (1.0f + expf(-x));
    return 0.5f * x * (1.0f + tanhf(0.7978845608f * (x + 0.044715f * x * x * x)));
}

static __device__ float slope(float x, int kind) {
    if (kind == 0) {
        float s = 1.0f / (1.0f + expf(-x));
        return s * (1.0f + x * (1.0f - s));
    }
    float t = tanhf(0.7978845608f * (x + 0.044715f * x * x * x));
    return 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * 0.7978845608f * (1.0f + 3.0f * 0.044715f * x * x);
}

// y = act(gate) up, over n values.
extern "C" __global__ void gated(const float *gate, const float *up, int kind, size_t n, float *y) {
    size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (i < n) y[i] = activate(gate[i], kind) * up[i];
}

extern "C" __global__ void gated_backward(const float *gate, const float *up, const float *dy, int kind, size_t n,
                                          float *dgate, float *dup) {
    size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= n) return;
    dgate[i] = slope(gate[i], kind) * up[i] * dy[i];
    dup[i] = activate(gate[i], kind) * dy[i];
}
