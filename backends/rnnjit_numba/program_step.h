
/* A step at a time. Weights are brought into the order in which a step reads them once, and no step
 * needs weights.bin:
 *
 *     void *prepared = aligned_alloc(64, ${name}_prepared_bytes);
 *     void *scratch = aligned_alloc(64, ${name}_step_scratch_bytes(B));
 *     ${name}_prepare(weights, prepared);
 *     for (each step)
 *         ${name}_step($step_example);
 *
 * Write weights for ${name}_step into `prepared`, ${name}_prepared_bytes bytes, aligned to 64; weights
 * are aligned to 8. Any number of streams and threads may share it. What it holds is for this
 * target alone. Returns 0, or 1 where it is not aligned; then nothing is written. */
int32_t ${name}_prepare(const void *weights, void *prepared);

/* Bytes of scratch memory for ${name}_step, a multiple of 64. It holds nothing between steps. */
int64_t ${name}_step_scratch_bytes(int64_t B);

/* Run the next step of B streams.
 *
 *   B         sequences
 *   prepared  what ${name}_prepare wrote
 *   x         [B, $input_size]
$step_text
 *   y         [B, $width]; written; overlaps nothing else
 *   scratch   ${name}_step_scratch_bytes(B) bytes, aligned to 8 at least
 *
 * Returns 0, or 1 where B < 0 or prepared is not aligned; then nothing is written. */
$step;
