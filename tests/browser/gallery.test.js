// Gallery and admin.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { ROOT, serve } from "./daemon.js";
import { screen } from "./screens.js";
import { accessible, browser, fits, LAPTOP, pictured, PORTRAIT, SMALL, visit } from "./visit.js";

const SAMPLES = join(ROOT, "models/atelier/samples");
/** More than a page of the gallery. */
const MANY = 30;
const visible = { state: "visible" };

let chromium, daemon;
before(async () => {
  chromium = await browser();
  daemon = await serve(`[camera]\nsource = "folder:${join(SAMPLES, "content")}"\nothers = ["folder:${join(SAMPLES, "style")}"]\n[kiosk]\nslide_seconds = 1\n[queue]\npaintings = 64\n[security]\nrequests_per_minute = 1000\n`);
  await daemon.learned("Aurora", await readFile(join(SAMPLES, "style/gcd_board3.jpg")));
  await daemon.painted({ styles: ["Aurora"], steps: 2, camera: true, strength: 0.5 });
  for (let seed = 0; seed < MANY; seed++) {
    await daemon.painted({ prompt: seed % 2 ? "a church" : "a harbour", styles: seed < 2 ? ["Aurora"] : [], steps: 1, size: "64", seed });
  }
});
after(async () => {
  await daemon.stop();
  await chromium.close();
});

describe("gallery", () => {
  const hanging = (page) => page.locator("#wall li").count();

  test("hangs everything as one scrolls, by style and by words", async () => {
    const page = await visit(chromium, daemon, "/gallery", { size: SMALL });
    await page.locator("#wall li").first().waitFor();
    await fits(page, "gallery");
    for (let i = 0; i < 20 && (await hanging(page)) <= MANY; i++) {
      await page.mouse.wheel(0, 3000);
      await page.waitForTimeout(100);
    }
    assert.equal(await hanging(page), MANY + 1);
    await page.locator("#style").selectOption("Aurora");
    await page.waitForFunction(() => document.querySelectorAll("#wall li").length === 3);
    await page.getByLabel("Words of the prompt").fill("church");
    await page.waitForFunction(() => document.querySelectorAll("#wall li").length === 1);
    await page.getByLabel("Words of the prompt").fill("nothing of the kind");
    await page.getByText("No painting hangs here yet.").waitFor();
    await page.leave();
  });

  test("shows one large, compares, downloads with what it is made of, deletes", async () => {
    const page = await visit(chromium, daemon, "/gallery", { size: LAPTOP });
    await page.locator("#style").selectOption("Aurora");
    await page.waitForFunction(() => document.querySelectorAll("#wall li").length === 3);
    await pictured(page);
    await accessible(page, "gallery");
    await page.locator("#wall button").last().click();
    await page.getByRole("slider", { name: /Photograph or painting/ }).waitFor();
    await page.getByText("How it was painted").click();
    await accessible(page, "large");
    const download = page.waitForEvent("download");
    await page.getByRole("link", { name: "Download" }).click();
    const png = await readFile(await (await download).path());
    assert.ok(png.includes("parameters") && png.includes("pleinair"));
    await page.getByRole("button", { name: "Newer" }).click();
    await page.locator("#large .compare").waitFor({ state: "detached" });
    page.on("dialog", (dialog) => dialog.accept());
    await page.getByRole("button", { name: "Delete" }).click();
    await page.locator("#large").waitFor({ state: "hidden" });
    assert.equal(await hanging(page), 2);
    assert.equal((await daemon.api("GET", "/paintings?style=Aurora")).paintings.length, 2);
    await page.leave();
  });

  test("hangs what is new, shows a slideshow, and cannot take pictures", async () => {
    const page = await visit(chromium, daemon, "/gallery", { size: PORTRAIT });
    await page.locator("#wall li").first().waitFor();
    const { id } = await daemon.painted({ prompt: "a new moon", steps: 1, size: "64" });
    await page.locator(`#wall li:first-child[data-painting="${id}"]`).waitFor();
    await pictured(page);
    await screen(page, "gallery-portrait");
    const words = await page.locator("body").textContent();
    assert.ok(!/camera|shutter/i.test(words));
    await page.getByRole("button", { name: "Slideshow" }).click();
    await page.locator(".slide.shown").first().waitFor(visible);
    await page.keyboard.press("Escape");
    await page.locator("#show").waitFor({ state: "hidden" });
    await page.leave();
  });
});

describe("admin", () => {
  test("shows how everything is, in German too", async () => {
    for (const [path, health] of [["/admin", "Painter: fine"], ["/admin?lang=de", "Maler: in Ordnung"]]) {
      const page = await visit(chromium, daemon, path);
      await page.getByText(health).waitFor();
      await page.waitForFunction(() => document.getElementById("live").naturalWidth > 0);
      await page.locator("#log").getByText("kind=Painting").waitFor();
      await page.locator("#machine dd").first().waitFor();
      await accessible(page, path);
      await fits(page, path);
      if (path === "/admin") await screen(page, "admin-laptop");
      await page.setViewportSize(SMALL);
      await fits(page, `${path}, small`);
      await page.leave();
    }
  });

  test("cancels a job, renames, hides and deletes a style, presses the shutter", async () => {
    const page = await visit(chromium, daemon, "/admin");
    const { id } = await daemon.api("POST", "/paintings", { prompt: "the sea", steps: 900, size: "192" });
    await page.locator(`[data-job="${id}"] button`).click();
    await page.locator(`[data-job="${id}"]`).getByText("cancelled").waitFor();
    assert.equal((await daemon.api("GET", `/jobs/${id}`)).state, "cancelled");

    const style = async () => (await daemon.api("GET", "/styles")).styles.find((style) => style.source === "learned");
    await page.getByLabel("Name of Aurora").fill("Polar light");
    await page.keyboard.press("Tab");
    await page.getByLabel("Name of Polar light").waitFor();
    await page.getByLabel("Visitors may choose Polar light").uncheck();
    await page.waitForTimeout(300);
    assert.deepEqual([(await style()).name, (await style()).shown], ["Polar light", false]);
    const kiosk = await visit(chromium, daemon, "/", { size: SMALL });
    await kiosk.locator("#shutter:enabled").waitFor();
    assert.equal(await kiosk.getByRole("radio", { name: "Polar light" }).count(), 0);
    await daemon.heard(2); // the kiosk listens a moment after its shutter can be pressed
    await page.getByRole("button", { name: "Press the shutter" }).click();
    await kiosk.locator("#count").getByText(/[123]/).waitFor();
    await kiosk.keyboard.press("Escape");
    await kiosk.leave();

    page.on("dialog", (dialog) => dialog.accept());
    await page.getByRole("button", { name: "Delete Polar light" }).click();
    await page.getByLabel("Name of Polar light").waitFor({ state: "detached" });
    assert.equal(await style(), undefined);
    await page.leave();
  });
});

describe("choosing a camera", () => {
  test("the admin chooses, the kiosk begins anew", async () => {
    const page = await visit(chromium, daemon, "/admin");
    const kiosk = await visit(chromium, daemon, "/", { size: SMALL });
    await kiosk.locator("#shutter:enabled").waitFor();
    const choice = page.getByLabel("Look through");
    assert.deepEqual(await choice.locator("option").allTextContents().then((all) => all.map((text) => text.split("/").at(-1)).slice(0, 2)), ["content", "style"]);
    for (const name of ["browser", `folder:${join(SAMPLES, "style")}`, `folder:${join(SAMPLES, "content")}`]) {
      await daemon.heard(2);
      const renewed = kiosk.waitForEvent("load");
      await choice.selectOption(name);
      await renewed;
      await kiosk.locator("#shutter:enabled").waitFor(); // Chromium's own pretended camera serves as well
      await page.locator("#camera").getByText(name, { exact: true }).waitFor();
      await page.locator("#live").waitFor({ state: name === "browser" ? "hidden" : "visible" });
    }
    await kiosk.leave();
    await page.leave();
  });
});

describe("with tokens", () => {
  let guarded, tokens;
  before(async () => {
    guarded = await serve("[security]\nalways = true\n");
    const text = await readFile(join(guarded.data, "data/tokens.toml"), "utf8");
    tokens = Object.fromEntries([...text.matchAll(/^(\w+) = "(\w+)"/gm)].map(([, role, token]) => [role, token]));
  });
  after(() => guarded.stop());

  test("the gallery's role looks, and can do nothing else", async () => {
    const page = await visit(chromium, guarded, `/pair?token=${tokens.gallery}`, { allowed: [/403/] });
    await page.getByText("No painting hangs here yet.").waitFor();
    assert.ok(page.url().endsWith("/gallery"), "the token is gone from the address");
    assert.equal(await page.locator("#delete").evaluate((button) => button.hidden), true);
    await page.goto(`${guarded.url}/`);
    await page.getByRole("heading", { name: "This device is paired for something else" }).waitFor();
    await accessible(page, "not for this device");
    await page.leave();
  });

  test("an admin sees the codes that pair others", async () => {
    const page = await visit(chromium, guarded, `/pair?token=${tokens.admin}`);
    await page.getByRole("img", { name: /pairs a device as Kiosk/ }).waitFor();
    assert.equal(await page.locator("#pairing svg").count(), 3);
    assert.ok(!(await page.content()).includes(tokens.kiosk), "no token is written out");
    await accessible(page, "pairing");
    await page.leave();
  });

  test("a stranger is told how to get in", async () => {
    const page = await visit(chromium, guarded, "/studio", { allowed: [/401/] });
    await page.getByRole("heading", { name: "This device is not paired yet" }).waitFor();
    await page.leave();
  });
});
