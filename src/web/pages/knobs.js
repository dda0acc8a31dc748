// Knobs of a wish. One that nobody turned is left out of the wish, so that the daemon's own habits hold.

import { make } from "./element.js";
import { number, say } from "./strings.js";

let count = 0;

/** A number on a slider; `usual` is what holds while it is not turned. */
export function slider({ name, label, hint, min, max, step, usual }) {
  const id = `knob-${count++}`;
  const digits = String(step).split(".")[1]?.length ?? 0;
  const input = make("input", { id, type: "range", min, max, step, value: String(usual), "aria-describedby": `${id}-hint`, name });
  const output = make("output", { for: id });
  let turned = false;
  const tell = () => (output.textContent = turned ? number(Number(input.value), digits) : say("studio.usual", { value: number(usual, digits) }));
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
    input.value = String(usual);
    tell();
  };
  return { name, place, value, reset };
}

/** A number in a field; empty means the usual. */
export function numberField({ name, label, hint, min, max, step = 1, usual }) {
  const id = `knob-${count++}`;
  const input = make("input", { id, type: "number", min, max, step: step, inputmode: "numeric", name, placeholder: usual === null ? say("studio.automatic") : String(usual), "aria-describedby": `${id}-hint` });
  const place = make("div", { class: "knob" }, make("label", { for: id }, label), input, make("p", { id: `${id}-hint`, class: "hint" }, hint));
  return { name, place, input, value: () => (input.value === "" ? undefined : Number(input.value)), reset: () => (input.value = "") };
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
