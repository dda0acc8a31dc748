// A visitor's browser, which fails the test for what no page of ours may do.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { chromium } from "playwright-core";

const AXE = await readFile(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const FAKE_CAMERA = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"];

export const PORTRAIT = { width: 1080, height: 1920 };
export const SMALL = { width: 800, height: 480 };
export const LAPTOP = { width: 1366, height: 768 };

export async function browser() {
  const executablePath = process.env.CHROMIUM ?? "/usr/bin/chromium";
  return chromium.launch({ executablePath, args: [...FAKE_CAMERA, "--no-sandbox", "--disable-gpu", "--force-color-profile=srgb"] });
}

/**
 * Opens a page of a daemon. `allowed` are patterns of messages on the console that the test brings about itself. The page's
 * `leave()` fails on any other message, on faults in scripts and on requests off the machine.
 */
export async function visit(browser, daemon, path, { size = LAPTOP, allowed = [], touch = false, calm = true } = {}) {
  const context = await browser.newContext({
    viewport: size, hasTouch: touch, acceptDownloads: true, locale: "en-GB", timezoneId: "UTC", reducedMotion: calm ? "reduce" : "no-preference",
  });
  const faults = [];
  const host = new URL(daemon.url).host;
  await context.route((url) => url.protocol.startsWith("http") && url.host !== host, (route) => {
    faults.push(`a request off the machine: ${route.request().url()}`);
    return route.abort();
  });
  const page = await context.newPage();
  page.setDefaultTimeout(60_000);
  page.on("pageerror", (fault) => faults.push(`a fault in a script: ${fault.stack}`));
  page.on("console", (message) => {
    const text = `${message.text()} ${message.location().url}`;
    const fine = !["error", "warning"].includes(message.type()) || allowed.some((pattern) => pattern.test(text));
    if (!fine) faults.push(`on the console: ${message.type()} ${text}`);
  });
  page.leave = async () => {
    await context.close();
    assert.deepEqual(faults, []);
  };
  await page.goto(daemon.url + path);
  return page;
}

/** No serious violation of the accessibility rules that axe-core knows, A and AA. */
export async function accessible(page, what) {
  await page.evaluate(`(function(module, exports, define) { ${AXE}\n }).call(window)`);
  const found = await page.evaluate(() => window.axe.run(document, { runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"] }));
  const bad = found.violations.filter(({ impact }) => impact === "serious" || impact === "critical");
  const told = bad.map((violation) => `${violation.id}: ${violation.help}\n${violation.nodes.map((node) => `  ${node.target} ${node.failureSummary}`).join("\n")}`);
  assert.ok(found.passes.length > 5, `${what}: axe-core looked at nothing`);
  assert.deepEqual(told, [], what);
}

/** Nothing sticks out of the window sideways, and nothing that can be pressed is cut off by a page that does not scroll. */
export async function fits(page, what) {
  const wide = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
  assert.ok(wide <= 0, `${what}: ${wide} pixels stick out at the side`);
  const cut = await page.evaluate(() => {
    if (getComputedStyle(document.body).overflow !== "hidden") return [];
    const visible = [...document.querySelectorAll("button, a")].filter((element) => element.checkVisibility() && !element.closest(".tiles"));
    const box = (element) => element.getBoundingClientRect();
    return visible.filter((element) => box(element).bottom > innerHeight + 1 || box(element).top < -1).map((element) => element.id || element.textContent);
  });
  assert.deepEqual(cut, [], `${what}: cut off`);
}

/** Every picture in the window has come. */
export const pictured = (page) => page.waitForFunction(() => {
  const seen = [...document.images].filter((image) => image.checkVisibility() && image.getBoundingClientRect().top < innerHeight);
  return seen.every((image) => image.complete);
});

/** Where a press of Tab has gone, as a person sees it. */
export const focused = (page) => page.evaluate(() => document.activeElement.id || document.activeElement.textContent);
