"""Painterly renderers with random parameters: (photograph, manner) -> picture. A style is a family, a manner a member.

`paint(name, picture, manner)` renders; `manner(rng)` draws one. One manner renders many photographs the same way: same
size and angle of stroke, same looseness, same palette and paper. The renderers kept from training are in
painterly_held_out.py.
"""
import math
from dataclasses import dataclass

import cv2
import numpy as np
from scipy.spatial import Delaunay

from pixels import (blur, clusters, dark_lines, edge_direction, flattened, kuwahara, luma, noise_field, recoloured,
                    relief, shrink, stretch, to_bytes, to_unit)


@dataclass(frozen=True)
class Manner:
    size: float = 1.0  # of strokes, dots, tiles, lines; 1 is the renderer's own
    angle: float = 0.0  # radians, added to hatching and to strokes of fixed direction
    loose: float = 1.0  # how far colour and place of a stroke stray
    hue: float = 0.0  # degrees
    saturation: float = 1.0
    gamma: float = 1.0
    tint: tuple = (1.0, 1.0, 1.0)
    tint_share: float = 0.0
    paper: tuple = (0.97, 0.95, 0.90)
    ink: tuple = (0.12, 0.10, 0.09)
    colours: int = 8
    seed: int = 0

    def words(self):
        """What the caption says of it (the palette is measured from the pixels instead)."""
        return (["fine"] if self.size < 0.8 else ["broad"] if self.size > 1.3 else []) + (
            ["loose"] if self.loose > 1.5 else [])


def manner(rng):
    """A random manner. A third of them keep the photograph's colours; a third of the papers are coloured."""
    hue, tinted = rng.random(), rng.random() < 0.35
    paper, ink = (0.97, 0.95, 0.90), (0.12, 0.10, 0.09)
    kind = rng.random()
    if kind < 0.25:  # coloured paper
        paper = tuple(cv2.cvtColor(np.float32([[[rng.uniform(0, 360), rng.uniform(0.1, 0.5), rng.uniform(0.75, 1)]]]),
                                   cv2.COLOR_HSV2RGB)[0, 0].tolist())
    if kind < 0.5:  # coloured ink
        ink = tuple(cv2.cvtColor(np.float32([[[rng.uniform(0, 360), rng.uniform(0.4, 1), rng.uniform(0.15, 0.5)]]]),
                                 cv2.COLOR_HSV2RGB)[0, 0].tolist())
    elif kind < 0.58:  # light on dark
        paper, ink = ink, paper
    return Manner(
        size=float(np.exp(rng.uniform(np.log(0.6), np.log(1.7)))), angle=float(rng.uniform(-np.pi / 2, np.pi / 2)),
        loose=float(rng.uniform(0.4, 2.2)),
        hue=0.0 if hue < 0.35 else float(rng.normal(0, 18)) if hue < 0.7 else float(rng.uniform(0, 360)),
        saturation=float(rng.uniform(0.5, 1.7)), gamma=float(np.exp(rng.uniform(-0.4, 0.4))),
        tint=tuple(rng.uniform(0, 1, 3).tolist()), tint_share=float(rng.uniform(0.08, 0.3)) if tinted else 0.0,
        paper=paper, ink=ink, colours=int(rng.integers(4, 12)), seed=int(rng.integers(1 << 30)))


def on_paper(share, m):
    """share [H,W] of paper (1) and ink (0) -> picture."""
    share = share[..., None]
    return to_bytes(share * np.array(m.paper) + (1 - share) * np.array(m.ink))


def stroke_path(x, y, radius, longest, bend, reference, now, along):
    """Points of one stroke: along the edge direction until the canvas is better than the stroke's colour would be.

    The arrays come as nested lists: on single values plain floats are ten times faster than numpy.
    """
    h, w, colour = len(reference), len(reference[0]), reference[y][x]
    px, py, dx, dy, points = float(x), float(y), 0.0, 0.0, [(float(x), float(y))]
    for i in range(longest):
        iy, ix = int(min(max(py, 0), h - 1)), int(min(max(px, 0), w - 1))
        if i > 1:
            here, painted = reference[iy][ix], now[iy][ix]
            if sum((a - b) ** 2 for a, b in zip(here, painted)) < sum((a - b) ** 2 for a, b in zip(here, colour)):
                break
        ex, ey = math.cos(along[iy][ix]), math.sin(along[iy][ix])
        if dx * ex + dy * ey < 0:
            ex, ey = -ex, -ey
        dx, dy = bend * ex + (1 - bend) * dx, bend * ey + (1 - bend) * dy
        length = math.hypot(dx, dy) + 1e-6
        dx, dy = dx / length, dy / length
        px, py = px + radius * dx, py + radius * dy
        points.append((px, py))
    return points


def stroke_starts(wrong, step, threshold, everywhere):
    """The worst pixel of every step x step block whose mean error is above the threshold."""
    h, w = wrong.shape
    starts = []
    for y in range(0, h, step):
        for x in range(0, w, step):
            block = wrong[y:y + step, x:x + step]
            if everywhere or block.mean() > threshold:
                j = int(block.argmax())
                starts.append((y + j // block.shape[1], x + j % block.shape[1]))
    return starts


def strokes(picture, m, radii, threshold=0.05, longest=8, bend=1.0, stray=0.06, direction=None, ground=None):
    """Curved brush strokes from coarse to fine along the edges (after Hertzmann 1998), or in one fixed direction."""
    unit, rng = to_unit(picture), np.random.default_rng(m.seed)
    h, w = unit.shape[:2]
    canvas = np.full((2 * h, 2 * w, 3), to_bytes(np.array(m.paper if ground is None else ground)), np.uint8)
    radii = [max(1.2, r * m.size) for r in radii]
    for n, radius in enumerate(radii):
        reference = blur(unit, max(0.6, radius * 0.5))
        along = edge_direction(reference, max(1.0, radius * 0.6)) if direction is None else np.full((h, w), direction)
        now = to_unit(shrink(canvas, w, h))
        starts = stroke_starts(np.linalg.norm(now - reference, axis=2), max(2, int(radius)), threshold, n == 0)
        rng.shuffle(starts)
        strayed = m.loose * stray * (0.6 * rng.normal(size=(len(starts), 3)) + rng.normal(size=(len(starts), 1)))
        lists = reference.tolist(), now.tolist(), along.tolist()
        for (y, x), off in zip(starts, strayed):
            points = np.array(stroke_path(x, y, radius, longest, bend, *lists))
            colour = (255 * np.clip(reference[y, x] + off, 0, 1)).tolist()
            fixed_point = (points * 32).astype(np.int32).reshape(-1, 1, 2)  # twice the size, 4 bits of fraction
            cv2.polylines(canvas, [fixed_point], False, colour, max(1, int(radius * 2)), cv2.LINE_AA, 4)
    return shrink(canvas, w, h)


def oil(picture, m):
    return relief(strokes(picture, m, (7, 3.5, 2), 0.05, 8, 1, 0.05), 0.3 + 0.3 * m.loose)


def soft_oil(picture, m):
    return kuwahara(kuwahara(picture, max(2, round(4 * m.size))), max(2, round(3 * m.size)))


def impressionist(picture, m):
    return strokes(to_bytes(0.85 * to_unit(picture) + 0.14), m, (6, 4, 3), 0.05, 4, 1, 0.10)


def pointillism(picture, m):
    unit, rng, scale = to_unit(picture), np.random.default_rng(m.seed), 3
    h, w = unit.shape[:2]
    canvas = np.full((h * scale, w * scale, 3), to_bytes(np.array(m.paper)), np.uint8)
    pitch = 2 * max(0.8, m.size)
    ys, xs = np.mgrid[0:h:pitch, 0:w:pitch]
    points = np.stack([ys.ravel(), xs.ravel()], 1) + rng.uniform(-1, 1, (ys.size, 2))
    points = np.concatenate([points, points + rng.uniform(-1.5, 1.5, points.shape)])
    rng.shuffle(points)
    iy, ix = points[:, 0].clip(0, h - 1).astype(int), points[:, 1].clip(0, w - 1).astype(int)
    hsv = cv2.cvtColor(unit, cv2.COLOR_RGB2HSV)[iy, ix]
    n = len(points)
    opposite = 180 * (rng.random(n) < 0.05 * m.loose)  # a few dots in the complementary colour
    hsv[:, 0] = (hsv[:, 0] + rng.normal(0, 16 * m.loose, n) + opposite) % 360
    hsv[:, 1] = np.clip(hsv[:, 1] * 1.35 + 0.12, 0, 1)
    hsv[:, 2] = np.clip(hsv[:, 2] + rng.normal(0, 0.09, n), 0, 1)
    colours = (cv2.cvtColor(hsv[None].astype(np.float32), cv2.COLOR_HSV2RGB)[0] * 255).tolist()
    radii = (scale * pitch * rng.uniform(0.55, 0.9, n)).astype(int).tolist()
    for (y, x), colour, radius in zip(points * scale, colours, radii):
        cv2.circle(canvas, (int(x), int(y)), radius, colour, -1, cv2.LINE_AA)
    return shrink(canvas, w, h)


def watercolor(picture, m):
    rng, unit = np.random.default_rng(m.seed), to_unit(kuwahara(picture, 4))
    h, w = unit.shape[:2]
    yy, xx = np.mgrid[0:h, 0:w].astype(np.float32)
    wobble = 1.6 * m.size
    unit = cv2.remap(unit, xx + wobble * noise_field(rng, h, w, 9), yy + wobble * noise_field(rng, h, w, 9),
                     cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    flat = to_unit(flattened(to_bytes(unit), 8 + m.colours // 2, m.seed))
    unit = 0.45 * unit + 0.55 * blur(flat, 0.7)
    edge = cv2.magnitude(cv2.Sobel(luma(unit), cv2.CV_32F, 1, 0), cv2.Sobel(luma(unit), cv2.CV_32F, 0, 1))
    grain = 0.10 * noise_field(rng, h, w, 14 * m.size) + 0.05 * noise_field(rng, h, w, 5) + 0.06 * noise_field(rng, h, w, 1.3)
    pigment = m.loose * grain + 0.9 * np.clip(edge, 0, 0.5)  # pools at the edges of a wash
    thin = 1 - (1 - unit) * 0.82
    out = thin - (thin - thin * thin) * pigment[..., None] * 1.6
    return to_bytes(out * (0.6 + 0.4 * np.array(m.paper)))


def pastel(picture, m):
    unit = to_unit(strokes(picture, m, (5, 3), 0.06, 6, 1, 0.07, direction=2.2 + m.angle))
    rng = np.random.default_rng(m.seed)
    grain = blur(rng.random(unit.shape[:2]).astype(np.float32), 0.5)
    grain = (grain - grain.mean()) / grain.std()
    cover = np.clip(0.86 + 0.16 * grain, 0, 1)[..., None]
    return to_bytes((0.9 * unit + 0.08) * cover + (1 - cover) * 0.65 * np.array(m.paper))


def ink_wash(picture, m):
    plain = Manner(size=m.size, loose=m.loose, seed=m.seed)
    grey = stretch(luma(to_unit(watercolor(picture, plain)))) ** 0.7
    lines = dark_lines(luma(to_unit(kuwahara(picture, 3))), 1.0 * m.size)
    return on_paper(np.minimum(grey, 0.2 + 0.8 * lines), m)


def engraving(picture, m):
    h, w = picture.shape[:2]
    big = cv2.resize(to_unit(picture), None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)
    grey = stretch(blur(luma(big), 2))
    yy, xx = np.mgrid[0:4 * h, 0:4 * w]
    out, period = np.ones((4 * h, 4 * w), np.float32), 10 * m.size
    for angle, tone in ((0.25, 0.95), (-0.55, 0.6), (1.3, 0.33)):
        angle += m.angle
        wave = 0.5 + 0.5 * np.sin((xx * np.sin(angle) + yy * np.cos(angle) + 10 * m.loose * grey) * 2 * np.pi / period)
        out *= np.where(wave > np.clip(1 - (tone - grey) * 1.1, 0, 1), 0, 1)
    out = np.minimum(out, dark_lines(grey, 1.8))
    return on_paper(shrink(blur(out, 0.8), w, h), m)


def pencil_sketch(picture, m):
    rng, grey = np.random.default_rng(m.seed), luma(to_unit(picture))
    h, w = grey.shape
    dodged = np.clip(grey / (1 - blur(1 - grey, 4 * m.size) + 1e-3), 0, 1)
    length = 15
    stroke = cv2.warpAffine(np.eye(length, dtype=np.float32) / length,
                            cv2.getRotationMatrix2D((7, 7), float(np.degrees(m.angle)), 1), (length, length))
    grain = shrink(cv2.filter2D(rng.random((2 * h, 2 * w)).astype(np.float32), -1, stroke), w, h)
    grain = (grain - grain.mean()) / grain.std() * 0.16 * m.loose
    return on_paper(np.clip(0.82 * dodged + 0.18 * grey + grain * (1 - grey) * 0.9, 0, 1) ** 1.15, m)


def mosaic(picture, m):
    rng, scale, tile = np.random.default_rng(m.seed), 3, 5 * max(0.8, m.size)
    h, w = picture.shape[:2]
    canvas = np.full((h * scale, w * scale, 3), to_bytes(0.78 * np.array(m.paper)), np.uint8)
    reference, along = blur(picture, 1), edge_direction(to_unit(picture), 4)
    for y in np.arange(tile / 2, h + tile, tile):
        for x in np.arange(tile / 2, w + tile, tile):
            iy, ix = min(int(y), h - 1), min(int(x), w - 1)
            colour = np.clip(reference[iy, ix] * 1.08 + rng.normal(0, 7 * m.loose, 3), 0, 255).tolist()
            angle = np.degrees(along[iy, ix]) + rng.normal(0, 6 * m.loose)
            centre, side = (x * scale + rng.normal(), y * scale + rng.normal()), (tile - 0.9) * scale
            corners = cv2.boxPoints((centre, (side, side), float(angle))).astype(np.int32)
            cv2.fillConvexPoly(canvas, corners, colour, cv2.LINE_AA)
    return shrink(canvas, w, h)


def halftone(picture, m):
    h, w = picture.shape[:2]
    scale, period = 4, 4.2 * 4 * max(0.8, m.size)
    big = cv2.resize(to_unit(picture), (w * scale, h * scale), interpolation=cv2.INTER_LINEAR)
    ink = 1 - big
    black = ink.min(2) * 0.6
    yy, xx = np.mgrid[0:h * scale, 0:w * scale]

    def screen(degrees):
        a = np.radians(degrees) + m.angle
        u, v = (xx * np.cos(a) + yy * np.sin(a)), (-xx * np.sin(a) + yy * np.cos(a))
        return (np.cos(u * 2 * np.pi / period) + np.cos(v * 2 * np.pi / period)) / 4 + 0.5

    out = np.broadcast_to(np.array(m.paper), big.shape).copy()
    for channel, (colour, degrees) in enumerate((((0, 0.68, 0.94), 15), ((0.93, 0, 0.55), 75), ((1, 0.95, 0), 0))):
        dot = screen(degrees) > 1 - np.clip(ink[..., channel] - black * 0.5, 0, 1) ** 0.9
        out = np.where(dot[..., None], out * np.array(colour), out)
    return shrink(to_bytes(np.where((screen(45) > 1 - black)[..., None], out * 0.12, out)), w, h)


def cartoon(picture, m):
    smooth = picture
    for _ in range(3):
        smooth = cv2.bilateralFilter(smooth, 7, 40, 5)
    hsv, levels = cv2.cvtColor(smooth, cv2.COLOR_RGB2HSV).astype(np.float32), 2.4 + 0.4 * m.colours
    hsv[..., 2] = 255 * (np.round(stretch(hsv[..., 2] / 255) * levels) / levels)
    hsv[..., 1] = np.clip(hsv[..., 1] * 1.35, 0, 255)
    flat = cv2.medianBlur(cv2.cvtColor(np.clip(hsv, 0, 255).astype(np.uint8), cv2.COLOR_HSV2RGB), 3)
    lines = dark_lines(blur(luma(to_unit(smooth)), 0.5), 0.8 * m.size)[..., None]
    return to_bytes(to_unit(flat) * lines + (1 - lines) * np.array(m.ink) * 0.5)


def pixel_art(picture, m):
    h, w = picture.shape[:2]
    side = int(np.clip(round(4 * m.size), 2, 7))
    return cv2.resize(flattened(shrink(picture, w // side, h // side), 4 + m.colours, m.seed), (w, h),
                      interpolation=cv2.INTER_NEAREST)


def poster_palette(k, m):
    """k colours from ink to paper by way of random ones; the standard manner has fixed ones."""
    if m == Manner():
        return np.array([[20, 30, 60], [180, 40, 50], [230, 110, 60], [245, 190, 110], [250, 235, 200]])[:k] / 255
    rng = np.random.default_rng(m.seed)
    hues = rng.uniform(0, 360) + rng.uniform(20, 140) * np.arange(k)
    hsv = np.stack([hues % 360, rng.uniform(0.3, 0.9, k), np.linspace(0.2, 1, k)], 1).astype(np.float32)
    palette = cv2.cvtColor(hsv[None], cv2.COLOR_HSV2RGB)[0]
    palette[0], palette[-1] = m.ink, m.paper
    return palette if luma(palette[0]) <= luma(palette[-1]) else palette[::-1]


def poster(picture, m):
    """The picture's clusters in order of lightness, printed in a few colours."""
    k = 3 + m.colours // 4
    labels, centres = clusters(kuwahara(picture, max(2, round(3 * m.size))), k, m.seed)
    rank = np.argsort(np.argsort(centres[:, 0]))
    return to_bytes(poster_palette(k, m)[rank[labels]])


def gouache(picture, m):
    flat = flattened(kuwahara(picture, max(3, round(4 * m.size))), 4 + m.colours, m.seed)
    grain = noise_field(np.random.default_rng(m.seed), *picture.shape[:2], 3 * m.size)
    return to_bytes(to_unit(blur(flat, 0.6)) + 0.02 * m.loose * grain[..., None])


def low_poly(picture, m):
    """Flat triangles between points that gather at the edges."""
    rng, scale = np.random.default_rng(m.seed), 3
    h, w = picture.shape[:2]
    grey = blur(luma(to_unit(picture)), 1)
    edge = cv2.magnitude(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1)) + 0.05
    n = int(h * w / (90 * m.size ** 2))
    at = rng.choice(h * w, n, replace=False, p=(edge / edge.sum()).ravel())
    border = [(x, y) for x in (-1, w // 2, w) for y in (-1, h // 2, h)]
    points = np.concatenate([np.stack([at % w, at // w], 1), border]).astype(np.float64)
    canvas, reference = np.zeros((h * scale, w * scale, 3), np.uint8), blur(picture, 1.5)
    for triangle in points[Delaunay(points + rng.normal(0, 0.01, points.shape)).simplices]:
        x, y = triangle.mean(0)
        colour = np.clip(reference[int(np.clip(y, 0, h - 1)), int(np.clip(x, 0, w - 1))] + rng.normal(0, 4 * m.loose), 0, 255)
        cv2.fillConvexPoly(canvas, (triangle * scale).astype(np.int32), colour.tolist(), cv2.LINE_AA)
    return shrink(canvas, w, h)


def chalk(picture, m):
    """Light strokes on dark coloured paper: what is bright is rubbed in, the rest is paper."""
    rng, unit = np.random.default_rng(m.seed), to_unit(picture)
    h, w = unit.shape[:2]
    ground = np.minimum(np.array(m.ink), 0.35)
    drawn = to_unit(strokes(picture, m, (4, 2.5), 0.06, 7, 1, 0.06, direction=m.angle, ground=ground))
    grain = noise_field(rng, h, w, 1.2)
    cover = np.clip(1.5 * stretch(luma(unit)) - 0.35 + 0.22 * m.loose * grain, 0, 1)[..., None]
    return to_bytes(cover * (0.8 * drawn + 0.2) + (1 - cover) * ground)


RENDERERS = {
    "oil": oil, "soft oil": soft_oil, "impressionist": impressionist, "pointillism": pointillism,
    "watercolor": watercolor, "pastel": pastel, "ink wash": ink_wash, "engraving": engraving,
    "pencil sketch": pencil_sketch, "mosaic": mosaic, "halftone": halftone, "cartoon": cartoon,
    "pixel art": pixel_art, "poster": poster, "gouache": gouache, "low poly": low_poly, "chalk": chalk,
}


def paint(name, picture, m):
    """The photograph, recoloured to the manner's palette, painted by the renderer."""
    recolour = recoloured(picture, m.hue, m.saturation, m.gamma, m.tint, m.tint_share)
    return RENDERERS[name](recolour, m)
