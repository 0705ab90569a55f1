/* A recurrent network, 1 layer: tanh, 2 to 3 features, float32.
 *
 * Made by rnnjit for native. Link rnn.o, read weights.bin into memory, and call:
 *
 *     void *scratch = aligned_alloc(64, rnn_scratch_bytes(B, T * B));
 *     rnn_forward(T, B, NULL, x, NULL, weights, y, h_n, scratch);
 */
#ifndef RNN_H
#define RNN_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef float rnn_real;

enum {
    rnn_input_size = 2,
    rnn_hidden_size = 3,
    rnn_num_layers = 1,
    rnn_num_directions = 1,
    rnn_weights_bytes = 256
};

/* Bytes of scratch memory for a call with N rows, the sum of all lengths: T * B if dense. Rounded
 * up to a multiple of 64, as aligned_alloc wants it. */
static inline size_t rnn_scratch_bytes(int64_t B, int64_t N)
{
    return ((size_t)(2624 + B * 12 + N * 0) + 63) / 64 * 64;
}

/* Run the stack over whole sequences, on the caller's thread. Nothing is allocated or kept, so that
 * threads may call it at the same time, each with scratch memory of its own.
 *
 *   T, B         steps and sequences
 *   batch_sizes  NULL if every sequence has T steps; else T sizes that never grow, the first B:
 *                step t has the first batch_sizes[t] sequences, and steps follow each other closely
 *   x            [T, B, 2], or [N, 2] with batch_sizes
 *   h0           [1, B, 3], or NULL for zeros
 *   weights      what weights.bin holds, aligned to 8 bytes at least
 *   y            [T, B, 3], or [N, 3] with batch_sizes; written
 *   h_n          [1, B, 3]; written
 *   scratch      rnn_scratch_bytes(B, N) bytes, aligned to 8 at least
 *
 * Returns 0, or 1 where T < 1, B < 0 or batch_sizes are not as they must be; then nothing but
 * scratch is written. */
int32_t rnn_forward(int64_t T, int64_t B, const int64_t *batch_sizes, const rnn_real *x,
                    const rnn_real *h0, const void *weights, rnn_real *y,
                    rnn_real *h_n, void *scratch);

#ifdef __cplusplus
}
#endif

#endif
