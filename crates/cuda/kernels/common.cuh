// Put before every kernel's source. Blocks have THREADS threads, always: whole warps, so that shuffles need no mask of their own.

#define THREADS 128
#define WARPS (THREADS / 32)
#define MINUS_INFINITY __int_as_float(0xff800000)

typedef unsigned long long u64;

// The sum over a warp, in every lane; always in the same order.
static inline __device__ float warp_sum(float value) {
    for (int lane = 16; lane > 0; lane /= 2) value += __shfl_xor_sync(0xffffffffu, value, lane);
    return value;
}

static inline __device__ float warp_max(float value) {
    for (int lane = 16; lane > 0; lane /= 2) value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, lane));
    return value;
}

// The sum over a block, in every thread. All threads must call it.
static inline __device__ float block_sum(float value) {
    __shared__ float sums[WARPS];
    value = warp_sum(value);
    __syncthreads();  // Nobody reads the sums of an earlier call any more.
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = value;
    __syncthreads();
    float total = 0.0f;
    for (int warp = 0; warp < WARPS; warp++) total += sums[warp];
    return total;
}

static inline __device__ float block_max(float value) {
    __shared__ float tops[WARPS];
    value = warp_max(value);
    __syncthreads();
    if (threadIdx.x % 32 == 0) tops[threadIdx.x / 32] = value;
    __syncthreads();
    float top = tops[0];
    for (int warp = 1; warp < WARPS; warp++) top = fmaxf(top, tops[warp]);
    return top;
}
