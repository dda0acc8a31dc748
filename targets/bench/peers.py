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
from pathlib import Path

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "results"

# Ours that are measured just before each peer.
PAIRS = [
    (["int8"], "torch-bf16"),
    (["int8", "f32"], "torch-f32"),
    (["int8"], "openvino-int8"),
    (["int8"], "openvino-bf16"),
    (["f32"], "openvino-f32"),
    (["int8"], "sdcpp-q8_0"),
    (["int8"], "sdcpp-f16"),
]
NAMES = {
    "int8": "**pleinair int8**", "f32": "**pleinair f32**",
    "torch-bf16": "PyTorch bf16, channels last", "torch-f32": "PyTorch f32, channels last",
    "openvino-int8": "OpenVINO, NNCF int8", "openvino-bf16": "OpenVINO bf16", "openvino-f32": "OpenVINO f32",
    "sdcpp-q8_0": "stable-diffusion.cpp q8_0", "sdcpp-f16": "stable-diffusion.cpp f16",
}
SHORT = {"int8": "our int8", "f32": "our f32"}
NOT_MEASURED = [
    "candle's own stable-diffusion example: not measured (a second Rust build; its CPU path is f32 through `gemm`)",
    "tract: not measured as a peer (it has no UNet of its own; it decodes the picture inside our painting)",
    "OpenVINO: the UNet only; painting and learning are not measured. stable-diffusion.cpp: no learning, one latent at a time",
]


def cases(quick):
    """What is measured, the weightiest first: kind, pixels, batch, steps, runs a process, rounds, and who can do it."""
    everyone = [peer for _, peer in PAIRS]
    if quick:
        everyone.remove("openvino-f32")
    single = [peer for peer in everyone if not peer.startswith("sdcpp")]
    painters = [peer for peer in everyone if not peer.startswith("openvino")]

    def unet(size, batch):
        rounds = (2 if batch == 1 else 1) if quick else 5
        peers = everyone if batch == 1 else single
        return dict(what="unet", size=size, batch=batch, runs=2 if quick else 3, rounds=rounds, peers=peers)

    rounds, steps = (1, 2) if quick else (3, 25)
    learn = dict(what="learn", size=512, batch=1, runs=1 if quick else 2, rounds=rounds, peers=["torch-bf16", "torch-f32"])
    paint = dict(what="paint", size=512, batch=1, steps=steps, runs=1, rounds=rounds, peers=painters)
    return [unet(512, 1), learn, paint, unet(256, 1), unet(512, 2), unet(256, 2)]


class Race:
    """Starts the contestants and keeps what they report."""

    def __init__(self, arguments):
        self.arguments = arguments
        self.failed = {}

    def command(self, who, case):
        size, batch, runs = case["size"], str(case["batch"]), str(case["runs"])
        steps = ["--steps", str(case["steps"])] if "steps" in case else []
        if who in ("int8", "f32"):
            bundle = f"{self.arguments.model}-int8" if who == "int8" else self.arguments.model
            return [self.arguments.pleinair, "bench", case["what"], "--bundle", bundle, "--size", f"{size}x{size}",
                    "--batch", batch, "--runs", runs, *steps, "--json"]
        return [sys.executable, HERE / "contestants.py", case["what"], who, self.arguments.model, self.arguments.work,
                "--size", str(size), "--batch", batch, "--runs", runs, *steps]

    def run(self, who, case):
        """A report, or nothing and the reason in `failed`; who has failed in a case is not asked again."""
        key = (who, case["what"], case["size"], case["batch"])
        if key in self.failed:
            return None
        done = subprocess.run([str(part) for part in self.command(who, case)], capture_output=True, text=True)
        label = f"{case['what']} {case['size']} batch {case['batch']} {who}"
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines()
            reason = lines[-1] if lines else f"ended by {done.returncode}"
            self.failed[key] = re.sub(r"(?<![\w.])/\S*/", "", reason)  # results name no folder of this machine
            print(f"{label}: {self.failed[key]}", file=sys.stderr)
            return None
        # ours is laid out over lines; peers may talk before their last line
        out = done.stdout.strip()
        report = json.loads(out if who in ("int8", "f32") else out.splitlines()[-1])
        print(f"{label}: {report['median_seconds']:.3f} s", file=sys.stderr)
        return report

    def measure(self, case):
        """One case: reports by contestant, and ratios by (ours, peer)."""
        reports, ratios = {}, {}
        for number in range(case["rounds"]):
            for ours, peer in PAIRS:
                once = self.arguments.quick and peer.startswith("sdcpp")  # minutes each
                if peer not in case["peers"] or (once and number > 0):
                    continue
                group = {who: self.run(who, case) for who in [*ours, peer]}
                for who, report in group.items():
                    if report:
                        reports.setdefault(who, []).append(report)
                for who in ours:
                    if group[who] and group[peer]:
                        ratio = group[who]["median_seconds"] / group[peer]["median_seconds"]
                        ratios.setdefault((who, peer), []).append(ratio)
        return reports, ratios


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
            **({"isa": several[0]["isa"]} if "isa" in several[0] else {}),
        }
    kept = {key: value for key, value in case.items() if key != "peers"}
    here = (case["what"], case["size"], case["batch"])
    return {
        **kept,
        "contestants": contestants,
        "ratios": [
            {"ours": ours, "peer": peer, "median": statistics.median(values), "each": values}
            for (ours, peer), values in ratios.items()
        ],
        "failed": {who: reason for (who, *where), reason in failed.items() if tuple(where) == here},
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
    packages = ["torch", "diffusers", "transformers", "openvino", "nncf", "stable-diffusion-cpp-python"]
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def title(case):
    pixels = f"{case['size']}x{case['size']}"
    return {
        "unet": f"UNet, {case['size'] // 8}x{case['size'] // 8} latents, batch {case['batch']}",
        "paint": f"painting {pixels}, {case.get('steps')} steps, two evaluations each",
        "learn": f"learning step {pixels}, batch {case['batch']}",
    }[case["what"]]


def table(results):
    """The results as Markdown."""
    lines = ["| measured | by | seconds, median (low to high) | ours / theirs | peak memory |", "| --- | --- | --- | --- | --- |"]
    for case in results["cases"]:
        ratios = {}
        for ratio in case["ratios"]:
            ratios.setdefault(ratio["peer"], []).append(f"{SHORT[ratio['ours']]} {ratio['median']:.2f}")
        for who, kept in case["contestants"].items():
            low, high = min(kept["seconds"]), max(kept["seconds"])
            seconds = f"{kept['median_seconds']:.2f} ({low:.2f} to {high:.2f})"
            peak = f"{kept['peak_rss_bytes'] / 1e9:.2f} GB"
            lines.append(f"| {title(case)} | {NAMES[who]} | {seconds} | {', '.join(ratios.get(who, []))} | {peak} |")
        for who, reason in case["failed"].items():
            lines.append(f"| {title(case)} | {NAMES[who]} | failed: {reason} | | |")
    lines += ["", *(f"- {line}" for line in results["not_measured"])]
    if results["quick"]:
        lines.append("- quick run: fewer rounds and steps than the full one, as stated in each line; nothing is extrapolated")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pleinair", type=Path, required=True, help="the optimised program")
    parser.add_argument("--model", type=Path, required=True, help="SD 1.5 in f32; its int8 bundle beside it ends in -int8")
    parser.add_argument("--work", type=Path, required=True, help="for what peers convert once")
    parser.add_argument("--quick", action="store_true", help="one or two rounds, a painting of 2 steps, no OpenVINO f32")
    parser.add_argument("--only", choices=["unet", "paint", "learn"], help="leave the rest out, and write no results")
    parser.add_argument("--note", default="", help="what else ran on the machine, kept with the results")
    parser.add_argument("--table", type=Path, help="print the table of kept results and do nothing else")
    arguments = parser.parse_args()
    if arguments.table:
        return print(table(json.loads(arguments.table.read_text())))

    race = Race(arguments)
    for peer in ["torch-bf16", "openvino-f32", "openvino-int8"]:
        subprocess.run(
            [sys.executable, HERE / "contestants.py", "prepare", peer, arguments.model, arguments.work], check=False
        )
    results = {
        "date": datetime.date.today().isoformat(), "quick": arguments.quick, "machine": machine(), "versions": versions(),
        "load_average_before": os.getloadavg(), "note": arguments.note, "cases": [], "not_measured": NOT_MEASURED,
    }
    slug = re.sub(r"[^a-z0-9]+", "-", f"{results['machine']['cpu']} {results['machine']['cores']} cores".lower()).strip("-")
    file = RESULTS / f"{slug}-{results['date']}.json"
    for case in cases(arguments.quick):
        if arguments.only not in (None, case["what"]):
            continue
        results["cases"].append(summary(case, *race.measure(case), race.failed))
        results["load_average_after"] = os.getloadavg()
        if not arguments.only:  # after every case: an interrupted run keeps what it has
            RESULTS.mkdir(exist_ok=True)
            file.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
