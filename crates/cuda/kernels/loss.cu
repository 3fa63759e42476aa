// Cross-entropy of one row of logits a block: losses[row] = log sum exp(z) - z[target], and the gradient scale (softmax(z) -
// onehot) written over the logits.
extern "C" __global__ void cross_entropy(float *logits, const unsigned *targets, float scale, int vocabulary,
                                         float *losses) {
    float *z = logits + (size_t)blockIdx.x * vocabulary;
    int target = (int)targets[blockIdx.x];
    float top = MINUS_INFINITY, sum = 0.0f;
    for (int i = threadIdx.x; i < vocabulary; i += THREADS) top = fmaxf(top, z[i]);
    top = block_max(top);
    for (int i = threadIdx.x; i < vocabulary; i += THREADS) sum += expf(z[i] - top);
    sum = block_sum(sum);
    if (threadIdx.x == 0) losses[blockIdx.x] = top + logf(sum) - z[target];
    __syncthreads();  // The target's logit is read before it is overwritten.
    for (int i = threadIdx.x; i < vocabulary; i += THREADS)
        z[i] = scale * (expf(z[i] - top) / sum - (i == target ? 1.0f : 0.0f));
}
