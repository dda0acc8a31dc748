"""pleinair and its peers in one interleaved run: ours, a peer, ours, the next peer ..., each in a process of its own.

A ratio is the median over the rounds of ours through the peer's, both measured one after the other: other load on the
machine falls on both. Seconds are medians of all runs. The results go to targets/results/<machine>-<date>.json and, as a
table in Markdown, to the terminal.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import re
import statistics
import subprocess
import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "results"

# Ours: what the name of the bundle beside the model ends in, and the environment.
OURS = {
    "int8": ("-int8", {}),
    "bf16": ("-bf16", {}),
    "f32": ("", {}),
    "int8-without-amx": ("-int8", {"PLEINAIR_ISA": "avx512bf16"}),  # only where int8 runs on AMX by itself
    "int8-one-thread": ("-int8", {"RAYON_NUM_THREADS": "1"}),
}
# Which of ours are measured just before each peer. The last two are no peers: ours on one thread, and ours alone.
PAIRS = [
    (["int8", "bf16"], "torch-bf16"),
    (["int8", "int8-without-amx", "f32"], "torch-f32"),
    (["int8"], "openvino-int8"),
    (["int8", "bf16"], "openvino-bf16"),
    (["f32"], "openvino-f32"),
    (["f32"], "candle-f32"),
    (["f32"], "tract-f32"),
    (["int8"], "sdcpp-q8_0"),
    (["int8"], "sdcpp-f16"),
    (["int8"], "int8-one-thread"),
    (["int8"], None),
]
NAMES = {
    "int8": "int8", "bf16": "bf16", "f32": "f32", "int8-without-amx": "int8, AMX off", "int8-one-thread": "int8, one thread",
    "torch-bf16": "PyTorch bf16", "torch-f32": "PyTorch f32",
    "openvino-int8": "OpenVINO int8", "openvino-bf16": "OpenVINO bf16", "openvino-f32": "OpenVINO f32",
    "candle-f32": "candle f32", "tract-f32": "tract f32",
    "sdcpp-q8_0": "stable-diffusion.cpp q8_0", "sdcpp-f16": "stable-diffusion.cpp f16",
}
RUST = ("candle", "tract")
SLOW = (*RUST, "sdcpp")  # ten seconds and more an evaluation: one run after the warm-up, in one round
NOT_MEASURED = [
    "PyTorch: diffusers' networks, channels last; learning is the step of its `textual_inversion.py`",
    "OpenVINO: the UNet only, its int8 from NNCF",
    "candle: the stable diffusion of candle-transformers as its example runs it on a CPU, a painting by its DDIM; no learning",
    "tract: the UNet only, as ONNX from PyTorch",
    "stable-diffusion.cpp: no learning, one latent at a time; an evaluation is a step of its sampler",
    "candle, tract and stable-diffusion.cpp: one run after a warm-up, paintings without one, and not the long painting",
]


def cases(arguments):
    """What is measured, the weightiest first: kind, pixels, batch, steps, runs a process, and rounds for each peer."""
    if arguments.smoke:
        everyone = {peer: 1 for _, peer in PAIRS}
        painters = {peer: 1 for peer in ["torch-bf16", "candle-f32", "sdcpp-q8_0"]}
        return [
            dict(what="unet", size=256, batch=1, runs=1, peers=everyone),
            dict(what="learn", size=256, batch=1, runs=1, peers={"torch-bf16": 1, "torch-f32": 1}),
            dict(what="paint", size=256, batch=1, steps=1, runs=1, peers=painters),
        ]
    quick = arguments.quick
    runs = 2 if quick else 3
    fast = {"torch-bf16": 2, "torch-f32": 2, "openvino-int8": 2} if quick else {
        "torch-bf16": 5, "torch-f32": 5, "openvino-int8": 5, "openvino-bf16": 2, "openvino-f32": 2, "sdcpp-f16": 1,
    }
    slow = {"candle-f32": 1, "tract-f32": 1, "sdcpp-q8_0": 1, "int8-one-thread": 2 if quick else 3}
    small = {peer: 1 if quick else 2 for peer in ["torch-bf16", "torch-f32", "openvino-int8"]}
    pairs = {peer: 1 for peer in small if peer != "torch-f32" or not quick}
    learn = {"torch-bf16": 1} if quick else {"torch-bf16": 3, "torch-f32": 1}
    long = dict(what="paint", size=512, batch=1, steps=25, runs=1, ours=["int8"], peers={"torch-bf16": 1})
    short = {"torch-bf16": 1} if quick else {"candle-f32": 1, "sdcpp-q8_0": 1}
    return [
        dict(what="unet", size=512, batch=1, runs=runs, peers={**fast, **slow}),
        dict(what="learn", size=512, batch=1, runs=1 if quick else 2, peers=learn),
        *([] if quick else [long]),
        dict(what="paint", size=512, batch=1, steps=4, runs=1, peers=short),
        dict(what="unet", size=1024, batch=1, runs=2, peers={None: 1}),
        dict(what="unet", size=256, batch=1, runs=runs, peers=small),
        dict(what="unet", size=512, batch=2, runs=runs, peers=pairs),
        dict(what="unet", size=256, batch=2, runs=runs, peers=pairs),
    ]


class Race:
    """Starts the contestants and keeps what they report."""

    def __init__(self, arguments):
        self.arguments = arguments
        self.failed = {}
        self.isa = None  # what ours chose by itself

    def command(self, who, case):
        size, batch = case["size"], str(case["batch"])
        runs = "1" if who.startswith(SLOW) else str(case["runs"])
        steps = ["--steps", str(case["steps"])] if "steps" in case else []
        if who in OURS:
            return [self.arguments.pleinair, "bench", case["what"], "--bundle", f"{self.arguments.model}{OURS[who][0]}",
                    "--size", f"{size}x{size}", "--batch", batch, "--runs", runs, *steps, "--json"]
        program = [self.arguments.rust] if who.startswith(RUST) else [sys.executable, HERE / "contestants.py"]
        return [*program, case["what"], who, self.arguments.model, self.arguments.work,
                "--size", str(size), "--batch", batch, "--runs", runs, *steps]

    def run(self, who, case):
        """A report, or nothing and the reason in `failed`; who has failed in a case is not asked again."""
        key = (who, *kind(case))
        if key in self.failed:
            return None
        environment = {**os.environ, **(OURS[who][1] if who in OURS else {})}
        command = [str(part) for part in self.command(who, case)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        label = f"{title(case)}, {who}"
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines()
            reason = lines[-1] if lines else f"ended by {done.returncode}"
            self.failed[key] = re.sub(r"(?<![\w.])/\S*/", "", reason)  # results name no folder of this machine
            print(f"{label}: {self.failed[key]}", file=sys.stderr)
            return None
        # ours is laid out over lines; peers may talk before their last line
        out = done.stdout.strip()
        report = json.loads(out if who in OURS else out.splitlines()[-1])
        if who == "int8":
            self.isa = report["isa"]
        print(f"{label}: {report['median_seconds']:.3f} s", file=sys.stderr)
        return report

    def takes_part(self, who, case):
        if who == "int8-without-amx":
            return case["what"] == "unet" and self.isa == "amx"
        return who in case.get("ours", OURS)

    def measure(self, case):
        """One case: reports by contestant, and ratios by (ours, peer)."""
        reports, ratios = {}, {}
        for number in range(max(case["peers"].values())):
            for several, peer in PAIRS:
                if number >= case["peers"].get(peer, 0):
                    continue
                group = {}
                for who in several:  # one after the other: the first one's report tells who takes part
                    if self.takes_part(who, case):
                        group[who] = self.run(who, case)
                theirs = self.run(peer, case) if peer else None
                for who, report in [*group.items(), (peer, theirs)]:
                    if report:
                        reports.setdefault(who, []).append(report)
                for who, report in group.items():
                    if report and theirs:
                        ratio = report["median_seconds"] / theirs["median_seconds"]
                        ratios.setdefault((who, peer), []).append(ratio)
        return reports, ratios


def kind(case):
    """What tells one case from another."""
    return (case["what"], case["size"], case["batch"], case.get("steps"))


def summary(case, reports, ratios, failed):
    """A case as it is kept."""
    contestants = {}
    for who, several in reports.items():
        seconds = [second for report in several for second in report["seconds"]]
        contestants[who] = {
            "median_seconds": statistics.median(seconds),
            "seconds": seconds,
            "peak_rss_bytes": max(report["peak_rss_bytes"] for report in several),
            "processes": len(several),
            "evaluations": several[0]["evaluations"],
            **{key: several[0][key] for key in ["isa", "answer_rms"] if key in several[0]},
        }
    kept = {key: value for key, value in case.items() if key not in ("peers", "ours")}
    return {
        **kept,
        "contestants": contestants,
        "ratios": [
            {"ours": ours, "peer": peer, "median": statistics.median(values), "each": values}
            for (ours, peer), values in ratios.items()
        ],
        "failed": {who: reason for (who, *where), reason in failed.items() if tuple(where) == kind(case)},
    }


def machine():
    """Processor, cores, instruction sets and memory; nothing that names the machine itself."""
    fields = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    flags = fields.get("flags", fields.get("Features", "")).split()
    matter = re.compile(r"avx.*|amx.*|fma|f16c|asimd.*|i8mm|bf16|sve.*")
    return {
        "cpu": fields.get("model name", "unknown"),
        "family": fields.get("cpu family"),
        "cores": os.cpu_count(),
        "instruction_sets": [flag for flag in flags if matter.fullmatch(flag)],
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }


def versions():
    packages = ["torch", "diffusers", "transformers", "onnx", "openvino", "nncf", "stable-diffusion-cpp-python"]
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    locked = tomllib.loads((HERE / "rust/Cargo.lock").read_text())["package"]
    rust = {package["name"]: package["version"] for package in locked}
    return {**found, **{package: rust[package] for package in ["candle-transformers", "tract-onnx"]}}


def title(case):
    pixels = f"{case['size']}x{case['size']}"
    return {
        "unet": f"UNet {pixels}, batch {case['batch']}",
        "paint": f"painting {pixels}, {case.get('steps')} steps of two evaluations",
        "learn": f"learning step {pixels}, batch {case['batch']}",
    }[case["what"]]


def cell(who, kept):
    """Such as `int8 0.90 s, 1.05 GB`."""
    seconds = kept["median_seconds"]
    return f"{NAMES[who]} {seconds:.{2 if seconds < 10 else 1}f} s, {kept['peak_rss_bytes'] / 1e9:.2f} GB"


def table(results):
    """The results as Markdown: a row a case."""
    lines = [
        "| seconds (median) and peak memory | pleinair | peers, and our share of their time |",
        "| --- | --- | --- |",
    ]
    for case in results["cases"]:
        ratios = {}
        for ratio in case["ratios"]:
            ratios.setdefault(ratio["peer"], []).append(f"{NAMES[ratio['ours']]} **{ratio['median']:.2f}**")
        contestants = case["contestants"]
        ours = [": ".join([cell(who, contestants[who]), *ratios.get(who, [])]) for who in OURS if who in contestants]
        peers = [
            f"{cell(who, contestants[who])}: {', '.join(ratios.get(who, ['our run failed']))}"
            for _, who in PAIRS if who in contestants and who not in OURS
        ]
        for who, reason in case["failed"].items():
            (ours if who in OURS else peers).append(f"{NAMES[who]} failed: {reason}")
        lines.append(f"| {title(case)} | {'<br>'.join(ours)} | {'<br>'.join(peers)} |")
    isas = {kept["isa"] for case in results["cases"] for who, kept in case["contestants"].items() if who == "int8"}
    machine = results["machine"]
    lines += ["", f"{machine['cpu']}, {machine['cores']} cores, int8 on {', '.join(sorted(isas))}, {results['date']}.", ""]
    lines += [f"- {line}" for line in results["not_measured"]]
    if results["quick"]:
        lines.append("- quick run: fewer rounds and peers than the full one")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pleinair", type=Path, help="the optimised program")
    parser.add_argument("--rust", type=Path, help="the program that runs candle and tract")
    parser.add_argument("--model", type=Path, help="SD 1.5 in f32; its bundles beside it end in -int8 and -bf16")
    parser.add_argument("--work", type=Path, help="for what peers convert once")
    parser.add_argument("--quick", action="store_true", help="20 minutes instead of 45: fewer rounds and peers")
    parser.add_argument("--smoke", action="store_true", help="everybody once, small, to see that it works; writes no results")
    parser.add_argument("--only", choices=["unet", "paint", "learn"], help="leave the rest out, and write no results")
    parser.add_argument("--note", default="", help="what else ran on the machine, kept with the results")
    parser.add_argument("--table", type=Path, help="print the table of kept results and do nothing else")
    arguments = parser.parse_args()
    if arguments.table:
        return print(table(json.loads(arguments.table.read_text())))
    if None in (arguments.pleinair, arguments.rust, arguments.model, arguments.work):
        parser.error("a run needs --pleinair, --rust, --model and --work")

    race = Race(arguments)
    for peer in ["torch-bf16", "openvino-f32", "openvino-int8", "tract-f32"]:
        subprocess.run(
            [sys.executable, HERE / "contestants.py", "prepare", peer, arguments.model, arguments.work], check=False
        )
    results = {
        "date": datetime.date.today().isoformat(), "quick": arguments.quick, "machine": machine(), "versions": versions(),
        "load_average_before": os.getloadavg(), "note": arguments.note, "cases": [], "not_measured": NOT_MEASURED,
    }
    slug = re.sub(r"[^a-z0-9]+", "-", f"{results['machine']['cpu']} {results['machine']['cores']} cores".lower()).strip("-")
    file = RESULTS / f"{slug}-{results['date']}{'-quick' if arguments.quick else ''}.json"
    for case in cases(arguments):
        if arguments.only not in (None, case["what"]):
            continue
        results["cases"].append(summary(case, *race.measure(case), race.failed))
        results["load_average_after"] = os.getloadavg()
        if not (arguments.only or arguments.smoke):  # after every case: an interrupted run keeps what it has
            RESULTS.mkdir(exist_ok=True)
            file.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
