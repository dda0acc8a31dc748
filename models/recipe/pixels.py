"""Small image operations the painterly renderers share. Pictures are uint8 RGB [H,W,3]; `unit` ones float32 in [0,1]."""
import cv2
import numpy as np


def to_unit(picture):
    return picture.astype(np.float32) / 255


def to_bytes(unit):
    return (np.clip(unit, 0, 1) * 255 + 0.5).astype(np.uint8)


def luma(unit):
    return unit @ np.array([0.299, 0.587, 0.114], np.float32)


def blur(a, sigma):
    return cv2.GaussianBlur(a, (0, 0), sigma)


def shrink(a, width, height):
    return cv2.resize(a, (width, height), interpolation=cv2.INTER_AREA)


def edge_direction(unit, sigma=2.0):
    """Angle along the edges (radians, [H,W]) from the smoothed structure tensor."""
    grey = luma(unit)
    gx, gy = cv2.Sobel(grey, cv2.CV_32F, 1, 0, 3), cv2.Sobel(grey, cv2.CV_32F, 0, 1, 3)
    xx, xy, yy = (blur(t, sigma) for t in (gx * gx, gx * gy, gy * gy))
    return 0.5 * np.arctan2(2 * xy, xx - yy) + np.pi / 2


def stretch(grey):
    """Contrast stretched between the 2nd and the 98th percentile, gamma that brings the median to 0.55."""
    low, high = np.percentile(grey, 2), np.percentile(grey, 98)
    grey = np.clip((grey - low) / (high - low + 1e-3), 0, 1)
    median = max(0.08, float(np.median(grey)))
    return (grey ** np.clip(np.log(0.55) / np.log(median), 0.35, 1.6)).astype(np.float32)


def kuwahara(picture, radius=4, sharpness=8, sectors=8):
    """Sectors round each pixel, averaged with weights that fall with their variance (generalised Kuwahara filter)."""
    unit = to_unit(picture)
    yy, xx = np.mgrid[-radius:radius + 1, -radius:radius + 1]
    angle, distance = np.arctan2(yy, xx), np.hypot(yy, xx)
    total, weights = np.zeros_like(unit), np.zeros((*unit.shape[:2], 1), np.float32)
    for k in range(sectors):
        off = np.abs((angle - 2 * np.pi * k / sectors + np.pi) % (2 * np.pi) - np.pi)
        inside = ((off <= np.pi / sectors * 1.3) | (distance == 0)) & (distance <= radius)
        kernel = (inside * np.exp(-(distance / radius) ** 2 * 1.2)).astype(np.float32)
        kernel /= kernel.sum()
        mean = cv2.filter2D(unit, -1, kernel)
        variance = (cv2.filter2D(unit * unit, -1, kernel) - mean * mean).sum(2, keepdims=True)
        weight = 1 / (1 + (255 * np.sqrt(np.maximum(variance, 0))) ** sharpness)
        total, weights = total + mean * weight, weights + weight
    return to_bytes(total / weights)


def dark_lines(grey, sigma=0.9, ratio=1.6):
    """Difference of Gaussians, soft threshold: 1 on paper, 0 on the line ([H,W])."""
    d = blur(grey, sigma) - 0.985 * blur(grey, sigma * ratio)
    spread = 0.012 + 0.35 * d.std()
    lines = np.where(d > -spread * 0.3, 1, 1 + np.tanh(9 * 0.35 * (d + spread * 0.3) / spread))
    return lines.clip(0, 1).astype(np.float32)


def clusters(picture, k, seed=0):
    """k-means in CIELAB -> labels [H,W], centres [k,3] in OpenCV's 8-bit LAB."""
    points = cv2.cvtColor(picture, cv2.COLOR_RGB2LAB).reshape(-1, 3).astype(np.float32)
    cv2.setRNGSeed(seed)
    _, labels, centres = cv2.kmeans(points, k, None, (3, 12, 1.0), 1, cv2.KMEANS_PP_CENTERS)
    return labels.reshape(picture.shape[:2]), centres


def flattened(picture, k, seed=0):
    """The picture in its own k colours."""
    labels, centres = clusters(picture, k, seed)
    return cv2.cvtColor(centres[labels].astype(np.uint8), cv2.COLOR_LAB2RGB)


def relief(picture, height=0.35, sigma=0.7):
    """Light from the upper left over the strokes' ridges, as thick paint shows it."""
    unit = to_unit(picture)
    grey = luma(unit)
    ridge = grey - blur(grey, sigma * 2.5)
    slope = cv2.Sobel(ridge, cv2.CV_32F, 1, 0, 3) + cv2.Sobel(ridge, cv2.CV_32F, 0, 1, 3)
    return to_bytes(unit + (slope * height)[..., None] * 0.5)


def noise_field(rng, height, width, size):
    """Smooth noise [H,W], unit variance at `size` pixels a grain."""
    grains = rng.normal(size=(max(2, int(height / size)), max(2, int(width / size)))).astype(np.float32)
    return cv2.resize(grains, (width, height), interpolation=cv2.INTER_CUBIC)


def recoloured(picture, hue=0.0, saturation=1.0, gamma=1.0, tint=None, tint_share=0.0):
    """Hue turned by `hue` degrees, saturation scaled, gamma, mixed with a tint."""
    hsv = cv2.cvtColor(to_unit(picture), cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0] + hue) % 360
    hsv[..., 1] = np.clip(hsv[..., 1] * saturation, 0, 1)
    unit = np.clip(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), 0, 1) ** gamma
    return to_bytes(unit if tint is None else (1 - tint_share) * unit + tint_share * np.asarray(tint, np.float32))
