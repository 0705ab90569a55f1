/* $what
 *
 * Made by rnnjit: $name.cu is its source. Copy weights.bin to the device and call
 *
 *     ${name}_forward(T, B, T * B, NULL, x, NULL, weights, y, h_n, scratch, stream);
 */
#ifndef ${guard}
#define ${guard}

#include <stddef.h>
#include <stdint.h>

#include <cuda_runtime.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef $real ${name}_real;

enum {
    ${name}_input_size = $input_size,
    ${name}_hidden_size = $hidden_size,
    ${name}_num_layers = $num_layers,
    ${name}_num_directions = $num_directions,
    ${name}_weights_bytes = $weights_bytes
};

/* Where the offsets of the steps lie in the scratch memory. */
static inline size_t ${name}_starts_at(int64_t N)
{
    return ((size_t)$fixed + (size_t)N * $per_row + 7) / 8 * 8;
}

/* Bytes of scratch memory for a call with N rows, the sum of all lengths: T * B if dense. */
static inline size_t ${name}_scratch_bytes(int64_t T, int64_t N)
{
    return ${name}_starts_at(N) + (size_t)(T + 1) * 8;
}

/* Run the stack over whole sequences, on a stream; the host waits for nothing. All pointers are to
 * memory of the device.
 *
 *   T, B, N      steps, sequences, and rows: T * B, or the sum of batch_sizes
 *   batch_sizes  NULL if every sequence has T steps; else T sizes that never grow, the first B:
 *                step t has the first batch_sizes[t] sequences, and steps follow each other closely
 *   x            $x, or [N, $input_size] with batch_sizes
 *   h0           $h0, or NULL for zeros
 *   weights      what weights.bin holds, aligned to 16 bytes at least
 *   y            $y, or [N, $width] with batch_sizes; written
 *   h_n          $h0; written
 *   scratch      ${name}_scratch_bytes(T, N) bytes, aligned to 16 at least
 *
 * Returns what the launches gave. */
cudaError_t ${name}_forward(int64_t T, int64_t B, int64_t N, const int64_t *batch_sizes,
                            const ${name}_real *x, const ${name}_real *h0, const void *weights,
                            ${name}_real *y, ${name}_real *h_n, void *scratch,
                            cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
