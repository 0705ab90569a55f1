/* $what
 *
 * Made by rnnjit for $target. Link ${name}.o, read weights.bin into memory, and call:
 *
 *     void *scratch = aligned_alloc(64, ${name}_scratch_bytes(B, T * B));
 *     ${name}_forward(T, B, NULL, x, NULL, weights, y, h_n, scratch);
 */
#ifndef ${guard}
#define ${guard}

#include <stddef.h>
#include <stdint.h>

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

/* Bytes of scratch memory for a call with N rows, the sum of all lengths: T * B if dense. Rounded
 * up to a multiple of 64, as aligned_alloc wants it. */
static inline size_t ${name}_scratch_bytes(int64_t B, int64_t N)
{
    return ((size_t)($fixed + B * $per_sequence + N * $per_row) + 63) / 64 * 64;
}

/* Run the stack over whole sequences, on the caller's thread. Nothing is allocated or kept, so that
 * threads may call it at the same time, each with scratch memory of its own.
 *
 *   T, B         steps and sequences
 *   batch_sizes  NULL if every sequence has T steps; else T sizes that never grow, the first B:
 *                step t has the first batch_sizes[t] sequences, and steps follow each other closely
 *   x            $x, or [N, $input_size] with batch_sizes
 *   h0           $h0, or NULL for zeros
 *   weights      what weights.bin holds, aligned to 8 bytes at least
 *   y            $y, or [N, $width] with batch_sizes; written
 *   h_n          $h0; written
 *   scratch      ${name}_scratch_bytes(B, N) bytes, aligned to 8 at least
 *
 * Returns 0, or 1 where T < 1, B < 0 or batch_sizes are not as they must be; then nothing but
 * scratch is written. */
int32_t ${name}_forward(int64_t T, int64_t B, const int64_t *batch_sizes, const ${name}_real *x,
                    const ${name}_real *h0, const void *weights, ${name}_real *y,
                    ${name}_real *h_n, void *scratch);

#ifdef __cplusplus
}
#endif

#endif
