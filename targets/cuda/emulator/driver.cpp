// A stand-in for libcuda.so.1: the driver functions that candle needs, for one emulated GPU. A launch runs at once, on the
// CPU; a launch while its stream is captured is recorded. What a real driver refuses is refused: a launch with too many
// threads or too much shared memory, a host copy, a synchronisation or a module loaded in a capture, the graph's memory freed
// while no launch of the graph owns it, memory from before the capture freed inside. Memory is new at each allocation, filled
// with NaNs and ends at a page that may not be touched; so is freed memory.
//
// Environment: EMULATOR_DEVICES=0 (no GPU), EMULATOR_CAPABILITY=75 (an older GPU), EMULATOR_DRIVER=12040 (an older driver),
// EMULATOR_PTX=0 (a driver that does not know this PTX), EMULATOR_TRACE=1 (print every launch), EMULATOR_THREADS (CPU
// threads), EMULATOR_ORDER (threads.hpp).
#include "driver.hpp"

#include <dlfcn.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "module.hpp"

namespace {

enum Result {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    INVALID_PTX = 218,
    UNSUPPORTED_PTX_VERSION = 222,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    CAPTURE_UNSUPPORTED = 900,
    CAPTURE_INVALIDATED = 901,
    CAPTURE_ISOLATION = 905,
};

constexpr size_t PAGE = 4096;
constexpr size_t MEMORY = size_t(8) << 30;

int number_from(const char* name, int otherwise) {
    const char* text = std::getenv(name);
    return text ? std::atoi(text) : otherwise;
}
bool tracing() {
    static const bool on = number_from("EMULATOR_TRACE", 0) != 0;
    return on;
}

struct Graph;
struct Allocation {
    size_t bytes;
    std::shared_ptr<Graph> graph;  // null: of a stream
    bool live;                     // the graph's: between a launch and its freeing
};
struct Graph : std::enable_shared_from_this<Graph> {
    std::vector<std::function<int()>> nodes;
    std::set<char*> memory;
};
struct Executable {
    std::shared_ptr<Graph> graph;
    unsigned long long flags;
};
struct Stream {
    std::shared_ptr<Graph> capture;
    int mode = 0;
    bool invalid = false;
};
struct Event {
    bool captured = false;
};
struct Function {
    const EmulatedModule* module;
    const EmulatedKernel* kernel;
    size_t dynamic_shared = 48 * 1024;
};
struct Module {
    const EmulatedModule* emulated;
    std::map<std::string, Function> functions;
};

std::recursive_mutex lock;
std::map<char*, Allocation> allocations;
size_t allocated = 0;
const char* running = "nothing";

Stream& stream_of(void* handle) {
    static Stream legacy, per_thread;
    if (handle == nullptr || handle == reinterpret_cast<void*>(1)) return legacy;
    if (handle == reinterpret_cast<void*>(2)) return per_thread;
    return *static_cast<Stream*>(handle);
}

// Streams in a capture that forbids what may reach into it: mode 0 to every thread, mode 1 to the thread that began it.
int global_captures = 0;
thread_local int own_captures = 0;
int& captures_of(int mode) {
    static int relaxed = 0;
    return mode == 0 ? global_captures : mode == 1 ? own_captures : relaxed;
}
int forbidden_in_capture(const char* what) {
    if (!global_captures && !own_captures) return SUCCESS;
    std::fprintf(stderr, "emulated device: %s while a stream is captured\n", what);
    return CAPTURE_UNSUPPORTED;
}

extern "C" void report_fault(int, siginfo_t* info, void*) {
    char text[256];
    int length = std::snprintf(text, sizeof text, "emulated device: %s touches %p, outside of what is allocated\n", running, info->si_addr);
    if (write(2, text, size_t(length)) < 0) _exit(139);
    signal(SIGSEGV, SIG_DFL);
}

size_t room(size_t bytes) { return (bytes + PAGE - 1) / PAGE * PAGE; }

char* reserve(size_t bytes) {
    size_t pages = room(bytes);
    if (allocated + pages > MEMORY) return nullptr;
    char* base = static_cast<char*>(mmap(nullptr, pages + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base == MAP_FAILED) return nullptr;
    mprotect(base + pages, PAGE, PROT_NONE);
    allocated += pages;
    char* at = base + pages - (bytes + 15) / 16 * 16;
    std::memset(at, 0xff, bytes);
    return at;
}
void release(std::map<char*, Allocation>::iterator at) {
    size_t pages = room(at->second.bytes);
    char* end = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(at->first) + at->second.bytes + 15) / 16 * 16);
    munmap(end - pages, pages + PAGE);
    allocated -= pages;
    allocations.erase(at);
}

int enqueue(Stream& stream, std::function<int()> work) {
    if (stream.capture) {
        stream.capture->nodes.push_back(std::move(work));
        return SUCCESS;
    }
    return work();
}

int allocate(void** out, size_t bytes) {
    if (bytes == 0) return INVALID_VALUE;
    char* at = reserve(bytes);
    if (!at) return OUT_OF_MEMORY;
    allocations[at] = {bytes, nullptr, true};
    *out = at;
    return SUCCESS;
}

int free_now(char* at) {
    auto found = allocations.find(at);
    if (found == allocations.end() || !found->second.live) {
        std::fprintf(stderr, "emulated device: %p is freed and not allocated\n", static_cast<void*>(at));
        return INVALID_VALUE;
    }
    if (!found->second.graph) {
        release(found);
        return SUCCESS;
    }
    // the graph's memory keeps its address for the next launch
    found->second.live = false;
    std::memset(at, 0xff, found->second.bytes);
    return SUCCESS;
}

bool inside(const void* at, size_t bytes) {
    auto found = allocations.upper_bound(const_cast<char*>(static_cast<const char*>(at)));
    if (found == allocations.begin()) return false;
    --found;
    return static_cast<const char*>(at) + bytes <= found->first + found->second.bytes;
}

int copy(void* to, const void* from, size_t bytes, bool to_device, bool from_device) {
    if (bytes && ((to_device && !inside(to, bytes)) || (from_device && !inside(from, bytes)))) {
        std::fprintf(stderr, "emulated device: a copy of %zu bytes reaches outside of what is allocated\n", bytes);
        return INVALID_VALUE;
    }
    std::memmove(to, from, bytes);
    return SUCCESS;
}

int host_copy(Stream& stream, const char* what, void* to, const void* from, size_t bytes, bool to_device) {
    if (stream.capture) {
        stream.invalid = true;
        std::fprintf(stderr, "emulated device: %s while the stream is captured\n", what);
        return CAPTURE_UNSUPPORTED;
    }
    return copy(to, from, bytes, to_device, !to_device);
}

int launch_now(const Function& function, emulator::Dim3 blocks, emulator::Dim3 threads, size_t shared, void** arguments) {
    if (tracing())
        std::fprintf(stderr, "emulated device: %s <<<%u %u %u, %u %u %u, %zu>>>\n", function.kernel->name, blocks.x, blocks.y,
                     blocks.z, threads.x, threads.y, threads.z, shared);
    running = function.kernel->name;
    function.module->launch(*function.kernel, blocks, threads, shared, arguments);
    running = "nothing";
    return SUCCESS;
}

// The folder of this library: the modules lie beside it.
std::string folder() {
    Dl_info info;
    if (!dladdr(reinterpret_cast<void*>(&report_fault), &info)) return ".";
    std::string path = info.dli_fname;
    return path.substr(0, path.rfind('/'));
}

}  // namespace

int emulator_enqueue(void* stream, std::function<int()> work) {
    std::lock_guard guard(lock);
    return enqueue(stream_of(stream), std::move(work));
}

#define DRIVER extern "C" __attribute__((visibility("default"))) int
#define LOCKED std::lock_guard guard(lock)

// ---- device and context

DRIVER cuInit(unsigned) {
    LOCKED;
    static bool once = [] {
        struct sigaction action = {};
        action.sa_sigaction = report_fault;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESETHAND;
        sigaction(SIGSEGV, &action, nullptr);
        return true;
    }();
    (void)once;
    return number_from("EMULATOR_DEVICES", 1) > 0 ? SUCCESS : NO_DEVICE;
}
DRIVER cuDriverGetVersion(int* version) { return *version = number_from("EMULATOR_DRIVER", 13000), SUCCESS; }
DRIVER cuDeviceGetCount(int* count) { return *count = number_from("EMULATOR_DEVICES", 1), SUCCESS; }
DRIVER cuDeviceGet(int* device, int ordinal) {
    if (ordinal < 0 || ordinal >= number_from("EMULATOR_DEVICES", 1)) return INVALID_DEVICE;
    return *device = ordinal, SUCCESS;
}
DRIVER cuDeviceGetName(char* name, int length, int) { return std::snprintf(name, size_t(length), "emulated"), SUCCESS; }
DRIVER cuDeviceTotalMem_v2(size_t* bytes, int) { return *bytes = MEMORY, SUCCESS; }
DRIVER cuDeviceGetUuid_v2(char* uuid, int) { return std::memset(uuid, 0, 16), SUCCESS; }
DRIVER cuDeviceGetDefaultMemPool(void** pool, int) {
    static char only;
    *pool = &only;
    return 0;
}

// what is freed stays with the host's allocator anyway
DRIVER cuMemPoolSetAttribute(void*, int, void*) { return 0; }
DRIVER cuMemPoolTrimTo(void*, size_t) { LOCKED; return forbidden_in_capture("cuMemPoolTrimTo"); }
DRIVER cuDeviceGraphMemTrim(int) { LOCKED; return forbidden_in_capture("cuDeviceGraphMemTrim"); }

DRIVER cuDeviceGetAttribute(int* value, int attribute, int) {
    int capability = number_from("EMULATOR_CAPABILITY", 87);
    switch (attribute) {
    case 1: *value = 1024; break;                               // threads of a block
    case 2: case 3: *value = 1024; break;
    case 4: *value = 64; break;
    case 5: *value = 0x7fffffff; break;                         // blocks of a grid
    case 6: case 7: *value = 65535; break;
    case 8: *value = 48 * 1024; break;                          // shared memory of a block without opting in
    case 10: *value = emulator::WARP; break;
    case 12: *value = 65536; break;                             // registers of a block
    case 16: *value = 8; break;                                 // multiprocessors
    case 18: *value = 1; break;                                 // integrated
    case 39: *value = 1536; break;                              // threads of a multiprocessor
    case 75: *value = capability / 10; break;
    case 76: *value = capability % 10; break;
    case 81: *value = int(EMULATED_SHARED_BYTES) + 1024; break;  // shared memory of a multiprocessor
    case 97: *value = int(EMULATED_SHARED_BYTES); break;        // shared memory of a block with opting in
    case 115: *value = 1; break;                                // memory pools
    default:
        std::fprintf(stderr, "emulated device: attribute %d of the device is not known\n", attribute);
        return INVALID_VALUE;
    }
    return SUCCESS;
}

namespace {
int context;
thread_local void* bound = nullptr;
}
DRIVER cuDevicePrimaryCtxRetain(void** out, int) { return *out = &context, SUCCESS; }
DRIVER cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
DRIVER cuCtxGetCurrent(void** out) { return *out = bound, SUCCESS; }
DRIVER cuCtxSetCurrent(void* what) { return bound = what, SUCCESS; }
DRIVER cuCtxSynchronize() { LOCKED; return forbidden_in_capture("cuCtxSynchronize"); }

// ---- memory

DRIVER cuMemGetInfo_v2(size_t* free, size_t* total) { LOCKED; return *free = MEMORY - allocated, *total = MEMORY, SUCCESS; }
DRIVER cuMemAlloc_v2(void** out, size_t bytes) {
    LOCKED;
    int refused = forbidden_in_capture("cuMemAlloc");
    return refused ? refused : allocate(out, bytes);
}
DRIVER cuMemFree_v2(void* at) {
    LOCKED;
    int refused = forbidden_in_capture("cuMemFree");
    return refused || !at ? refused : free_now(static_cast<char*>(at));
}
DRIVER cuMemAllocAsync(void** out, size_t bytes, void* handle) {
    LOCKED;
    Stream& stream = stream_of(handle);
    int result = allocate(out, bytes);
    if (result || !stream.capture) return result;
    char* at = static_cast<char*>(*out);
    Graph* graph = stream.capture.get();
    allocations[at].graph = stream.capture;
    allocations[at].live = false;
    graph->memory.insert(at);
    graph->nodes.push_back([at] {
        Allocation& memory = allocations.at(at);
        if (memory.live) {
            std::fprintf(stderr, "emulated device: a graph is launched again and memory of its last launch is not freed\n");
            return int(INVALID_VALUE);
        }
        memory.live = true;
        std::memset(at, 0xff, memory.bytes);
        return int(SUCCESS);
    });
    return SUCCESS;
}
DRIVER cuMemFreeAsync(void* where, void* handle) {
    LOCKED;
    Stream& stream = stream_of(handle);
    char* at = static_cast<char*>(where);
    if (!stream.capture) return free_now(at);
    if (!stream.capture->memory.count(at)) {
        std::fprintf(stderr, "emulated device: memory from before the capture is freed inside it\n");
        stream.invalid = true;
        return INVALID_VALUE;
    }
    return enqueue(stream, [at] { return free_now(at); });
}
DRIVER cuMemcpyHtoDAsync_v2(void* to, const void* from, size_t bytes, void* stream) {
    LOCKED; return host_copy(stream_of(stream), "a copy from the host", to, from, bytes, true);
}
DRIVER cuMemcpyDtoHAsync_v2(void* to, const void* from, size_t bytes, void* stream) {
    LOCKED; return host_copy(stream_of(stream), "a copy to the host", to, from, bytes, false);
}
DRIVER cuMemcpyHtoD_v2(void* to, const void* from, size_t bytes) {
    LOCKED;
    int refused = forbidden_in_capture("cuMemcpyHtoD");
    return refused ? refused : copy(to, from, bytes, true, false);
}
DRIVER cuMemcpyDtoH_v2(void* to, const void* from, size_t bytes) {
    LOCKED;
    int refused = forbidden_in_capture("cuMemcpyDtoH");
    return refused ? refused : copy(to, from, bytes, false, true);
}
DRIVER cuMemcpyDtoDAsync_v2(void* to, const void* from, size_t bytes, void* stream) {
    LOCKED; return enqueue(stream_of(stream), [=] { return copy(to, from, bytes, true, true); });
}
DRIVER cuMemsetD8Async(void* at, unsigned char value, size_t bytes, void* stream) {
    LOCKED;
    return enqueue(stream_of(stream), [=] {
        if (bytes && !inside(at, bytes)) return int(INVALID_VALUE);
        std::memset(at, value, bytes);
        return int(SUCCESS);
    });
}
DRIVER cuMemHostAlloc(void** out, size_t bytes, unsigned) {
    *out = std::aligned_alloc(PAGE, room(bytes ? bytes : 1));
    return *out ? SUCCESS : OUT_OF_MEMORY;
}
DRIVER cuMemFreeHost(void* at) { return std::free(at), SUCCESS; }

// ---- streams and events

DRIVER cuStreamCreate(void** out, unsigned) { return *out = new Stream, SUCCESS; }
DRIVER cuStreamCreateWithPriority(void** out, unsigned, int) { return *out = new Stream, SUCCESS; }
DRIVER cuStreamDestroy_v2(void* stream) { return delete static_cast<Stream*>(stream), SUCCESS; }
DRIVER cuStreamSynchronize(void* handle) {
    LOCKED;
    Stream& stream = stream_of(handle);
    if (!stream.capture) return SUCCESS;
    std::fprintf(stderr, "emulated device: a stream is synchronised while it is captured\n");
    stream.invalid = true;
    return CAPTURE_UNSUPPORTED;
}
DRIVER cuStreamWaitEvent(void* handle, Event* event, unsigned) {
    LOCKED;
    Stream& stream = stream_of(handle);
    if (!stream.capture || event->captured) return SUCCESS;
    std::fprintf(stderr, "emulated device: a captured stream waits for an event from outside of the capture\n");
    stream.invalid = true;
    return CAPTURE_ISOLATION;
}
DRIVER cuEventCreate(Event** out, unsigned) { return *out = new Event, SUCCESS; }
DRIVER cuEventDestroy_v2(Event* event) { return delete event, SUCCESS; }
DRIVER cuEventRecord(Event* event, void* stream) { LOCKED; return event->captured = bool(stream_of(stream).capture), SUCCESS; }
DRIVER cuEventQuery(Event*) { return SUCCESS; }
DRIVER cuEventSynchronize(Event* event) { return event->captured ? CAPTURE_UNSUPPORTED : SUCCESS; }
DRIVER cuEventElapsedTime_v2(float* milliseconds, Event*, Event*) { return *milliseconds = 0, SUCCESS; }

// ---- modules and launches

DRIVER cuModuleLoadData(Module** out, const char* image) {
    LOCKED;
    if (int refused = forbidden_in_capture("a module is loaded")) return refused;
    if (!number_from("EMULATOR_PTX", 1)) return UNSUPPORTED_PTX_VERSION;
    static const char mark[] = "// emulated module ";
    const char* at = std::strstr(image, mark);
    if (!at) return INVALID_PTX;
    at += sizeof mark - 1;
    std::string path = folder() + "/" + std::string(at, std::strcspn(at, "\n")) + ".so";
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    auto find = library ? reinterpret_cast<const EmulatedModule* (*)()>(dlsym(library, "emulated_module")) : nullptr;
    if (!find) {
        std::fprintf(stderr, "emulated device: %s\n", dlerror());
        return INVALID_IMAGE;
    }
    *out = new Module{find(), {}};
    for (size_t i = 0; i < (*out)->emulated->count; i++) {
        const EmulatedKernel& kernel = (*out)->emulated->kernels[i];
        (*out)->functions[kernel.name] = {(*out)->emulated, &kernel};
    }
    return SUCCESS;
}
DRIVER cuModuleUnload(Module* module) { return delete module, SUCCESS; }
DRIVER cuModuleGetFunction(Function** out, Module* module, const char* name) {
    LOCKED;
    auto found = module->functions.find(name);
    if (found == module->functions.end()) return NOT_FOUND;
    return *out = &found->second, SUCCESS;
}
DRIVER cuFuncGetAttribute(int* value, int attribute, Function* function) {
    switch (attribute) {
    case 0: *value = 1024; break;                          // threads of a block
    case 8: *value = int(function->dynamic_shared); break;
    default: *value = 0;
    }
    return SUCCESS;
}
DRIVER cuFuncSetAttribute(Function* function, int attribute, int value) {
    LOCKED;
    if (attribute != 8) return attribute == 9 ? SUCCESS : INVALID_VALUE;  // 9: how the L1 cache is split
    if (value < 0 || size_t(value) > EMULATED_SHARED_BYTES) return INVALID_VALUE;
    function->dynamic_shared = size_t(value);
    return SUCCESS;
}
DRIVER cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Function*, int threads, size_t shared) {
    size_t by_shared = shared ? (EMULATED_SHARED_BYTES + 1024) / (shared + 1024) : 16;
    return *blocks = int(std::min<size_t>(size_t(1536 / std::max(threads, 1)), by_shared)), SUCCESS;
}
DRIVER cuLaunchKernel(Function* function, unsigned bx, unsigned by, unsigned bz, unsigned tx, unsigned ty, unsigned tz,
                      unsigned shared, void* handle, void** arguments, void** extra) {
    LOCKED;
    if (!function) return INVALID_HANDLE;
    emulator::Dim3 blocks{bx, by, bz}, threads{tx, ty, tz};
    bool fits = blocks.count() && threads.count() && bx <= 0x7fffffff && by <= 65535 && bz <= 65535 && threads.count() <= 1024 &&
                tx <= 1024 && ty <= 1024 && tz <= 64 && shared <= function->dynamic_shared && !extra;
    if (!fits) {
        std::fprintf(stderr, "emulated device: %s cannot be launched with %u %u %u blocks of %u %u %u threads and %u bytes of %s\n",
                     function->kernel->name, bx, by, bz, tx, ty, tz, shared, "shared memory");
        return INVALID_VALUE;
    }
    Stream& stream = stream_of(handle);
    if (!stream.capture) return launch_now(*function, blocks, threads, shared, arguments);
    const EmulatedKernel& kernel = *function->kernel;
    auto values = std::make_shared<std::vector<std::vector<unsigned long long>>>();
    for (size_t i = 0; i < kernel.arguments; i++) {
        values->emplace_back((kernel.argument_bytes[i] + 7) / 8);
        std::memcpy(values->back().data(), arguments[i], kernel.argument_bytes[i]);
    }
    return enqueue(stream, [=, function = *function] {
        std::vector<void*> pointers;
        for (auto& value : *values) pointers.push_back(value.data());
        return launch_now(function, blocks, threads, shared, pointers.data());
    });
}

// ---- graphs

DRIVER cuStreamBeginCapture_v2(void* handle, int mode) {
    LOCKED;
    Stream& stream = stream_of(handle);
    if (stream.capture || &stream == &stream_of(nullptr)) return CAPTURE_UNSUPPORTED;
    stream.capture = std::make_shared<Graph>();
    stream.mode = mode;
    stream.invalid = false;
    captures_of(mode)++;
    return SUCCESS;
}
DRIVER cuStreamIsCapturing(void* handle, int* status) {
    LOCKED;
    Stream& stream = stream_of(handle);
    return *status = !stream.capture ? 0 : stream.invalid ? 2 : 1, SUCCESS;
}
DRIVER cuStreamEndCapture(void* handle, std::shared_ptr<Graph>** out) {
    LOCKED;
    Stream& stream = stream_of(handle);
    *out = nullptr;
    if (!stream.capture) return INVALID_VALUE;
    captures_of(stream.mode)--;
    std::shared_ptr<Graph> graph = std::move(stream.capture);
    stream.capture = nullptr;
    if (stream.invalid) return CAPTURE_INVALIDATED;
    *out = new std::shared_ptr<Graph>(graph);
    return SUCCESS;
}
DRIVER cuGraphInstantiateWithFlags(Executable** out, std::shared_ptr<Graph>* graph, unsigned long long flags) {
    if (flags & ~1ull) return INVALID_VALUE;  // only AUTO_FREE_ON_LAUNCH
    return *out = new Executable{*graph, flags}, SUCCESS;
}
DRIVER cuGraphUpload(Executable*, void*) { return SUCCESS; }
DRIVER cuGraphLaunch(Executable* executable, void* handle) {
    LOCKED;
    if (stream_of(handle).capture) return CAPTURE_UNSUPPORTED;
    Graph& graph = *executable->graph;
    if (executable->flags & 1)
        for (char* at : graph.memory)
            if (allocations.at(at).live) free_now(at);
    for (auto& node : graph.nodes)
        if (int result = node()) return result;
    return SUCCESS;
}
namespace {
// Memory that no launch owns goes with the last handle of its graph; what is live stays until it is freed.
void dropped(std::shared_ptr<Graph> graph) {
    if (graph.use_count() > 1 + long(graph->memory.size())) return;
    graph->nodes.clear();
    for (char* at : graph->memory) {
        auto found = allocations.find(at);
        if (found == allocations.end()) continue;
        if (found->second.live)
            found->second.graph = nullptr;  // an ordinary allocation from now on
        else
            release(found);
    }
}
}
DRIVER cuGraphExecDestroy(Executable* executable) {
    LOCKED;
    std::shared_ptr<Graph> graph = executable->graph;
    delete executable;
    return dropped(std::move(graph)), SUCCESS;
}
DRIVER cuGraphDestroy(std::shared_ptr<Graph>* handle) {
    LOCKED;
    std::shared_ptr<Graph> graph = *handle;
    delete handle;
    return dropped(std::move(graph)), SUCCESS;
}

// ---- errors

namespace {
const char* name_of(int error) {
    switch (error) {
    case SUCCESS: return "CUDA_SUCCESS";
    case INVALID_VALUE: return "CUDA_ERROR_INVALID_VALUE";
    case OUT_OF_MEMORY: return "CUDA_ERROR_OUT_OF_MEMORY";
    case NO_DEVICE: return "CUDA_ERROR_NO_DEVICE";
    case INVALID_DEVICE: return "CUDA_ERROR_INVALID_DEVICE";
    case INVALID_IMAGE: return "CUDA_ERROR_INVALID_IMAGE";
    case INVALID_PTX: return "CUDA_ERROR_INVALID_PTX";
    case UNSUPPORTED_PTX_VERSION: return "CUDA_ERROR_UNSUPPORTED_PTX_VERSION";
    case INVALID_HANDLE: return "CUDA_ERROR_INVALID_HANDLE";
    case NOT_FOUND: return "CUDA_ERROR_NOT_FOUND";
    case CAPTURE_UNSUPPORTED: return "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED";
    case CAPTURE_INVALIDATED: return "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED";
    case CAPTURE_ISOLATION: return "CUDA_ERROR_STREAM_CAPTURE_ISOLATION";
    default: return "CUDA_ERROR_UNKNOWN";
    }
}
}
DRIVER cuGetErrorName(int error, const char** text) { return *text = name_of(error), SUCCESS; }
DRIVER cuGetErrorString(int error, const char** text) { return *text = name_of(error), SUCCESS; }
