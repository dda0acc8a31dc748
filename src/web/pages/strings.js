// What people read, from /api/v1/strings/{language}.json.

let texts = {};
let tag = "en";

/** Loads the language that `?lang=` names, or else the daemon's, and puts it into the page. */
export async function speak(configured) {
  tag = new URLSearchParams(location.search).get("lang") ?? configured;
  let answer = await fetch(`/api/v1/strings/${encodeURIComponent(tag)}.json`);
  if (!answer.ok) {
    tag = configured;
    answer = await fetch(`/api/v1/strings/${encodeURIComponent(tag)}.json`);
  }
  texts = await answer.json();
  document.documentElement.lang = tag;
  translate(document);
  for (const link of document.querySelectorAll("a[data-own]")) link.href = own(link.getAttribute("href"));
}

/** The text of a key with every `{name}` filled in. */
export function say(key, values = {}) {
  const text = texts[key] ?? key;
  return text.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}

/** Fills in `data-say` (text), `data-say-label` (accessible name) and `data-say-placeholder`. */
export function translate(root) {
  for (const element of root.querySelectorAll("[data-say]")) element.textContent = say(element.dataset.say);
  for (const element of root.querySelectorAll("[data-say-label]")) {
    element.setAttribute("aria-label", say(element.dataset.sayLabel));
  }
  for (const element of root.querySelectorAll("[data-say-placeholder]")) {
    element.placeholder = say(element.dataset.sayPlaceholder);
  }
}

/** A link to another page keeps a language that was asked for. */
function own(link) {
  return new URLSearchParams(location.search).has("lang") ? `${link}?lang=${encodeURIComponent(tag)}` : link;
}

export function number(value, digits = 0) {
  return new Intl.NumberFormat(tag, { maximumFractionDigits: digits, minimumFractionDigits: digits }).format(value);
}

export function day(millis) {
  return new Intl.DateTimeFormat(tag, { dateStyle: "long" }).format(millis);
}

export function moment(millis) {
  return new Intl.DateTimeFormat(tag, { dateStyle: "medium", timeStyle: "short" }).format(millis);
}

/** A count of bytes as people say it. */
export function bytes(count) {
  const units = ["byte", "kilobyte", "megabyte", "gigabyte", "terabyte"];
  const power = count < 1 ? 0 : Math.min(Math.floor(Math.log10(count) / 3), units.length - 1);
  const format = { style: "unit", unit: units[power], unitDisplay: "short", maximumFractionDigits: power > 2 ? 1 : 0 };
  return new Intl.NumberFormat(tag, format).format(count / 1000 ** power);
}

/** Seconds as people say them. */
export function duration(seconds) {
  const [unit, size] = [["day", 86400], ["hour", 3600], ["minute", 60], ["second", 1]].find(([, s]) => seconds >= s)
    ?? ["second", 1];
  const format = { style: "unit", unit, unitDisplay: "long" };
  return new Intl.NumberFormat(tag, format).format(Math.round(seconds / size));
}
