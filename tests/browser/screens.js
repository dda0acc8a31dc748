// Screenshots, kept in $OUT/screens and compared loosely with small references: size, life, colour and structure.
// UPDATE_REFERENCES=1 writes the references anew; look at them before they are committed.

import assert from "node:assert/strict";
import { access, mkdir, readFile, writeFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import { ROOT } from "./daemon.js";

const SCREENS = resolve(ROOT, process.env.OUT ?? "painted", "screens");
const REFERENCES = join(import.meta.dirname, "references");
/** Columns of the grid that pictures are compared on. */
const COLUMNS = 24;
/** Mean difference of colour, of 255: paintings of random networks and other fonts stay below, another page does not. */
export const COLOUR = 24;
/** Correlation of brightness over the grid, likewise. */
export const STRUCTURE = 0.7;
/** Standard deviation of brightness, of 255, below which a screen is blank. */
export const BLANK = 4;

/** Takes a screenshot and compares it with its reference. */
export async function screen(page, name) {
  await mkdir(SCREENS, { recursive: true });
  await page.evaluate(() => scrollTo(0, 0));
  const path = join(SCREENS, `${name}.png`);
  const png = await page.screenshot({ path, animations: "disabled" });
  const now = await grid(page, png);
  const reference = join(REFERENCES, `${name}.png`);
  if (process.env.UPDATE_REFERENCES) {
    await mkdir(REFERENCES, { recursive: true });
    return writeFile(reference, Buffer.from(now.small, "base64"));
  }
  await access(reference).catch(() => assert.fail(`there is no reference for ${name}; make it with UPDATE_REFERENCES=1`));
  const then = await grid(page, await readFile(reference));
  const unlike = differences(now, then);
  assert.deepEqual(unlike, [], `${name}: see ${path}`);
}

/** What is unlike between two grids; nothing for alike ones. */
export function differences(now, then) {
  const unlike = [];
  if (now.cells.length !== then.cells.length) return [`another shape: ${now.cells.length} cells, not ${then.cells.length}`];
  const light = (cells) => cells.map(([r, g, b]) => 0.3 * r + 0.6 * g + 0.1 * b);
  const [a, b] = [light(now.cells), light(then.cells)];
  if (!(deviation(a) >= BLANK)) unlike.push(`blank: its brightness varies by ${deviation(a)}`);
  const colour = mean(now.cells.map((cell, i) => mean(cell.map((value, channel) => Math.abs(value - then.cells[i][channel])))));
  if (!(colour <= COLOUR)) unlike.push(`other colours: ${colour} of 255 away`);
  const structure = correlation(a, b);
  if (!(structure >= STRUCTURE)) unlike.push(`another structure: correlation ${structure}`);
  return unlike;
}

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
const deviation = (values) => Math.sqrt(mean(values.map((value) => (value - mean(values)) ** 2)));

function correlation(a, b) {
  const [x, y] = [mean(a), mean(b)];
  return mean(a.map((value, i) => (value - x) * (b[i] - y))) / (deviation(a) * deviation(b));
}

/** A PNG on a coarse grid, and small, by the browser's own decoder. */
async function grid(page, png) {
  return page.evaluate(async ([base64, columns]) => {
    const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
    const picture = await createImageBitmap(new Blob([bytes], { type: "image/png" }));
    const rows = Math.round((columns * picture.height) / picture.width);
    const drawn = (width, height) => {
      const canvas = document.createElement("canvas");
      Object.assign(canvas, { width, height });
      const context = canvas.getContext("2d");
      context.imageSmoothingQuality = "high";
      context.drawImage(picture, 0, 0, width, height);
      return { canvas, context };
    };
    const data = drawn(columns, rows).context.getImageData(0, 0, columns, rows).data;
    const cells = Array.from({ length: columns * rows }, (_, i) => [...data.slice(4 * i, 4 * i + 3)]);
    const small = drawn(columns * 6, rows * 6).canvas.toDataURL("image/png").split(",")[1];
    return { cells, small };
  }, [png.toString("base64"), COLUMNS]);
}
