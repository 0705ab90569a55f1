/* $what
 *
 * Made by rnnjit: $name.h says how to call it. Compile with nvcc (or any CUDA C++ compiler).
 *
 *     z = x W_ih^T + b                                one product over all rows
 *     h_t = activation(z_t + W_hh h_{t-1})            a block for each sequence and direction
 *
 * Sequences are independent, so that blocks need no barrier. W_hh is transposed once per call: threads
 * that lie side by side then read weights that do.
 */
#include "$name.h"

namespace {

typedef ${name}_real real;

const int TILE = 16;
const int MOST_THREADS = 1024;
const int L = $num_layers, D = $num_directions, H = $hidden_size;

__device__ real activation(real z)
{
    $activation
}

/* The first row of every step, and the number of rows behind the last: starts[T + 1]. */
__global__ void count_rows(int64_t T, int64_t B, const int64_t *sizes, int64_t *starts)
{
    starts[0] = 0;
    for (int64_t t = 0; t < T; t++)
        starts[t + 1] = starts[t] + (sizes ? sizes[t] : B);
}

/* w_t[k][j] = w[j][k] for one H x H matrix. */
__global__ void transpose(const real *w, real *w_t)
{
    int k = blockIdx.x * TILE + threadIdx.x, j = blockIdx.y * TILE + threadIdx.y;
    if (k < H && j < H)
        w_t[(int64_t)k * H + j] = w[(int64_t)j * H + k];
}

/* y[n][j] = b_ih[j] + b_hh[j] + sum_i x[n][i] w[j][i], in columns of y that are D * H apart. */
__global__ void project(int64_t N, int I, const real *x, const real *w, const real *b_ih,
                        const real *b_hh, real *y)
{
    __shared__ real rows[TILE][TILE + 1], columns[TILE][TILE + 1];
    int64_t n = (int64_t)blockIdx.x * TILE + threadIdx.y;
    int j = blockIdx.y * TILE + threadIdx.x, own = blockIdx.y * TILE + threadIdx.y;
    real sum = j < H && b_ih ? b_ih[j] + b_hh[j] : (real)0;
    for (int low = 0; low < I; low += TILE) {
        int i = low + threadIdx.x;
        rows[threadIdx.y][threadIdx.x] = n < N && i < I ? x[n * I + i] : (real)0;
        columns[threadIdx.y][threadIdx.x] = own < H && i < I ? w[(int64_t)own * I + i] : (real)0;
        __syncthreads();
        real part = 0;
        for (int k = 0; k < TILE && low + k < I; k++)
            part += rows[threadIdx.y][k] * columns[threadIdx.x][k];
        sum += part;
        __syncthreads();
    }
    if (n < N && j < H)
        y[n * D * H + j] = sum;
}

/* All steps of sequence blockIdx.x in direction d, which holds z in its columns of y. */
__global__ void recur(int64_t T, int64_t B, int d, const int64_t *sizes, const int64_t *starts,
                      const real *w_t, const real *h0, real *y, real *h_n)
{
    extern __shared__ real states[]; /* [2][H] */
    int64_t b = blockIdx.x, length = T;
    while (sizes && length > 0 && sizes[length - 1] <= b)
        length--;
    real *before = states, *now = states + H;
    for (int j = threadIdx.x; j < H; j += blockDim.x)
        before[j] = h0 ? h0[b * H + j] : (real)0;
    __syncthreads();
    for (int64_t s = 0; s < length; s++) {
        int64_t t = d == 0 ? s : length - 1 - s;
        real *row = y + (starts[t] + b) * D * H;
        for (int j = threadIdx.x; j < H; j += blockDim.x) {
            real sums[4] = {0, 0, 0, 0};
            for (int k = 0; k < H; k++)
                sums[k % 4] += before[k] * w_t[(int64_t)k * H + j];
            now[j] = activation(row[j] + ((sums[0] + sums[1]) + (sums[2] + sums[3])));
            row[j] = now[j];
        }
        __syncthreads();
        real *other = before;
        before = now;
        now = other;
    }
    for (int j = threadIdx.x; j < H; j += blockDim.x)
        h_n[b * H + j] = before[j];
}

struct Weights {
    size_t w_ih, w_hh, b_ih, b_hh; /* bytes from the first weight; biases 0 if there are none */
    int inputs;
};

const Weights WEIGHTS[L][D] = {
$weights
};

const real *at(const void *weights, size_t offset)
{
    return (const real *)((const char *)weights + offset);
}

} // namespace

extern "C" cudaError_t ${name}_forward(int64_t T, int64_t B, int64_t N, const int64_t *batch_sizes,
                                       const real *x, const real *h0, const void *weights,
                                       real *y, real *h_n, void *scratch, cudaStream_t stream)
{
    if (T < 1 || B < 0 || N < 0)
        return cudaErrorInvalidValue;
    if (B == 0 || N == 0)
        return cudaSuccess;
    real *w_t = (real *)scratch, *between = w_t + (size_t)H * H;
    int64_t *starts = (int64_t *)((char *)scratch + ${name}_starts_at(N));
    int threads = H < MOST_THREADS ? (H + 31) / 32 * 32 : MOST_THREADS;
    size_t shared = 2 * H * sizeof(real);
    /* More than 48 KiB has to be asked for. */
    cudaError_t error = cudaFuncSetAttribute(
        recur, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared);
    if (error != cudaSuccess)
        return error;
    unsigned across = (H + TILE - 1) / TILE, down = (unsigned)((N + TILE - 1) / TILE);
    dim3 square(TILE, TILE);
    count_rows<<<1, 1, 0, stream>>>(T, B, batch_sizes, starts);
    for (int layer = 0; layer < L; layer++) {
        real *out = (L - 1 - layer) % 2 == 0 ? y : between;
        for (int d = 0; d < D; d++) {
            Weights w = WEIGHTS[layer][d];
            const real *b_ih = w.b_ih ? at(weights, w.b_ih) : 0, *b_hh = at(weights, w.b_hh);
            const real *first = h0 ? h0 + (layer * D + d) * B * H : 0;
            real *last = h_n + (layer * D + d) * B * H;
            project<<<dim3(down, across), square, 0, stream>>>(N, w.inputs, x, at(weights, w.w_ih),
                                                               b_ih, b_hh, out + d * H);
            transpose<<<dim3(across, across), square, 0, stream>>>(at(weights, w.w_hh), w_t);
            recur<<<(unsigned)B, threads, shared, stream>>>(
                T, B, d, batch_sizes, starts, w_t, first, out + d * H, last);
        }
        x = out;
    }
    return cudaGetLastError();
}
