"""Makes tests/fixtures/clip-tokens.json: token ids of CLIP's own vocabulary by transformers' CLIPTokenizer.

    python tests/reference/clip_tokens.py

Versions: transformers 5.23.0, tokenizers 0.23.3. The vocabulary is put together from models/clip/merges.txt as
`simple_tokenizer.py` of CLIP does; the ids of SD 1.5's well-known words are checked on the way.
"""
import json
import tempfile
from pathlib import Path

from transformers import CLIPTokenizer

ROOT = Path(__file__).parent.parent.parent
MERGES = ROOT / "models/clip/merges.txt"
TEXTS = [
    "",
    "a photo of an astronaut riding a horse on mars",
    "A painting in the style of Vincent van Gogh, oil on canvas, 1889",
    "a highly detailed, 8k, trending-on-artstation portrait; it's [[beautiful]] (masterpiece:1.2)",
    "naïve café déjà-vu, Straße, ΣΑΣ",
    "日本の浮世絵、葛飾北斎 живопись маслом لوحة",
    "a 🎨 of 👩‍🎨🏽 and 🇫🇷 ❤️",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "word " * 90,
]


def vocabulary():
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in visible]
    characters = [chr(byte) for byte in visible] + [chr(256 + i) for i in range(len(hidden))]
    merges = [line.split(" ") for line in MERGES.read_text().splitlines()[1:]]
    words = characters + [c + "</w>" for c in characters] + ["".join(pair) for pair in merges]
    return {word: i for i, word in enumerate(words + ["<|startoftext|>", "<|endoftext|>"])}


with tempfile.TemporaryDirectory() as folder:
    words = vocabulary()
    assert len(words) == 49408
    # as in every prompt of SD 1.x: start 49406, "a" 320, "cat" 2368, end 49407
    assert [words[w] for w in ("<|startoftext|>", "a</w>", "cat</w>", "<|endoftext|>")] == [49406, 320, 2368, 49407]
    Path(folder, "vocab.json").write_text(json.dumps(words))
    Path(folder, "merges.txt").write_text(MERGES.read_text())
    tokenizer = CLIPTokenizer.from_pretrained(folder)
cases = [{"text": text, "ids": tokenizer(text, add_special_tokens=False).input_ids} for text in TEXTS]
lines = ",\n".join(json.dumps(case) for case in cases)
ROOT.joinpath("tests/fixtures/clip-tokens.json").write_text(f"[\n{lines}\n]\n")
