"""Ours and PyTorch on one card: what is measured, by whom, and the table of it.

A ratio is the median over the rounds of ours through the peer's, both measured one after the other. Ours is a process of
its own each time; a peer is one process for all its cases, because it compiles for minutes.
"""

import json
import math
import os
import queue
import re
import statistics
import subprocess
import sys
import threading
from pathlib import Path

HERE = Path(__file__).resolve().parent
RUN_SECONDS = 240  # of one process of ours, or one case of a peer that does not compile
ENOUGH_SECONDS, MOST_RUNS = 2.0, 50  # of runs in one process
LIMIT_OF_SYNTH = 900

# Ours: the bundle's weights. Peers: see torch_peer.py. A peer's list: which of ours are measured beside it.
OURS = ["f16", "int8"]
PEERS = {
    "torch-compile-f16": ["f16", "int8"],
    "torch-channels_last-f16": ["f16", "int8"],
    "torch-graphs-f16": ["f16", "int8"],
    "torch-eager-f16": ["f16"],
    "torch-channels_last-bf16": ["f16"],
    "torch-compile-bf16": ["f16"],
}
COMPILED = ("torch-compile", "torch-graphs")
NAMES = {
    "torch-eager-f16": "PyTorch f16",
    "torch-channels_last-f16": "channels last",
    "torch-compile-f16": "channels last, compiled",
    "torch-graphs-f16": "channels last, compiled into CUDA graphs",
    "torch-channels_last-bf16": "bf16, channels last",
    "torch-compile-bf16": "bf16, channels last, compiled",
}
NOTES = [
    "PyTorch: diffusers' networks with the same random weights, attention by scaled_dot_product_attention; `compile` is "
    "max-autotune-no-cudagraphs, `graphs` is reduce-overhead; its learning is the step of diffusers' textual_inversion.py "
    "with gradient checkpointing under autocast",
    "an evaluation begins with a latent and ends with the predicted noise in main memory; ours has the text's keys and "
    "values computed before, as a painting does",
    "memory of PyTorch: the most that its allocator had reserved; of ours: see gpu_memory_measured; neither counts what a "
    "bare CUDA context takes",
]


def main_case(size):
    """The case that the goals are about."""
    return {"model": "sd15", "what": "unet", "size": 512, "batch": 1} if size == "full" else {
        "model": "tiny-sd15", "what": "unet", "size": 64, "batch": 1
    }


def cases(size):
    """What is measured, the weightiest first."""
    first = main_case(size)
    steps = {"steps": 25 if size == "full" else 2}
    default = {"model": "atelier", "what": "paint", "size": 256 if size == "full" else 64, "batch": 1, **steps}
    batches = [{**first, "batch": batch} for batch in (2, 4)]
    return [first, {**first, "what": "learn"}, {**first, "what": "paint", **steps}, *batches, default]


def peers_cases(peer, size, quick):
    """A peer's share of them: compiling for each batch takes minutes, learning is never compiled."""
    first, learn, paint, two, four, _ = cases(size)
    if quick:
        return [first, learn, paint] if peer == "torch-channels_last-f16" else [first]
    # a painting evaluates batches of two, so that shape is compiled for both
    every = [first, two, paint, four]
    return [*every, learn] if peer.startswith("torch-channels_last") else every


def kind(case):
    """What tells one case from another."""
    return tuple(case.get(key) for key in ("model", "what", "size", "batch", "steps"))


class Models:
    """Models of full size with random weights, and bundles of them and of the default model; made beside the tests."""

    def __init__(self, day):
        self.day, self.made = day, day.work / "models"
        self.failed, self.running, self.stopped = None, None, False
        self.thread = threading.Thread(target=self.make_all, daemon=True)
        tiny = day.arguments.size == "tiny"
        self.sources = {
            "atelier": HERE.parents[2] / "models/atelier",
            main_case(day.arguments.size)["model"]: HERE.parents[2] / "tests/fixtures/tiny-sd15" if tiny
            else day.arguments.model or self.made / "sd15",
        }

    def begin(self):
        self.thread.start()

    def finish(self):
        self.thread.join()
        if self.failed:
            self.day.results["models_failed"] = self.failed
            print(f"a model could not be made: {self.failed}", flush=True)

    def stop(self):
        self.stopped = True
        if self.running:
            self.running.terminate()
        self.thread.join()

    def bundle(self, model, dtype):
        return self.made / f"{model}-{dtype}"

    def make_all(self):
        for model, source in self.sources.items():
            if not source.exists():
                self.make("synth", model, "--seed", "1", "--dtype", "f32", "--out", source)
            for dtype in OURS:
                bundle = self.bundle(model, dtype)
                if not bundle.exists():
                    self.make("convert", "--from", source, "--dtype", dtype, "--target", "cuda", "--out", bundle)

    def make(self, *command):
        if self.failed or self.stopped:
            return
        self.made.mkdir(parents=True, exist_ok=True)
        program = self.day.stage / "bin/pleinair-quantize"
        command = [str(part) for part in (program, *command)]
        self.running = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=self.day.environment
        )
        try:
            _, said = self.running.communicate(timeout=self.day.left(LIMIT_OF_SYNTH) or 1)
        except subprocess.TimeoutExpired:
            self.running.kill()
            _, said = self.running.communicate()
            said += "\nno time was left"
        if self.running.returncode != 0 and not self.stopped:
            self.failed = without_folders((said.strip().splitlines() or ["ended without a word"])[-1])


class Peer:
    """A PyTorch process, asked one case after another."""

    def __init__(self, name, model, day):
        cache = day.work / "cache"
        # what was compiled and tried out once is kept between processes
        environment = {**os.environ, "CUDA_DEVICE_ORDER": "PCI_BUS_ID", "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
                       "TRITON_CACHE_DIR": str(cache / "triton")}
        site = day.stage / "site"
        if site.exists():
            environment["PYTHONPATH"] = f"{os.environ.get('PYTHONPATH', '')}:{site}"  # what is installed goes first
        (day.work / "logs").mkdir(parents=True, exist_ok=True)
        with open(day.work / "logs" / f"{name}.log", "w") as log:
            self.process = subprocess.Popen(
                [sys.executable, HERE / "torch_peer.py", name.removeprefix("torch-"), model],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment,
            )
        self.lines = queue.Queue()
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self):
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put(None)

    def answer(self, seconds):
        """Its next report; one with `error` and `over` where it has ended or takes too long."""
        if seconds is None:
            return {"error": "no time was left", "over": True}
        try:
            line = self.lines.get(timeout=seconds)
        except queue.Empty:
            return {"error": f"not done after {seconds:.0f} s", "over": True}
        if line is None:
            return {"error": f"ended with {self.process.wait()}", "over": True}
        return json.loads(line)

    def ask(self, case, seconds):
        try:
            self.process.stdin.write(json.dumps(case) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # then it has ended, which `answer` tells
        return self.answer(seconds)

    def end(self):
        self.process.kill()
        self.process.wait()


class Race:
    def __init__(self, day):
        self.day, self.models = day, Models(day)
        self.medians = {}  # seconds by contestant and case, so that no process runs longer than needed

    def runs(self, who, case):
        known = self.medians.get((who, kind(case))) or self.medians.get(("f16", kind(case)))
        if case["what"] == "paint":
            return 1
        return min(MOST_RUNS, max(3, math.ceil(ENOUGH_SECONDS / known))) if known else 10

    def ours(self, who, case):
        """A report of `pleinair bench`; `error` in it where there is none."""
        program = self.day.stage / "bin/pleinair"
        bundle = self.models.bundle(case["model"], who)
        if not bundle.exists():
            return {"error": "its bundle could not be made"}
        seconds = self.day.left(RUN_SECONDS)
        if seconds is None:
            return {"error": "no time was left"}
        size = f"{case['size']}x{case['size']}"
        steps = ["--steps", case["steps"]] if "steps" in case else []
        command = [program, "--device", "cuda", "bench", case["what"], "--bundle", bundle, "--size", size,
                   "--batch", case["batch"], "--runs", self.runs(who, case), *steps, "--json"]
        try:
            done, gpu_bytes = self.day.meter.run([str(part) for part in command], self.day.environment, seconds)
        except subprocess.TimeoutExpired:
            return {"error": f"not done after {seconds:.0f} s"}
        if done.returncode != 0:
            return {"error": without_folders((done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1])}
        report = json.loads(done.stdout)
        if report.get("device") != "cuda":
            return {"error": f"it ran on {report.get('device')}"}
        return {**report, "gpu_bytes": gpu_bytes}

    def note(self, part, case, who, report):
        """Keeps a report with those of its case."""
        kept = next((one for one in part["cases"] if kind(one) == kind(case)), None)
        if kept is None:
            kept = {**case, "contestants": {}, "ratios": [], "failed": {}}
            part["cases"].append(kept)
        label = f"{title(case)}, {NAMES.get(who, who)}"
        if "error" in report:
            kept["failed"][who] = report["error"]
            print(f"{label}: {report['error']}", flush=True)
        else:
            kept["failed"].pop(who, None)
            self.medians[who, kind(case)] = report["median_seconds"]
            kept["contestants"][who] = joined(kept["contestants"].get(who), report)
            print(f"{label}: {1000 * report['median_seconds']:.1f} ms, {gigabytes(report['gpu_bytes'])}", flush=True)
        self.day.save()
        return kept

    def part(self, name):
        return self.day.results.setdefault(name, {"cases": [], "notes": NOTES})

    def bench(self):
        part = self.part("bench")
        for case in cases(self.day.arguments.size):
            for who in OURS:
                done = next((one for one in part["cases"] if kind(one) == kind(case)), {"contestants": {}})
                if who in done["contestants"]:
                    self.medians[who, kind(case)] = done["contestants"][who]["median_seconds"]
                    continue
                report = self.ours(who, case)
                if "error" not in report and not self.day.arguments.quick and self.few(report):
                    self.medians[who, kind(case)] = report["median_seconds"]
                    report = self.ours(who, case)  # short ones need more runs to tell anything
                self.note(part, case, who, report)

    def few(self, report):
        return report["what"] != "paint" and sum(report["seconds"]) < ENOUGH_SECONDS / 2

    def peers(self):
        part = self.part("peers")
        model = self.models.sources[main_case(self.day.arguments.size)["model"]]
        hopeless = None
        for name, ours in PEERS.items():
            wanted = [case for case in peers_cases(name, self.day.arguments.size, self.day.arguments.quick)
                      if not self.has_result(part, case, name)]
            if not wanted:
                continue
            if hopeless:
                self.note(part, wanted[0], name, hopeless)
                continue
            peer = Peer(name, model, self.day)
            try:
                begun = peer.answer(self.day.left(RUN_SECONDS))
                part.setdefault("versions", {}).update({"torch": begun["ready"], "cuda": begun["cuda"]} if "ready" in begun else {})
                if "error" in begun:
                    hopeless = begun if "everyone" in begun else None
                    self.note(part, wanted[0], name, begun)
                    continue
                for case in wanted:
                    if not self.duel(part, case, peer, name, ours):
                        break
            finally:
                peer.end()

    def has_result(self, part, case, who):
        return any(kind(one) == kind(case) and who in one["contestants"] for one in part["cases"])

    def duel(self, part, case, peer, name, several):
        """Rounds of ours and the peer's; false where the peer is over."""
        limit = self.day.arguments.compile_seconds if name.startswith(COMPILED) else RUN_SECONDS
        rounds = 1 if case["what"] == "paint" else 2 if self.day.arguments.quick else 3
        for _ in range(rounds):
            theirs = peer.ask({**case, "runs": self.runs(name, case)}, self.day.left(limit))
            kept = self.note(part, case, name, theirs)
            if "error" in theirs:
                return "over" not in theirs
            for who in several:
                report = self.ours(who, case)
                self.note(part, case, who, report)
                if "error" not in report:
                    add_ratio(kept, who, name, report["median_seconds"] / theirs["median_seconds"])
        return True


def add_ratio(case, ours, peer, value):
    kept = next((one for one in case["ratios"] if (one["ours"], one["peer"]) == (ours, peer)), None)
    if kept is None:
        kept = {"ours": ours, "peer": peer, "each": []}
        case["ratios"].append(kept)
    kept["each"].append(value)
    kept["median"] = statistics.median(kept["each"])


def joined(before, report):
    """What is kept of a contestant's reports, one after another."""
    kept = before or {"seconds": [], "processes": 0, "gpu_bytes": None, "peak_rss_bytes": None}
    kept["seconds"] = kept["seconds"] + report["seconds"]
    kept["median_seconds"] = statistics.median(kept["seconds"])
    kept["processes"] += 1
    for key in ("gpu_bytes", "peak_rss_bytes"):
        kept[key] = max((value for value in (kept[key], report[key]) if value is not None), default=None)
    first = ("evaluations", "device", "numbers", "not_recorded", "isa", "answer_rms", "setup_seconds", "open_seconds")
    return kept | {key: report[key] for key in first if key in report and key not in kept}


def without_folders(text):
    """Results name no folder of this machine."""
    return re.sub(r"(?<![\w.])/\S*/", "", text)


def gigabytes(count):
    return "memory unknown" if count is None else f"{count / 1e9:.2f} GB"


def title(case):
    pixels = f"{case['model']} {case['size']}x{case['size']}"
    return {
        "unet": f"UNet {pixels}, batch {case['batch']}",
        "paint": f"painting {pixels}, {case.get('steps')} steps of two evaluations",
        "learn": f"learning step {pixels}, batch {case['batch']}",
    }[case["what"]]


def table(results):
    """What was measured, as Markdown: a row a case."""
    lines = ["| milliseconds (median) and memory of the card | pleinair | PyTorch, and our share of its time |", "| --- | --- | --- |"]
    parts = [results[name]["cases"] for name in ("bench", "peers") if name in results]
    for wanted in dict.fromkeys(kind(case) for part in parts for case in part):
        found = [case for part in parts for case in part if kind(case) == wanted]
        contestants = {who: kept for case in reversed(found) for who, kept in case["contestants"].items()}
        ratios, failed = sum((case["ratios"] for case in found), []), {}
        for case in found:
            failed |= {who: why for who, why in case["failed"].items() if who not in contestants}
        cell = lambda who: (
            f"{NAMES.get(who, who)} {1000 * contestants[who]['median_seconds']:.1f}, {gigabytes(contestants[who]['gpu_bytes'])}"
        )
        shares = lambda who: ", ".join(f"{one['ours']} **{one['median']:.2f}**" for one in ratios if one["peer"] == who)
        ours = [cell(who) for who in OURS if who in contestants] + [f"{who}: {failed[who]}" for who in OURS if who in failed]
        peers = [f"{cell(who)}: {shares(who) or 'no ratio'}" for who in PEERS if who in contestants]
        peers += [f"{NAMES[who]}: {failed[who]}" for who in PEERS if who in failed]
        lines.append(f"| {title(found[0])} | {'<br>'.join(ours)} | {'<br>'.join(peers)} |")
    return "\n".join(lines)
