// The studio's finer knobs: strengths by stage, several ControlNets and what they saw, the fine points of a lesson.

import assert from "node:assert/strict";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { ROOT, serve, withCanny } from "./daemon.js";
import { accessible, browser, fits, LAPTOP, pictured, SMALL, visit } from "./visit.js";

const SAMPLES = join(ROOT, "models/atelier/samples");
const picture = (name) => join(SAMPLES, name);

let chromium, daemon, folder;
before(async () => {
  chromium = await browser();
  folder = await mkdtemp(join(tmpdir(), "pleinair-model-"));
  daemon = await serve("[painting.wish]\nsteps = 6\n[learning]\nbatch = 1\npreview_every = 4\n", await withCanny(join(folder, "model")));
  const style = await readFile(picture("style/gcd_board3.jpg"));
  await daemon.learned("Aurora", style);
  await daemon.learned("Triptych", style, { stages: 3 });
});
after(async () => {
  await daemon?.stop();
  await chromium.close();
  await rm(folder, { recursive: true, force: true });
});

const turn = (page, name, value) => page.getByRole("slider", { name, exact: true }).fill(String(value));
/** What a form that is sent has as its wish. */
const wishOf = (request) => {
  const [, json] = request.postDataBuffer().toString("latin1").match(/name="wish"\r\n\r\n(.*?)\r\n--/s);
  return JSON.parse(Buffer.from(json, "latin1").toString());
};
const posted = (page) => page.waitForRequest((request) => request.method() === "POST");
const paint = (page) => page.getByRole("button", { name: "Paint", exact: true }).click();

test("strengths are turned stage by stage, by keyboard too", async () => {
  const page = await visit(chromium, daemon, "/studio");
  const column = (stage) => page.getByRole("slider", { name: `Style strength, stage ${stage}`, exact: true });
  await page.getByLabel("What to paint").fill("a lighthouse");
  assert.equal(await column(5).isVisible(), false, "the row is behind its disclosure");
  await page.locator("#by-stage summary").focus();
  await page.keyboard.press("Enter");
  await turn(page, "Style strength", 2);
  assert.equal(await column(0).inputValue(), "2", "the row follows the slider");
  await page.keyboard.press("Tab");
  await column(5).focus();
  await page.keyboard.press("ArrowUp");
  await page.keyboard.press("Tab");
  assert.equal(await page.evaluate(() => document.activeElement.getAttribute("aria-label")), "Style strength, stage 4");
  await page.keyboard.press("Home");
  await turn(page, "Content strength, stage 0", 1);
  await accessible(page, "stage by stage");
  await page.locator("#by-stage").scrollIntoViewIfNeeded();
  let asked = posted(page);
  await paint(page);
  let wish = (await asked).postDataJSON();
  assert.deepEqual([wish.style_strength, wish.content_strength], ["5=2.5,4=0,3..0=2", "5..1=0,0=1"]);
  await page.getByText(/^Done/).waitFor();
  const [painting] = (await daemon.api("GET", "/paintings")).paintings;
  assert.deepEqual([painting.recipe.guidance.style, painting.recipe.guidance.content], ["5=2.5,4=0,3..0=2", "5..1=0,0=1"]);

  // a style of three stages has three sliders; what was turned of six no longer counts
  await page.getByRole("checkbox", { name: "Triptych" }).check();
  assert.equal(await page.getByRole("slider", { name: /^Style strength, stage/ }).count(), 3);
  await column(2).fill("1.5");
  await column(1).fill("1.5");
  await column(0).fill("1.5");
  asked = posted(page);
  await paint(page);
  wish = (await asked).postDataJSON();
  assert.deepEqual([wish.style_strength, wish.content_strength], [1.5, undefined]);
  await page.getByText(/^Done/).waitFor();

  await turn(page, "Style strength", 3);
  assert.equal(await column(2).inputValue(), "3", "the slider counts again");
  await page.getByRole("button", { name: "Reset" }).click();
  await page.waitForFunction(() => document.querySelectorAll("#rows .equalizer:first-child input").length === 6);
  for (const slider of [column(5), page.getByRole("slider", { name: "Style strength", exact: true })]) assert.equal(await slider.inputValue(), "0");
  await page.leave();
});

test("each ControlNet has a slider, and what it saw is kept with the painting", async () => {
  const page = await visit(chromium, daemon, "/studio");
  await page.locator("#motif-file").setInputFiles(picture("content/mountain2.jpg"));
  await page.getByRole("checkbox", { name: "Aurora" }).check();
  await turn(page, "Hold on to sharp edges", 0.4);
  await page.getByRole("checkbox", { name: "Keep the control picture" }).check();
  const asked = posted(page);
  await paint(page);
  const wish = wishOf(await asked);
  assert.deepEqual([wish.control_scale, wish.save_control], [{ "soft-edge": 0.8, canny: 0.4 }, true]);
  await page.getByText(/^Done/).waitFor();
  await pictured(page);
  const download = page.waitForEvent("download");
  await page.locator("#paint-after").getByRole("link", { name: "Sharp edges" }).click();
  const edges = await readFile(await (await download).path());
  const [painting] = (await daemon.api("GET", "/paintings")).paintings;
  assert.deepEqual(painting.controls, ["soft-edge", "canny"]);
  assert.ok(edges.equals(await daemon.api("GET", `/paintings/${painting.id}/control.png?kind=canny`)));
  await accessible(page, "control pictures");

  // words alone hold on to nothing
  await page.getByRole("button", { name: "Without a picture" }).click();
  const words = posted(page);
  await paint(page);
  const plain = await words;
  assert.equal(plain.postDataJSON().save_control, undefined);
  const { id } = await (await plain.response()).json();
  await page.locator(`#paint-save[href*="${id}"]`).waitFor();
  assert.equal(await page.locator("#paint-controls a").count(), 0);
  await page.leave();

  const gallery = await visit(chromium, daemon, "/gallery");
  const open = async (id) => {
    await gallery.locator(`[data-painting="${id}"]`).click();
    await gallery.locator("#large").waitFor({ state: "visible" });
  };
  await open(painting.id);
  const saved = gallery.waitForEvent("download");
  await gallery.locator("#large").getByRole("link", { name: "Soft edges" }).click();
  assert.match((await saved).suggestedFilename(), /softedge\.png$/);
  await accessible(gallery, "gallery with control pictures");
  await gallery.getByRole("button", { name: "Close" }).click();
  await open(id);
  assert.equal(await gallery.locator("#controls a").count(), 0, "that one held on to nothing");
  await gallery.leave();
});

test("the fine points of a lesson are sent, and the style is tried on the way", async () => {
  const page = await visit(chromium, daemon, "/studio#learn");
  await page.locator("#learn-files").setInputFiles(picture("style/gcd_board6.jpg"));
  await page.getByLabel("What picture 1 shows").fill("a forest");
  await page.locator("#learn-more summary").click();
  await page.getByRole("spinbutton", { name: "Steps", exact: true }).fill("12");
  await page.getByRole("spinbutton", { name: "Stages" }).fill("4");
  assert.equal(await page.getByRole("spinbutton", { name: "Vectors of a stage" }).isVisible(), false);
  await page.locator("#learn-fine summary").click();
  const stages = page.getByRole("group", { name: "Stages that learn" }).getByRole("checkbox");
  assert.equal(await stages.count(), 4);
  await page.getByRole("group", { name: "Stages that learn" }).getByRole("checkbox", { name: "Stage 2" }).focus();
  await page.keyboard.press("Space");
  await page.getByLabel("Learning rate of each stage").fill("3=0.01,1..0=0.02");
  await page.getByRole("spinbutton", { name: "Vectors of a stage" }).fill("2");
  await page.getByRole("spinbutton", { name: "Batches in a step" }).fill("2");
  await page.getByRole("spinbutton", { name: "Min-SNR weighting" }).fill("5");
  await page.getByRole("spinbutton", { name: "Stop early" }).fill("9");
  await page.locator("#learn-try summary").click();
  await page.getByLabel("Descriptions to paint").fill("a boat, {}\n\n  a hill ");
  await page.getByRole("spinbutton", { name: "Steps between two looks" }).fill("4");
  await page.locator("#try-files").setInputFiles([picture("content/mountain2.jpg"), picture("content/fields0.jpg")]);
  await page.getByRole("button", { name: "Remove fields0.jpg" }).click();
  await accessible(page, "fine tuning");
  await fits(page, "fine tuning");

  const asked = posted(page);
  await page.getByRole("button", { name: "Learn", exact: true }).click();
  const request = await asked;
  const wish = wishOf(request);
  delete wish.contexts;
  assert.deepEqual(wish, {
    steps: 12, stages: 4, learn_stages: "3,1..0", stage_lr: "3=0.01,1..0=0.02", vectors_per_stage: 2, accumulate: 2, min_snr: 5,
    early_stop: 9, validate_every: 4, validate_prompts: ["a boat, {}", "a hill"],
  });
  assert.equal(request.postDataBuffer().toString("latin1").match(/name="validate_image"/g).length, 1);
  await page.locator("#learn-line").getByText(/Validation loss [\d.]+/).waitFor();
  await page.getByText("The style is learned. Keep it?").waitFor();
  const learned = (await daemon.api("GET", "/styles")).styles.find(({ kept }) => !kept);
  assert.ok((await daemon.api("GET", `/styles/${learned.id}/validation.png`)).length > 1000);
  // only the stages that learn have losses
  assert.deepEqual(await page.locator("#curve-key li").allTextContents().then((all) => all.map((text) => text.split(":")[0])), ["Stage 3", "Stage 1", "Stage 0"]);
  assert.equal(await page.locator("#curve .curve-stage").count(), 3);
  const strokes = await page.locator("#curve .curve-stage").evaluateAll((lines) => lines.map((line) => getComputedStyle(line).stroke));
  assert.equal(new Set(strokes).size, 3, "each stage has its own colour");
  await page.locator(`#learn-look img[src$="${learned.id}/validation.png"]`).waitFor({ state: "visible" });
  await accessible(page, "learned finely");
  await page.getByRole("button", { name: "Throw away" }).click();
  await page.leave();
});

test("what is wrong in a closed disclosure is shown, and what the daemon refuses is said", async () => {
  const page = await visit(chromium, daemon, "/studio#learn", { allowed: [/422/] });
  await page.locator("#learn-files").setInputFiles(picture("style/gcd_board6.jpg"));
  await page.getByLabel("What picture 1 shows").fill("a forest");
  await page.locator("#learn-fine summary").click();
  const vectors = page.getByRole("spinbutton", { name: "Vectors of a stage" });
  await vectors.fill("0");
  await page.locator("#learn-fine summary").click();
  await page.getByRole("button", { name: "Learn", exact: true }).click();
  await vectors.waitFor({ state: "visible" });
  await vectors.fill("1");
  await page.getByLabel("Learning rate of each stage").fill("fast");
  await page.getByRole("button", { name: "Learn", exact: true }).click();
  await page.locator("#learn-line").getByText(/"fast" has a part that is no number; write one number/).waitFor();
  await page.leave();
});

test("everything opened, small, and in German", async () => {
  const page = await visit(chromium, daemon, "/studio?lang=de", { size: SMALL });
  await page.evaluate(() => document.querySelectorAll("details").forEach((details) => (details.open = true)));
  await page.getByRole("slider", { name: "Stärke des Stils, Stufe 5" }).scrollIntoViewIfNeeded();
  await fits(page, "painting");
  await accessible(page, "painting");
  await page.getByRole("tab", { name: "Stil lehren" }).click();
  await fits(page, "lesson");
  await accessible(page, "lesson");
  await page.setViewportSize(LAPTOP);
  await fits(page, "laptop");
  await page.leave();
});
