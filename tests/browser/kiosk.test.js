// Whole rounds at the kiosk, as visitors have them.

import assert from "node:assert/strict";
import { cp, mkdir, mkdtemp, readFile, rename, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { ROOT, serve } from "./daemon.js";
import { screen } from "./screens.js";
import { accessible, browser, fits, focused, pictured, PORTRAIT, SMALL, visit } from "./visit.js";

const SAMPLES = join(ROOT, "models/atelier/samples");
const WISH = "[painting]\npreview_every = 1\n[painting.wish]\nsteps = 4\nseed = 7\nguidance = 2.0\n";
const PUBLIC = 'public_url = "http://192.0.2.1:7860"\n';
const visible = { state: "visible" };

let chromium;
before(async () => (chromium = await browser()));
after(() => chromium.close());

/** Notes in the page's `seen` which of these parts are shown from now on: a small model paints faster than a test looks. */
const watched = (page, ...parts) =>
  page.evaluate((parts) => {
    window.seen = new Set();
    const look = () => parts.filter((part) => document.querySelector(part).checkVisibility()).forEach((part) => window.seen.add(part));
    new MutationObserver(look).observe(document.body, { subtree: true, attributes: true, childList: true });
  }, parts);

const teach = async (daemon) => {
  await daemon.learned("Aurora", await readFile(join(SAMPLES, "style/gcd_board3.jpg")));
  await daemon.learned("Nocturne", await readFile(join(SAMPLES, "style/gc_6.jpg")));
};

describe("with the browser's camera", () => {
  let daemon, printer;
  before(async () => {
    printer = await mkdtemp(join(tmpdir(), "pleinair-printer-"));
    const print = `print = ["touch", "${join(printer, "printed")}"]\n`;
    daemon = await serve(`${WISH}[kiosk]\ntitle = "Become a painting"\ncountdown_seconds = 2\ntimeout_seconds = 30\nidle_seconds = 0\n${PUBLIC}${print}`);
    await teach(daemon);
  });
  after(async () => {
    await daemon.stop();
    await rm(printer, { recursive: true });
  });

  test("a whole round with touch, in portrait", async () => {
    const page = await visit(chromium, daemon, "/", { size: PORTRAIT, touch: true });
    await page.getByRole("radio", { name: "Nocturne" }).waitFor();
    await page.waitForFunction(() => document.querySelector("video").videoWidth > 0);
    assert.equal(await page.locator("video").evaluate((video) => getComputedStyle(video).scale), "-1 1", "the live view is mirrored");
    await page.getByRole("radio", { name: "Nocturne" }).tap();
    await pictured(page);
    await accessible(page, "start");
    await fits(page, "start");
    await screen(page, "kiosk-start-portrait");

    await watched(page, "#progress", "#photograph");
    await page.getByRole("button", { name: "Take the picture" }).tap();
    await page.locator("#count").getByText("2").waitFor();
    await page.getByRole("button", { name: "Once more" }).waitFor(visible);
    assert.deepEqual(await page.evaluate(() => [...window.seen].sort()), ["#photograph", "#progress"], "shown while it was painted");
    assert.equal(await page.locator("#label .label-title").textContent(), "In the style “Nocturne”");
    await page.waitForFunction(() => document.getElementById("qr").naturalWidth > 100);
    await accessible(page, "result");
    await fits(page, "result");

    const slider = page.getByRole("slider", { name: /Photograph or painting/ });
    const edge = () => page.locator(".compare-before").evaluate((image) => getComputedStyle(image).clipPath);
    const painting = await edge();
    await slider.focus();
    for (let i = 0; i < 30; i++) await page.keyboard.press("ArrowRight");
    assert.notEqual(await edge(), painting);
    await screen(page, "kiosk-result-portrait");

    await page.getByRole("button", { name: "Print" }).tap();
    await page.getByText("It is being printed.").waitFor();
    await readFile(join(printer, "printed"));

    await page.getByRole("button", { name: "Once more" }).tap();
    await page.locator("#count").waitFor(visible);
    await page.getByRole("button", { name: "Once more" }).waitFor(visible);
    await page.getByRole("button", { name: "Done" }).tap();
    await page.locator("#shutter").waitFor(visible);
    await page.leave();

    const { paintings } = await daemon.api("GET", "/paintings");
    assert.equal(paintings.length, 2);
    assert.deepEqual(paintings.map(({ styles, origin, has_content: content }) => [styles, origin, content]), Array(2).fill([["Nocturne"], "kiosk", true]));
  });

  test("a round with keys alone, on a small screen", async () => {
    const page = await visit(chromium, daemon, "/", { size: SMALL });
    const chosen = () => page.locator(".tile[aria-checked=true]").textContent();
    await page.locator("#shutter:enabled").waitFor();
    const first = await chosen();
    await page.keyboard.press("ArrowRight");
    const second = await chosen();
    assert.notEqual(second, first);
    await page.keyboard.press("ArrowLeft");
    assert.equal(await chosen(), first);
    await page.keyboard.press("ArrowDown");
    assert.equal(await chosen(), second);
    await pictured(page);
    await fits(page, "start");
    await screen(page, "kiosk-start-small");

    await page.keyboard.press("Space");
    await page.locator("#count").getByText("2").waitFor();
    await page.keyboard.press("Escape");
    await page.locator("#shutter").waitFor(visible);
    assert.equal(await page.locator("#count").textContent(), "");

    await page.keyboard.press("Enter");
    await page.locator("#retake").waitFor(visible);
    assert.equal(await focused(page), "retake");
    await accessible(page, "result, small");
    await fits(page, "result, small");
    await page.keyboard.press("Shift+Tab");
    await page.keyboard.press("End");
    assert.equal(await page.locator(".compare-range").inputValue(), "100");
    await page.keyboard.press("Escape");
    await page.locator("#shutter").waitFor(visible);
    await page.leave();
  });

  test("a visitor who goes takes the painting back", async () => {
    const page = await visit(chromium, daemon, "/", { size: SMALL });
    const before = (await daemon.api("GET", "/paintings")).paintings.length;
    const ordered = page.waitForResponse((answer) => answer.url().endsWith("/paintings") && answer.request().method() === "POST");
    // held back until the visitor has pressed Escape
    let go;
    const held = new Promise((done) => (go = done));
    await page.route("**/api/v1/paintings", async (route) => {
      await held;
      await route.continue();
    });
    await page.locator("#shutter:enabled").click();
    await page.locator("#cancel").waitFor(visible);
    await page.keyboard.press("Escape");
    await page.locator("#shutter").waitFor(visible);
    const cancelled = page.waitForRequest((request) => request.method() === "DELETE");
    go();
    const { id } = await (await ordered).json();
    assert.ok((await cancelled).url().endsWith(id));
    await page.waitForTimeout(300);
    const after = await daemon.api("GET", "/paintings");
    assert.ok(after.paintings.length <= before + 1, "at most what was finished before the order came back");
    await page.leave();
  });

  test("a full queue is said, the photograph kept, and tried again", async () => {
    const page = await visit(chromium, daemon, "/", { size: SMALL, allowed: [/503/] });
    let refusals = 0;
    await page.route("**/api/v1/paintings", (route) => {
      if (route.request().method() !== "POST" || refusals++) return route.continue();
      return route.fulfill({ status: 503, headers: { "retry-after": "90" }, json: { error: "there is a queue already" } });
    });
    await page.locator("#shutter:enabled").click();
    await page.getByRole("heading", { name: "So many visitors" }).waitFor();
    await page.getByText("in about 2 minutes").waitFor();
    await page.locator("#photograph").waitFor(visible);
    await accessible(page, "full");
    await fits(page, "full");
    await page.getByRole("button", { name: "Try again" }).click();
    await page.locator("#retake").waitFor(visible);
    await page.leave();
  });

  test("the link of the code shows the painting to a phone, and nobody else's", async () => {
    const [{ id }] = (await daemon.api("GET", "/paintings")).paintings;
    const { share_url: link } = await daemon.api("GET", `/paintings/${id}`);
    const phone = await visit(chromium, daemon, new URL(link).pathname + new URL(link).search, { size: { width: 390, height: 844 }, allowed: [/404/] });
    await phone.waitForFunction(() => document.images[0].naturalWidth > 0);
    await accessible(phone, "phone");
    await fits(phone, "phone");
    const download = phone.waitForEvent("download");
    await phone.getByText("Save").click();
    assert.match((await download).suggestedFilename(), /^pleinair-.*\.png$/);
    await phone.leave();
  });

  test("in German, every text", async () => {
    const page = await visit(chromium, daemon, "/?lang=de", { size: PORTRAIT });
    await page.getByText("Wählen Sie einen Stil und drücken Sie den Knopf.").waitFor();
    assert.equal(await page.locator("html").getAttribute("lang"), "de");
    const german = JSON.parse(await readFile(join(ROOT, "src/strings/de.json")));
    const unlike = await page.evaluate((texts) => [...document.querySelectorAll("[data-say]")].filter((element) => element.textContent !== texts[element.dataset.say]).map((element) => element.dataset.say), german);
    assert.deepEqual(unlike, []);
    await accessible(page, "German");
    await page.leave();
  });
});

describe("with the machine's camera", () => {
  let daemon, folder;
  before(async () => {
    folder = join(await mkdtemp(join(tmpdir(), "pleinair-camera-")), "stills");
    await mkdir(folder);
    await cp(join(SAMPLES, "content/mountain2.jpg"), join(folder, "mountain.jpg"));
    daemon = await serve(`language = "de"\n[camera]\nsource = "folder:${folder}"\n[camera.frames]\nfolder_seconds = 0.5\n${WISH}[kiosk]\ncountdown_seconds = 1\ntimeout_seconds = 3\nidle_seconds = 2\nslide_seconds = 1\n`);
    await teach(daemon);
  });
  after(async () => {
    await daemon.stop();
    await rm(join(folder, ".."), { recursive: true, force: true });
  });

  test("a round that another device begins, the time-out, the slideshow", async () => {
    const page = await visit(chromium, daemon, "/?lang=en", { size: SMALL });
    await page.waitForFunction(() => document.querySelector("img.live")?.naturalWidth > 0);
    await page.locator("#shutter:enabled").waitFor();
    await daemon.api("POST", "/shutter");
    await page.locator("#count").getByText("1").waitFor();
    await page.locator("#retake").waitFor(visible);
    const shape = await page.locator(".compare img").first().evaluate((image) => image.naturalWidth / image.naturalHeight);
    const easel = await page.locator("#sight").evaluate((sight) => sight.clientWidth / sight.clientHeight);
    assert.ok(Math.abs(shape - easel) < 0.1, `the easel has the painting's shape, ${shape}: ${easel}`);
    await page.getByText(/Back to the start in \d s/).waitFor();
    await page.locator("#shutter").waitFor(visible);
    await page.locator("#slides .slide.shown img").first().waitFor(visible);
    await page.waitForTimeout(1200);
    await accessible(page, "slideshow");
    await page.keyboard.press("a");
    await page.locator("#shutter").waitFor(visible);
    await page.leave();
  });

  test("a lost camera is said, and found again", async () => {
    const page = await visit(chromium, daemon, "/", { size: SMALL, allowed: [/503/] });
    await page.locator("#shutter:enabled").waitFor();
    await daemon.heard(1); // the page listens a moment after its shutter can be pressed
    await rename(folder, `${folder}-away`);
    await page.getByRole("heading", { name: "Die Kamera ist nicht da" }).waitFor();
    await page.locator("#shutter:disabled").waitFor();
    await accessible(page, "no camera");
    await rename(`${folder}-away`, folder);
    await page.locator("#shutter:enabled").waitFor();
    await page.leave();
  });
});
