// The comparison of screenshots can fail.

import assert from "node:assert/strict";
import { test } from "node:test";
import { differences } from "./screens.js";

const picture = (colour) => ({ cells: Array.from({ length: 24 * 24 }, (_, i) => colour(i % 24, Math.floor(i / 24))) });
const page = picture((x, y) => (x > 4 && x < 14 && y > 5 ? [240, 235, 220] : [20, 30, 28]));

test("a screen is like itself, and like itself with other details", () => {
  assert.deepEqual(differences(page, page), []);
  const other = picture((x, y) => (x > 4 && x < 14 && y > 5 ? [240, 235 - 9 * (x % 4), 220 - 12 * (y % 3)] : [20, 30, 28]));
  assert.deepEqual(differences(other, page), []);
});

test("a blank, a recoloured, a rearranged and a cut screen are not", () => {
  const blank = picture(() => [20, 30, 28]);
  assert.match(differences(blank, page).join(), /blank/);
  assert.match(differences(picture(() => [NaN, NaN, NaN]), page).join(), /blank.*colours.*structure/);
  const warm = { cells: page.cells.map(([r, g, b]) => [Math.min(255, r + 90), g + 15, Math.max(0, b - 80)]) };
  assert.match(differences(warm, page).join(), /colours/);
  const turned = { cells: page.cells.map((_, i) => page.cells[(i % 24) * 24 + Math.floor(i / 24)]) };
  assert.match(differences(turned, page).join(), /structure/);
  assert.match(differences({ cells: page.cells.slice(24) }, page).join(), /shape/);
});
