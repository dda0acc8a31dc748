"""A day with an NVIDIA card, by one command (`make gpu-day`): is every answer right on it, how fast is it, how much memory
does it take, and how does PyTorch do on the same card. Needs no network and no Rust: the programs lie in build/gpu-day,
where `make gpu-day-binaries` left them, packed or not.

Three parts, in this order: `parity`, `bench` (ours) and `peers` (ours and PyTorch in turns). Each can be run by itself and
goes on where it was interrupted; all write into one file, <card>-<date>.json, after every measurement.
"""

import argparse
import datetime
import json
import os
import platform
import re
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import card
from race import Race, main_case, table

ROOT = Path(__file__).resolve().parents[3]
PARTS = ["parity", "bench", "peers"]
QUICK_MINUTES = 9.5  # where a command may take ten
TEST_SECONDS = 300  # of one file of tests
SAID_LINES = 30  # of what tests tell of their accuracy
# Goals: what, limit, and where its value is found.
RATIOS = [
    ("UNet {pixels} f16 in the time of PyTorch's, channels last and compiled", "torch-compile-f16", 1.0),
    ("the same, hoped for", "torch-compile-f16", 0.7),
    ("UNet {pixels} f16 in the time of PyTorch's, compiled into CUDA graphs", "torch-graphs-f16", 1.0),
]
INT8_MEMORY = 0.6
ANSWERS = 0.02


class Day:
    def __init__(self, arguments):
        self.arguments, self.work = arguments, ROOT / "build/gpu-day"
        minutes = arguments.minutes or (QUICK_MINUTES if arguments.quick else None)
        self.deadline = time.monotonic() + 60 * minutes if minutes else None
        self.stage = self.unpack()
        self.built = json.loads((self.stage / "built.json").read_text())
        folders = card.library_folders(self.built["cuda"].split(".")[0])
        self.environment = {
            **os.environ,
            "LD_LIBRARY_PATH": ":".join(folders),
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # as the meter counts cards
            "PLEINAIR_TEST_DEVICE": "cuda",
            "RUST_BACKTRACE": "0",  # the last line of an error is its sentence
        }
        self.card = card.examine(self.environment)
        self.meter = card.Meter(self.card.get("integrated"), self.environment)
        self.file = self.results_file()
        self.results = json.loads(self.file.read_text()) if self.file.exists() and not arguments.fresh else {}
        self.results |= {
            "date": datetime.date.today().isoformat(),
            "quick": arguments.quick,
            "size": arguments.size,
            "machine": {**machine(), **self.card, "driver": self.meter.source and self.meter.source.driver()},
            "built": {key: value for key, value in self.built.items() if key != "tests"},
            "gpu_memory_measured": self.meter.how,
            "note": arguments.note,
        }
        self.show_card(folders)

    def unpack(self):
        """The folder with the programs: from an archive for this processor, or as they were built here."""
        stage = self.work / f"stage-{platform.machine()}"
        archives = sorted(self.work.glob(f"*-{platform.machine()}.tar.xz"), key=lambda path: path.stat().st_mtime)
        built = stage / "built.json"
        if archives and not (built.exists() and built.stat().st_mtime >= archives[-1].stat().st_mtime):
            if len(archives) > 1:
                print(f"several archives in {self.work}: taking the newest, {archives[-1].name}")
            with tarfile.open(archives[-1]) as archive:
                archive.extractall(stage, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
            built.touch()
        if not built.exists():
            sys.exit("no programs in build/gpu-day: run `make gpu-day-binaries CAP=87` (your card's number) and bring the archive")
        return stage

    def results_file(self):
        tiny = self.arguments.size == "tiny"
        folder = self.arguments.results or (self.work / "results" if tiny else ROOT / "targets/results")
        slug = re.sub(r"[^a-z0-9]+", "-", (self.card["gpu"] or "no card").lower()).strip("-")
        suffix = "-tiny" * tiny + "-quick" * self.arguments.quick
        return folder / f"{slug}-{datetime.date.today().isoformat()}{suffix}.json"

    def show_card(self, folders):
        machine = self.results["machine"]
        if self.card["gpu"] is None:
            print(f"no card: {self.card['problem']}")
        else:
            print(
                f"{machine['gpu']}, compute capability {machine['compute_capability']}, "
                f"{machine['gpu_memory_bytes'] / 1e9:.1f} GB, driver {machine['driver'] or 'of unknown version'} "
                f"for CUDA {machine['cuda_of_driver']}"
            )
        print(f"programs for compute capability {self.built['capability']}, made with CUDA {self.built['cuda']}")
        print(f"CUDA's libraries from {':'.join(folders) or 'the system'}\n", flush=True)

    def left(self, limit):
        """Seconds that something may take, or None where the time is over."""
        seconds = limit if self.deadline is None else min(limit, self.deadline - time.monotonic())
        return seconds if seconds > 1 else None

    def save(self):
        self.file.parent.mkdir(parents=True, exist_ok=True)
        half_written = self.file.with_suffix(".partial")
        half_written.write_text(json.dumps(self.results, indent=1) + "\n")
        half_written.replace(self.file)

    def parity(self):
        """Runs every test on the card, a process for each file. All must have passed, and each must have tested something."""
        self.results["parity"] = {"passed": False, "files": {}}
        files = self.results["parity"]["files"]
        for test in self.built["tests"]:
            files[test["name"]] = self.test(test)
            one = files[test["name"]]
            faults = f", FAILED: {', '.join(one['failed']) or one['problem']}" if not one["fine"] else ""
            print(f"{test['name']}: {one['passed']} passed in {one['seconds']:.1f} s{faults}", flush=True)
            self.results["parity"]["passed"] = (
                bool(files) and len(files) == len(self.built["tests"]) and all(one["fine"] for one in files.values())
            )
            self.save()
        return self.results["parity"]["passed"]

    def test(self, test):
        report = {"fine": False, "passed": 0, "failed": [], "ignored": 0, "seconds": 0.0, "problem": None, "said": []}
        # one at a time: a step is being recorded in some, and the card's memory is one
        command = [self.stage / "tests" / test["program"], *test["filter"], "--test-threads=1", "--show-output"]
        seconds, began = self.left(TEST_SECONDS), time.monotonic()
        if seconds is None:
            return {**report, "problem": "no time was left"}
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=self.environment,
                                  cwd=ROOT, timeout=seconds)
            said, status = done.stdout + done.stderr, done.returncode
        except subprocess.TimeoutExpired as late:
            said, status = (late.stdout or b"").decode(errors="replace"), f"not done after {seconds:.0f} s"
        except OSError as problem:
            return {**report, "problem": str(problem.strerror)}
        logs = self.work / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        (logs / f"{test['name']}.log").write_text(said)
        report |= read_tests(said)
        report["seconds"] = time.monotonic() - began
        report["fine"] = status == 0 and report["passed"] > 0 and not report["failed"] and report["problem"] is None
        if not report["fine"] and report["problem"] is None:
            report["problem"] = f"ended with {status}" if status != 0 else "no test was in it"
        return report

    def verdicts(self):
        """The goals, with what was measured: met, not met, or not measured."""
        parity = self.results.get("parity")
        verdicts = [verdict("every test passes on the card", None, None, parity and parity["passed"])]
        case = main_case(self.arguments.size)
        pixels = f"{case['model']} {case['size']}x{case['size']}"
        for goal, peer, limit in RATIOS:
            verdicts.append(below(goal.format(pixels=pixels), find_ratio(self.results.get("peers"), case, "f16", peer), limit))
        bytes_of = [find(self.results.get("bench"), case, who, "gpu_bytes") for who in ("int8", "f16")]
        share = bytes_of[0] / bytes_of[1] if all(bytes_of) else None
        verdicts.append(below(f"UNet {pixels} int8 in the memory of f16", share, INT8_MEMORY))
        rms = [find(self.results.get("peers"), case, who, "answer_rms") for who in ("f16", "torch-channels_last-f16")]
        apart = abs(rms[0] / rms[1] - 1) if all(rms) else None
        verdicts.append(below("the UNet's answer as large as PyTorch's, apart", apart, ANSWERS))
        painting = find(self.results.get("bench"), {**case, "what": "paint"}, "f16", "median_seconds")
        two = find(self.results.get("bench"), {**case, "batch": 2}, "f16", "median_seconds")
        steps = find_case(self.results.get("bench"), {**case, "what": "paint"}) or {}
        rest = 1 - steps["steps"] * two / painting if painting and two else None
        verdicts.append(below("share of a painting that is not the UNet's", rest, 0.5))
        return verdicts

    def finish(self):
        self.results["verdicts"] = self.verdicts()
        self.save()
        print("\n" + table(self.results) + "\n")
        for one in self.results["verdicts"]:
            word = {True: "MET", False: "MISSED", None: "not measured"}[one["met"]]
            numbers = f": {one['value']:.3f}, at most {one['limit']}" if one["value"] is not None else ""
            print(f"{word:>12}  {one['goal']}{numbers}")
        print(f"\nin {os.path.relpath(self.file, ROOT)}")


def read_tests(said):
    """What Rust's test programs print."""
    ends = re.findall(r"^test result: \w+\. (\d+) passed; (\d+) failed; (\d+) ignored", said, re.MULTILINE)
    report = {
        "passed": sum(int(end[0]) for end in ends),
        "failed": sorted(set(re.findall(r"^test (\S+)(?: - should panic)? \.\.\. .*FAILED$", said, re.MULTILINE))),
        "ignored": sum(int(end[2]) for end in ends),
        "said": [line for line in said.splitlines() if re.search(r"\d dB|cosine", line)][:SAID_LINES],
    }
    missing = sum(int(end[1]) for end in ends) - len(report["failed"])
    if missing > 0:
        report["failed"] += ["?"] * missing
    return report


def verdict(goal, value, limit, met):
    return {"goal": goal, "value": value, "limit": limit, "met": met}


def below(goal, value, limit):
    return verdict(goal, value, limit, None if value is None else bool(value <= limit))


def find_case(part, wanted):
    cases = part["cases"] if part else []
    return next((case for case in cases if all(case.get(key) == value for key, value in wanted.items())), None)


def find(part, wanted, who, key):
    case = find_case(part, wanted)
    return case["contestants"].get(who, {}).get(key) if case else None


def find_ratio(part, wanted, ours, peer):
    case = find_case(part, wanted)
    ratios = case["ratios"] if case else []
    return next((ratio["median"] for ratio in ratios if (ratio["ours"], ratio["peer"]) == (ours, peer)), None)


def machine():
    """Processor, cores and memory; nothing that names the machine itself."""
    fields = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    model = Path("/proc/device-tree/model")  # boards say there what they are
    return {
        "cpu": fields.get("model name") or (model.read_text().strip("\0 \n") if model.exists() else platform.machine()),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, help="only this one")
    parser.add_argument("--quick", action="store_true", help="all within ten minutes: fewer cases, rounds and peers")
    parser.add_argument("--size", choices=["full", "tiny"], default="full", help="tiny tries out the script itself")
    parser.add_argument("--minutes", type=float, help="stop measuring after so many [with --quick: 9.5]")
    parser.add_argument("--keep-going", action="store_true", help="measure even where a test failed")
    parser.add_argument("--fresh", action="store_true", help="forget what was measured today")
    parser.add_argument("--results", type=Path, help="the folder for the JSON [targets/results]")
    parser.add_argument("--model", type=Path, help="a folder of `pleinair-quantize synth sd15 --dtype f32` that is there")
    parser.add_argument("--compile-seconds", type=float, default=400, help="until a compiled peer is given up")
    parser.add_argument("--note", default="", help="what else ran on the machine, kept with the results")
    arguments = parser.parse_args()
    day = Day(arguments)
    wanted = [arguments.part] if arguments.part else PARTS
    race = Race(day) if set(wanted) & {"bench", "peers"} else None
    right = True
    if race:
        race.models.begin()  # beside the tests: they need the card, this a processor
    if "parity" in wanted:
        right = day.parity()
        wrong = "what this program computes on this card is wrong" if day.card["gpu"] else "there is no card to compute on"
        print("\nPARITY " + ("PASSED" if right else f"FAILED: {wrong}"), flush=True)
    if race and (right or arguments.keep_going):
        race.models.finish()
        if "bench" in wanted:
            race.bench()
        if "peers" in wanted:
            race.peers()
    elif race:
        race.models.stop()
        print("nothing was timed; --keep-going (KEEP_GOING=1) measures all the same")
    day.finish()
    if not right:
        sys.exit("PARITY FAILED: see build/gpu-day/logs")


if __name__ == "__main__":
    main()
