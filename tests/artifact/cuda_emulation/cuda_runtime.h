/* As much of CUDA as an artifact's source uses, on the CPU: a thread for each thread of a block, one
 * block after the other. `kernel<<<grid, block, shared, stream>>>(args)` has to be written
 * `emulate(grid, block, shared, [=] { kernel(args); })`. */
#pragma once

#include <barrier>
#include <cmath>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#define __global__ static
#define __device__ static
#define __shared__ static

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
enum { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
typedef void *cudaStream_t;

inline thread_local dim3 threadIdx, blockIdx, blockDim;
inline std::unique_ptr<std::barrier<>> block_barrier;
inline std::vector<double> dynamic_shared;

inline void __syncthreads() { block_barrier->arrive_and_wait(); }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
template <class F> cudaError_t cudaFuncSetAttribute(F, int, int bytes)
{
    return bytes <= 227 * 1024 ? cudaSuccess : cudaErrorInvalidValue;
}

inline void emulate(dim3 grid, dim3 block, size_t shared, std::function<void()> kernel)
{
    unsigned count = block.x * block.y;
    for (unsigned by = 0; by < grid.y; by++)
        for (unsigned bx = 0; bx < grid.x; bx++) {
            /* What a kernel does not write itself is no number. */
            dynamic_shared.assign(shared / sizeof(double) + 1, NAN);
            block_barrier = std::make_unique<std::barrier<>>(count);
            std::vector<std::thread> threads;
            for (unsigned i = 0; i < count; i++)
                threads.emplace_back([&, i] {
                    blockIdx = dim3(bx, by);
                    blockDim = block;
                    threadIdx = dim3(i % block.x, i / block.x);
                    kernel();
                    block_barrier->arrive_and_drop();
                });
            for (auto &thread : threads)
                thread.join();
        }
}
