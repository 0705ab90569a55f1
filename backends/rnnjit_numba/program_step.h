
/* A step at a time. The weights are brought into the order in which a step reads them once, after
 * which weights.bin is not needed:
 *
 *     void *prepared = aligned_alloc(64, ${name}_prepared_bytes());
 *     void *scratch = aligned_alloc(64, ${name}_step_scratch_bytes(B));
 *     ${name}_prepare(weights, prepared);
 *     for (each step)
 *         ${name}_step($step_example);
 */

/* Bytes that ${name}_prepare writes, a multiple of 64. */
int64_t ${name}_prepared_bytes(void);

/* Bytes of scratch memory for ${name}_step, a multiple of 64. It holds nothing between steps. */
int64_t ${name}_step_scratch_bytes(int64_t B);

/* Prepare the weights for ${name}_step. What is written is for this target alone; any number of
 * streams and threads may read it.
 *
 *   weights   what weights.bin holds, aligned to 8 bytes at least
 *   prepared  ${name}_prepared_bytes() bytes, aligned to 64; written
 *
 * Returns 0, or 1 where prepared is not aligned; then nothing is written. */
int32_t ${name}_prepare(const void *weights, void *prepared);

/* Run the next step of B streams.
 *
 *   B         streams
 *   prepared  what ${name}_prepare wrote
 *   x         [B, $input_size]
$step_text
 *   y         [B, $width]; written; overlaps nothing else
 *   scratch   ${name}_step_scratch_bytes(B) bytes, aligned to 8 at least
 *
 * Returns 0, or 1 where B < 0 or prepared is not aligned; then nothing is written. */
$step;
