// Runs CUDA C kernels on the processor, for tests: put before a kernel's source. The threads of a block are fibers; each runs
// until it waits at a barrier or in a shuffle, and goes on when all that it waits for have come. Blocks run one after another.
//
// Fibers run in order or, on request, in the opposite order: a kernel whose results depend on it lacks a barrier.
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <utility>
#include <vector>

#define __global__
#define __device__
#define __shared__ static

namespace emulation {

struct Index {
    unsigned x, y, z;
};

enum class State { Ready, AtBlock, AtWarp, Done };

struct Fiber {
    ucontext_t context;
    std::vector<char> stack;
    State state;
};

static ucontext_t scheduler;
static std::vector<Fiber> fibers;
static void (*body)(void **);
static void **arguments;
static unsigned current;
// What the lanes of every warp hold out to each other.
static std::vector<unsigned> offered;

static void wait(State state) {
    Fiber &fiber = fibers[current];
    fiber.state = state;
    swapcontext(&fiber.context, &scheduler);
}

static void enter() {
    body(arguments);
    wait(State::Done);
}

}  // namespace emulation

static emulation::Index blockIdx, threadIdx, gridDim, blockDim;

static inline void __syncthreads() { emulation::wait(emulation::State::AtBlock); }

static inline float __int_as_float(unsigned bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline float __shfl_xor_sync(unsigned, float value, int mask) {
    unsigned own = threadIdx.x, bits;
    memcpy(&bits, &value, sizeof bits);
    emulation::offered[own] = bits;
    emulation::wait(emulation::State::AtWarp);
    bits = emulation::offered[own ^ (unsigned)mask];
    emulation::wait(emulation::State::AtWarp);
    memcpy(&value, &bits, sizeof bits);
    return value;
}

namespace emulation {

// Lets the fibers from `first` to `last` go on if each waits at such a barrier or is done, and one waits.
static bool release(unsigned first, unsigned last, State barrier) {
    unsigned waiting = 0;
    for (unsigned i = first; i < last; i++) {
        if (fibers[i].state != barrier && fibers[i].state != State::Done) return false;
        waiting += fibers[i].state == barrier;
    }
    for (unsigned i = first; i < last; i++)
        if (fibers[i].state == barrier) fibers[i].state = State::Ready;
    return waiting > 0;
}

// False: some threads wait at a barrier that others never reach.
static bool block(unsigned threads, bool backwards) {
    for (unsigned i = 0; i < threads; i++) {
        Fiber &fiber = fibers[i];
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.data();
        fiber.context.uc_stack.ss_size = fiber.stack.size();
        fiber.context.uc_link = &scheduler;
        makecontext(&fiber.context, enter, 0);
        fiber.state = State::Ready;
    }
    for (;;) {
        unsigned done = 0;
        for (unsigned step = 0; step < threads; step++) {
            unsigned i = backwards ? threads - 1 - step : step;
            if (fibers[i].state == State::Ready) {
                current = threadIdx.x = i;
                swapcontext(&scheduler, &fibers[i].context);
            }
            done += fibers[i].state == State::Done;
        }
        if (done == threads) return true;
        bool released = release(0, threads, State::AtBlock);
        for (unsigned first = 0; first < threads; first += 32)
            released |= release(first, first + 32 < threads ? first + 32 : threads, State::AtWarp);
        if (!released) return false;
    }
}

static int launch(void (*kernel)(void **), void **args, const unsigned *grid, unsigned threads, bool backwards) {
    body = kernel;
    arguments = args;
    fibers.resize(threads);
    offered.resize((threads + 31) / 32 * 32);
    for (Fiber &fiber : fibers) fiber.stack.resize(64 << 10);
    gridDim = {grid[0], grid[1], 1};
    blockDim = {threads, 1, 1};
    for (unsigned y = 0; y < grid[1]; y++)
        for (unsigned x = 0; x < grid[0]; x++) {
            blockIdx = {x, y, 0};
            if (!block(threads, backwards)) return 1;
        }
    return 0;
}

// A kernel called with pointers to its arguments, as the driver's launch is.
template <auto kernel>
struct Call;
template <typename... Args, void (*kernel)(Args...)>
struct Call<kernel> {
    template <size_t... At>
    static void with(void **args, std::index_sequence<At...>) {
        kernel(*static_cast<Args *>(args[At])...);
    }
    static void run(void **args) { with(args, std::index_sequence_for<Args...>{}); }
};

}  // namespace emulation

// Makes `emulate_NAME`, for a kernel above.
#define EMULATE(name)                                                                                            \
    extern "C" int emulate_##name(void **args, const unsigned *grid, unsigned threads, int backwards) {          \
        return emulation::launch(emulation::Call<name>::run, args, grid, threads, backwards != 0);               \
    }
