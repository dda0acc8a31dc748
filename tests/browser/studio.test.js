// The studio: words and photographs with every knob, mixes, and a style from the first picture to the kiosk's tile.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { ROOT, serve } from "./daemon.js";
import { screen } from "./screens.js";
import { accessible, browser, fits, LAPTOP, pictured, PORTRAIT, SMALL, visit } from "./visit.js";

const SAMPLES = join(ROOT, "models/atelier/samples");
const picture = (name) => join(SAMPLES, name);
const visible = { state: "visible" };

let chromium, daemon;
before(async () => {
  chromium = await browser();
  daemon = await serve("[painting]\npreview_every = 1\n[learning]\npreview_every = 4\nbatch = 1\n");
  await daemon.learned("Aurora", await readFile(picture("style/gcd_board3.jpg")));
  await daemon.learned("Nocturne", await readFile(picture("style/gc_6.jpg")));
});
after(async () => {
  await daemon.stop();
  await chromium.close();
});

const turn = (page, name, value) => page.getByRole("slider", { name, exact: true }).fill(String(value));

test("words are painted with every knob", async () => {
  const page = await visit(chromium, daemon, "/studio");
  await page.getByRole("checkbox", { name: "Aurora" }).check();
  await page.getByLabel("What to paint").fill("a lighthouse in the fog, {}");
  await page.getByLabel("Or words the model knows").fill("watercolor");
  await turn(page, "Style strength", 2);
  await turn(page, "Content strength", 1.5);
  await page.getByLabel("Width in pixels").fill("64");
  await page.getByLabel("Height in pixels").fill("64");
  await page.getByRole("button", { name: "Roll a seed" }).click();
  const rolled = await page.locator("#paint input[name=seed]").inputValue();
  assert.match(rolled, /^\d+$/);
  await page.locator("#more summary").click();
  await page.getByRole("spinbutton", { name: "Steps" }).fill("5");
  await page.getByLabel("Sampler").selectOption("euler");
  await turn(page, "Guidance", 3);
  await page.getByLabel("Form of the guidance").selectOption("half");
  await page.getByLabel("Keep away from").fill("fog");
  const asked = page.waitForRequest((request) => request.method() === "POST");
  await page.getByRole("button", { name: "Paint", exact: true }).click();
  assert.deepEqual((await asked).postDataJSON(), {
    style_strength: 2, content_strength: 1.5, size: "64x64", seed: Number(rolled), steps: 5, sampler: "euler", guidance: 3,
    guidance_form: "half", styles: [(await daemon.api("GET", "/styles")).styles.find(({ name }) => name === "Aurora").id, "watercolor"],
    prompt: "a lighthouse in the fog, {}", negative: "fog", origin: "studio", kept: true,
  });
  await page.getByText(`Done, with the seed ${rolled}.`).waitFor();
  await page.locator("#easel img").waitFor(visible);
  const download = page.waitForEvent("download");
  await page.getByRole("link", { name: "Download" }).first().click();
  const png = await readFile(await (await download).path());
  assert.ok(png.includes("parameters") && png.includes("a lighthouse in the fog"), "the file says how it was painted");
  await accessible(page, "studio");
  await page.leave();
});

test("a photograph is painted, compared, and taken back", async () => {
  const page = await visit(chromium, daemon, "/studio");
  await page.locator("#motif-file").setInputFiles(picture("content/mountain2.jpg"));
  await page.locator("#motif").waitFor(visible);
  await page.getByRole("checkbox", { name: "Nocturne" }).check();
  await turn(page, "How far from the photograph", 0.6);
  await turn(page, "Hold on to the edges", 0.5);
  await page.getByLabel("From photograph to noise").selectOption("noise");
  await page.locator("#more summary").click();
  await page.getByRole("spinbutton", { name: "Steps" }).fill("5");
  await page.locator("#paint input[name=seed]").fill("7");
  await page.getByRole("button", { name: "Paint", exact: true }).click();
  await page.getByRole("slider", { name: /Photograph or painting/ }).waitFor();
  await pictured(page);
  await screen(page, "studio-laptop");
  const { paintings: [{ recipe }] } = await daemon.api("GET", "/paintings");
  assert.equal(recipe.steps, 5);

  await page.getByRole("spinbutton", { name: "Steps" }).fill("900");
  await page.getByRole("button", { name: "Paint", exact: true }).click();
  await page.locator("#paint-progress").getByRole("button", { name: "Cancel" }).click();
  await page.getByText("Cancelled.").waitFor();

  await page.locator("#motif-file").setInputFiles({ name: "no.jpg", mimeType: "image/jpeg", buffer: Buffer.from("no picture") });
  await page.getByText("This file is not a picture that can be read.").waitFor();
  await page.getByRole("button", { name: "Reset" }).click();
  assert.equal(await page.getByRole("spinbutton", { name: "Steps" }).inputValue(), "");
  await page.leave();
});

test("what the daemon refuses is said in its words", async () => {
  const page = await visit(chromium, daemon, "/studio", { allowed: [/422/] });
  await page.getByRole("button", { name: "Paint", exact: true }).click();
  await page.locator("#paint-line").getByText(/nothing to paint/).waitFor();
  await page.leave();
});

test("styles are mixed stage by stage, looked at, and kept", async () => {
  const page = await visit(chromium, daemon, "/studio#mix");
  await page.locator("#mix-look img").waitFor(visible);
  const first = await page.locator("#mix-look img").getAttribute("src");
  await page.getByLabel("Structure from").selectOption({ label: "Nocturne" });
  await page.getByLabel("Brush from").selectOption({ label: "Aurora" });
  await page.getByLabel("Shaping stages").fill("2");
  await page.locator("#mix").getByLabel("Stage 1", { exact: true }).selectOption("off");
  await page.getByLabel("Stage 0: second style").selectOption({ label: "Nocturne" });
  await page.getByLabel(/Stage 0: share/).fill("60");
  await page.waitForFunction((before) => document.querySelector("#mix-look img")?.getAttribute("src") !== before, first);
  await page.getByText("Every change paints it anew.").waitFor();
  await accessible(page, "mix");
  await page.locator("#mix-name").fill("Dusk");
  await page.getByRole("button", { name: "Keep as a style" }).click();
  await page.getByText("Dusk can be painted with now.").waitFor();
  const { styles } = await daemon.api("GET", "/styles");
  const id = (name) => styles.find((style) => style.name === name).id;
  const [a, n] = [id("Aurora"), id("Nocturne")];
  assert.equal(styles.find(({ name }) => name === "Dusk").mix, `5="${n}" 4="${n}" 3="${n}" 2="${n}" 1=off 0="${a}"*0.60+"${n}"*0.40`);
  assert.ok((await daemon.api("GET", "/paintings")).paintings.every(({ prompt }) => !prompt.includes("village")), "looks are not kept");
  await page.getByRole("tab", { name: "Paint", exact: true }).click();
  await page.getByRole("checkbox", { name: "Dusk" }).waitFor();
  await page.leave();
});

test("a style is learned from pictures, kept, and a tile at the kiosk", async () => {
  const page = await visit(chromium, daemon, "/studio#learn");
  const kiosk = await visit(chromium, daemon, "/", { size: PORTRAIT });
  assert.equal(await page.getByRole("button", { name: "Learn", exact: true }).isDisabled(), true);
  await page.locator("#learn-files").setInputFiles([picture("style/gcd_board6.jpg"), picture("style/wp_Daffodils.jpg"), picture("style/gc_8.jpg")]);
  await page.getByRole("button", { name: /Remove gc_8/ }).click();
  await page.getByLabel("What picture 1 shows").fill("a forest");
  await page.getByLabel("What picture 2 shows").fill("{} of daffodils in a field");
  await accessible(page, "pictures to learn from");
  await fits(page, "pictures to learn from");
  await page.locator("#learn-more summary").click();
  await page.getByRole("spinbutton", { name: "Steps" }).fill("12");
  await page.getByRole("spinbutton", { name: "Stages" }).fill("6");
  await page.getByRole("spinbutton", { name: "Learning rate" }).fill("0.01");
  await page.getByLabel("First word").fill("painting");
  await page.getByRole("button", { name: "Learn", exact: true }).click();
  await page.locator("#learn-preview").waitFor(visible);
  await page.locator("#curve polyline.curve-mean").waitFor({ state: "attached" });
  await page.getByText("The style is learned. Keep it?").waitFor();
  assert.equal(await page.locator("#curve .curve-stage").count(), 6);
  await accessible(page, "learned");
  await screen(page, "learn-laptop");

  await page.locator(".verdict").getByLabel("Name").fill("Aurora");
  await page.locator(".verdict").getByLabel("Licence").fill("CC0-1.0");
  await page.route("**/api/v1/styles/*", (route) => route.continue());
  const line = page.locator(".verdict").getByRole("alert");
  page.removeAllListeners("console"); // the refusal of the name, which the browser tells there
  await page.getByRole("button", { name: "Keep", exact: true }).click();
  await line.getByText(/Aurora/).waitFor();
  await page.locator(".verdict").getByLabel("Name").fill("Spring");
  await page.getByRole("button", { name: "Keep", exact: true }).click();
  await page.locator(".verdict").waitFor({ state: "detached" });
  await kiosk.getByRole("radio", { name: "Spring" }).waitFor();
  const spring = (await daemon.api("GET", "/styles")).styles.find(({ name }) => name === "Spring");
  assert.deepEqual([spring.kept, spring.shown, spring.license, spring.stages], [true, true, "CC0-1.0", 6]);
  assert.deepEqual(spring.contexts, ["a forest, in the style of {}", "{} of daffodils in a field"]);

  const download = page.waitForEvent("download");
  await page.getByRole("link", { name: "Download the style Spring" }).click();
  const path = await (await download).path();
  await page.locator("#bring").setInputFiles({ name: "spring.safetensors", mimeType: "application/octet-stream", buffer: await readFile(path) });
  await page.getByText("Spring 2 is here now.").waitFor();
  await kiosk.getByRole("radio", { name: "Spring 2" }).waitFor();
  await kiosk.leave();
  await page.leave();
});

test("a style that nobody likes is thrown away", async () => {
  const form = new FormData();
  form.append("wish", JSON.stringify({ name: "Mistake", steps: 2, contexts: ["a tree"] }));
  form.append("image", new Blob([await readFile(picture("style/gc_6.jpg"))]), "image");
  await daemon.api("POST", "/styles", form);
  const page = await visit(chromium, daemon, "/studio#learn"); // a lesson that began before the page was opened
  await page.locator(".verdict").waitFor(visible);
  await page.getByRole("button", { name: "Throw away" }).click();
  await page.locator(".verdict").waitFor({ state: "detached" });
  assert.ok(!(await daemon.api("GET", "/styles")).styles.some(({ name }) => name === "Mistake"));
  await page.leave();
});

test("small, and in German", async () => {
  const page = await visit(chromium, daemon, "/studio?lang=de", { size: SMALL });
  for (const tab of ["Malen", "Stile mischen", "Stil lehren"]) {
    await page.getByRole("tab", { name: tab }).click();
    await fits(page, tab);
    await accessible(page, tab);
  }
  await page.keyboard.press("ArrowLeft");
  assert.equal(await page.getByRole("tab", { name: "Stile mischen" }).getAttribute("aria-selected"), "true");
  assert.equal(await page.getByRole("link", { name: "Galerie" }).getAttribute("href"), "/gallery?lang=de");
  await page.setViewportSize(LAPTOP);
  await fits(page, "laptop");
  await page.leave();
});
