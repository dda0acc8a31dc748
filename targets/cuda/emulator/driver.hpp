// What the emulated cuBLAS and cuRAND need of the emulated driver.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <algorithm>
#include <functional>

// Runs `work` now, or records it where the stream is captured; 0 or the driver's error.
__attribute__((visibility("default"))) int emulator_enqueue(void* stream, std::function<int()> work);
