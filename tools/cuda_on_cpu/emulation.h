// CUDA's threads on one CPU thread: what gsplat's kernels need to be compiled by a C++ compiler and run without a GPU.
//
// The threads of a block are fibers that run until they wait for one another; blocks run one after the other. So what
// runs is the kernels' own source with its own order of decisions, barriers and warps, rounded nearly as on a card: with
// fused products, exponentials by powers of two, no subnormal numbers (on x86). What it does not show: approximations of
// division and roots, races between threads, sums by atomics in other orders, speed.
//
// It must be included before anything of gsplat. Lanes that returned take no part in what their warp does together.
#pragma once

#include <setjmp.h>
#include <ucontext.h>
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <numeric>
#include <type_traits>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

struct uint2 {
    unsigned x, y;
};

namespace emulation {

constexpr unsigned WARP = 32;
constexpr size_t STACK = 256 << 10;  // bytes: the gradient of 513 channels has 6 kB of locals
constexpr size_t SHARED = 4 << 20;   // bytes of a block's shared memory, more than any card has

// Who waits, and what those who came have brought; released when all that are alive have come.
struct Barrier {
    unsigned alive = 0, arrived = 0, generation = 0, count = 0, counted = 0;
    void release() {
        if (arrived < alive || !arrived) return;
        counted = count;
        arrived = count = 0;
        ++generation;
    }
};

struct Warp {
    Barrier barrier;
    uint64_t slots[2][WARP];                // what lanes bring to a call, by turns: who is ahead overwrites nothing
    unsigned came[2] = {}, called[2] = {};  // who brought it, a bit each, and to which call
    uint64_t made;                          // what was made of it, ...
    unsigned made_of = 0, made_in = 0;      // ... of which lanes, after which call
};

struct Fiber {
    ucontext_t start;
    jmp_buf at;
    std::unique_ptr<char[]> stack{new char[STACK]};
    dim3 index;
    unsigned rank;
    bool begun, done;
};

struct Block {
    dim3 size, grid, index;
    Barrier barrier;
    std::vector<Warp> warps;
    const std::function<void()> *body;
};

inline Block block;
inline std::vector<std::unique_ptr<Fiber>> fibers;  // kept for the next block
inline Fiber *current;
inline jmp_buf scheduler;
alignas(64) inline char shared[SHARED];

inline void yield() {
    if (!_setjmp(current->at)) _longjmp(scheduler, 1);
}

inline unsigned wait(Barrier &barrier, unsigned brought = 0) {
    unsigned generation = barrier.generation;
    barrier.count += brought;
    ++barrier.arrived;
    barrier.release();
    while (barrier.generation == generation) yield();
    return barrier.counted;
}

inline Warp &warp() { return block.warps[current->rank / WARP]; }

inline void live() {
    (*block.body)();
    current->done = true;
    for (Barrier *barrier : {&block.barrier, &warp().barrier}) {
        --barrier->alive;
        barrier->release();
    }
    _longjmp(scheduler, 1);
}

inline void resume(Fiber &fiber) {
    current = &fiber;
    if (_setjmp(scheduler)) return;
    if (fiber.begun) _longjmp(fiber.at, 1);
    fiber.begun = true;
    setcontext(&fiber.start);
}

inline void run_block(dim3 index) {
    unsigned threads = block.size.x * block.size.y * block.size.z;
    while (fibers.size() < threads) fibers.push_back(std::make_unique<Fiber>());
    block.index = index;
    block.barrier = {threads};
    block.warps.assign((threads + WARP - 1) / WARP, {});
    for (unsigned rank = 0; rank < threads; ++rank) {
        Fiber &fiber = *fibers[rank];
        fiber.rank = rank;
        fiber.index = {rank % block.size.x, rank / block.size.x % block.size.y, rank / (block.size.x * block.size.y)};
        fiber.begun = fiber.done = false;
        getcontext(&fiber.start);
        fiber.start.uc_stack.ss_sp = fiber.stack.get();
        fiber.start.uc_stack.ss_size = STACK;
        makecontext(&fiber.start, live, 0);
        ++block.warps[rank / WARP].barrier.alive;
    }
    for (unsigned left = threads; left;) {
        for (unsigned rank = 0; rank < threads; ++rank) {
            if (fibers[rank]->done) continue;
            resume(*fibers[rank]);
            left -= fibers[rank]->done;
        }
    }
}

// kernel<<<grid, size, bytes, stream>>>(arguments...)
template <class Kernel, class... Arguments>
void launch(dim3 grid, dim3 size, size_t bytes, const Kernel &kernel, Arguments... arguments) {
    if (bytes > SHARED || size.x * size.y * size.z > 1024) std::abort();
#if defined(__SSE__)
    unsigned mode = _mm_getcsr();
    _mm_setcsr(mode | 0x8040);  // subnormal numbers are 0, as they come and as they are made
#endif
    std::function<void()> body = [&] { kernel(arguments...); };
    block.size = size;
    block.grid = grid;
    block.body = &body;
    for (unsigned z = 0; z < grid.z; ++z)
        for (unsigned y = 0; y < grid.y; ++y)
            for (unsigned x = 0; x < grid.x; ++x) {
                std::fill(shared, shared + bytes, char(0xFF));  // NaN, where a block reads what it did not write
                run_block({x, y, z});
            }
#if defined(__SSE__)
    _mm_setcsr(mode);
#endif
}

// What the lanes of the warp have brought to this call.
struct Brought {
    unsigned there;
    const uint64_t *slots;
    template <class T>
    T of(unsigned lane) const {
        T value;
        std::memcpy(&value, &slots[lane], sizeof(T));
        return value;
    }
};
template <class T>
Brought gather(T value) {
    static_assert(sizeof(T) <= sizeof(uint64_t));
    Warp &own = warp();
    unsigned call = own.barrier.generation + 1, turn = call % 2, lane = current->rank % WARP;
    if (own.called[turn] != call) own.came[turn] = 0;
    own.called[turn] = call;
    own.came[turn] |= 1u << lane;
    std::memcpy(&own.slots[turn][lane], &value, sizeof(T));
    wait(own.barrier);
    return {own.came[turn], own.slots[turn]};
}

// The first of some lanes that asks makes it of what they brought; the others are given the same.
template <class T, class Operation>
T reduce(unsigned mask, T value, Operation operation) {
    Brought brought = gather(value);
    Warp &own = warp();
    mask &= brought.there;
    if (own.made_in != own.barrier.generation || own.made_of != mask) {
        unsigned lane = __builtin_ctz(mask);
        T made = brought.of<T>(lane);
        for (unsigned rest = mask & (mask - 1); rest; rest &= rest - 1)
            made = operation(made, brought.of<T>(__builtin_ctz(rest)));
        std::memcpy(&own.made, &made, sizeof(T));
        own.made_of = mask;
        own.made_in = own.barrier.generation;
    }
    T made;
    std::memcpy(&made, &own.made, sizeof(T));
    return made;
}

}  // namespace emulation

inline unsigned __syncthreads_count(int predicate) {
    return emulation::wait(emulation::block.barrier, predicate != 0);
}
inline int __syncthreads_or(int predicate) { return __syncthreads_count(predicate) > 0; }

namespace cooperative_groups {

template <class T>
struct plus {
    T operator()(T a, T b) const { return a + b; }
};
template <class T>
struct greater {
    T operator()(T a, T b) const { return a > b ? a : b; }
};

struct thread_block {
    dim3 group_index() const { return emulation::block.index; }
    dim3 thread_index() const { return emulation::current->index; }
    unsigned thread_rank() const { return emulation::current->rank; }
    unsigned size() const { return emulation::block.size.x * emulation::block.size.y * emulation::block.size.z; }
    void sync() const { emulation::wait(emulation::block.barrier); }
};
inline thread_block this_thread_block() { return {}; }

struct grid_group {
    uint64_t thread_rank() const {
        const auto &[x, y, z] = emulation::block.index;
        uint64_t number = x + uint64_t(emulation::block.grid.x) * (y + uint64_t(emulation::block.grid.y) * z);
        return number * thread_block().size() + emulation::current->rank;
    }
};
inline grid_group this_grid() { return {}; }

struct lanes {
    unsigned mask;  // of those that the group may have
    unsigned thread_rank() const {
        unsigned lane = emulation::current->rank % emulation::WARP;
        return __builtin_popcount(mask & ((1u << lane) - 1));
    }
    bool any(int predicate) const {
        return emulation::reduce(mask, int(predicate != 0), [](int a, int b) { return a | b; });
    }
};
template <unsigned Size>
struct thread_block_tile : lanes {
    static_assert(Size == emulation::WARP);
    thread_block_tile() : lanes{~0u} {}
};
template <unsigned Size>
thread_block_tile<Size> tiled_partition(const thread_block &) {
    return {};
}
template <class Label>
lanes labeled_partition(const lanes &group, Label label) {
    emulation::Brought brought = emulation::gather(label);
    unsigned mask = 0;
    for (unsigned rest = brought.there & group.mask; rest; rest &= rest - 1) {
        unsigned lane = __builtin_ctz(rest);
        mask |= unsigned(brought.of<Label>(lane) == label) << lane;
    }
    return {mask};
}
template <class T, class Operation>
T reduce(const lanes &group, T value, Operation operation) {
    return emulation::reduce(group.mask, value, operation);
}

}  // namespace cooperative_groups

template <class A, class B>
constexpr std::common_type_t<A, B> min(A a, B b) {
    std::common_type_t<A, B> x = a, y = b;
    return y < x ? y : x;
}
template <class A, class B>
constexpr std::common_type_t<A, B> max(A a, B b) {
    std::common_type_t<A, B> x = a, y = b;
    return x < y ? y : x;
}
using std::abs;
inline float __expf(float x) { return std::exp2(x * 1.4426950409f); }
inline float __logf(float x) { return std::log2(x) * 0.6931471806f; }
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
inline float rsqrt(float x) { return 1 / std::sqrt(x); }
inline double rsqrt(double x) { return 1 / std::sqrt(x); }

template <class T, class U>
void gpuAtomicAdd(T *place, U value) {
    *place += static_cast<T>(value);
}

// A card's conversion of floats: it saturates, and NaN is 0, where C++ leaves open what comes.
template <class Integer, class Float>
Integer saturated(Float x) {
    if (std::isnan(x)) return 0;
    if (x <= Float(std::numeric_limits<Integer>::min())) return std::numeric_limits<Integer>::min();
    if (x >= Float(std::numeric_limits<Integer>::max())) return std::numeric_limits<Integer>::max();
    return static_cast<Integer>(x);
}
template <class Float>
uint32_t unsigned_floor(Float x) {
    return saturated<uint32_t>(std::floor(x));
}
template <class Float>
uint32_t unsigned_ceil(Float x) {
    return saturated<uint32_t>(std::ceil(x));
}

enum cudaError_t { cudaSuccess };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel *, cudaFuncAttribute, size_t bytes) {
    return bytes <= emulation::SHARED ? cudaSuccess : cudaError_t(1);
}

namespace at::cuda {
inline int getCurrentCUDAStream() { return 0; }
struct OptionalCUDAGuard {
    template <class Device>
    explicit OptionalCUDAGuard(Device &&) {}
};
}  // namespace at::cuda

namespace c10::cuda::CUDACachingAllocator {
struct Allocator {
    std::unique_ptr<char[]> allocate(size_t bytes) { return std::make_unique<char[]>(bytes); }
};
inline Allocator allocator;
inline Allocator *get() { return &allocator; }
}  // namespace c10::cuda::CUDACachingAllocator

namespace cub {

template <class T>
struct DoubleBuffer {
    T *buffers[2];
    int selector = 0;
    DoubleBuffer(T *current, T *alternate) : buffers{current, alternate} {}
};

// Sorts by the bits from `begin` up to `end` of the keys, stably, into the other buffers.
template <class Key, class Value>
void sort_pairs(DoubleBuffer<Key> &keys, DoubleBuffer<Value> &values, size_t first, size_t last, int begin, int end) {
    uint64_t mask = (end < 64 ? (uint64_t(1) << end) : 0) - (uint64_t(1) << begin);
    const Key *key = keys.buffers[keys.selector];
    const Value *value = values.buffers[values.selector];
    std::vector<size_t> order(last - first);
    std::iota(order.begin(), order.end(), first);
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
        return (uint64_t(key[a]) & mask) < (uint64_t(key[b]) & mask);
    });
    for (size_t i = 0; i < order.size(); ++i) {
        keys.buffers[1 - keys.selector][first + i] = key[order[i]];
        values.buffers[1 - values.selector][first + i] = value[order[i]];
    }
}

struct DeviceRadixSort {
    template <class Key, class Value>
    static void SortPairs(
        void *storage, size_t &bytes, DoubleBuffer<Key> &keys, DoubleBuffer<Value> &values, int64_t number, int begin,
        int end, int /*stream*/
    ) {
        bytes = 1;
        if (!storage) return;
        sort_pairs(keys, values, 0, number, begin, end);
        keys.selector ^= 1;
        values.selector ^= 1;
    }
};

struct DeviceSegmentedRadixSort {
    template <class Key, class Value>
    static void SortPairs(
        void *storage, size_t &bytes, DoubleBuffer<Key> &keys, DoubleBuffer<Value> &values, int64_t, int64_t segments,
        const int64_t *begins, const int64_t *ends, int begin, int end, int /*stream*/
    ) {
        bytes = 1;
        if (!storage) return;
        for (int64_t s = 0; s < segments; ++s) sort_pairs(keys, values, begins[s], ends[s], begin, end);
        keys.selector ^= 1;
        values.selector ^= 1;
    }
};

}  // namespace cub
