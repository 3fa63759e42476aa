// LoRA dropout by the counter that the processor uses: four decisions from 64 bits of (key of the row, stream, group).

static __device__ u64 mix(u64 z) {
    z += 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

// y = x m, or y += x m with `add` (the backward, from dy to dx); m is 0 below the threshold and 65536 / (65536 - threshold)
// otherwise. A block a row of k values.
extern "C" __global__ void dropout(const float *x, const u64 *keys, u64 stream, unsigned threshold, int k, int add,
                                   float *y) {
    float kept = 65536.0f / (float)(65536u - threshold);
    size_t row = (size_t)blockIdx.x * k;
    for (int i = threadIdx.x; i < k; i += THREADS) {
        u64 bits = mix(mix(mix(keys[blockIdx.x] ^ 0x9e3779b97f4a7c15ull) + stream) + (u64)(i / 4));
        unsigned drawn = (unsigned)(bits >> (16 * (i % 4))) % 65536u;
        float value = drawn < threshold ? 0.0f : x[row + i] * kept;
        y[row + i] = add ? y[row + i] + value : value;
    }
}
