"""The held-out inputs as small files: SAMPLES/content (photographs), SAMPLES/style (paintings and unseen renderings).

`held_out.py DATA PACK SAMPLES`; prints a table of what each file is, with its licence.
"""
import json
import os
import sys

import cv2

from painterly_held_out import HELD_OUT

PAINTINGS = ("aic_20556", "aic_61616", "ab_artic_9021", "ab_artic_8980", "ab_metmuseum_436535", "ab_nga_56662",
             "ab_artic_24645", "gc_6", "gc_8", "gcd_board6", "gcd_board7", "gcd_board3",
             "wp_roses-tremieres-hollyhocks-1884", "wp_Daffodils")
RENDERED = ("mountain2", "sea3")


def short(row):
    return os.path.basename(row["file"])[:-4].removeprefix("es_land_").removeprefix("gc_categorization_")


def middle(picture, side=256):
    h, w = picture.shape[:2]
    return cv2.resize(picture[:, (w - h) // 2:(w + h) // 2], (side, side), interpolation=cv2.INTER_AREA)


def main():
    data, pack, samples = sys.argv[1:4]
    with open(f"{data}/held_out.json") as f:
        held = json.load(f)
    for folder in ("content", "style"):
        os.makedirs(f"{samples}/{folder}", exist_ok=True)
    print("| file | what | licence |\n| --- | --- | --- |")
    photos = [r for r in held["photos"] if r["licence"].startswith("public-domain")]
    for row in photos:
        cv2.imwrite(f"{samples}/content/{short(row)}.jpg", cv2.imread(f"{pack}/{row['file']}"), [cv2.IMWRITE_JPEG_QUALITY, 90])
        print(f"| content/{short(row)}.jpg | photograph: {row['title']} | {row['licence']} |")
    for key in PAINTINGS:
        row = next(r for r in held["paintings"] if os.path.basename(r["file"])[:-4] == key)
        cv2.imwrite(f"{samples}/style/{key}.jpg", cv2.imread(f"{pack}/{row['file']}"), [cv2.IMWRITE_JPEG_QUALITY, 92])
        what = ", ".join(str(row[k]) for k in ("title", "artist", "date") if row.get(k))
        print(f"| style/{key}.jpg | {what} | {row['licence']} |")
    for style, render in HELD_OUT.items():
        for row in (r for r in photos if short(r) in RENDERED):
            name = f"style/render_{style}_{short(row)}.png"
            rgb = cv2.cvtColor(middle(cv2.imread(f"{pack}/{row['file']}")), cv2.COLOR_BGR2RGB)
            cv2.imwrite(f"{samples}/{name}", cv2.cvtColor(render(rgb, 1), cv2.COLOR_RGB2BGR))
            print(f"| {name} | held-out renderer `{style}` on content/{short(row)}.jpg | {row['licence']}, rendering CC0 |")


if __name__ == "__main__":
    main()
