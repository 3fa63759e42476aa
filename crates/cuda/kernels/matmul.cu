// c[m, n] = a b, or c += a b, in f32: simple and right, for sizes that are not worth a library's call. An element (i, l) of a
// lies at i a_row + l a_column, one (l, j) of b at l b_row + j b_column, so that a transpose is a matter of strides. A block
// is a tile
// of 8 x 16 elements; sums run over k in order.
#define TILE_M 8
#define TILE_N 16
#define TILE_K 16

extern "C" __global__ void matmul(const float *a, size_t a_row, size_t a_column, const float *b, size_t b_row,
                                  size_t b_column, int m, int n, int k, int add, float *c) {
    __shared__ float a_tile[TILE_M][TILE_K];
    __shared__ float b_tile[TILE_K][TILE_N];
    int i = threadIdx.x / TILE_N, j = threadIdx.x % TILE_N;
    int row = blockIdx.y * TILE_M + i, column = blockIdx.x * TILE_N + j;
    float sum = 0.0f;
    for (int start = 0; start < k; start += TILE_K) {
        a_tile[i][j] = row < m && start + j < k ? a[row * a_row + (start + j) * a_column] : 0.0f;
        for (int l = i; l < TILE_K; l += TILE_M)
            b_tile[l][j] = start + l < k && column < n ? b[(start + l) * b_row + column * b_column] : 0.0f;
        __syncthreads();
        for (int l = 0; l < TILE_K; l++) sum += a_tile[i][l] * b_tile[l][j];
        __syncthreads();
    }
    if (row >= m || column >= n) return;
    float *out = c + (size_t)row * n + column;
    *out = add ? *out + sum : sum;
}
