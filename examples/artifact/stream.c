/* Runs a recurrent network a step at a time, as its input arrives: an artifact of one direction.
 *
 *     cc -O2 -Iartifact examples/artifact/stream.c artifact/rnn.o -o stream
 *     ./stream artifact/weights.bin 2 < input > output
 *
 * The arguments are the weights of the artifact and B streams. Reads x [B, I] of one step after the
 * other from standard input as raw numbers, and answers each with y [B, P]. At the end of the input
 * it writes the states: h_n [L, B, P] and, of an LSTM, c_n [L, B, H].
 */
#include <stdio.h>
#include <stdlib.h>

#include "rnn.h"

#if rnn_num_states == 2
enum { h_size = rnn_h_size, c_size = rnn_c_size };
#define STATES(h, c) h, c
#else
enum { h_size = rnn_h_size, c_size = 0 };
#define STATES(h, c) h
#endif

static void *room(size_t bytes)
{
    return aligned_alloc(64, (bytes + 63) / 64 * 64);
}

/* The weights as a step reads them; those of the file are not needed after that. */
static void *prepared_weights(const char *path)
{
    FILE *file = fopen(path, "rb");
    if (!file) {
        perror(path);
        return NULL;
    }
    void *weights = room(rnn_weights_bytes), *prepared = room(rnn_prepared_bytes());
    int whole = fread(weights, 1, rnn_weights_bytes, file) == rnn_weights_bytes;
    fclose(file);
    if (!whole)
        fprintf(stderr, "%s: it is shorter than it must be\n", path);
    int failed = !whole || rnn_prepare(weights, prepared) != 0;
    free(weights);
    return failed ? NULL : prepared;
}

int main(int argc, char **argv)
{
    if (argc != 3) {
        fprintf(stderr, "usage: %s WEIGHTS B < input > output\n", argv[0]);
        return 2;
    }
    void *prepared = prepared_weights(argv[1]);
    if (!prepared)
        return 1;
    int64_t B = atoll(argv[2]);
    size_t inputs = B * rnn_input_size, outputs = B * rnn_output_size;
    size_t units = rnn_num_layers * B, states = units * (h_size + c_size);
    void *scratch = room(rnn_step_scratch_bytes(B));
    rnn_real *x = room(inputs * sizeof *x), *y = room(outputs * sizeof *y);
    rnn_real *h = room(states * sizeof *h);
    for (size_t i = 0; i < states; i++)
        h[i] = 0; /* at first */
    while (fread(x, sizeof *x, inputs, stdin) == inputs) {
        if (rnn_step(B, prepared, x, STATES(h, h + units * h_size), y, scratch) != 0 ||
            fwrite(y, sizeof *y, outputs, stdout) != outputs || fflush(stdout) != 0)
            return 1;
    }
    return fwrite(h, sizeof *h, states, stdout) == states ? 0 : 1;
}
