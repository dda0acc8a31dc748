"""Captions, and the tokenizer where there is none yet. `captions.py DATA OUT`

Reads DATA/crops.json (from data.py: kind, of, what, style, group of every crop) and DATA/x.npy; writes DATA/captions.json
(per crop: the full caption, the style-only caption, the tone words measured from the pixels, kind, of, what, group), DATA/val_idx.npy
(64 crops the VAE never trains on) and, unless it exists, OUT/tokenizer (CLIP's byte-level BPE with </w>; WORDS names an
English word list for its merges).
"""
import collections
import json
import os
import sys

import numpy as np
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

HUES = ["red", "orange", "yellow", "green", "green", "teal", "blue", "blue", "violet", "pink", "red"]
HUE_EDGES = [18, 42, 68, 100, 150, 190, 225, 255, 290, 335, 361]  # degrees


def tones(picture):
    """Measured colour words: dark or bright, muted or vivid, and the one or two commonest hues."""
    rgb = picture[::4, ::4].reshape(-1, 3).astype(np.float32) / 255
    high, chroma = rgb.max(1), rgb.max(1) - rgb.min(1)
    r, g, b = rgb.T
    sixths = np.where(high == r, (g - b) / (chroma + 1e-6) % 6,
                      np.where(high == g, (b - r) / (chroma + 1e-6) + 2, (r - g) / (chroma + 1e-6) + 4))
    luma = (0.299 * r + 0.587 * g + 0.114 * b).mean()
    words = ["dark"] if luma < 0.28 else ["bright"] if luma > 0.62 else []
    words += ["vivid"] if chroma.mean() > 0.38 else ["muted"] if chroma.mean() < 0.16 else []
    mass = collections.Counter()
    for hue, c in zip(60 * sixths, chroma):
        mass[HUES[int(np.searchsorted(HUE_EDGES, hue % 360, side="right"))]] += c if c > 0.08 else 0
    total = sum(mass.values())
    if chroma.mean() < 0.045:
        colours = ["grey"]
    else:
        colours = [k for k, v in mass.most_common(2) if total and v / total > 0.25] or ["mixed"]
    return " ".join(words + [" and ".join(colours)])


def caption(crop):
    """(full, style only) for a record of crops.json."""
    if crop["kind"] == "photo":
        return f"a photo of {crop['what']}", "a photo"
    if crop["kind"] in ("thing", "scene"):
        return f"a picture of {crop['what']}", "a picture"
    thing = f"a painting of {crop['what']}" if crop["what"] else "a painting"
    if not crop["style"]:
        return thing, "a painting"
    return f"{thing}, in the style of {crop['style']}", f"a painting in the style of {crop['style']}"


def captions(data):
    with open(f"{data}/crops.json") as f:
        crops = json.load(f)
    pictures, out = np.load(f"{data}/x.npy", mmap_mode="r"), []
    for crop, picture in zip(crops, pictures, strict=True):
        full, style_only = caption(crop)
        out.append(dict(kind=crop["kind"], of=crop.get("of", ""), what=crop["what"], style=crop["style"],
                        group=crop["group"], full=full, style_only=style_only, tones=tones(picture)))
    with open(f"{data}/captions.json", "w") as f:
        json.dump(out, f)
    return out


def tokenizer(caps, out):
    """Byte-level BPE with </w> as CLIP has it, trained on the captions and on an English word list."""
    with open(os.environ.get("WORDS", "/usr/share/dict/words")) as f:
        words = [w.strip() for w in f]
    words = [w for w in words if w.isascii() and w.isalpha() and 3 <= len(w) <= 10 and w.islower()]
    corpus = [c["full"] for c in caps] + [f"{c['style_only']}, in {c['tones']} tones" for c in caps] + words
    bpe = Tokenizer(models.BPE(unk_token="<|endoftext|>", end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
    split = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    bpe.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(split, behavior="removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(corpus, trainers.BpeTrainer(
        vocab_size=3500, min_frequency=3, end_of_word_suffix="</w>", show_progress=False, initial_alphabet=alphabet))
    merges = [m if isinstance(m, str) else " ".join(m) for m in json.loads(bpe.to_str())["model"]["merges"]]
    # CLIP's order of entries: bytes, bytes with </w>, merges, the two special tokens
    base = sorted(alphabet)
    vocab = base + [c + "</w>" for c in base] + ["".join(m.split(" ")) for m in merges]
    vocab = list(dict.fromkeys(vocab + ["<|startoftext|>", "<|endoftext|>"]))
    folder = f"{out}/tokenizer"
    os.makedirs(folder)
    with open(f"{folder}/vocab.json", "w") as f:
        json.dump({v: i for i, v in enumerate(vocab)}, f, ensure_ascii=False)
    with open(f"{folder}/merges.txt", "w") as f:
        f.write("#version: 0.2\n" + "\n".join(merges) + "\n")
    clip = CLIPTokenizer.from_pretrained(folder, model_max_length=77, pad_token="<|endoftext|>")
    clip.save_pretrained(folder)


def main():
    data, out = sys.argv[1:3]
    n = len(np.load(f"{data}/x.npy", mmap_mode="r"))
    np.save(f"{data}/val_idx.npy", np.sort(np.random.default_rng(0).permutation(n)[:64]))
    caps = captions(data)
    print(collections.Counter(c["style"] for c in caps).most_common())
    for c in caps[::max(1, n // 8)]:
        print(c)
    if not os.path.exists(f"{out}/tokenizer"):
        tokenizer(caps, out)


if __name__ == "__main__":
    main()
