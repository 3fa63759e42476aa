// One step of AdamW over n values, in PyTorch's order; step_size = lr / (1 - beta1^t), root = sqrt(1 - beta2^t).
extern "C" __global__ void adamw(float *p, const float *g, float *m, float *v, float keep, float beta1, float beta2,
                                 float eps, float step_size, float root, size_t n) {
    size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= n) return;
    m[i] += (g[i] - m[i]) * (1.0f - beta1);
    v[i] = v[i] * beta2 + (1.0f - beta2) * g[i] * g[i];
    p[i] = p[i] * keep - step_size * (m[i] / (sqrtf(v[i]) / root + eps));
}
