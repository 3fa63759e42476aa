// Causal attention over ragged sequences in f32: o = sum_j p_j v_j, p = softmax(scale q k_j), or of cap tanh(scale q k_j / cap),
// over the keys j <= i of the same sequence that the window of the query at i covers. Query head h reads key head h / (heads /
// kv_heads). A warp a query and head, grid (rows / WARPS rounded up, heads); head_dim is at most 256.
//
// starts[row] is the first row of the row's sequence. cap 0: no cap. window 0: all keys.
#define SLICE 8  // values of a head that a lane holds at most

static __device__ float capped(float score, float cap) { return cap > 0.0f ? cap * tanhf(score / cap) : score; }

static __device__ int first_key(int row, int start, int window) {
    return window > 0 && row + 1 - window > start ? row + 1 - window : start;
}

extern "C" __global__ void attention(const float *q, const float *k, const float *v, const unsigned *starts, int rows,
                                     int heads, int kv_heads, int head_dim, float scale, float cap, int window, float *o,
                                     float *lse) {
    int row = blockIdx.x * WARPS + threadIdx.x / 32, lane = threadIdx.x % 32, head = blockIdx.y;
    if (row >= rows) return;
    size_t own = ((size_t)row * heads + head) * head_dim;
    int kv_head = head / (heads / kv_heads);
    float sum[SLICE];
    for (int s = 0; s < SLICE; s++) sum[s] = 0.0f;
    float top = MINUS_INFINITY, total = 0.0f;
    for (int key = first_key(row, (int)starts[row], window); key <= row; key++) {
        size_t at = ((size_t)key * kv_heads + kv_head) * head_dim;
        float score = 0.0f;
        for (int i = lane; i < head_dim; i += 32) score += q[own + i] * k[at + i];
        score = capped(warp_sum(score) * scale, cap);
        float new_top = fmaxf(top, score);
        float keep = expf(top - new_top), p = expf(score - new_top);
        total = total * keep + p;
        for (int s = 0, i = lane; i < head_dim; s++, i += 32) sum[s] = sum[s] * keep + p * v[at + i];
        top = new_top;
    }
    for (int s = 0, i = lane; i < head_dim; s++, i += 32) o[own + i] = sum[s] / total;
    if (lane == 0) lse[(size_t)row * heads + head] = top + logf(total);
}

// dq, a warp a query and head as above: p = exp(s - lse), ds = p (do v - do o), times the cap's slope 1 - (s / cap)^2.
extern "C" __global__ void attention_backward_q(const float *q, const float *k, const float *v, const unsigned *starts,
                                                int rows, int heads, int kv_heads, int head_dim, float scale, float cap,
                                                int window, const float *o, const float *lse, const float *d_o,
                                                float *dq) {
    int row = blockIdx.x * WARPS + threadIdx.x / 32, lane = threadIdx.x % 32, head = blockIdx.y;
    if (row >= rows) return;
    size_t own = ((size_t)row * heads + head) * head_dim;
    int kv_head = head / (heads / kv_heads);
    float log_sum = lse[(size_t)row * heads + head], mean = 0.0f, sum[SLICE];
    for (int s = 0; s < SLICE; s++) sum[s] = 0.0f;
    for (int i = lane; i < head_dim; i += 32) mean += d_o[own + i] * o[own + i];
    mean = warp_sum(mean);
    for (int key = first_key(row, (int)starts[row], window); key <= row; key++) {
        size_t at = ((size_t)key * kv_heads + kv_head) * head_dim;
        float score = 0.0f, dp = 0.0f;
        for (int i = lane; i < head_dim; i += 32) {
            score += q[own + i] * k[at + i];
            dp += d_o[own + i] * v[at + i];
        }
        score = capped(warp_sum(score) * scale, cap);
        float ds = expf(score - log_sum) * (warp_sum(dp) - mean) * scale;
        if (cap > 0.0f) ds *= 1.0f - score / cap * (score / cap);
        for (int s = 0, i = lane; i < head_dim; s++, i += 32) sum[s] += ds * k[at + i];
    }
    for (int s = 0, i = lane; i < head_dim; s++, i += 32) dq[own + i] = sum[s];
}

// dk and dv, a warp a key and key head (grid (rows / WARPS, kv_heads)): it visits the queries that see the key, in order, so that
// nothing is added up by two threads at once. ends[row] is the row behind the row's sequence.
extern "C" __global__ void attention_backward_kv(const float *q, const float *k, const float *v, const unsigned *ends,
                                                 int rows, int heads, int kv_heads, int head_dim, float scale, float cap,
                                                 int window, const float *o, const float *lse, const float *d_o, float *dk,
                                                 float *dv) {
    int key = blockIdx.x * WARPS + threadIdx.x / 32, lane = threadIdx.x % 32, kv_head = blockIdx.y;
    if (key >= rows) return;
    size_t at = ((size_t)key * kv_heads + kv_head) * head_dim;
    int group = heads / kv_heads, end = (int)ends[key];
    if (window > 0 && key + window < end) end = key + window;
    float dk_sum[SLICE], dv_sum[SLICE];
    for (int s = 0; s < SLICE; s++) dk_sum[s] = dv_sum[s] = 0.0f;
    for (int row = key; row < end; row++) {
        for (int head = kv_head * group; head < (kv_head + 1) * group; head++) {
            size_t own = ((size_t)row * heads + head) * head_dim;
            float score = 0.0f, dp = 0.0f;
            for (int i = lane; i < head_dim; i += 32) {
                score += q[own + i] * k[at + i];
                dp += d_o[own + i] * (v[at + i] - o[own + i]);
            }
            score = capped(warp_sum(score) * scale, cap);
            float p = expf(score - lse[(size_t)row * heads + head]);
            float ds = p * warp_sum(dp) * scale;
            if (cap > 0.0f) ds *= 1.0f - score / cap * (score / cap);
            for (int s = 0, i = lane; i < head_dim; s++, i += 32) {
                dk_sum[s] += ds * q[own + i];
                dv_sum[s] += p * d_o[own + i];
            }
        }
    }
    for (int s = 0, i = lane; i < head_dim; s++, i += 32) {
        dk[at + i] = dk_sum[s];
        dv[at + i] = dv_sum[s];
    }
}
