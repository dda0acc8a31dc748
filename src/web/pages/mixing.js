// The studio's second table: each stage of a new style from another style, with a small painting of it after every turn.

import * as api from "./api.js";
import { make, settled, the } from "./element.js";
import { say, number } from "./strings.js";

/** Milliseconds of quiet after which the look is painted. */
const QUIET = 400;
const LOOK = { steps: 8, seed: 1 };
const OFF = "off";

export class Mixing {
  constructor(settings) {
    this.side = settings.native_size;
    this.styles = [];
    the("mix-prompt").value = say("studio.mix.prompt");
    this.look = settled(() => this.#look(), QUIET);
    for (const id of ["structure", "brush", "border"]) the(id).addEventListener("input", () => this.#split());
    the("stages").addEventListener("input", () => this.#changed());
    the("mix-prompt").addEventListener("input", () => this.look());
    the("mixing").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#save();
    });
    document.addEventListener("tab", ({ detail }) => detail === "mix" && !this.seen && this.#changed());
  }

  /** The styles there are now: those with as many stages as the first of several. */
  stock(styles) {
    const staged = styles.filter((style) => style.stages > 1);
    const fitting = staged.filter((style) => style.stages === staged[0].stages);
    const same = fitting.map((style) => style.id + style.name).join() === this.styles.map((style) => style.id + style.name).join();
    if (same) return;
    const [structure, brush] = [the("structure").value, the("brush").value];
    this.styles = fitting;
    this.stages = fitting[0]?.stages ?? 0;
    the("structure").replaceChildren(...this.#options(structure || fitting[0]?.id));
    the("brush").replaceChildren(...this.#options(brush || fitting[1]?.id || fitting[0]?.id));
    the("border").max = String(this.stages);
    if (!structure) the("border").value = String(Math.floor(this.stages / 2));
    this.#split();
  }

  #options(chosen, extra = []) {
    const entries = [...extra, ...this.styles.map((style) => [style.id, style.name])];
    return entries.map(([value, text]) => make("option", { value, ...(value === chosen ? { selected: true } : {}) }, text));
  }

  /** Stages from noise down: the first ones shape, the last ones brush. */
  #split() {
    const border = Number(the("border").value);
    the("border-value").textContent = say("studio.mix.border.value", { n: number(this.stages - border), all: number(this.stages) });
    const rows = [];
    for (let stage = this.stages - 1; stage >= 0; stage--) {
      rows.push(this.#row(stage, stage >= border ? the("structure").value : the("brush").value));
    }
    the("stages").replaceChildren(...rows);
    this.#changed();
  }

  #row(stage, style) {
    const name = say("studio.mix.stage", { n: number(stage) });
    const first = make("select", { class: "first", "aria-label": name }, this.#options(style, [[OFF, say("studio.mix.off")]]));
    const second = make("select", { class: "second", "aria-label": say("studio.mix.second", { stage: name }) }, this.#options("", [["", say("studio.mix.alone")]]));
    const share = make("input", { type: "range", min: 0, max: 100, step: 5, value: "70", disabled: true, "aria-label": say("studio.mix.share", { stage: name }) });
    second.addEventListener("input", () => (share.disabled = !second.value));
    first.addEventListener("input", () => (second.disabled = first.value === OFF));
    return make("div", { class: "stage", "data-stage": stage }, make("span", { class: "stage-name", "aria-hidden": "true" }, name), first, second, share);
  }

  rules() {
    return [...the("stages").children].map((row) => {
      const [first, second, share] = [row.querySelector(".first").value, row.querySelector(".second"), row.querySelector("input").value / 100];
      const blend = first !== OFF && second.value && second.value !== first;
      const source = blend ? `"${first}"*${share.toFixed(2)}+"${second.value}"*${(1 - share).toFixed(2)}` : first === OFF ? OFF : `"${first}"`;
      return `${row.dataset.stage}=${source}`;
    });
  }

  #changed() {
    if (the("mix").hidden || !this.styles.length) return;
    this.seen = true;
    this.look();
  }

  /** Paints the mix small; the look before it is no longer wanted. */
  async #look() {
    if (this.id) api.cancel(this.id).catch(() => {});
    const turn = (this.turn = Symbol("turn"));
    this.id = null;
    the("mix-line").textContent = say("studio.mix.painting");
    const side = String(Math.max(64, Math.round(this.side / 16) * 8));
    const request = { ...LOOK, prompt: the("mix-prompt").value.trim() || "{}", size: `${side}x${side}` };
    try {
      const ticket = await api.paint({ ...request, mix: this.rules(), origin: "studio", kept: false }, null);
      if (this.turn !== turn) return void api.cancel(ticket.id).catch(() => {});
      this.id = ticket.id;
      await this.catchUp();
    } catch (fault) {
      if (this.turn === turn) the("mix-line").textContent = fault.message;
    }
  }

  hear(name, event) {
    if (event.id !== this.id) return;
    if (name === "finished") this.catchUp();
    else if (name === "failed") the("mix-line").textContent = event.error;
  }

  async catchUp() {
    const id = this.id;
    const now = id && (await api.painting(id).catch(() => null));
    if (now?.state !== "finished" || this.id !== id) return;
    this.id = null;
    const source = api.paintingFile(id, "image.png");
    the("mix-look").replaceChildren(make("img", { src: source, alt: say("studio.mix.look") }));
    the("mix-line").textContent = say("studio.mix.ready");
    the("mix-history").prepend(make("img", { role: "listitem", src: source, alt: this.rules().join(", ").replaceAll('"', "") }));
    while (the("mix-history").children.length > 6) the("mix-history").lastChild.remove();
  }

  async #save() {
    try {
      const style = await api.mixStyles(the("mix-name").value.trim(), this.rules());
      the("mix-line").textContent = say("studio.mix.saved", { name: style.name });
      the("mix-name").value = "";
    } catch (fault) {
      the("mix-line").textContent = fault.message;
    }
  }
}
