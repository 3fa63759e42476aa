// y[row] = table[ids[row]]; a block a row. The table is frozen: there is no backward.
extern "C" __global__ void embedding(const unsigned *ids, const float *table, float scale, int d, float *y) {
    size_t from = (size_t)ids[blockIdx.x] * d, to = (size_t)blockIdx.x * d;
    for (int i = threadIdx.x; i < d; i += THREADS) y[to + i] = table[from + i] * scale;
}
