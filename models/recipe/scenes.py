"""Composed scenes whose caption and depth are known exactly: ground, sea, hills, sky and things standing at distances.

A camera at a fixed height looks along a flat ground: a row y below the horizon shows ground at inverse depth
(y - horizon) / (127 - horizon), 1 at the lower edge and 0 at the horizon, and what stands there has the size its
distance gives it. `scene(rng, icons)` -> picture uint8 [128,128,3], caption, inverse depth float16 [128,128] in [0,1].
"""
import cv2
import numpy as np

from pixels import blur, noise_field, to_bytes
from things import SIDE, a, colour, over, placed

# (words, saturated colour range of the ground as hue degrees, saturation, value)
GROUNDS = {"on a meadow": ((85, 130), 0.55, 0.62), "in a field": ((42, 55), 0.6, 0.82), "in the desert": ((28, 40), 0.42, 0.86),
           "in the snow": ((200, 220), 0.05, 0.97), "by the sea": ((38, 46), 0.32, 0.9), "on the sea": None}
SKIES = {"": 0.3, "under a blue sky": 0.2, "under clouds": 0.18, "at dusk": 0.16, "at night": 0.16}
# height of a thing where the ground's inverse depth is 1, in px; the largest ones are put farther away
STANDING = {"tree": 150, "fir tree": 160, "palm tree": 160, "house": 150, "castle": 260, "horse": 95, "cow": 85,
            "elephant": 125, "car": 85, "bicycle": 70, "snowman": 85, "cactus": 95, "sunflower": 70, "mushroom": 45,
            "penguin": 60, "train": 130}
AFLOAT = {"sailboat": 110}
FIT = {"in the desert": {"cactus", "palm tree", "horse", "car", "castle", "elephant"},
       "in the snow": {"snowman", "penguin", "fir tree", "house", "castle", "train"},
       "by the sea": {"house", "palm tree", "tree", "castle", "car", "bicycle", "horse"},
       "on a meadow": set(STANDING) - {"penguin", "snowman", "cactus", "palm tree"},
       "in a field": {"tree", "house", "horse", "cow", "sunflower", "car", "train", "bicycle"}}
PLURALS = {"tree": "trees", "fir tree": "fir trees", "palm tree": "palm trees", "cow": "cows", "house": "houses",
           "penguin": "penguins", "sailboat": "sailboats", "cactus": "cacti", "horse": "horses", "sunflower": "sunflowers"}
NUMBERS = {1: "a", 2: "two", 3: "three"}
FOG = 0.55  # share of the horizon's colour at infinite distance


def hsv(hue, saturation, value):
    return cv2.cvtColor(np.float32([[[hue % 360, saturation, value]]]), cv2.COLOR_HSV2RGB)[0, 0]


class Scene:
    """Painted from far to near; every layer also writes its inverse depth."""

    def __init__(self, rng, horizon, sky):
        self.rng, self.horizon, self.sky = rng, horizon, sky
        self.canvas, self.depth = np.zeros((SIDE, SIDE, 3), np.float32), np.zeros((SIDE, SIDE), np.float32)
        self.yy, self.xx = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32)
        self.covered = []  # what each thing covers of the picture, in the order of painting
        self.air = self.paint_sky()

    def paint_sky(self):
        """The sky and its colour at the horizon, in which distance fades."""
        rng = self.rng
        high, low = {
            "at dusk": (hsv(rng.uniform(215, 285), 0.5, 0.5), hsv(rng.uniform(12, 38), 0.65, 0.98)),
            "at night": (hsv(rng.uniform(220, 245), 0.75, 0.2), hsv(rng.uniform(215, 240), 0.6, 0.42)),
            "under clouds": (hsv(210, 0.15, rng.uniform(0.6, 0.75)), hsv(210, 0.08, 0.85)),
        }.get(self.sky, (hsv(rng.uniform(200, 218), 0.62, 0.92), hsv(205, 0.18, 0.98)))
        share = np.clip(self.yy / self.horizon, 0, 1)[..., None]
        self.canvas[:] = (1 - share) * high + share * low
        if self.sky == "at night":
            for _ in range(rng.integers(15, 40)):
                x, y = rng.integers(SIDE), rng.integers(max(2, self.horizon))
                self.canvas[y, x] = rng.uniform(0.6, 1)
        if self.sky == "under clouds" or (self.sky == "" and rng.random() < 0.4):
            self.clouds(dense=self.sky == "under clouds")
        return low

    def clouds(self, dense):
        rng = self.rng
        mass = cv2.resize(noise_field(rng, SIDE, SIDE // 2, 16), (SIDE, SIDE)) + 0.35 * noise_field(rng, SIDE, SIDE, 7)
        cover = 0.85 * np.clip(0.7 * (mass + (0.6 if dense else -0.6)), 0, 1)[..., None]
        lit = (0.93 - 0.08 * dense * np.clip(np.roll(mass, -6, 0), -1, 1))[..., None]  # darker below
        self.canvas[:] = self.canvas * (1 - cover) + cover * lit

    def light(self, rgb, inverse_depth):
        """Time of day over a colour, then the air between."""
        tint = {"at dusk": (0.85, 0.58, 0.55), "at night": (0.36, 0.42, 0.66), "under clouds": (0.82, 0.84, 0.88)}
        lit = rgb * np.float32(tint.get(self.sky, (1, 1, 1)))
        fade = FOG * np.exp(-7.0 * np.asarray(inverse_depth, np.float32))[..., None]
        return (1 - fade) * lit + fade * self.air

    def row(self, inverse_depth):
        return self.horizon + inverse_depth * (SIDE - 1 - self.horizon)

    def heavenly(self, icon, side):
        """Sun or moon: no light falls on it, no depth."""
        rgb, alpha = placed(icon, side)
        x, y = self.rng.integers(4, SIDE - side - 4), self.rng.integers(2, max(3, self.horizon - side))
        over(self.canvas, rgb, alpha, int(y), int(x))
        self.cover(alpha, int(y), int(x))

    def cover(self, alpha, top, left):
        """-> the pixels the cut-out takes; they are no longer seen of what stands behind."""
        mask = np.zeros((SIDE, SIDE, 1), np.float32)
        over(mask, np.ones((*alpha.shape, 1), np.float32), alpha, top, left)
        mask = mask[..., 0] > 0.5
        for seen, _ in self.covered:
            seen &= ~mask
        self.covered.append((mask.copy(), (alpha > 0.5).sum()))
        return mask

    def all_seen(self, share=0.45):
        """Whether of each named thing at least this share is in the picture and not hidden."""
        return all(seen.sum() >= share * whole for seen, whole in self.covered)

    def ridge(self, rgb, height, roughness, inverse_depth, peaks=None):
        """A chain of hills or mountains with its foot at the given distance; snow on `peaks`."""
        rng, foot = self.rng, self.row(inverse_depth)
        line = sum(noise_field(rng, 2, SIDE, size)[0] * size for size in roughness)
        line = (line - line.min()) / (np.ptp(line) + 1e-6)
        top = foot - height * (0.35 + 0.65 * line)
        inside = (self.yy >= top[None]) & (self.yy <= foot + 1)
        slope = np.gradient(blur(line[None].astype(np.float32), 1.5)[0])
        shade = 1 - 9 * slope[None] * np.ones_like(self.yy) + 0.05 * noise_field(rng, SIDE, SIDE, 4)
        face = rgb * np.clip(shade, 0.6, 1.25)[..., None]
        if peaks is not None:
            snow = self.yy < foot - height * peaks + 2 * noise_field(rng, 2, SIDE, 3)[:1]
            face = np.where(snow[..., None], np.float32([0.95, 0.96, 1.0]) * np.clip(shade, 0.75, 1)[..., None], face)
        self.canvas[inside] = self.light(np.clip(face, 0, 1), np.full_like(self.yy, inverse_depth))[inside]
        self.depth[inside] = inverse_depth

    def flat(self, rgb, near=1.0, far=0.0, waves=False):
        """Ground or water between two inverse depths; its grain grows with nearness."""
        rng, d = self.rng, (self.yy - self.horizon) / (SIDE - 1 - self.horizon)
        shore = self.row(near) + (1.5 * noise_field(rng, 2, SIDE, 16)[:1] if near < 1 else 0)
        inside = (d >= far) & (d > 0) & (self.yy <= shore)
        if waves:
            crest = np.sin(14 / (d.clip(0.02) + 0.06) + 2.2 * noise_field(rng, SIDE, SIDE, 12))
            grain = 0.12 * crest * np.clip(3 * d, 0.15, 1) + 0.03 * noise_field(rng, SIDE, SIDE, 3)
            air = np.clip(1 - 1.5 * d, 0, 1)[..., None] * 0.35  # water mirrors the sky, most so far away
            face = (rgb * (1 - air) + self.air * air) * (1 + grain[..., None])
            self.canvas[inside] = (self.light(face, d.clip(0)) if self.sky != "at dusk" else face * 0.85)[inside]
        else:
            grain = noise_field(rng, SIDE, SIDE, 7) * 0.05 + noise_field(rng, SIDE, SIDE, 2) * 0.06 * d.clip(0, 1)
            self.canvas[inside] = self.light(rgb * (1 + grain[..., None]), d.clip(0))[inside]
        self.depth[inside] = d[inside]

    def stand(self, rgb, alpha, inverse_depth, x, afloat=False):
        """A cut-out with its foot on the ground at the given distance, its middle at column x."""
        h, w = alpha.shape
        foot, left = round(self.row(inverse_depth)), round(x - w / 2)
        if afloat:  # mirrored, not shadowed
            over(self.canvas, self.light(rgb[::-1][:h // 2], 1.0), 0.3 * alpha[::-1][:h // 2], foot, left)
        else:
            shadow = np.zeros((SIDE, SIDE), np.float32)
            cv2.ellipse(shadow, (round(x), foot), (max(2, w // 2), max(1, h // 14)), 0, 0, 360, 1.0, -1)
            self.canvas *= 1 - 0.35 * blur(shadow, 1.2)[..., None]
        over(self.canvas, self.light(rgb, np.full(alpha.shape, inverse_depth)), alpha, foot - h, left)
        self.depth[self.cover(alpha, foot - h, left)] = inverse_depth


def drawn_house(rng, night):
    """unit rgb and alpha [192,224] of a house seen from the corner: gable wall, lit side wall, roof, windows, door."""
    rgb, alpha = np.zeros((192, 224, 3), np.float32), np.zeros((192, 224), np.float32)
    wall, roof = colour(rng, (0.05, 0.5), (0.75, 1)), colour(rng, (0.4, 0.8), (0.35, 0.75))
    pane = np.float32([1, 0.85, 0.4]) * 2 if night else np.float32([0.35, 0.5, 0.65])  # bright enough to outshine the night

    def fill(points, tint):
        points = np.array(points, np.int32)
        cv2.fillPoly(rgb, [points], np.asarray(tint).tolist(), cv2.LINE_AA)
        cv2.fillPoly(alpha, [points], 1.0, cv2.LINE_AA)

    fill([(10, 190), (10, 95), (90, 95), (90, 190)], 0.78 * wall)
    fill([(10, 95), (50, 40), (90, 95)], 0.78 * wall)
    fill([(90, 190), (90, 95), (214, 95), (214, 190)], wall)
    if rng.random() < 0.7:
        fill([(150, 60), (150, 14), (170, 14), (170, 60)], 0.7 * roof)
    fill([(84, 98), (46, 34), (176, 34), (222, 98)], roof)
    fill([(2, 98), (46, 34), (56, 34), (14, 98)], 0.7 * roof)
    for x in (105, 180):
        fill([(x, 145), (x, 115), (x + 24, 115), (x + 24, 145)], pane)
    fill([(142, 190), (142, 135), (168, 135), (168, 190)], 0.6 * roof)
    fill([(38, 135), (38, 110), (62, 110), (62, 135)], pane)
    return rgb, alpha


def drawn_tree(rng):
    """unit rgb and alpha [200,160]: a trunk and a crown of round clumps, lit from the upper left."""
    rgb, alpha = np.zeros((200, 160, 3), np.float32), np.zeros((200, 160), np.float32)
    trunk, leaf = hsv(rng.uniform(18, 32), 0.55, 0.42), hsv(rng.uniform(80, 140), 0.65, rng.uniform(0.4, 0.65))
    points = np.array([(68, 199), (74, 100), (88, 100), (94, 199)], np.int32)
    for picture, tint in ((rgb, trunk.tolist()), (alpha, 1.0)):
        cv2.fillPoly(picture, [points], tint, cv2.LINE_AA)
    for step in range(26):  # from the shaded lower right to the lit upper left
        t = step / 25
        x = 80 + rng.normal(0, 24) + 14 * (0.5 - t)
        y = 75 + rng.normal(0, 22) + 18 * (0.5 - t)
        centre, radius = (round(x), round(y)), int(rng.integers(16, 28))
        cv2.circle(rgb, centre, radius, (leaf * (0.65 + 0.55 * t)).tolist(), -1, cv2.LINE_AA)
        cv2.circle(alpha, centre, radius, 1.0, -1, cv2.LINE_AA)
    return rgb, alpha


def cut_out(noun, icons, rng, height, night):
    """One thing at the wanted height in px: an icon, or for houses and trees half of the time drawn by code."""
    if noun in ("house", "tree") and rng.random() < 0.5:
        rgb, alpha = drawn_house(rng, night) if noun == "house" else drawn_tree(rng)
        width = max(1, round(alpha.shape[1] * height / alpha.shape[0]))
        rgb, alpha = (cv2.resize(p, (width, height), interpolation=cv2.INTER_AREA) for p in (rgb, alpha))
        if rng.random() < 0.5:
            rgb, alpha = rgb[:, ::-1], alpha[:, ::-1]
        return rgb / np.maximum(alpha, 1e-3)[..., None], alpha
    icon = icons[noun][rng.integers(len(icons[noun]))]
    longer = max(icon.shape[:2]) / icon.shape[0]
    return placed(icon, height * longer, 0, rng.random() < 0.5)


def listed(counts):
    """{"tree": 2, "house": 1} -> "two trees and a house"."""
    words = [a(noun) if n == 1 else f"{NUMBERS[n]} {PLURALS[noun]}" for noun, n in counts.items()]
    return words[0] if len(words) == 1 else " and ".join([", ".join(words[:-1]), words[-1]])


def chosen(rng, place):
    """Which things, and how many of each: one kind mostly, at times two or a plural."""
    names = list(AFLOAT) if place == "on the sea" else sorted(FIT[place])
    names = [str(n) for n in rng.choice(names, min(len(names), int(rng.choice([1, 2, 3], p=[0.5, 0.4, 0.1]))), replace=False)]
    return {n: int(rng.choice([1, 2, 3], p=[0.7, 0.2, 0.1])) if n in PLURALS and i == 0 else 1
            for i, n in enumerate(names)}


def scene(rng, icons):
    """picture uint8 [128,128,3], what it shows, inverse depth float16 [128,128]."""
    while True:
        s, words = composed(rng, icons)
        if s.all_seen():
            return to_bytes(s.canvas), words, s.depth.clip(0, 1).astype(np.float16)


def composed(rng, icons):
    place, back = str(rng.choice(list(GROUNDS))), str(rng.choice(["", "mountains", "hills"], p=[0.45, 0.28, 0.27]))
    sky = str(rng.choice(list(SKIES), p=list(SKIES.values())))
    s = Scene(rng, int(rng.integers(44, 74)), sky)
    above = ""
    if sky in ("at night", "at dusk", "under a blue sky") and rng.random() < 0.5:
        above = "moon" if sky == "at night" else "sun"
        s.heavenly(icons[above][rng.integers(len(icons[above]))], int(rng.integers(16, 28)))
    water = hsv(rng.uniform(195, 220), rng.uniform(0.5, 0.75), rng.uniform(0.55, 0.8))
    if back == "mountains":
        s.ridge(hsv(rng.uniform(200, 260), 0.22, rng.uniform(0.4, 0.6)), rng.uniform(26, min(48, s.horizon - 4)), (22, 9, 4),
                0.02, rng.uniform(0.55, 0.75) if rng.random() < 0.6 else None)
    elif back == "hills":
        green = hsv(rng.uniform(80, 140), 0.45, 0.5) if place != "in the desert" else hsv(30, 0.4, 0.7)
        s.ridge(green * 0.9, rng.uniform(12, 24), (40, 16), 0.02)
    if place == "on the sea":
        s.flat(water, waves=True)
    else:
        hues, saturation, value = GROUNDS[place]
        ground = hsv(rng.uniform(*hues), saturation * rng.uniform(0.8, 1.2), min(1, value * rng.uniform(0.85, 1.1)))
        shore = rng.uniform(0.2, 0.4) if place == "by the sea" else 0.0
        s.flat(ground)
        if shore:
            s.flat(water, near=shore, waves=True)
    counts = chosen(rng, place)
    nearest = []
    for noun, n in counts.items():
        height = (AFLOAT | STANDING)[noun]
        low, high = 36 / height, min(0.92, 88 / height)  # between 36 and 88 px high, about
        nearest += [(float(np.clip(rng.uniform(low, high), 0.08 if place != "by the sea" else 0.36, 0.92)), noun)
                    for _ in range(n)]
    columns = (np.arange(len(nearest)) + 0.5 + rng.uniform(-0.2, 0.2, len(nearest))) * (SIDE - 28) / len(nearest) + 14
    rng.shuffle(columns)
    for (d, noun), x in sorted(zip(nearest, columns)):
        height = int(np.clip(d * (AFLOAT | STANDING)[noun] * (SIDE - 1 - s.horizon) / 66, 14, 100))
        s.stand(*cut_out(noun, icons, rng, height, sky == "at night"), d, x, noun in AFLOAT)
    words = [listed(counts), place, f"in front of {back}" if back else "", sky,
             f"under the {above}" if above and sky != "under a blue sky" else "with the sun" if above else ""]
    return s, " ".join(w for w in words if w)
