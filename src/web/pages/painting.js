// The studio's first table: a painting of a photograph or of words, with every knob there is.

import * as api from "./api.js";
import { compare } from "./compare.js";
import { make, shape, show, the } from "./element.js";
import { controlLinks, wallLabel, spoken } from "./label.js";
import * as knobs from "./knobs.js";
import { draw, dropped } from "./pictures.js";
import { Ring } from "./ring.js";
import { STAGES } from "./stages.js";
import { controls, staged } from "./strengths.js";
import { number, say } from "./strings.js";

export class Painting {
  constructor(settings) {
    this.settings = settings;
    this.ring = new Ring(the("paint-ring"), say("studio.progress"));
    this.#knobs();
    dropped(the("drop"), the("motif-file"), ([file]) => this.#motif(file));
    show(the("motif-camera"), settings.camera);
    the("motif-camera").addEventListener("click", () => this.#snap());
    the("motif-clear").addEventListener("click", () => this.#motif(null));
    the("wish").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#order();
    });
    // once the browser has reset the fields: it puts sliders in the middle
    the("wish").addEventListener("reset", () => setTimeout(() => {
      this.all.forEach((knob) => knob.reset());
      this.#stages();
      this.#motif(null);
    }));
    the("paint-cancel").addEventListener("click", () => this.id && api.cancel(this.id).catch(() => {}));
  }

  #knobs() {
    const { defaults, samplers, native_size: native } = this.settings;
    const usual = { style_strength: 0, content_strength: 0, ...defaults, ...given(defaults.painting) };
    const { drawn } = this.settings;
    const groups = {
      "knobs-style": (this.strengths = [
        staged({ name: "style_strength", label: say("studio.style_strength"), hint: say("studio.style_strength.hint"), min: 0, max: 10, step: 0.5, usual: usual.style_strength }),
        staged({ name: "content_strength", label: say("studio.content_strength"), hint: say("studio.content_strength.hint"), min: 0, max: 10, step: 0.5, usual: usual.content_strength }),
      ]),
      "knobs-photograph": [
        knobs.slider({ name: "strength", label: say("studio.strength"), hint: say("studio.strength.hint"), min: 0.05, max: 1, step: 0.05, usual: usual.strength }),
        ...(drawn.length ? [controls(drawn, usual.control_scale), knobs.check({ name: "save_control", label: say("studio.save_control"), hint: say("studio.save_control.hint") })] : []),
        knobs.choice({ name: "invert", label: say("studio.invert"), hint: say("studio.invert.hint"), choices: [["", say("studio.automatic")], ["noise", say("studio.invert.noise")], ["ddim", say("studio.invert.ddim")]] }),
      ],
      "knobs-canvas": [knobs.size(native, this.settings.size_step), knobs.seed()],
      "knobs-more": [
        knobs.numberField({ name: "steps", label: say("studio.steps"), hint: say("studio.steps.hint"), min: 1, max: 1000, usual: defaults.painting.steps ?? null }),
        knobs.choice({ name: "sampler", label: say("studio.sampler"), hint: say("studio.sampler.hint"), choices: [["", say("studio.automatic")], ...samplers.map((name) => [name, name])] }),
        knobs.slider({ name: "guidance", label: say("studio.guidance"), hint: say("studio.guidance.hint"), min: 0, max: 15, step: 0.5, usual: usual.guidance }),
        knobs.choice({ name: "guidance_form", label: say("studio.guidance_form"), hint: say("studio.guidance_form.hint"), choices: [["", say("studio.automatic")], ["paper", say("studio.guidance_form.paper")], ["half", say("studio.guidance_form.half")]] }),
      ],
    };
    for (const [place, group] of Object.entries(groups)) the(place).append(...group.map((knob) => knob.place));
    this.all = Object.values(groups).flat();
    the("rows").append(...this.strengths.map((strength) => strength.row));
    the("styles").addEventListener("change", () => this.#stages());
  }

  /** Strengths by stage have the stages of the chosen styles, the most of several. */
  #stages() {
    const staged = this.here.filter((style) => style.stages > 1 && this.#chosen().includes(style.id));
    const stages = staged.length ? Math.max(...staged.map((style) => style.stages)) : STAGES;
    for (const strength of this.strengths) strength.count(stages);
  }

  /** The styles there are now. */
  stock(styles) {
    const chosen = this.#chosen();
    const choices = styles.map((style) => make("label", { class: "chip" },
      make("input", { type: "checkbox", value: style.id, name: "style", ...(chosen.includes(style.id) ? { checked: true } : {}) }), make("span", {}, style.name)));
    the("styles").replaceChildren(...choices);
    this.here = styles;
    this.#stages();
  }

  #chosen() {
    return [...the("styles").querySelectorAll("input:checked")].map((box) => box.value);
  }

  async #motif(file) {
    this.picture = file;
    show(the("motif"), Boolean(file));
    show(the("motif-clear"), Boolean(file));
    if (!file) the("motif-file").value = "";
    else if (!(await draw(file, the("motif"), 480))) {
      the("paint-line").textContent = say("studio.nopicture");
      this.#motif(null);
    }
  }

  async #snap() {
    try {
      const answer = await fetch(api.liveFrame, { cache: "no-store" });
      if (!answer.ok) throw new Error(say("studio.nocamera"));
      await this.#motif(await answer.blob());
    } catch (fault) {
      the("paint-line").textContent = fault.message;
    }
  }

  #wish() {
    const request = knobs.turned(this.all);
    const words = the("words").value.split(",").map((word) => word.trim()).filter(Boolean);
    request.styles = [...this.#chosen(), ...words];
    if (the("prompt").value.trim()) request.prompt = the("prompt").value.trim();
    if (the("negative").value.trim()) request.negative = the("negative").value.trim();
    if (!this.picture) delete request.save_control;
    return { ...request, origin: "studio", kept: true };
  }

  async #order() {
    the("order").disabled = true;
    try {
      const ticket = await api.paint(this.#wish(), this.picture ?? null);
      this.id = ticket.id;
      show(the("paint-progress"));
      show(the("paint-after"), false);
      the("paint-label").replaceChildren();
      this.ring.set(0, "…");
      the("paint-line").textContent = ticket.position > 0 ? say("studio.before", { n: number(ticket.position) }) : say("studio.begins");
      await this.catchUp();
    } catch (fault) {
      this.#over(fault.message);
    }
  }

  hear(name, event) {
    if (event.id !== this.id) return;
    if (name === "step") this.#step(event.i, event.n, event.stage);
    else if (name === "preview") this.#grow(event.version);
    else if (name === "failed") this.#over(event.error);
    else if (name === "finished" || name === "cancelled") this.catchUp();
  }

  #step(i, n, stage) {
    this.ring.set(i / n, say("studio.percent", { n: number((100 * i) / n) }));
    const values = { i: number(i), n: number(n), stage: number(stage ?? 0) };
    the("paint-line").textContent = stage === null || stage === undefined ? say("studio.step", values) : say("studio.step.stage", values);
  }

  #grow(version) {
    const { id } = this;
    const picture = make("img", { src: `${api.paintingFile(id, "preview.jpg")}?v=${version}`, alt: "" });
    picture.decode().then(() => this.id === id && this.#look(picture), () => {}); // it is over meanwhile
  }

  #look(...children) {
    the("easel").replaceChildren(...children);
  }

  async catchUp() {
    if (!this.id) return;
    const now = await api.painting(this.id).catch(() => null);
    if (!now || now.state === "queued" || !this.id) return;
    if (now.state === "running" && now.steps) this.#step(now.step, now.steps, now.stage);
    else if (now.state === "finished") this.#reveal(now.painting);
    else if (now.state === "failed") this.#over(now.error);
    else if (now.state === "cancelled") this.#over(say("studio.cancelled"));
  }

  #reveal(painting) {
    const after = api.paintingFile(painting.id, "image.png");
    const before = api.paintingFile(painting.id, "content.jpg");
    this.#look(painting.has_content ? compare(before, after, spoken(painting)) : make("img", { src: after, alt: spoken(painting) }));
    shape(the("easel").parentElement, painting.width, painting.height);
    the("paint-label").replaceChildren(wallLabel(painting));
    the("paint-save").href = `${after}?download=1`;
    the("paint-controls").replaceChildren(...controlLinks(painting));
    show(the("paint-after"));
    const seed = painting.recipe?.seed;
    this.#over(seed === undefined ? say("studio.done") : say("studio.done.seed", { seed: String(seed) }));
  }

  #over(line) {
    this.id = null;
    the("order").disabled = false;
    show(the("paint-progress"), false);
    the("paint-line").textContent = line;
  }
}

/** Those keys that say something. */
function given(wish) {
  return Object.fromEntries(Object.entries(wish).filter(([, value]) => value !== null));
}
