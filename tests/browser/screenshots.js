// The README's screenshots: a kiosk as visitors find it and leave it, the studio, the gallery.

import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { ROOT, serve } from "./daemon.js";
import { browser, pictured, PORTRAIT, visit } from "./visit.js";

const CONTENT = join(ROOT, "models/atelier/samples/content");
const DOCS = join(ROOT, "docs");
const DESK = { width: 1440, height: 900 };
const CONFIG = `
[camera]
source = "folder:${CONTENT}"
[camera.frames]
crop = { left = 0.25, top = 0.0, width = 0.5, height = 1.0 }
folder_seconds = 2.0
[painting]
preview_every = 2
[painting.wish]
size = "256"
strength = 0.6
guidance = 2.0
[kiosk]
title = "Become a painting"
countdown_seconds = 1
public_url = "http://192.168.1.20:7860"
print = ["true"]
`;
const chromium = await browser();
const daemon = await serve(CONFIG);
try {
  const { styles } = await daemon.api("GET", "/styles");
  await hang(styles);
  await kiosk();
  await studio(styles[1].id);
  await gallery();
} finally {
  await daemon.stop();
  await chromium.close();
}

/** Every style paints some of what the camera sees. */
async function hang(styles) {
  for (let i = 0; i < 8; i++) {
    await daemon.painted({ styles: [styles[i % styles.length].id], camera: true, seed: i, origin: "kiosk" });
  }
}

async function kiosk() {
  const page = await visit(chromium, daemon, "/", { size: PORTRAIT });
  await page.locator("#shutter:enabled").waitFor();
  await page.locator(".tile img").nth(2).waitFor();
  await page.locator(".tile").nth(1).click();
  await still(page);
  const start = await page.screenshot();
  await page.locator("#shutter").click();
  await page.locator("#retake").waitFor({ timeout: 300_000 });
  await page.locator(".compare-range").fill("42");
  await still(page);
  await keep(page, "kiosk", [start, await page.screenshot()], 540);
  await page.leave();
}

async function studio(style) {
  const page = await visit(chromium, daemon, "/studio", { size: DESK });
  await page.locator("#motif-file").setInputFiles(join(CONTENT, "mountain2.jpg"));
  await page.locator(`.chip input[value="${style}"]`).check();
  await page.getByRole("slider", { name: "How far from the photograph" }).fill("0.6");
  await page.locator("#paint input[name=seed]").fill("3");
  await page.getByRole("button", { name: "Paint", exact: true }).click();
  await page.locator(".compare-range").waitFor({ timeout: 300_000 });
  await page.locator(".compare-range").fill("30");
  await still(page);
  await keep(page, "studio", [await page.screenshot()], 1080);
  await page.leave();
}

async function gallery() {
  const page = await visit(chromium, daemon, "/gallery", { size: DESK });
  await page.locator("#wall li").nth(7).waitFor();
  await still(page);
  await keep(page, "gallery", [await page.screenshot()], 1080);
  await page.leave();
}

async function still(page) {
  await page.evaluate(() => scrollTo(0, 0));
  await pictured(page);
  await page.waitForTimeout(500);
}

/** Side by side, each `width` pixels wide, as docs/NAME.jpg. */
async function keep(page, name, pngs, width) {
  const jpeg = await page.evaluate(async ([pngs, width]) => {
    const picture = (base64) => createImageBitmap(new Blob([Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0))]));
    const decoded = await Promise.all(pngs.map(picture));
    const gap = pngs.length > 1 ? 16 : 0;
    const height = Math.round((width * decoded[0].height) / decoded[0].width);
    const canvas = Object.assign(document.createElement("canvas"), { width: pngs.length * width + (pngs.length - 1) * gap, height });
    const context = canvas.getContext("2d");
    context.fillStyle = "#fff";
    context.fillRect(0, 0, canvas.width, height);
    context.imageSmoothingQuality = "high";
    decoded.forEach((picture, i) => context.drawImage(picture, i * (width + gap), 0, width, height));
    return canvas.toDataURL("image/jpeg", 0.78).split(",")[1];
  }, [pngs.map((png) => png.toString("base64")), width]);
  await writeFile(join(DOCS, `${name}.jpg`), Buffer.from(jpeg, "base64"));
}
