// Behind the kernels' sources: a table of all of them, and what runs one of them on the CPU, every threadgroup in turn.
// Every kernel has pointers to buffers, then a reference to its parameters, then its thread's place in the grid.
#pragma once

#include <cstring>
#include <functional>
#include <type_traits>
#include <utility>

namespace shim {

using Runner = std::function<void(void* const* buffers, const void* parameters, uint place)>;

template <class Arg>
Arg argument(void* const* buffers, const void* parameters, uint place, size_t index) {
    if constexpr (std::is_pointer_v<Arg>)
        return static_cast<Arg>(buffers[index]);
    else if constexpr (std::is_reference_v<Arg>)
        return *static_cast<const std::remove_reference_t<Arg>*>(parameters);
    else
        return place;
}

template <class... Args, size_t... Index>
Runner runner(void (*kernel_)(Args...), std::index_sequence<Index...>) {
    return [=](void* const* buffers, const void* parameters, uint place) {
        kernel_(argument<Args>(buffers, parameters, place, Index)...);
    };
}

struct Entry {
    const char* name;
    size_t buffers;
    Runner run;
};

template <class... Args>
Entry entry(const char* name, void (*kernel_)(Args...)) {
    return {name, (size_t(0) + ... + std::is_pointer_v<Args>), runner(kernel_, std::index_sequence_for<Args...>{})};
}

extern const Entry entries[];
extern const size_t entry_count;

}  // namespace shim

// 0: done; 1: no such kernel; 2: another number of buffers.
extern "C" int shim_run(const char* name, void* const* buffers, size_t count, const void* parameters, uint threadgroup,
                        uint threadgroups) {
    for (size_t e = 0; e < shim::entry_count; e++) {
        const shim::Entry& entry = shim::entries[e];
        if (std::strcmp(entry.name, name)) continue;
        if (entry.buffers != count) return 2;
        for (uint group = 0; group < threadgroups; group++) {
            emulator::Block::run({threadgroup, 1, 1}, {group, 0, 0}, {threadgroups, 1, 1}, [&] {
                const emulator::Thread& self = emulator::Block::self();
                entry.run(buffers, parameters, self.block.x * threadgroup + self.index.x);
            });
        }
        return 0;
    }
    return 1;
}
