"""Renderers that training never sees: they make the style pictures on which learning a new style is measured."""
import cv2
import numpy as np
from scipy.spatial import cKDTree

from painterly import Manner, strokes
from pixels import blur, clusters, dark_lines, kuwahara, luma, relief, shrink, stretch, to_bytes, to_unit

PRINT_COLOURS = np.array([
    [38, 52, 92], [62, 96, 140], [120, 160, 180], [190, 205, 200], [236, 224, 196], [222, 196, 150], [196, 150, 100],
    [168, 72, 50], [204, 104, 74], [92, 110, 70], [140, 150, 98], [46, 42, 44], [110, 84, 70], [228, 178, 170]])


def vangogh(picture, seed=0):
    """Long flowing strokes in heightened colour, thick paint."""
    hsv = cv2.cvtColor(picture, cv2.COLOR_RGB2HSV).astype(np.float32)
    hsv[..., 1] = np.clip(hsv[..., 1] * 1.5 + 18, 0, 255)
    vivid = cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB)
    return relief(strokes(vivid, Manner(seed=seed), (5, 3), 0.04, 12, 0.8, 0.11), 0.8)


def woodcut(picture, seed=0):
    """Black wavy lines whose breadth follows the tone."""
    h, w = picture.shape[:2]
    big = cv2.resize(to_unit(picture), None, fx=3, fy=3, interpolation=cv2.INTER_CUBIC)
    grey = stretch(blur(luma(big), 1.5))
    rows = np.mgrid[0:3 * h, 0:3 * w][0]
    line = 0.5 + 0.5 * np.sin((rows + 14 * grey) * 2 * np.pi / 9)
    share = np.minimum((line < grey * 1.25 - 0.12).astype(np.float32), dark_lines(grey, 2.0))
    share = shrink(share, w, h)[..., None]
    return to_bytes(share * np.array([0.96, 0.93, 0.85]) + (1 - share) * np.array([0.10, 0.08, 0.07]))


def ukiyoe(picture, seed=0):
    """Flat areas in the colours of a woodblock print, dark outlines, a darker top."""
    h, w = picture.shape[:2]
    lab = cv2.cvtColor(kuwahara(kuwahara(picture, 4), 3), cv2.COLOR_RGB2LAB)
    lab[..., 0] = to_bytes(0.12 + 0.88 * stretch(lab[..., 0] / 255.0))
    smooth = cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)
    labels, centres = clusters(smooth, 9, seed)
    inks = cv2.cvtColor(PRINT_COLOURS[None].astype(np.uint8), cv2.COLOR_RGB2LAB)[0].astype(np.float32)
    nearest = [int(np.argmin((((inks - c) * [1.2, 1, 1]) ** 2).sum(1))) for c in centres]
    flat = PRINT_COLOURS[nearest][labels] / 255
    top = np.clip(1 - 3 * np.linspace(0, 1, h), 0, 1)[:, None, None]
    flat = flat * (1 - 0.18 * top * np.array([1.6, 1.1, 0.3]))
    grain = np.random.default_rng(seed).normal(0, 0.015, (h, w))
    grain = cv2.GaussianBlur(grain, (0, 0), sigmaX=2.5, sigmaY=0.4)[..., None]
    lines = dark_lines(blur(luma(to_unit(smooth)), 0.6), 0.8)[..., None]
    return to_bytes((flat + grain) * (0.25 + 0.75 * lines))


def stained_glass(picture, seed=0, cell=9):
    """Cells of vivid glass between dark leads: a Voronoi diagram after three rounds of Lloyd's relaxation."""
    rng, scale = np.random.default_rng(seed), 3
    h, w = picture.shape[:2]
    n = int(h * w / cell ** 2)
    sites = np.stack([rng.uniform(0, h, n), rng.uniform(0, w, n)], 1)
    pixels = np.stack([a.ravel() for a in np.mgrid[0:h, 0:w]], 1)
    for _ in range(3):
        owner = cKDTree(sites).query(pixels)[1]
        count = np.bincount(owner, minlength=n) + 1e-6
        sites = np.stack([np.bincount(owner, pixels[:, k], n) / count for k in (0, 1)], 1)
    owner = cKDTree(sites).query(pixels)[1]
    count = np.bincount(owner, minlength=n) + 1e-6
    colour = np.stack([np.bincount(owner, to_unit(picture).reshape(-1, 3)[:, k], n) / count for k in range(3)], 1)
    hsv = cv2.cvtColor(colour[None].astype(np.float32), cv2.COLOR_RGB2HSV)
    hsv[..., 1], hsv[..., 2] = np.clip(hsv[..., 1] * 1.6 + 0.15, 0, 1), np.clip(hsv[..., 2] * 1.15 + 0.05, 0, 1)
    glass = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0]
    fine = np.stack([a.ravel() for a in np.mgrid[0:h * scale, 0:w * scale]], 1) / scale
    distance, nearest = cKDTree(sites).query(fine, k=2)
    to_lead = (distance[:, 1] - distance[:, 0]).reshape(h * scale, w * scale)
    out = glass[nearest[:, 0].reshape(h * scale, w * scale)] * (0.9 + 0.2 * np.clip(to_lead / 4, 0, 1))[..., None]
    out[to_lead < 0.9] = (0.06, 0.05, 0.06)
    return shrink(to_bytes(out), w, h)


HELD_OUT = {"vangogh": vangogh, "stained_glass": stained_glass, "ukiyoe": ukiyoe, "woodcut": woodcut}
