// Rotary embedding in place, in the half-split convention: (x1 cos - x2 sin, x2 cos + x1 sin). A block a row of `heads` heads of
// 2 `half` values. The backward turns the other way: `direction` -1 in place of 1.
extern "C" __global__ void rope(float *x, const unsigned *positions, const float *inv_freq, int heads, int half,
                                float direction) {
    float position = (float)positions[blockIdx.x];
    float *row = x + (size_t)blockIdx.x * heads * half * 2;
    for (int at = threadIdx.x; at < heads * half; at += THREADS) {
        int i = at % half;
        float *head = row + (size_t)(at / half) * half * 2;
        float angle = position * inv_freq[i];
        float c = cosf(angle), s = direction * sinf(angle);
        float x1 = head[i], x2 = head[half + i];
        head[i] = x1 * c - x2 * s;
        head[half + i] = x2 * c + x1 * s;
    }
}
