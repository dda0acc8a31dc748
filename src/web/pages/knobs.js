// Knobs of a wish. One that nobody turned is left out of the wish, so that the daemon's own habits hold.

import { make, show } from "./element.js";
import { runs, span } from "./stages.js";
import { number, say } from "./strings.js";

/** More stages than these are not chosen one by one. */
const MOST_CHIPS = 24;

let count = 0;

/** A number on a slider; `usual` is what holds while it is not turned: a number, or text that no slider shows. */
export function slider({ name, label, hint, min, max, step, usual }) {
  const id = `knob-${count++}`;
  const digits = String(step).split(".")[1]?.length ?? 0;
  const start = typeof usual === "number" ? usual : 0;
  const habit = typeof usual === "number" ? number(usual, digits) : String(usual);
  const input = make("input", { id, type: "range", min, max, step, value: String(start), "aria-describedby": `${id}-hint`, name });
  const output = make("output", { for: id });
  let turned = false;
  const tell = () => (output.textContent = turned ? number(Number(input.value), digits) : say("studio.usual", { value: habit }));
  input.addEventListener("input", () => {
    turned = true;
    tell();
  });
  tell();
  const place = make("div", { class: "knob" }, make("label", { for: id }, label), output, input,
    make("p", { id: `${id}-hint`, class: "hint" }, hint));
  const value = () => (turned ? Number(input.value) : undefined);
  const reset = () => {
    turned = false;
    input.value = String(start);
    tell();
  };
  return { name, place, input, output, value, reset };
}

/** A number in a field; empty means the usual, or what `placeholder` says. */
export function numberField({ name, label, hint, min, max, step = 1, usual = null, placeholder }) {
  const id = `knob-${count++}`;
  const input = make("input", { id, type: "number", min, max, step: step, inputmode: "numeric", name, placeholder: placeholder ?? (usual === null ? say("studio.automatic") : String(usual)), "aria-describedby": `${id}-hint` });
  const place = make("div", { class: "knob" }, make("label", { for: id }, label), input, make("p", { id: `${id}-hint`, class: "hint" }, hint));
  return { name, place, input, value: () => (input.value === "" ? undefined : Number(input.value)), reset: () => (input.value = "") };
}

/** Words in a field, in one line or several; empty means none. */
export function text({ name, label, hint, rows = 1, placeholder = "" }) {
  const id = `knob-${count++}`;
  const common = { id, name, placeholder, autocomplete: "off", "aria-describedby": `${id}-hint` };
  const input = rows > 1 ? make("textarea", { ...common, rows }) : make("input", { ...common, type: "text" });
  const place = make("div", { class: "knob" }, make("label", { for: id }, label), input, make("p", { id: `${id}-hint`, class: "hint" }, hint));
  return { name, place, input, value: () => input.value.trim() || undefined, reset: () => (input.value = "") };
}

/** Yes or no; not ticked is the usual. */
export function check({ name, label, hint }) {
  const id = `knob-${count++}`;
  const input = make("input", { id, name, type: "checkbox", "aria-describedby": `${id}-hint` });
  const place = make("div", { class: "knob" }, make("label", { class: "check" }, input, label), make("p", { id: `${id}-hint`, class: "hint" }, hint));
  return { name, place, value: () => input.checked || undefined, reset: () => (input.checked = false) };
}

/** Some of the stages, all at first; `count(n)` says how many there are. */
export function stages({ name, label, hint }) {
  const chips = make("div", { class: "choices" });
  const place = make("fieldset", { class: "knob" }, make("legend", { class: "knob-name" }, label), chips, make("p", { class: "hint" }, hint));
  const boxes = () => [...chips.querySelectorAll("input")].reverse();
  const chip = (stage) => make("label", { class: "chip" }, make("input", { type: "checkbox", checked: true, "aria-label": say("studio.mix.stage", { n: number(stage) }) }), make("span", { "aria-hidden": "true" }, number(stage)));
  const count = (n) => {
    show(place, n > 1 && n <= MOST_CHIPS);
    const fitting = place.hidden ? 0 : n;
    if (fitting !== chips.children.length) chips.replaceChildren(...Array.from({ length: fitting }, (_, i) => chip(n - 1 - i)));
  };
  const value = () => {
    const chosen = boxes().map((box) => box.checked);
    return chosen.every(Boolean) ? undefined : runs(chosen).filter((run) => run.value).map(span).join(",");
  };
  return { name, place, count, value, reset: () => boxes().forEach((box) => (box.checked = true)) };
}

/** One of several; `choices` are pairs of value and text, the value "" is the usual. */
export function choice({ name, label, hint, choices }) {
  const id = `knob-${count++}`;
  const select = make("select", { id, name, "aria-describedby": `${id}-hint` }, choices.map(([value, text]) => make("option", { value }, text)));
  const place = make("div", { class: "knob" }, make("label", { for: id }, label), select, make("p", { id: `${id}-hint`, class: "hint" }, hint));
  return { name, place, value: () => select.value || undefined, reset: () => (select.value = "") };
}

/** Width and height, both or neither. */
export function size(native, step) {
  const field = (label, usual) => make("input", { type: "number", min: step, max: 4096, step, inputmode: "numeric", placeholder: String(usual), "aria-label": label });
  const [width, height] = [field(say("studio.width"), native), field(say("studio.height"), native)];
  const place = make("div", { class: "knob" }, make("span", { class: "knob-name", "aria-hidden": "true" }, say("studio.size")),
    make("div", { class: "pair" }, width, make("span", { "aria-hidden": "true" }, "×"), height), make("p", { class: "hint" }, say("studio.size.hint")));
  const value = () => {
    if (width.value && height.value) return `${width.value}x${height.value}`;
    return width.value || height.value || undefined;
  };
  return { name: "size", place, value, reset: () => (width.value = height.value = "") };
}

/** The seed, with a die. */
export function seed() {
  const knob = numberField({ name: "seed", label: say("studio.seed"), hint: say("studio.seed.hint"), min: 0, max: 4294967295, usual: null });
  knob.input.placeholder = say("studio.seed.random");
  const roll = () => (knob.input.value = String(crypto.getRandomValues(new Uint32Array(1))[0]));
  const die = make("button", { type: "button", class: "die", "aria-label": say("studio.seed.roll"), onclick: roll }, "⚄");
  const pair = make("div", { class: "pair" });
  knob.input.before(pair);
  pair.append(knob.input, die);
  return knob;
}

/** What was turned of these knobs, as keys of a wish. */
export function turned(knobs) {
  return Object.fromEntries(knobs.map((knob) => [knob.name, knob.value()]).filter(([, value]) => value !== undefined));
}
