/* Runs a recurrent network without Python: an artifact that `rnnjit export` wrote.
 *
 *     rnnjit export model.pt -o artifact
 *     cc -O2 -Iartifact examples/artifact/main.c artifact/rnn.o -o run
 *     ./run artifact/weights.bin 5 2 < input > output
 *
 * The arguments are the weights of the artifact, T steps and B sequences. Reads x [T, B, I] from
 * standard input as raw numbers, and writes y [T, B, D*H] and then h_n [L*D, B, H] to standard
 * output.
 */
#include <stdio.h>
#include <stdlib.h>

#include "rnn.h"

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
    int64_t T = atoll(argv[2]), B = atoll(argv[3]), D = rnn_num_directions, H = rnn_hidden_size;
    size_t inputs = T * B * rnn_input_size, outputs = T * B * D * H;
    size_t states = rnn_num_layers * D * B * H;
    void *weights = room(rnn_weights_bytes), *scratch = room(rnn_scratch_bytes(B, T * B));
    rnn_real *x = room(inputs * sizeof *x), *y = room((outputs + states) * sizeof *y);
    if (fread(weights, 1, rnn_weights_bytes, file) != rnn_weights_bytes ||
        fread(x, sizeof *x, inputs, stdin) != inputs) {
        fprintf(stderr, "%s: the weights or the input are shorter than they must be\n", argv[0]);
        return 1;
    }
    if (rnn_forward(T, B, NULL, x, NULL, weights, y, y + outputs, scratch) != 0)
        return 1;
    return fwrite(y, sizeof *y, outputs + states, stdout) == outputs + states ? 0 : 1;
}
