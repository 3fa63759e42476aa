// From a router's logits to gates: probabilities = softmax(z), the top_k largest are kept (the lower index among equals), the
// others are zero. scale 0: the probability, 1: over the sum of those kept, 2: one. The choices from `experts` on are
// dropped. A thread
// a row; there are few choices.
extern "C" __global__ void router_gates(const float *logits, int rows, int choices, int experts, int top_k, int scale,
                                        float *probabilities, float *gates) {
    int row = blockIdx.x * THREADS + threadIdx.x;
    if (row >= rows) return;
    const float *z = logits + (size_t)row * choices;
    float *p = probabilities + (size_t)row * choices, *g = gates + (size_t)row * experts;
    float top = MINUS_INFINITY, sum = 0.0f, kept = 0.0f;
    for (int i = 0; i < choices; i++) top = fmaxf(top, z[i]);
    for (int i = 0; i < choices; i++) sum += p[i] = expf(z[i] - top);
    for (int i = 0; i < choices; i++) p[i] /= sum;
    for (int i = 0; i < choices; i++) {
        int before = 0;  // choices that come before this one
        for (int j = 0; j < choices; j++) before += p[j] > p[i] || (p[j] == p[i] && j < i);
        if (before < top_k) kept += p[i];
        if (i < experts) g[i] = before < top_k ? (scale == 2 ? 1.0f : p[i]) : 0.0f;
    }
    if (scale == 1)
        for (int i = 0; i < experts; i++) g[i] /= kept;
}

// dz from dgates: through the scale to dp (scale 2 counts as the probability itself: straight through), then through the softmax.
extern "C" __global__ void router_gates_backward(const float *probabilities, const float *dgates, int rows, int choices,
                                                 int experts, int top_k, int scale, float *dz) {
    int row = blockIdx.x * THREADS + threadIdx.x;
    if (row >= rows) return;
    const float *p = probabilities + (size_t)row * choices, *dg = dgates + (size_t)row * experts;
    float *d = dz + (size_t)row * choices;
    float kept = 0.0f, along = 0.0f, inner = 0.0f;
    for (int i = 0; i < choices; i++) {
        int before = 0;
        for (int j = 0; j < choices; j++) before += p[j] > p[i] || (p[j] == p[i] && j < i);
        d[i] = before < top_k ? 1.0f : 0.0f;
        if (before < top_k) kept += p[i];
        if (before < top_k && i < experts) along += dg[i] * p[i];
    }
    for (int i = 0; i < choices; i++) {
        float own = i < experts ? dg[i] : 0.0f;
        d[i] *= scale == 1 ? (own - along / kept) / kept : own;
        inner += d[i] * p[i];
    }
    for (int i = 0; i < choices; i++) d[i] = p[i] * (d[i] - inner);
}
