// What stands between the two factors of all experts of a module: u = A x lies side by side, `rank` values a row, and value r is
// that of expert owner[r] with the scaling scale[r]. The factors themselves are products (matmul.cu).

// v = gate s u; gates [rows, experts], or null where every expert counts fully.
extern "C" __global__ void lora_scale(const float *u, const float *gates, const unsigned *owner, const float *scale,
                                      int experts, int rank, size_t n, float *v) {
    size_t at = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (at >= n) return;
    int r = (int)(at % rank);
    float gate = gates ? gates[at / rank * experts + owner[r]] : 1.0f;
    v[at] = gate * scale[r] * u[at];
}

// dgates[row, i] += sum of s u dv over expert i's values, with dv = B^T dy before gate and scale; a thread a row and expert.
extern "C" __global__ void lora_gate_backward(const float *u, const float *dv, const unsigned *owner, const float *scale,
                                              int experts, int rank, size_t n, float *dgates) {
    size_t at = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (at >= n) return;
    size_t row = at / experts * rank;
    unsigned expert = (unsigned)(at % experts);
    float sum = 0.0f;
    for (int r = 0; r < rank; r++)
        if (owner[r] == expert) sum += scale[r] * u[row + r] * dv[row + r];
    dgates[at] += sum;
}
