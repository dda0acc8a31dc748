"""Builds what `make gpu-day` runs and packs it: `binaries.py CAP`, where CAP is the card's compute capability (87, 89, 90).

The programs, the tests of everything that runs on a card, and diffusers (which is Python alone), because the machine with
the card may have no network; TARGET is for another machine than this, as in targets/cuda.sh. One archive in build/gpu-day; its dictionary spans all programs, so that what
they have in common is stored once. On the machine with the card itself the archive is not needed.
"""

import argparse
import datetime
import json
import lzma
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
WORK = ROOT / "build/gpu-day"
PROGRAMS = ["pleinair", "pleinair-quantize"]
# Test programs, and under which name they travel: parity.rs, and the unit tests of pleinair-cuda.
TESTS = {"parity": "parity", "pleinair_cuda": "pleinair-cuda"}
ONLY_EMULATED = {"open"}
WHEELS = ["diffusers==0.42.1", "importlib_metadata==10.2.0", "zipp==4.1.2"]
LARGEST_DICTIONARY = 1 << 29  # packing takes eleven times as much memory
LARGEST_BYTES = 40 << 20


def build(command, selection):
    """What cargo says it made."""
    command = [ROOT / "targets/cuda.sh", *command, *selection, "--message-format=json-render-diagnostics"]
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"not built: {' '.join(map(str, command[1:]))}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def compiler(messages):
    """The release of CUDA that made the kernels, as it is written in them."""
    for message in messages:
        if message["reason"] == "build-script-executed" and "pleinair-cuda" in message["package_id"]:
            for ptx in Path(message["out_dir"]).glob("*.ptx"):
                if found := re.search(r"release (\d+\.\d+)", ptx.read_text(errors="replace")):
                    return found[1]
    return None


def stage(messages, folder):
    """Copies the programs."""
    for message in messages:
        if message["reason"] != "compiler-artifact" or not message["executable"]:
            continue
        name = message["target"]["name"]
        if not message["profile"]["test"] and name in PROGRAMS:
            shutil.copy2(message["executable"], folder / "bin" / name)
        if message["profile"]["test"] and name in TESTS and message["target"]["kind"] != ["bin"]:
            shutil.copy2(message["executable"], folder / "tests" / TESTS[name])
    wanted = [folder / "bin" / name for name in PROGRAMS] + [folder / "tests" / name for name in TESTS.values()]
    missing = [path.name for path in wanted if not path.exists()]
    if missing:
        sys.exit(f"not built: {', '.join(missing)}")


def list_tests():
    """What is run, the kernels first: a process for each file, because a card that fails once fails its process for good."""
    source = (ROOT / "targets/cuda/day/parity.rs").read_text()
    modules = re.findall(r'^#\[path = "(.*)"\]\nmod (\w+);', source, re.MULTILINE)
    kernels = {path.stem for path in (ROOT / "targets/cuda/tests").glob("*.rs")} - ONLY_EMULATED
    if missing := kernels - {name for _, name in modules}:
        sys.exit(f"targets/cuda/day/parity.rs lacks {', '.join(sorted(missing))}")
    unit = {"name": "unit", "program": "pleinair-cuda", "filter": []}
    return [unit, *({"name": name, "program": "parity", "filter": [f"{name}::"]} for _, name in modules)]


def fetch_diffusers(folder):
    """diffusers beside the programs; a machine that has its own uses that."""
    wheels = WORK / "wheels"
    fetch = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", wheels, *WHEELS]
    if subprocess.run([str(part) for part in fetch]).returncode != 0:
        print("diffusers could not be fetched: PyTorch is measured only where it is installed", file=sys.stderr)
        return
    for wheel in wheels.glob("*.whl"):
        shutil.unpack_archive(wheel, folder, "zip")


def pack(folder, archive):
    """Programs lie one behind the other, so that the dictionary finds in one what it saw in those before."""
    everything = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    dictionary = min(LARGEST_DICTIONARY, max(1 << 20, everything))
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": dictionary}]
    if "x86_64" in archive.name:
        filters.insert(0, {"id": lzma.FILTER_X86})
    half_written = archive.with_suffix(".partial")
    nobody = lambda entry: entry.replace(uid=0, gid=0, uname="", gname="", deep=False)
    with lzma.open(half_written, "wb", filters=filters) as packed, tarfile.open(fileobj=packed, mode="w|") as tar:
        for path in sorted(folder.rglob("*"), key=lambda path: (path.relative_to(folder).parts[0], path.name)):
            if path.is_file():
                tar.add(path, path.relative_to(folder), filter=nobody)
    half_written.replace(archive)
    size = archive.stat().st_size
    print(f"{archive.name}: {size / 2**20:.1f} MiB")
    if size > LARGEST_BYTES:
        sys.exit(f"more than {LARGEST_BYTES >> 20} MiB")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("capability", help="compute capability of the card: 87, 89, 90, 110, ...")
    parser.add_argument("--no-archive", action="store_true", help="the card is in this machine")
    parser.add_argument("--emulated", action="store_true", help="unoptimised, for the emulated device of `make test-cuda`")
    arguments = parser.parse_args()
    architecture = os.environ["TARGET"].split("-")[0] if "TARGET" in os.environ else platform.machine()
    folder = WORK / f"stage-{architecture}"
    shutil.rmtree(folder, ignore_errors=True)
    for part in ("bin", "tests", "site"):
        (folder / part).mkdir(parents=True)

    tests = list_tests()
    # Together, so that what they depend on is built once; programs are built along with tests of their packages.
    packages = ["pleinair", "pleinair-quantize", "pleinair-cuda"]
    selection = [part for name in packages for part in ("-p", name)] + ["--lib", "--test", "parity", "--test", "inspect"]
    messages = build(["test", "--no-run"] if arguments.emulated else ["build-tests", arguments.capability], selection)
    commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    built = {
        "capability": arguments.capability,
        "cuda": compiler(messages) or "0.0",
        "architecture": architecture,
        "emulated": arguments.emulated,
        "commit": commit or None,
        "date": datetime.date.today().isoformat(),
        "tests": tests,
    }
    stage(messages, folder)
    (folder / "built.json").write_text(json.dumps(built, indent=1) + "\n")
    for path in sorted(folder.glob("*/*")):
        print(f"{path.stat().st_size / 2**20:7.1f} MiB  {path.relative_to(folder)}")
    if not arguments.emulated and not arguments.no_archive:
        fetch_diffusers(folder / "site")
        pack(folder, WORK / f"gpu-day-{arguments.capability}-{architecture}.tar.xz")


if __name__ == "__main__":
    main()
