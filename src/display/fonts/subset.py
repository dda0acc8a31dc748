"""Cuts Inter down to what the screen writes: Latin-1, Latin Extended-A, quotation marks, dashes and arrows, no hinting.

    npm pack inter-ui@4.1.1 && tar xzf inter-ui-4.1.1.tgz
    pip install fonttools==4.68.0 brotli
    python subset.py package/web .
"""

import sys
from pathlib import Path

from fontTools import subset
from fontTools.ttLib import TTFont

source, out = map(Path, sys.argv[1:])
WANTED = "U+0020-007E,U+00A0-017F,U+2010-2015,U+2018-201E,U+2022,U+2026,U+2030,U+2039,U+203A,U+20AC,U+2190-2193,U+2212"

for weight in ("Regular", "SemiBold"):
    font = TTFont(source / f"Inter-{weight}.woff2")
    options = subset.Options(hinting=False, layout_features=[], drop_tables=["GDEF", "GPOS", "GSUB"])
    subsetter = subset.Subsetter(options)
    subsetter.populate(unicodes=subset.parse_unicodes(WANTED))
    subsetter.subset(font)
    font.flavor = None
    font.save(out / f"Inter-{weight}.ttf")
