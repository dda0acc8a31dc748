"""Whether `day.py` finds what is wrong: days with programs that only pretend, without a card. Python alone."""

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import binaries  # noqa: E402
import card  # noqa: E402
import day  # noqa: E402
import race  # noqa: E402

PASSED = "test a ... ok\n\ntest result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out\n"
FAILED = "test a::b ... FAILED\ntest c - should panic ... FAILED\n\ntest result: FAILED. 1 passed; 2 failed; 0 ignored; 0 m\n"
EMPTY = "test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 4 filtered out\n"
REPORT = {
    "what": "unet", "device": "cuda", "isa": "avx2", "seconds": [0.5, 0.7], "median_seconds": 0.6, "peak_rss_bytes": 7,
    "evaluations": 1, "open_seconds": 1.0,
}

# Answers like torch_peer.py, in one second each; one variant never ends.
PEER = """import json, sys, time
print(json.dumps({"ready": "1.0", "cuda": "13.0"}), flush=True)
for line in sys.stdin:
    if sys.argv[1] == "graphs-f16":
        time.sleep(60)
    case = json.loads(line)
    report = {"seconds": [1.0] * case["runs"], "median_seconds": 1.0, "gpu_bytes": 5, "peak_rss_bytes": 6, "evaluations": 1}
    print(json.dumps({"error": "too large"} if case["batch"] == 4 else {**report, "answer_rms": 0.5}), flush=True)
"""


class Pretence:
    """A copy of the script in a project of its own, with shell scripts for programs."""

    def __init__(self, folder, tests, report=REPORT, peer=None):
        self.root = Path(folder)
        for source in HERE.glob("*.py"):
            self.write(f"targets/cuda/day/{source.name}", source.read_text())
        if peer:
            self.write("targets/cuda/day/torch_peer.py", peer)
        self.write("targets/bench/contestants.py", (HERE.parents[1] / "bench/contestants.py").read_text())
        self.write("tests/fixtures/tiny-sd15/model_index.json", "{}")
        self.write("models/atelier/model_index.json", "{}")
        stage = f"build/gpu-day/stage-{platform.machine()}"
        for name, body in tests.items():
            self.write(f"{stage}/tests/{name}", f"#!/bin/sh\n{body}\n", 0o755)
        self.write(f"{stage}/bin/pleinair", f"#!/bin/sh\necho '{json.dumps(report)}'\n", 0o755)
        # the folder after --out appears
        self.write(f"{stage}/bin/pleinair-quantize", '#!/bin/sh\nfor last in "$@"; do :; done\nmkdir -p "$last"\n', 0o755)
        built = {"capability": "87", "cuda": "13.0", "tests": [{"name": name, "program": name, "filter": []} for name in tests]}
        self.write(f"{stage}/built.json", json.dumps(built))

    def write(self, name, text, mode=0o644):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)

    def run(self, *options):
        command = [sys.executable, self.root / "targets/cuda/day/day.py", "--size", "tiny", *options]
        # no libcuda.so.1 is found, and so no card
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "LD_LIBRARY_PATH": "/nowhere"})
        files = list(self.root.glob("build/gpu-day/results/*.json"))
        assert len(files) == 1, done.stderr
        return done, json.loads(files[0].read_text())


def says(text, status=0):
    return f"cat <<'END'\n{text}END\nexit {status}"


class Days(unittest.TestCase):
    def day(self, tests, *options, **pretended):
        with tempfile.TemporaryDirectory() as folder:
            return Pretence(folder, tests, **pretended).run(*options)

    def test_a_day_without_faults(self):
        done, results = self.day({"one": says(PASSED), "two": says(PASSED)}, "--part", "parity")
        self.assertEqual((done.returncode, results["parity"]["passed"]), (0, True), done.stderr)
        self.assertIn("PARITY PASSED", done.stdout)
        self.assertEqual(results["parity"]["files"]["one"]["passed"], 2)
        self.assertTrue(results["verdicts"][0]["met"])

    def test_every_fault_of_a_test_fails_the_day(self):
        faults = {
            "a failed test": says(FAILED, 101),
            "a failed test in a program that ends well": says(FAILED),
            "a program that ends badly": says(PASSED, 1),
            "a crash": says("running 3 tests\n") + "\nkill -SEGV $$",
            "a program without a test": says(EMPTY),
            "a program without a word": "exit 0",
        }
        for fault, script in faults.items():
            for options in ((), ("--part", "parity")):
                with self.subTest(fault, options=options):
                    done, results = self.day({"good": says(PASSED), "bad": script}, *options)
                    self.assertNotEqual(done.returncode, 0)
                    self.assertIn("PARITY FAILED", done.stdout)
                    self.assertIs(results["parity"]["passed"], False)
                    self.assertIs(results["verdicts"][0]["met"], False)
                    self.assertNotIn("bench", results)  # wrong answers are not timed

    def test_a_missing_program_fails_the_day(self):
        with tempfile.TemporaryDirectory() as folder:
            pretence = Pretence(folder, {"good": says(PASSED), "gone": says(PASSED)})
            next(pretence.root.glob("build/gpu-day/stage-*/tests/gone")).unlink()
            done, results = pretence.run("--part", "parity")
        self.assertEqual((done.returncode, results["parity"]["passed"]), (1, False))

    def test_programs_come_out_of_the_archive(self):
        with tempfile.TemporaryDirectory() as folder:
            pretence = Pretence(folder, {"good": says(PASSED)})
            stage = next(pretence.root.glob("build/gpu-day/stage-*"))
            binaries.pack(stage, stage.with_name(f"gpu-day-87-{platform.machine()}.tar.xz"))
            shutil.rmtree(stage)
            for _ in range(2):
                done, results = pretence.run("--part", "parity")
                self.assertEqual((done.returncode, results["parity"]["passed"]), (0, True), done.stderr)

    def test_no_tests_is_no_parity(self):
        done, results = self.day({}, "--part", "parity")
        self.assertEqual((done.returncode, results["parity"]["passed"]), (1, False))

    def test_asked_to_keep_going_it_times_and_still_fails(self):
        done, results = self.day({"bad": says(FAILED, 101)}, "--keep-going")
        self.assertEqual(done.returncode, 1)
        self.assertIn("f16", results["bench"]["cases"][0]["contestants"])

    def test_what_ran_elsewhere_has_no_time(self):
        _, results = self.day({}, "--part", "bench", report={**REPORT, "device": "cpu"})
        for case in results["bench"]["cases"]:
            self.assertEqual(case["contestants"], {})
            self.assertEqual(set(case["failed"].values()), {"it ran on cpu"})

    def test_peers_that_cannot_run_are_named_with_the_reason(self):
        _, results = self.day({}, "--part", "peers")
        self.assertEqual({who for case in results["peers"]["cases"] for who in case["failed"]}, set(race.PEERS))

    def test_ours_and_peers_in_turns_and_the_goals(self):
        for seconds, met in ((0.6, [True, True]), (0.9, [True, False]), (1.5, [False, False])):
            report = {**REPORT, "median_seconds": seconds, "answer_rms": 0.5}
            _, results = self.day({}, "--part", "peers", "--quick", "--compile-seconds", "2", report=report, peer=PEER)
            first = results["peers"]["cases"][0]
            ratio = {"ours": "f16", "peer": "torch-compile-f16", "each": [seconds] * 2, "median": seconds}
            self.assertIn(ratio, first["ratios"])
            self.assertEqual(first["contestants"]["torch-compile-f16"]["processes"], 2)
            self.assertEqual(first["failed"], {"torch-graphs-f16": "not done after 2 s"})
            verdicts = results["verdicts"]
            self.assertEqual([one["met"] for one in verdicts[1:4]], [*met, None])
            self.assertIs(verdicts[5]["met"], True)  # the answers are as large as each other

    def test_a_case_that_a_peer_cannot_do_leaves_the_others(self):
        _, results = self.day({}, "--part", "peers", "--compile-seconds", "1", peer=PEER)
        four = next(case for case in results["peers"]["cases"] if case["batch"] == 4)
        self.assertEqual(four["failed"]["torch-eager-f16"], "too large")
        learn = next(case for case in results["peers"]["cases"] if case["what"] == "learn")
        self.assertIn("torch-channels_last-f16", learn["contestants"])

    def test_an_interrupted_part_goes_on(self):
        with tempfile.TemporaryDirectory() as folder:
            pretence = Pretence(folder, {})
            first = pretence.run("--part", "bench")[1]
            second = pretence.run("--part", "bench")[1]
        self.assertEqual(first["bench"], second["bench"])
        self.assertEqual(first["bench"]["cases"][0]["contestants"]["int8"]["processes"], 1)


class Numbers(unittest.TestCase):
    def test_goals_are_met_up_to_their_limit_and_nan_meets_none(self):
        met = [day.below("", value, 0.6)["met"] for value in (0.5, 0.6, 0.61, float("nan"), None)]
        self.assertEqual(met, [True, True, False, False, None])

    def test_test_programs_are_read(self):
        report = day.read_tests(FAILED)
        self.assertEqual((report["passed"], report["failed"]), (1, ["a::b", "c"]))
        self.assertEqual(day.read_tests("test result: FAILED. 0 passed; 1 failed; 0 ignored;")["failed"], ["?"])

    def test_a_ratio_is_the_median_of_its_rounds(self):
        case = {"ratios": []}
        for value in (0.9, 0.5, 0.7):
            race.add_ratio(case, "f16", "torch", value)
        self.assertEqual(case["ratios"][0]["median"], 0.7)

    def test_memory_is_metered_beyond_what_was_in_use(self):
        meter = card.Meter(None, os.environ)

        class Steps:
            readings = iter([100] + [900] * 3)

            def used(self):
                return next(self.readings, 300)

        meter.source, meter.context_bytes = Steps(), 50
        _, most = meter.run([sys.executable, "-c", "import time; time.sleep(0.2)"], os.environ, 10)
        self.assertEqual(most, 750)


if __name__ == "__main__":
    unittest.main()
