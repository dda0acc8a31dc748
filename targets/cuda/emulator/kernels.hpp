// Comes last in the source of an emulated module (make_module.sh): arguments by their types, blocks over CPU threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <thread>
#include <tuple>
#include <utility>

#include "module.hpp"

namespace emulated_kernels {

template <class Function>
struct Signature;
template <class... Arguments>
struct Signature<void (*)(Arguments...)> {
    static constexpr size_t bytes[sizeof...(Arguments) + 1] = {sizeof(Arguments)..., 0};
    static constexpr size_t count = sizeof...(Arguments);
    template <size_t... I>
    static void call(void (*kernel)(Arguments...), void** arguments, std::index_sequence<I...>) {
        kernel(*static_cast<std::remove_cv_t<Arguments>*>(arguments[I])...);
    }
};

template <auto kernel>
EmulatedKernel describe(const char* name) {
    using S = Signature<decltype(kernel)>;
    return {name, [](void** arguments) { S::call(kernel, arguments, std::make_index_sequence<S::count>()); }, S::bytes, S::count};
}

// The arrays of dynamic shared memory of this CPU thread: all begin at launch with `shared_bytes` of NaNs.
using Arrays = std::vector<unsigned char*>;
constexpr size_t FENCE = 256;
constexpr unsigned char FENCE_BYTE = 0xa5;

inline void run_blocks(const EmulatedKernel& kernel, emulator::Dim3 blocks, emulator::Dim3 threads, size_t shared_bytes,
                       void** arguments, const Arrays& arrays, std::atomic<size_t>& next) {
    for (size_t i; (i = next++) < blocks.count();) {
        for (unsigned char* array : arrays) {
            std::memset(array, 0xff, shared_bytes);
            std::memset(array + shared_bytes, FENCE_BYTE, FENCE);
        }
        emulator::Dim3 block{unsigned(i % blocks.x), unsigned(i / blocks.x % blocks.y), unsigned(i / blocks.x / blocks.y)};
        emulator::Block::run(threads, block, blocks, [&] { kernel.call(arguments); });
        for (unsigned char* array : arrays)
            for (size_t j = 0; j < FENCE; j++)
                if (array[shared_bytes + j] != FENCE_BYTE)
                    emulator::fail("%s writes beyond the %u bytes of shared memory that it was launched with", kernel.name,
                                   unsigned(shared_bytes));
    }
}

template <class FindArrays>
void launch(const EmulatedKernel& kernel, emulator::Dim3 blocks, emulator::Dim3 threads, size_t shared_bytes, void** arguments,
            FindArrays&& find_arrays) {
    static const unsigned wanted = [] {
        const char* number = std::getenv("EMULATOR_THREADS");
        return number ? unsigned(std::atoi(number)) : std::thread::hardware_concurrency();
    }();
    std::atomic<size_t> next{0};
    size_t helpers = blocks.count() * threads.count() < 4096 ? 0 : std::min<size_t>(wanted, blocks.count());
    auto work = [&] { run_blocks(kernel, blocks, threads, shared_bytes, arguments, find_arrays(), next); };
    std::vector<std::thread> others;
    for (size_t i = 1; i < helpers; i++) others.emplace_back(work);
    work();
    for (std::thread& other : others) other.join();
}

}  // namespace emulated_kernels
