/* $what
 *
 * Made by rnnjit for $target. Link ${name}.o, which needs no library. Read weights.bin into memory and
 * call:
 *
 *     void *scratch = aligned_alloc(64, ${name}_scratch_bytes(B, T * B));
 *     ${name}_forward($forward_example);
 *
 * T is the number of steps, B of sequences, N of rows: the sum of all lengths, T * B if all sequences
 * have T steps. Arrays are dense and row-major, their last dimension the features, aligned to one
 * number.
 *
$states_text
 *
 * No function allocates memory, keeps anything between calls or writes to its const arguments, so
 * that threads may call them at the same time, each with scratch memory of its own. They compute
 * on the caller's thread. Results do not depend on B, on batch_sizes or on how a sequence is cut
 * into calls: they are the same, bit for bit. */
#ifndef ${guard}
#define ${guard}

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef $real ${name}_real;

#define ${name}_num_states $num_states

enum {
    ${name}_input_size = $input_size,
    ${name}_hidden_size = $hidden_size,
    ${name}_num_layers = $num_layers,
    ${name}_num_directions = $num_directions,
    ${name}_output_size = $width, /* features of a row of y */
$state_sizes
    ${name}_weights_bytes = $weights_bytes
};

/* Bytes of scratch memory for ${name}_forward with B sequences of N rows in all, a multiple of 64. More
 * rows never take less, but more sequences may: ask with the B of the call. */
int64_t ${name}_scratch_bytes(int64_t B, int64_t N);

/* Run the stack over whole sequences.
 *
 *   T, B         steps and sequences
 *   batch_sizes  NULL if every sequence has T steps; else T sizes that never grow, the first B:
 *                step t has the first batch_sizes[t] sequences, and steps follow each other closely
 *   x            $x, or [N, $input_size] with batch_sizes
$first_text
 *   weights      what weights.bin holds, aligned to 8 bytes at least
 *   y            $y, or [N, $width] with batch_sizes; written; overlaps nothing else
$last_text
 *   scratch      ${name}_scratch_bytes(B, N) bytes, aligned to 8 at least
 *
 * Returns 0, or 1 where T < 1, B < 0 or batch_sizes are not as they must be; then nothing is
 * written. */
$forward;
$stepping
#ifdef __cplusplus
}
#endif

#endif
