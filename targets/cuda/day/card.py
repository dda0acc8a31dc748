"""The graphics card: its libraries, what it is, and how much of its memory is in use. Nothing but Python's own library.

`card.py` prints what the CUDA driver says of the first card; `card.py hold` also keeps a context open until its standard
input ends, which is what every program on the card pays before it has computed anything.
"""

import contextlib
import ctypes
import glob
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

PAUSE_SECONDS = 0.01  # between two readings of the memory in use
# Of CUdevice_attribute.
CAPABILITY_MAJOR, CAPABILITY_MINOR, INTEGRATED = 75, 76, 18


def library_folders(major=None):
    """Where CUDA's libraries lie: what LD_LIBRARY_PATH names first, then those of CUDA `major`, then others."""
    named = [folder for folder in os.environ.get("LD_LIBRARY_PATH", "").split(":") if folder]
    usual = ["/usr/local/cuda/lib64", "/usr/local/cuda/targets/*/lib", "/usr/local/cuda-*/lib64"]
    python = [f"{place or '.'}/nvidia/*/lib" for place in sys.path]
    driver = ["/usr/local/nvidia/lib64", "/usr/lib/*-linux-gnu/nvidia", "/usr/lib/wsl/lib", "/usr/lib64"]
    found = [folder for pattern in [*usual, *python, *driver] for folder in sorted(glob.glob(pattern))]
    wanted = ["libcuda.so.1", "libcublas.so.*", "libcublasLt.so.*", "libcurand.so.*"]
    found = [folder for folder in found if any(glob.glob(f"{folder}/{name}") for name in wanted)]
    fits = lambda folder: bool(glob.glob(f"{folder}/libcublas.so.{major}"))
    return list(dict.fromkeys([*named, *sorted(found, key=fits, reverse=True)]))


def driver_report():
    """What libcuda.so.1 says; raises OSError where there is none and RuntimeError where it has no card."""
    cuda = ctypes.CDLL("libcuda.so.1")

    def call(name, *arguments):
        status = getattr(cuda, name)(*arguments)
        if status != 0:
            raise RuntimeError(f"{name} gives error {status}")

    number = lambda: ctypes.c_int(0)
    call("cuInit", 0)
    version, count, device = number(), number(), number()
    call("cuDriverGetVersion", ctypes.byref(version))
    call("cuDeviceGetCount", ctypes.byref(count))
    if count.value < 1:
        raise RuntimeError("the driver finds no card")
    call("cuDeviceGet", ctypes.byref(device), 0)
    name, memory = ctypes.create_string_buffer(256), ctypes.c_size_t(0)
    call("cuDeviceGetName", name, len(name), device)
    call("cuDeviceTotalMem_v2", ctypes.byref(memory), device)

    def attribute(which):
        value = number()
        call("cuDeviceGetAttribute", ctypes.byref(value), which, device)
        return value.value

    report = {
        "gpu": name.value.decode(errors="replace") or "unknown",
        "compute_capability": f"{attribute(CAPABILITY_MAJOR)}.{attribute(CAPABILITY_MINOR)}",
        "integrated": bool(attribute(INTEGRATED)),
        "gpu_memory_bytes": memory.value,
        "cuda_of_driver": f"{version.value // 1000}.{version.value % 1000 // 10}",
    }
    return report, lambda: call("cuDevicePrimaryCtxRetain", ctypes.byref(ctypes.c_void_p()), device)


def examine(environment):
    """`driver_report` from a process of its own: a driver that crashes takes nothing along."""
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, env=environment)
    if done.returncode == 0:
        return json.loads(done.stdout)
    lines = done.stderr.strip().splitlines()
    return {"gpu": None, "problem": lines[-1] if lines else f"ended by {done.returncode}"}


class Nvml:
    """NVIDIA's management library, for the first card in the order of the bus (as CUDA counts with
    CUDA_DEVICE_ORDER=PCI_BUS_ID)."""

    class Memory(ctypes.Structure):
        _fields_ = [(name, ctypes.c_ulonglong) for name in ("total", "free", "used")]

    def __init__(self):
        self.library = ctypes.CDLL("libnvidia-ml.so.1")
        self.device = ctypes.c_void_p()
        self.call("nvmlInit_v2")
        self.call("nvmlDeviceGetHandleByIndex_v2", 0, ctypes.byref(self.device))
        self.used()  # an integrated card has no memory of its own to tell of

    def call(self, name, *arguments):
        status = getattr(self.library, name)(*arguments)
        if status != 0:
            raise RuntimeError(f"{name} gives error {status}")

    def used(self):
        memory = self.Memory()
        self.call("nvmlDeviceGetMemoryInfo", self.device, ctypes.byref(memory))
        if memory.total == 0:
            raise RuntimeError("nvmlDeviceGetMemoryInfo tells of no memory")
        return memory.used

    def driver(self):
        text = ctypes.create_string_buffer(96)
        self.call("nvmlSystemGetDriverVersion", text, len(text))
        return text.value.decode()


class Shared:
    """Memory that processor and card share: what the whole system has taken."""

    def used(self):
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        kilobytes = lambda name: int(fields[name].split()[0])
        return 1024 * (kilobytes("MemTotal") - kilobytes("MemAvailable"))

    def driver(self):
        return None


class Meter:
    """The most memory in use on the card while something runs, beyond what was in use before."""

    def __init__(self, integrated, environment):
        self.source, self.context_bytes = None, 0
        for source in [Shared] if integrated else [Nvml]:
            with contextlib.suppress(OSError, RuntimeError, AttributeError):
                self.source = source()
        self.how = {
            Nvml: "the card's memory in use by NVML, every 10 ms, less what was in use before and less a bare CUDA context",
            Shared: "memory that the system has taken, every 10 ms, less what it had taken before and less a bare context",
        }.get(type(self.source), "not measured: the card tells nothing of its memory")
        if self.source:
            self.context_bytes = self.measure_context(environment)

    def measure_context(self, environment):
        before = self.source.used()
        held = subprocess.Popen(
            [sys.executable, __file__, "hold"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        held.stdout.readline()
        time.sleep(0.2)
        context = max(0, self.source.used() - before)
        held.communicate()
        return context

    def run(self, command, environment, timeout):
        """A finished process and the bytes, or None where they cannot be told."""
        before = self.source.used() if self.source else 0
        most, over = [before], threading.Event()

        def watch():
            while not over.wait(PAUSE_SECONDS):
                most[0] = max(most[0], self.source.used())

        watcher = threading.Thread(target=watch, daemon=True)
        if self.source:
            watcher.start()
        try:
            done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=timeout)
        finally:
            over.set()
        if not self.source:
            return done, None
        watcher.join()
        return done, max(0, most[0] - before - self.context_bytes)


if __name__ == "__main__":
    try:
        said, retain = driver_report()
    except (OSError, RuntimeError, AttributeError) as problem:
        sys.exit(str(problem))
    if sys.argv[1:] == ["hold"]:
        retain()
    print(json.dumps(said), flush=True)
    if sys.argv[1:] == ["hold"]:
        sys.stdin.read()
