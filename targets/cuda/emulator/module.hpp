// What a library of emulated kernels, made from one .cu file, gives the driver. Each library has its own copy of the fibres
// and its own symbols: kernels of two files may have functions of one name, as on a GPU.
#pragma once

#include <cstddef>

#include "threads.hpp"

// Shared memory that one block may ask for at launch: what every GPU from sm_86 on has (sm_87 and sm_90 have more).
constexpr size_t EMULATED_SHARED_BYTES = 99 * 1024;

struct EmulatedKernel {
    const char* name;
    void (*call)(void** arguments);  // one GPU thread, inside a fibre
    const size_t* argument_bytes;
    size_t arguments;
};

struct EmulatedModule {
    const EmulatedKernel* kernels;
    size_t count;
    // runs every block; returns when all have ended
    void (*launch)(const EmulatedKernel& kernel, emulator::Dim3 blocks, emulator::Dim3 threads, size_t shared_bytes,
                   void** arguments);
};

extern "C" __attribute__((visibility("default"))) const EmulatedModule* emulated_module();
