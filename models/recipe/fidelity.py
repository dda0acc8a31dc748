"""Measured fidelity of learned styles: `fidelity.py PLEINAIR WORK REPORT.md`. `make fidelity` calls it.

Learns held-out styles in several ways with the program itself, paints held-out photographs with each, and lets a judge that is
not the model (judge.py) score them. Lessons and paintings that are already in WORK are not made again; all seeds are fixed.
"""
import collections
import json
import os
import subprocess
import sys
import time

import numpy as np

from judge import content_score, style_score

SAMPLES = os.path.join(os.path.dirname(__file__), "../atelier/samples")
STYLES = {
    "stained glass": ("render_stained_glass_mountain2.png", "a painting of mountain, in the style of {}"),
    "Hiroshige": ("gc_8.jpg", "a painting of a house by the water, in the style of {}"),
    "Van Gogh": ("gcd_board6.jpg", "a painting of a street at night, in the style of {}"),
}
PHOTOS = {"canyon9": "canyon", "fields0": "fields", "fish25": "fish", "hills4": "hills", "sea3": "sea"}
BATCH, RATE = 4, 0.01
NO_CONTEXT = "A painting in the style of {}"
LESSONS = {  # name: (stages, steps, with context)
    "t1-plain": (1, 500, False), "t6-plain": (6, 500, False), "t1": (1, 500, True), "t2": (2, 500, True),
    "t4": (4, 500, True), "t6": (6, 500, True), "t6-1000": (6, 1000, True),
}
PAINT = ["--guidance", "2", "--strength", "0.6", "--size", "256", "--seed", "1"]
CONDITIONS = {  # heading: (lesson or None for the initial word, more options of `paint`)
    "the word `painting`, nothing learned": (None, []),
    "T = 1, without context (textual inversion)": ("t1-plain", []),
    "T = 6, without context": ("t6-plain", []),
    "T = 1": ("t1", []),
    "T = 2": ("t2", []),
    "T = 4": ("t4", []),
    "T = 6": ("t6", []),
    "T = 6, 1000 steps": ("t6-1000", []),
    "T = 6, style guidance 2": ("t6", ["--style-strength", "2"]),
    "T = 6, content guidance 2": ("t6", ["--content-strength", "2"]),
    "T = 6, both": ("t6", ["--style-strength", "2", "--content-strength", "2"]),
    "T = 6, DDIM inversion": ("t6", ["--invert", "ddim"]),
}
REFERENCE = "T = 6"
SHEET = "![Per style: style picture, photograph, and one painting of each row of the first table](fidelity.jpg)"
# what the paper's ablation says, as pairs (better, worse, score)
PAPER = [
    ("T = 6, without context", "T = 1, without context (textual inversion)", "style"),
    ("T = 6", "T = 6, without context", "content"),
    ("T = 6, style guidance 2", "T = 6", "style"),
    ("T = 6, content guidance 2", "T = 6", "content"),
]


def picture(style):
    return f"{SAMPLES}/style/{STYLES[style][0]}"


def photo(name):
    return f"{SAMPLES}/content/{name}.jpg"


def slug(text):
    return "".join(c if c.isalnum() else "-" for c in text.lower())


def run(*words):
    subprocess.run([str(w) for w in words], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def once(path, make):
    """Makes a file under another name first, so that what is there is whole."""
    if not os.path.exists(path):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        stem, ending = os.path.splitext(path)
        make(f"{stem}.part{ending}")
        os.replace(f"{stem}.part{ending}", path)
    return path


def learned(pleinair, work, style, lesson):
    stages, steps, with_context = LESSONS[lesson]
    context = STYLES[style][1] if with_context else NO_CONTEXT
    return once(f"{work}/{slug(style)}/{lesson}.safetensors", lambda out: run(
        pleinair, "learn", "--image", picture(style), "--context", context, "--stages", stages, "--steps", steps,
        "--batch", BATCH, "--lr", RATE, "--name", slug(style), "--out", out, "--progress", "none"))


def painted(pleinair, work, style, condition, name):
    lesson, options = CONDITIONS[condition]
    what = learned(pleinair, work, style, lesson) if lesson else "painting"
    return once(f"{work}/{slug(style)}/{slug(condition)}/{name}.png", lambda out: run(
        pleinair, "paint", "--content", photo(name), "--style", what, *PAINT, *options, "--prompt",
        f"a painting of {PHOTOS[name]}, in the style of {{}}", "--out", out, "--progress", "none"))


def interval(values, rng, draws=10_000):
    """Mean and 95 % bootstrap interval."""
    values = np.asarray(values)
    means = values[rng.integers(len(values), size=(draws, len(values)))].mean(1)
    return values.mean(), *np.quantile(means, [0.025, 0.975])


def measure(pleinair, work):
    scores = collections.defaultdict(lambda: {"style": [], "content": []})
    for style in STYLES:
        for condition in CONDITIONS:
            began = time.time()
            for name in PHOTOS:
                path = painted(pleinair, work, style, condition, name)
                scores[condition]["style"].append(style_score(path, picture(style)))
                scores[condition]["content"].append(content_score(path, photo(name)))
            print(style, "|", condition, f"| {time.time() - began:.0f} s", flush=True)
        for name in PHOTOS:
            scores["the photograph itself"]["style"].append(style_score(photo(name), picture(style)))
            scores["the photograph itself"]["content"].append(1.0)
    return scores


def report(scores):
    rng = np.random.default_rng(0)
    lines = ["| | style score | content score |", "| --- | --- | --- |"]
    for condition in ["the photograph itself", *CONDITIONS]:
        cells = []
        for kind in ("style", "content"):
            mean, low, high = interval(scores[condition][kind], rng)
            cells.append(f"{mean:.3f} ({low:.3f} to {high:.3f})")
        lines.append(f"| {condition} | {' | '.join(cells)} |")
    lines += ["", f"Differences from `{REFERENCE}`, painting by painting, which the choice of photographs does not blur:", "",
              "| | style | content |", "| --- | --- | --- |"]
    for condition in CONDITIONS:
        if condition != REFERENCE:
            lines.append(f"| {condition} | " + " | ".join(
                "{:+.3f} ({:+.3f} to {:+.3f})".format(*difference(scores, condition, REFERENCE, kind, rng))
                for kind in ("style", "content")) + " |")
    lines += ["", "The paper's ablation, with the intervals that decide:", "", "| claim | difference | holds |", "| --- | --- | --- |"]
    for better, worse, kind in PAPER:
        mean, low, high = difference(scores, better, worse, kind, rng)
        holds = "yes" if low > 0 else "no, the opposite" if high < 0 else "not to be told apart"
        lines.append(f"| {kind}: {better} above {worse} | {mean:+.3f} ({low:+.3f} to {high:+.3f}) | {holds} |")
    return "\n".join(lines)


def difference(scores, one, other, kind, rng):
    return interval(np.subtract(scores[one][kind], scores[other][kind]), rng)


def sheet(pleinair, work, out, name="hills4"):
    cells = []
    for style in STYLES:
        cells += [f"{style}={picture(style)}", f"photograph={photo(name)}"]
        cells += [f"{c}={painted(pleinair, work, style, c, name)}" for c in CONDITIONS]
    run(pleinair, "sheet", *[w for cell in cells for w in ("--cell", cell)], "--columns", 2 + len(CONDITIONS), "--out", out)


def main():
    pleinair, work, path = sys.argv[1:4]
    scores = measure(pleinair, work)
    with open(f"{work}/scores.json", "w") as f:
        json.dump(scores, f, indent=1)
    sheet(pleinair, work, f"{os.path.dirname(path)}/fidelity.jpg")
    begin, end = "<!-- figures: written by make fidelity -->", "<!-- end of figures -->"
    with open(path) as f:
        text = f.read()
    head, rest = text.split(begin)
    with open(path, "w") as f:
        f.write(f"{head}{begin}\n\n{report(scores)}\n\n{SHEET}\n\n{end}{rest.split(end)[1]}")


if __name__ == "__main__":
    main()
