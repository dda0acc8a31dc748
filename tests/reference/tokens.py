"""Makes tests/fixtures/tokens.json: token ids by transformers' CLIPTokenizer for the default model's tokenizer.

    python tests/reference/tokens.py models/atelier/tokenizer

Versions: transformers 5.23.0, tokenizers 0.23.3.
`<0>` and `<1>` in a text stand for learned styles, added to the table as textual inversion does; in the ids they are -1
and -2. Every text is tokenised from tokenizer.json and from vocab.json + merges.txt, which must agree; once more
with `!` for padding, as SD 2 has it (`bang`).
"""
import json
import shutil
import sys
import tempfile
from pathlib import Path

from transformers import CLIPTokenizer

TEXTS = [
    "",
    " ",
    "a",
    "a painting in the style of <0>",
    "a photo of a house by the sea",
    "A Photo  of\ta HOUSE\nby the   sea ",
    "it's, we're they've I'm she'll he'd don't rock'n'roll 'tis O'SHEA",
    "1234 3.14 2nd ½ ² Ⅷ ٣ 五",
    "naïve café déjà-vu",
    "cafe\u0301 nai\u0308ve A\u030a",
    "Straße İstanbul ΣΑΣ ΟΔΥΣΣΕΥΣ ǅ ﬁne",
    "日本の浮世絵、葛飾北斎",
    "живопись маслом",
    "لوحة زيتية",
    "हिन्दी चित्र",
    "a 🎨 of 👩‍🎨🏽 and 🇫🇷 ❤️",
    "!!! wow!? (((nested))) [brackets] {braces} <tag> a|b a_b a-b a/b a\\b #1 @x 50% $5 ~^`",
    "hello!world! ! !!",
    "\u00a0no\u00a0break\u2003em\u200bzero\ufeffbom\u3000wide",
    "\x00\x01\x7f control \ufffd",
    "<|startoftext|> inside <|endoftext|> text<|endoftext|>",
    "<|StartOfText|> <|ENDOFTEXT|>",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "x" * 300,
    "a painting of " + ", ".join(["a very long list of things"] * 20),
    "word " * 75,
    "word " * 76,
    "a painting of <0>",
    "a painting of<0>and more",
    "<0>",
    "<0> first",
    "a house, in the style of <0> and <1>, at night",
    "a house, in the style of <0><1>",
    "<0>'s brush, don<1>'t",
    "the <0>\u0301 mark and É<1>é",
    "  <0>  blanks \t<1>\n",
    "5<0>5 !<1>!",
    "word " * 74 + "<0>",
    "word " * 75 + "<0>",
    "word " * 73 + "<0> <1> tail",
    "word " * 74 + "<0> <1> tail",
]
STYLES = ["<pleinair-style-0>", "<pleinair-style-1>"]


def opened(folder):
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    assert tokenizer.add_tokens(STYLES) == len(STYLES)
    return tokenizer


def encoded(tokenizer, text):
    for i, style in enumerate(STYLES):
        text = text.replace(f"<{i}>", style)
    places = {tokenizer.convert_tokens_to_ids(style): -1 - i for i, style in enumerate(STYLES)}
    ids = tokenizer(text, padding="max_length", truncation=True, max_length=77).input_ids
    whole = tokenizer(text).input_ids
    return {"ids": [places.get(i, i) for i in ids], "dropped": max(0, len(whole) - 77)}


folder = Path(sys.argv[1])
with tempfile.TemporaryDirectory() as parts, tempfile.TemporaryDirectory() as bang:
    for name in ["vocab.json", "merges.txt", "tokenizer_config.json"]:
        shutil.copy(folder / name, parts)
        shutil.copy(folder / name, bang)
    # The configuration keeps <|endoftext|>, the map says "!": the older kind of folder, in which the map has the last word.
    Path(bang, "special_tokens_map.json").write_text(json.dumps({"pad_token": "!"}))
    from_whole, from_parts, with_bang = opened(folder), opened(parts), opened(bang)
    assert with_bang.pad_token_id == 0, with_bang.pad_token

cases = []
for text in TEXTS:
    case = {"text": text} | encoded(from_whole, text)
    assert encoded(from_parts, text) == encoded(from_whole, text), text
    case["bang"] = encoded(with_bang, text)
    cases.append(case)
lines = ",\n".join(json.dumps(case) for case in cases)
Path(__file__).parent.parent.joinpath("fixtures", "tokens.json").write_text(f"[\n{lines}\n]\n")
