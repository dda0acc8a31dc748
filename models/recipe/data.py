"""Crops of 128 px with what is needed to caption them. `data.py PACK DATA ICONS`

PACK holds manifest.jsonl (file, title, artist, date, licence, sat) and the pictures, ICONS is the folder of things.py.
Writes DATA/x.npy and DATA/photo.npy (uint8 [N,128,128,3]: the picture, and the photograph, the thing or the scene it was
painted from), DATA/crops.json (kind, of, what, style, group of each), DATA/depth.npy with DATA/depth_crops.npy (float16
[M,128,128], inverse depth in [0,1]; the numbers of the M crops it belongs to: all scenes, painted or not) and
DATA/held_out.json (pictures and renderers that training never sees).
"""
import collections
import json
import os
import random
import re
import sys
from multiprocessing import Pool

import cv2
import numpy as np

from painterly import RENDERERS, Manner, manner, paint
from pixels import recoloured
from painterly_held_out import HELD_OUT
from scenes import scene
from things import NOUNS, a, load, portrait

SIDE = 128
PHOTO_CROPS, PHOTO_RECOLOURED, PAINTING_CROPS, HELD_PHOTOS = 5, 3, 10, 20
# a renderer's manners, crops a manner, crops in the standard manner; stroke by stroke costs ten times more
FAST, SLOW, BY_STROKES = (24, 14, 60), (16, 10, 40), {"oil", "impressionist", "pastel", "chalk"}
# crops a noun and a renderer: (in the standard manner, in random ones); plain crops an icon; scenes, each painted once
THING_FAST, THING_SLOW, THING_PLAIN, SCENES, SCENES_A_JOB, SCENE_STANDARD = (8, 4), (4, 2), 6, 1536, 32, 0.6
HELD_ARTISTS = re.compile("Gogh|Hokusai|Hiroshige|Morisot|Seurat|Klimt|Kandinsky|Marc", re.I)


def clean(text):
    text = re.sub(r"[^A-Za-z ,'-]", " ", text or "").strip()
    return re.sub(r"\s+", " ", text).lower()[:80]


def period(row):
    """A style word for a painting, from its date (and country, for Japanese prints)."""
    text = f"{row.get('title', '')} {row.get('artist', '')} {row.get('medium', '')}".lower()
    if re.search(r"japan|utagawa|katsushika|harunobu|sharaku|korin|woodblock", text):
        return "japanese print"
    if re.search(r"monet|renoir|pissarro|sisley|cassatt|guillaumin|caillebotte|bazille|prendergast", text):
        return "impressionist"
    if re.search(r"cezanne|cézanne|gauguin|lautrec|bonnard|rysselberghe|cross|bernard", text):
        return "post-impressionist"
    years = [int(y) for y in re.findall(r"\b(1[2-9]\d\d)\b", str(row.get("date", "")))]
    if not years:
        return ""
    for before, word in ((1450, "medieval"), (1590, "renaissance"), (1710, "baroque"), (1780, "rococo"),
                         (1840, "romantic"), (1900, "realist")):
        if years[0] < before:
            return word
    return "modern"


def read(pack, row):
    return cv2.cvtColor(cv2.imread(os.path.join(pack, row["file"])), cv2.COLOR_BGR2RGB)


def crop(picture, rng, side=SIDE):
    """A random square that shows between 1/2.2 and the whole of the short side, flipped half of the time."""
    h, w = picture.shape[:2]
    scale = side / min(h, w)
    if min(h, w) > side:
        scale = rng.uniform(scale, min(1.0, 2.2 * scale))
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    picture = cv2.resize(picture, (max(side, round(w * scale)), max(side, round(h * scale))), interpolation=way)
    y, x = rng.integers(picture.shape[0] - side + 1), rng.integers(picture.shape[1] - side + 1)
    square = picture[y:y + side, x:x + side]
    return np.ascontiguousarray(square[:, ::-1] if rng.random() < 0.5 else square)


def thing(row):
    return clean(re.sub(r"\d+", "", row.get("title") or "scene"))


def photo_crops(pack, row, rng):
    picture, record = read(pack, row), dict(kind="photo", what=thing(row), style="", group=f"photo {thing(row)}")
    for i in range(PHOTO_CROPS + PHOTO_RECOLOURED):
        square = crop(picture, rng)
        if i >= PHOTO_CROPS:
            m = manner(rng)
            square = recoloured(square, m.hue, m.saturation, m.gamma, m.tint, m.tint_share)
        yield square, square, record


def painting_crops(pack, row, rng):
    picture = read(pack, row)
    record = dict(kind="painting", what=clean(row.get("title")), style=period(row), group=row["file"])
    for _ in range(PAINTING_CROPS):
        square = crop(picture, rng)
        yield square, square, record


def rendered_crops(pack, photos, name, label, m, crops, rng):
    """One manner of one renderer on several photographs, two crops each."""
    for i in range(crops):
        if i % 2 == 0:
            row = photos[rng.integers(len(photos))]
            picture = read(pack, row)
        square = crop(picture, rng)
        record = dict(kind="render", what=thing(row), style=" ".join([*m.words(), name]), group=f"{name} {label}")
        yield paint(name, square, m), square, record


def any_photo(pack, photos, rng):
    return crop(read(pack, photos[rng.integers(len(photos))]), rng)


def painted(name, label, m, square, of, what):
    """A thing or a scene in one manner; the group is that of the photographs painted the same way."""
    record = dict(kind="render", of=of, what=what, style=" ".join([*m.words(), name]), group=f"{name} {label}")
    return paint(name, square, m), square, record


def thing_crops(pack, photos, icons, noun, rng):
    for icon in icons[noun]:
        for _ in range(THING_PLAIN):
            square = portrait(icon, rng, any_photo(pack, photos, rng))
            yield square, square, dict(kind="thing", of="thing", what=a(noun), style="", group=f"thing {noun}")


def painted_thing_crops(pack, photos, icons, noun, name, manners, rng):
    standard, random_ones = THING_SLOW if name in BY_STROKES else THING_FAST
    for i in range(standard + random_ones):
        label = 0 if i < standard else 1 + int(rng.integers(len(manners) - 1))
        square = portrait(icons[noun][rng.integers(len(icons[noun]))], rng, any_photo(pack, photos, rng))
        yield painted(name, label or "standard", manners[label], square, "thing", a(noun))


def scene_crops(icons, manners, count, rng):
    """Every scene as it is and painted; 4-tuples, with the depth."""
    names = list(manners)
    for _ in range(count):
        square, what, depth = scene(rng, icons)
        yield square, square, dict(kind="scene", of="scene", what=what, style="", group="scene"), depth
        name = names[rng.integers(len(names))]
        label = 0 if rng.random() < SCENE_STANDARD else 1 + int(rng.integers(len(manners[name]) - 1))
        yield *painted(name, label or "standard", manners[name][label], square, "scene", what), depth


def work(job):
    cv2.setNumThreads(1)
    function, arguments, seed = job
    return list(function(*arguments, np.random.default_rng(seed)))


def chosen(pack):
    """Photographs and paintings for training, and those kept from it."""
    with open(f"{pack}/manifest.jsonl") as f:
        rows = [json.loads(line) for line in f]
    photos = [r for r in rows if r["file"].startswith("photos") and "space" not in r["file"]]
    paintings = [r for r in rows if r["file"].startswith("paintings") and (r.get("sat") or 99) > 6]
    random.Random(3).shuffle(photos)  # version 0's shuffle: the same photographs stay held out
    held = [r for r in paintings if HELD_ARTISTS.search((r.get("artist") or "") + (r.get("title") or ""))]
    return photos[HELD_PHOTOS:], [r for r in paintings if r not in held], photos[:HELD_PHOTOS], held


def main():
    pack, data, icons = sys.argv[1:4]
    icons = load(icons)
    os.makedirs(data, exist_ok=True)
    photos, paintings, held_photos, held_paintings = chosen(pack)
    with open(f"{data}/held_out.json", "w") as f:
        json.dump({"photos": held_photos, "paintings": held_paintings, "styles": sorted(HELD_OUT)}, f, indent=1)
    jobs = [(photo_crops, (pack, r)) for r in photos] + [(painting_crops, (pack, r)) for r in paintings]
    rng = np.random.default_rng(11)
    manners = {}  # renderer: its manners, the standard one first
    for name in RENDERERS:
        count, crops, standard = SLOW if name in BY_STROKES else FAST
        manners[name] = [Manner(), *(manner(rng) for _ in range(count))]
        jobs += [(rendered_crops, (pack, photos, name, "standard", manners[name][0], standard))]
        jobs += [(rendered_crops, (pack, photos, name, i, manners[name][i], crops)) for i in range(1, 1 + count)]
    for noun in NOUNS:
        jobs += [(thing_crops, (pack, photos, {noun: icons[noun]}, noun))]
        jobs += [(painted_thing_crops, (pack, photos, {noun: icons[noun]}, noun, name, m)) for name, m in manners.items()]
    jobs += [(scene_crops, (icons, manners, SCENES_A_JOB))] * (SCENES // SCENES_A_JOB)
    jobs = [(function, arguments, seed) for seed, (function, arguments) in enumerate(jobs)]
    pictures, originals, records, depths, depth_crops = [], [], [], [], []
    with Pool(os.cpu_count()) as pool:
        for i, result in enumerate(pool.imap(work, jobs, chunksize=2)):
            for picture, original, record, *depth in result:
                if depth:
                    depths.append(depth[0]), depth_crops.append(len(pictures))
                pictures.append(picture), originals.append(original), records.append(record)
            if i % 50 == 0:
                print(i, len(jobs), len(pictures), flush=True)
    np.save(f"{data}/x.npy", np.stack(pictures))
    np.save(f"{data}/photo.npy", np.stack(originals))
    np.save(f"{data}/depth.npy", np.stack(depths))
    np.save(f"{data}/depth_crops.npy", np.array(depth_crops, np.int32))
    with open(f"{data}/crops.json", "w") as f:
        json.dump(records, f)
    kinds = collections.Counter((r["kind"], r.get("of", "")) for r in records)
    print(", ".join(f"{kind} {of}: {n}" for (kind, of), n in kinds.items()))
    print("photographs", len(photos), "paintings", len(paintings), "crops", len(pictures),
          "styles", len({r["group"] for r in records if r["kind"] == "render"}), "held paintings", len(held_paintings))


if __name__ == "__main__":
    main()
