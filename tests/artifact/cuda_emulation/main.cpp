/* Reads T, B, N, sizes (or nothing), x, weights from the files named; writes y and h_n. */
#include "emulated.cpp"

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>

static std::vector<char> content(const char *name)
{
    std::ifstream file(name, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

int main(int, char **argv)
{
    int64_t T = atoll(argv[1]), B = atoll(argv[2]), N = atoll(argv[3]);
    std::vector<char> sizes = content(argv[4]), x = content(argv[5]), h0 = content(argv[6]);
    std::vector<char> weights = content(argv[7]), scratch(rnn_scratch_bytes(T, N), (char)0xff);
    size_t width = rnn_num_directions * rnn_hidden_size;
    std::vector<rnn_real> out(N * width + rnn_num_layers * B * width, NAN);
    auto at = [](std::vector<char> &v) { return v.empty() ? nullptr : (void *)v.data(); };
    cudaError_t error = rnn_forward(T, B, N, (const int64_t *)at(sizes), (const rnn_real *)at(x),
                                    (const rnn_real *)at(h0), at(weights), out.data(),
                                    out.data() + N * width, at(scratch), nullptr);
    fwrite(out.data(), sizeof(rnn_real), out.size(), stdout);
    return error;
}
