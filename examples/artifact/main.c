/* Runs a recurrent network without Python: an artifact that `rnnjit export` wrote.
 *
 *     rnnjit export model.pt -o artifact
 *     cc -O2 -Iartifact examples/artifact/main.c artifact/rnn.o -o run
 *     ./run artifact/weights.bin 5 2 < input > output
 *
 * The arguments are the weights of the artifact, T steps and B sequences. Reads x [T, B, I] from
 * standard input as raw numbers, and writes y [T, B, D*P], h_n [L*D, B, P] and, of an LSTM, c_n
 * [L*D, B, H] to standard output. P is H, or nn.LSTM's proj_size.
 */
#include <stdio.h>
#include <stdlib.h>

#include "rnn.h"

/* An LSTM has the states h and c, other networks have h. */
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

int main(int argc, char **argv)
{
    if (argc != 4) {
        fprintf(stderr, "usage: %s WEIGHTS T B < input > output\n"
                        "  WEIGHTS  weights.bin of the artifact\n"
                        "  T, B     steps and sequences: input is x [T, B, %d], %zu bytes a number\n",
                argv[0], rnn_input_size, sizeof(rnn_real));
        return 2;
    }
    FILE *file = fopen(argv[1], "rb");
    if (!file) {
        perror(argv[1]);
        return 1;
    }
    int64_t T = atoll(argv[2]), B = atoll(argv[3]);
    size_t inputs = T * B * rnn_input_size, outputs = T * B * rnn_output_size;
    size_t units = rnn_num_layers * rnn_num_directions * B;
    size_t written = outputs + units * (h_size + c_size);
    void *weights = room(rnn_weights_bytes), *scratch = room(rnn_scratch_bytes(B, T * B));
    rnn_real *x = room(inputs * sizeof *x), *y = room(written * sizeof *y);
    rnn_real *h_n = y + outputs;
    if (fread(weights, 1, rnn_weights_bytes, file) != rnn_weights_bytes ||
        fread(x, sizeof *x, inputs, stdin) != inputs) {
        fprintf(stderr, "%s: the weights or the input are shorter than they must be\n", argv[0]);
        return 1;
    }
    if (rnn_forward(T, B, NULL, x, STATES(NULL, NULL), weights, y,
                    STATES(h_n, h_n + units * h_size), scratch) != 0)
        return 1;
    return fwrite(y, sizeof *y, written, stdout) == written ? 0 : 1;
}
