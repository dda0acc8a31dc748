// Strengths that are more than one number: by stage, or by what a ControlNet looks at.

import { make, show } from "./element.js";
import { slider } from "./knobs.js";
import { runs, span } from "./stages.js";
import { number, say } from "./strings.js";

/** What each kind of control picture is called on its slider. */
const KINDS = { "soft-edge": "studio.control.soft_edge", depth: "studio.control.depth", canny: "studio.control.canny", lineart: "studio.control.lineart" };
/** Nobody turns more sliders than these. */
const MOST = 24;

/**
 * A slider, and as `row` a small one for each stage; `count(n)` says how many stages there are. Those of the row follow the
 * slider until one of them is turned, and then count instead of it.
 */
export function staged({ name, label, min, max, step, ...rest }) {
  const whole = slider({ name, label, min, max, step, ...rest });
  const digits = String(step).split(".")[1]?.length ?? 0;
  const columns = make("div", { class: "columns" });
  const row = make("fieldset", { class: "equalizer" }, make("legend", {}, label), columns);
  let sliders = [];
  let own = false;
  const tell = () => sliders.forEach(({ input, output }) => (output.textContent = number(Number(input.value), digits)));
  const follow = () => {
    own = false;
    sliders.forEach(({ input }) => (input.value = whole.input.value));
    tell();
  };
  const turned = () => {
    own = true;
    whole.output.textContent = say("studio.bystage.short");
    tell();
  };
  const column = (stage) => {
    const input = make("input", { type: "range", min, max, step, value: whole.input.value, "aria-label": say("studio.bystage.slider", { name: label, n: number(stage) }), oninput: turned });
    const output = make("output", { "aria-hidden": "true" });
    sliders[stage] = { input, output };
    return make("div", { class: "column" }, output, input, make("span", { "aria-hidden": "true" }, number(stage)));
  };
  const count = (stages) => {
    show(row, stages <= MOST);
    if (stages === sliders.length) return;
    const fitting = stages <= MOST ? stages : 0;
    sliders = [];
    columns.replaceChildren(...Array.from({ length: fitting }, (_, i) => column(fitting - 1 - i)));
    if (own) whole.reset();
    follow();
  };
  whole.input.addEventListener("input", follow);
  const value = () => {
    if (!own) return whole.value();
    const found = runs(sliders.map(({ input }) => Number(input.value)));
    return found.length === 1 ? found[0].value : found.map((run) => `${span(run)}=${run.value}`).join(",");
  };
  const reset = () => {
    whole.reset();
    follow();
  };
  return { name, place: whole.place, row, count, value, reset };
}

/** How loud the ControlNets speak that read photographs: one slider, or one for each of several. */
export function controls(kinds, usual) {
  const of = (kind) => (typeof usual === "number" ? (kind === kinds[0] ? usual : 0) : (usual[kind] ?? 0));
  const one = (kind, label, hint) => slider({ name: "control_scale", label, hint, min: 0, max: 2, step: 0.05, usual: of(kind) });
  if (kinds.length === 1) return one(kinds[0], say("studio.control_scale"), say("studio.control_scale.hint"));
  const all = kinds.map((kind) => one(kind, say(KINDS[kind]), say("studio.control.hint")));
  const place = make("div", { class: "group", role: "group", "aria-label": say("studio.control.all") }, all.map((knob) => knob.place));
  const value = () => {
    if (all.every((knob) => knob.value() === undefined)) return undefined;
    return Object.fromEntries(kinds.map((kind, i) => [kind, Number(all[i].input.value)]).filter(([, scale]) => scale > 0));
  };
  return { name: "control_scale", place, value, reset: () => all.forEach((knob) => knob.reset()) };
}
