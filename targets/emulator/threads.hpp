// One block of GPU threads on one CPU thread. Every GPU thread is a fibre with a stack of its own and runs until it waits:
// at the block's barrier, or at a collective of its warp (32 threads; a SIMD group in Metal's words). Nothing here knows
// CUDA or Metal; the shim headers of both put their names on it.
//
// As on a GPU, threads that have ended are not waited for. What a GPU would leave undefined ends the program with a message:
// a barrier that some threads of the block never reach or reach elsewhere, a collective that some lanes of the warp never
// reach, a shuffle from a lane that takes no part.
//
// EMULATOR_ORDER=reverse in the environment lets the last thread run first, EMULATOR_ORDER=hasty lets a warp run on to the
// block's next barrier before any other: a result that depends on the order has a barrier missing.
#pragma once

#include <sys/mman.h>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <vector>

// Saves the registers that a call keeps on the stack, leaves the stack pointer in *from and goes on where `to` was left.
extern "C" void emulator_switch(void** from, void* to) __attribute__((visibility("hidden")));
#if defined(__x86_64__)
asm(R"(
    .text
    .weak emulator_switch
    .hidden emulator_switch
    .type emulator_switch, @function
emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size emulator_switch, .-emulator_switch
)");
#elif defined(__aarch64__)
asm(R"(
    .text
    .weak emulator_switch
    .hidden emulator_switch
    .type emulator_switch, @function
emulator_switch:
    sub sp, sp, #160
    stp x19, x20, [sp]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
    .size emulator_switch, .-emulator_switch
)");
#else
#error "threads.hpp knows x86-64 and aarch64 only"
#endif

namespace emulator {

constexpr int WARP = 32;
constexpr size_t STACK_BYTES = 256 * 1024;

struct Dim3 {
    unsigned x = 1, y = 1, z = 1;
    size_t count() const { return size_t(x) * y * z; }
};

// Where in the source a thread waits: a literal, and the line that tells places apart.
struct Place {
    const char* what = "";
    int line = 0;
    bool operator==(const Place& other) const { return line == other.line; }
};

// 16 bytes that a thread has asked for and not waited for; zeros where `from` is null.
struct Copy {
    void* to;
    const void* from;
    unsigned group;
};

struct Thread {
    Dim3 index{0, 0, 0}, block{0, 0, 0}, threads, blocks;  // threadIdx, blockIdx, blockDim, gridDim
    unsigned linear = 0;                                   // x fastest
    void* stack_pointer = nullptr;
    enum { UNSTARTED, READY, AT_BARRIER, AT_COLLECTIVE, ENDED } state = UNSTARTED;
    Place place;
    std::vector<Copy> copies;
    unsigned copy_group = 0;
    unsigned lane() const { return linear % WARP; }
};

[[noreturn]] inline void fail(const char* format, const char* what, unsigned a = 0, unsigned b = 0) {
    std::fprintf(stderr, "emulated device: ");
    std::fprintf(stderr, format, what, a, b);
    std::fprintf(stderr, "\n");
    std::abort();
}

// Stacks are kept from block to block, one list per CPU thread; each has a page below it that may not be touched.
class Stacks {
public:
    ~Stacks() {
        for (void* stack : free_) munmap(stack, STACK_BYTES);
    }
    void* take() {
        if (free_.empty()) {
            void* stack = mmap(nullptr, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
            if (stack == MAP_FAILED) fail("%s: no memory for a thread's stack", "mmap");
            mprotect(stack, 4096, PROT_NONE);
            return stack;
        }
        void* stack = free_.back();
        free_.pop_back();
        return stack;
    }
    void give(void* stack) { free_.push_back(stack); }

private:
    std::vector<void*> free_;
};

class Block {
public:
    // The block whose thread runs now on this CPU thread, and that thread.
    static Block*& current() { return current_; }
    static Thread& self() { return *current()->running_; }

    // Runs `body()` once for every thread of the block; returns when all have ended.
    template <class Body>
    static void run(Dim3 threads, Dim3 block, Dim3 blocks, Body&& body) {
        Block one(threads, block, blocks);
        one.call_ = [](void* what) { (*static_cast<std::remove_reference_t<Body>*>(what))(); };
        one.body_ = &body;
        Block* outer = current();
        current() = &one;
        one.next(&one.outside_);
        current() = outer;
        for (void* stack : one.used_) stacks().give(stack);
    }

    // Waits until every thread of the block that has not ended is here.
    void barrier(Place place) {
        Thread& self = *running_;
        self.place = place;
        at_barrier_++;
        if (at_barrier_ == alive_) return release_barrier();
        self.state = Thread::AT_BARRIER;
        next(&self.stack_pointer);
    }

    // Every lane of `mask` that has not ended lays down `mine`; the last one calls `compute(lanes)`, an array of 32 of
    // these pointers (null for a lane that does not take part), for all; then all go on. What `mine` points to must not
    // be read after by others: results are written through the pointers.
    template <class Compute>
    void collective(Place place, uint32_t mask, void* mine, Compute&& compute) {
        Thread& self = *running_;
        Warp& warp = warps_[self.linear / WARP];
        if (!(mask >> self.lane() & 1)) fail("%s in line %u: lane %u is not in its own mask", place.what, place.line, self.lane());
        if (warp.waiting && !(warp.place == place && warp.mask == mask))
            fail("%s in line %u: another lane of the warp waits elsewhere, in line %u", place.what, place.line, warp.place.line);
        warp.place = self.place = place;
        warp.mask = mask;
        warp.waiting |= 1u << self.lane();
        warp.lanes[self.lane()] = mine;
        if (warp.waiting == (mask & warp.alive)) {
            compute(warp.lanes);
            return release_warp(warp, self);
        }
        using Closure = std::remove_reference_t<Compute>;
        warp.compute = [](void* what, void** lanes) { (*static_cast<Closure*>(what))(lanes); };
        warp.closure = &compute;
        self.state = Thread::AT_COLLECTIVE;
        next(&self.stack_pointer);
    }

private:
    static inline thread_local Block* current_ = nullptr;

    struct Warp {
        uint32_t alive = 0, waiting = 0, mask = 0;
        void (*compute)(void*, void**) = nullptr;  // of a waiting lane, and its closure
        void* closure = nullptr;
        Place place;
        void* lanes[WARP] = {};
    };

    Block(Dim3 threads, Dim3 block, Dim3 blocks) : threads_(threads.count()), warps_((threads.count() + WARP - 1) / WARP) {
        static const char* const order = std::getenv("EMULATOR_ORDER");
        reverse_ = order && !std::strcmp(order, "reverse");
        hasty_ = order && !std::strcmp(order, "hasty");
        alive_ = unsigned(threads_.size());
        for (unsigned i = 0; i < alive_; i++) {
            Thread& thread = threads_[i];
            thread.linear = i;
            thread.index = {i % threads.x, i / threads.x % threads.y, i / threads.x / threads.y};
            thread.block = block;
            thread.threads = threads;
            thread.blocks = blocks;
            warps_[i / WARP].alive |= 1u << (i % WARP);
        }
    }

    static Stacks& stacks() {
        static thread_local Stacks stacks;
        return stacks;
    }

    // Leaves the running fibre for one that can go on, or for a new one; the last returns to run().
    void next(void** from) {
        void* to;
        if (first_ready_ < ready_.size()) {
            // those who were let go last are the lanes of a warp that is ahead
            running_ = hasty_ ? ready_.back() : ready_[first_ready_++];
            if (hasty_) ready_.pop_back();
            if (first_ready_ == ready_.size()) {
                ready_.clear();
                first_ready_ = 0;
            }
            to = running_->stack_pointer;
        } else if (started_ < threads_.size()) {
            to = new_stack();
        } else if (alive_ == 0) {
            to = outside_;
        } else {
            stuck();
        }
        emulator_switch(from, to);
    }

    void* new_stack() {
        char* stack = static_cast<char*>(stacks().take());
        used_.push_back(stack);
        void** top = reinterpret_cast<void**>(stack + STACK_BYTES);
#if defined(__x86_64__)
        top[-1] = nullptr;                                   // enter() returns to nowhere
        top[-2] = reinterpret_cast<void*>(&Block::enter);    // what emulator_switch returns to
        return top - 2 - 6;
#else
        void** frame = top - 20;
        frame[11] = reinterpret_cast<void*>(&Block::enter);  // x30
        return frame;
#endif
    }

    // On a new stack: threads one after another, as long as there are any that nobody has begun.
    static void enter() {
        Block& block = *current();
        while (block.started_ < block.threads_.size()) {
            size_t order = block.started_++;
            Thread& self = block.threads_[block.reverse_ ? block.threads_.size() - 1 - order : order];
            block.running_ = &self;
            self.state = Thread::READY;
            block.call_(block.body_);
            block.end(self);
            // those who waited for this thread come first
            if (block.first_ready_ < block.ready_.size()) break;
        }
        void* never = nullptr;
        block.next(&never);
        fail("%s: a thread that has ended went on", "fibres");
    }

    void end(Thread& self) {
        self.state = Thread::ENDED;
        alive_--;
        Warp& warp = warps_[self.linear / WARP];
        warp.alive &= ~(1u << self.lane());
        if (warp.waiting && warp.waiting == (warp.mask & warp.alive)) {
            warp.compute(warp.closure, warp.lanes);
            release_warp(warp, self);
        }
        if (alive_ && at_barrier_ == alive_) release_barrier();
    }

    void release_barrier() {
        const Place* place = nullptr;
        for (Thread& thread : threads_) {
            bool here = thread.state == Thread::AT_BARRIER || &thread == running_;
            if (!here || thread.state == Thread::ENDED) continue;
            if (place && !(*place == thread.place))
                fail("%s in line %u: other threads of the block are at the barrier in line %u", place->what, place->line, thread.place.line);
            place = &thread.place;
        }
        at_barrier_ = 0;
        for (Thread& thread : threads_)
            if (thread.state == Thread::AT_BARRIER) resume(thread);
    }

    void release_warp(Warp& warp, Thread& self) {
        uint32_t waited = warp.waiting & ~(1u << self.lane());
        warp.waiting = 0;
        size_t first = self.linear / WARP * WARP;
        for (unsigned lane = 0; lane < WARP; lane++) {
            warp.lanes[lane] = nullptr;
            if (waited >> lane & 1) resume(threads_[first + lane]);
        }
    }

    void resume(Thread& thread) {
        thread.state = Thread::READY;
        ready_.push_back(&thread);
    }

    [[noreturn]] void stuck() {
        unsigned shown = 0;
        for (Thread& thread : threads_) {
            if (thread.state == Thread::ENDED || shown++ == 4) continue;
            const char* where = thread.state == Thread::AT_BARRIER ? "the barrier" : "a collective";
            std::fprintf(stderr, "emulated device: thread %u waits at %s %s in line %d\n", thread.linear, where, thread.place.what,
                         thread.place.line);
            if (shown == 4) break;
        }
        fail("%s: threads of the block wait for others that never come", "deadlock");
    }

    std::vector<Thread> threads_;
    std::vector<Warp> warps_;
    std::vector<Thread*> ready_;  // from first_ready_ on, in the order in which they may go on
    size_t first_ready_ = 0, started_ = 0;
    unsigned alive_ = 0, at_barrier_ = 0;
    bool reverse_ = false, hasty_ = false;
    std::vector<void*> used_;
    Thread* running_ = nullptr;
    void* outside_ = nullptr;
    void (*call_)(void*) = nullptr;
    void* body_ = nullptr;
};

// One number per lane, of at most 8 bytes, from lane `source(lane)` of the warp; the lane's own where that is outside 0..32.
template <class T, class Source>
T shuffle(Place place, uint32_t mask, T value, Source&& source) {
    struct Cell {
        T mine, result;
        int from;
    } cell{value, value, source(int(Block::self().lane()))};
    Block::current()->collective(place, mask, &cell, [&](void** lanes) {
        for (int lane = 0; lane < WARP; lane++) {
            Cell* at = static_cast<Cell*>(lanes[lane]);
            if (!at || at->from < 0 || at->from >= WARP) continue;
            Cell* from = static_cast<Cell*>(lanes[at->from]);
            if (!from) fail("%s in line %u: it reads lane %u, which takes no part", place.what, place.line, at->from);
            at->result = from->mine;
        }
    });
    return cell.result;
}

}  // namespace emulator
