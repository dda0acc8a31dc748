"""Pictures of named things, from colour icon sets. `things.py ICONS`

Fetches the sets with npm into ICONS, checks that each still states the licence written here, rasterises every noun and
writes ICONS/things.npz (rgba uint8 [M,256,256,4], noun and set of each). `portrait` then puts one icon on a backdrop.
Licences and authors: models/atelier/DATA.md.
"""
import json
import os
import subprocess
import sys

import cv2
import numpy as np
import resvg_py

from pixels import blur, noise_field, recoloured, shrink, to_bytes, to_unit

SIDE, ICON_SIDE, FEWEST_SETS = 128, 256, 5
SETS = {  # package of @iconify-json: (version, licence)
    "fluent-emoji-flat": ("1.2.6", "MIT"), "fluent-emoji": ("1.2.7", "MIT"), "noto": ("1.2.9", "Apache-2.0"),
    "noto-v1": ("1.2.5", "Apache-2.0"), "fxemoji": ("1.2.2", "Apache-2.0"), "twemoji": ("1.2.5", "CC-BY-4.0"),
    "emojione": ("1.2.3", "CC-BY-4.0"), "streamline-emojis": ("1.2.4", "CC-BY-4.0")}
# noun: the icon's name, in the order of preference; a set that has none of them leaves the noun out. Each noun is drawn
# one way (a cat is its face, a horse its side): two ways would halve what a small model sees of each.
NOUNS = {
    "cat": ["cat-face", "cat"], "dog": ["dog-face", "dog"], "horse": ["horse"], "elephant": ["elephant"],
    "cow": ["cow"], "rabbit": ["rabbit-face"], "penguin": ["penguin-2", "penguin"], "fish": ["tropical-fish", "tropicalfish"],
    "bird": ["bird-1", "bird"], "butterfly": ["butterfly"], "snail": ["snail"],
    "tree": ["deciduous-tree", "deciduoustree"], "fir tree": ["evergreen-tree", "evergreen"],
    "palm tree": ["palm-tree", "palmtree"], "cactus": ["cactus-1", "cactus"],
    "sunflower": ["sunflower-1", "sunflower"], "rose": ["rose"], "tulip": ["tulip"], "mushroom": ["mushroom"],
    "apple": ["red-apple", "redapple"], "banana": ["banana"], "pear": ["pear"], "strawberry": ["strawberry-1", "strawberry"],
    "house": ["house", "house-with-garden", "housebuilding"], "castle": ["castle", "europeancastle"],
    "mountain": ["snow-capped-mountain", "mountain"], "sailboat": ["sailboat"], "car": ["automobile"],
    "bicycle": ["bicycle"], "train": ["locomotive", "steamlocomotive"], "rocket": ["rocket"],
    "balloon": ["balloon"], "star": ["star"], "moon": ["crescent-moon", "crescentmoon"],
    "sun": ["sun", "sunrays"], "rainbow": ["rainbow"], "cup": ["hot-beverage-1", "hot-beverage", "hotbeverage"],
    "umbrella": ["umbrella"], "guitar": ["guitar"], "clock": ["three-oclock", "clock3oclock"], "key": ["key"],
    "bell": ["bell"], "face": ["slightly-smiling-face", "smallsmile"], "heart": ["red-heart", "redheart"],
    "snowman": ["snowman-without-snow", "snowman", "snowmanwithoutsnow"]}
# drawn another way than the rest: in a frame, only the head, closed, from above
ODD = {("fxemoji", "bird"), ("streamline-emojis", "bird"), ("emojione", "mountain"), ("streamline-emojis", "castle"),
       ("fxemoji", "rainbow"), ("streamline-emojis", "rainbow"), ("fxemoji", "sailboat"), ("fxemoji", "umbrella"),
       ("streamline-emojis", "penguin"), ("fluent-emoji", "cup"), ("fluent-emoji-flat", "cup")}


def a(noun):
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def fetched(icons):
    """npm's folder of the sets, in exactly these versions."""
    os.makedirs(icons, exist_ok=True)
    packages = [f"@iconify-json/{name}@{version}" for name, (version, _) in SETS.items()]
    subprocess.run(["npm", "install", "--no-save", "--no-audit", "--no-fund", "--prefix", icons, *packages], check=True)
    return f"{icons}/node_modules/@iconify-json"


def icon_set(folder, name):
    """icons.json of a set; an error if its licence is not the one written here."""
    with open(f"{folder}/{name}/info.json") as f:
        licence = json.load(f)["license"]["spdx"]
    if licence != SETS[name][1]:
        sys.exit(f"{name} is under {licence}, expected {SETS[name][1]}: look at it before using it")
    with open(f"{folder}/{name}/icons.json") as f:
        return json.load(f)


def raster(icons, names):
    """rgba [256,256,4] of the first of the names that the set has, or None."""
    for name in names:
        name = icons.get("aliases", {}).get(name, {}).get("parent", name)
        icon = icons["icons"].get(name)
        if icon is None:
            continue
        box = (icon.get("left", 0), icon.get("top", 0), icon.get("width", icons.get("width", 16)),
               icon.get("height", icons.get("height", 16)))
        svg = (f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
               f'viewBox="{" ".join(map(str, box))}" width="{ICON_SIDE}" height="{ICON_SIDE}">{icon["body"]}</svg>')
        png = np.frombuffer(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=ICON_SIDE, height=ICON_SIDE)), np.uint8)
        return cv2.cvtColor(cv2.imdecode(png, cv2.IMREAD_UNCHANGED), cv2.COLOR_BGRA2RGBA)
    return None


def load(icons):
    """noun -> list of rgba icons, trimmed to what is drawn."""
    with np.load(f"{icons}/things.npz") as z:
        rgba, nouns = z["rgba"], z["noun"]
    things = {noun: [] for noun in NOUNS}
    for picture, noun in zip(rgba, nouns):
        ys, xs = np.nonzero(picture[..., 3] > 16)
        things[noun].append(picture[ys.min():ys.max() + 1, xs.min():xs.max() + 1])
    return things


def placed(icon, height, degrees=0.0, flip=False):
    """The icon turned and scaled to `height` px on its longer side -> unit rgb [h,w,3], alpha [h,w]."""
    icon = icon[:, ::-1] if flip else icon
    alpha = icon[..., 3:].astype(np.float32) / 255
    both = np.concatenate([to_unit(icon[..., :3]) * alpha, alpha], 2)  # premultiplied: no dark rims
    h, w = both.shape[:2]
    side = int(np.ceil(np.hypot(h, w)))
    turn = cv2.getRotationMatrix2D((w / 2, h / 2), degrees, 1)
    turn[:, 2] += (side - w) / 2, (side - h) / 2
    both = cv2.warpAffine(both, turn, (side, side), flags=cv2.INTER_LINEAR)
    ys, xs = np.nonzero(both[..., 3] > 0.06)
    both = both[ys.min():ys.max() + 1, xs.min():xs.max() + 1]
    scale = height / max(both.shape[:2])
    both = shrink(both, max(1, round(both.shape[1] * scale)), max(1, round(both.shape[0] * scale)))
    alpha = np.clip(both[..., 3], 0, 1)
    return np.clip(both[..., :3] / np.maximum(alpha, 1e-3)[..., None], 0, 1), alpha


def over(canvas, rgb, alpha, top, left):
    """rgb with alpha laid on the unit canvas in place; what falls outside is cut."""
    h, w = alpha.shape
    y0, x0, y1, x1 = max(0, top), max(0, left), min(canvas.shape[0], top + h), min(canvas.shape[1], left + w)
    if y0 >= y1 or x0 >= x1:
        return
    part = np.s_[y0 - top:y1 - top, x0 - left:x1 - left]
    share = alpha[part][..., None]
    canvas[y0:y1, x0:x1] = canvas[y0:y1, x0:x1] * (1 - share) + rgb[part] * share


def colour(rng, saturation=(0.05, 0.75), value=(0.25, 1.0)):
    hsv = np.float32([[[rng.uniform(0, 360), rng.uniform(*saturation), rng.uniform(*value)]]])
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0]


def backdrop(rng, photo):
    """Unit picture: plain, two colours running into each other, ground and sky, or a photograph out of focus."""
    kind = rng.random()
    yy, xx = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32) / SIDE
    if kind < 0.35:
        return np.broadcast_to(colour(rng), (SIDE, SIDE, 3)).astype(np.float32).copy()
    if kind < 0.6:
        angle = rng.uniform(0, 2 * np.pi)
        share = 0.5 + (xx - 0.5) * np.cos(angle) + (yy - 0.5) * np.sin(angle)
        share = np.clip(share, 0, 1)[..., None]
        return share * colour(rng) + (1 - share) * colour(rng)
    if kind < 0.85:
        horizon = rng.uniform(0.45, 0.8) + 0.02 * noise_field(rng, 1, SIDE, 24)[0]
        sky = colour(rng, (0.1, 0.5), (0.65, 1)) * (1 - 0.25 * yy[..., None])
        ground = colour(rng, (0.15, 0.6), (0.3, 0.8)) * (1 + 0.04 * noise_field(rng, SIDE, SIDE, 5)[..., None])
        return np.where((yy > horizon[None])[..., None], ground, sky).clip(0, 1).astype(np.float32)
    return to_unit(blur(photo, rng.uniform(3, 8)))


def portrait(icon, rng, photo):
    """uint8 [128,128,3]: one thing, 55 to 95 % of the side, wholly in the picture and apart from its backdrop."""
    rgb, alpha = placed(icon, SIDE * rng.uniform(0.55, 0.95), rng.normal(0, 6), rng.random() < 0.5)
    rgb = to_unit(recoloured(to_bytes(rgb), rng.normal(0, 6), rng.uniform(0.8, 1.2), np.exp(rng.uniform(-0.2, 0.2))))
    h, w = alpha.shape
    top, left = int(rng.integers(SIDE - h + 1)), int(rng.integers(SIDE - w + 1))
    inside = alpha > 0.5
    rim = inside & (cv2.erode(alpha, np.ones((5, 5))) < 0.5)  # what meets the backdrop
    for _ in range(6):
        canvas = backdrop(rng, photo)
        behind = canvas[top:top + h, left:left + w]
        if np.linalg.norm(rgb[rim] - behind[rim], axis=1).mean() > 0.38:
            break
    if rng.random() < 0.4:  # a soft shadow
        shadow = blur(np.pad(alpha, 12), 4)
        over(canvas, np.zeros((*shadow.shape, 3), np.float32), 0.35 * shadow, top - 12 + 4, left - 12 + 3)
    over(canvas, rgb, alpha, top, left)
    return to_bytes(canvas)


def main():
    folder = fetched(sys.argv[1])
    rgba, nouns, sets = [], [], []
    for name in SETS:
        icons = icon_set(folder, name)
        for noun, names in NOUNS.items():
            picture = None if (name, noun) in ODD else raster(icons, names)
            if picture is None:
                print(f"{name} has no {noun}")
            else:
                rgba.append(picture), nouns.append(noun), sets.append(name)
    for noun in NOUNS:
        if nouns.count(noun) < FEWEST_SETS:
            sys.exit(f"only {nouns.count(noun)} sets draw {noun!r}, {FEWEST_SETS} are wanted")
    np.savez_compressed(f"{sys.argv[1]}/things.npz", rgba=np.stack(rgba), noun=np.array(nouns), set=np.array(sets))
    print(len(NOUNS), "nouns", len(rgba), "icons of", len(SETS), "sets")


if __name__ == "__main__":
    main()
