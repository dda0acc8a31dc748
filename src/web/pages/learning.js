// The studio's third table: pictures become a style.

import * as api from "./api.js";
import { drawCurve } from "./curve.js";
import { make, shape, show, the } from "./element.js";
import * as knobs from "./knobs.js";
import { draw, dropped } from "./pictures.js";
import { Ring } from "./ring.js";
import { duration, number, say } from "./strings.js";
import { Tuning } from "./tuning.js";

/** Milliseconds between two looks at the losses. */
const EVERY = 1000;

export class Learning {
  constructor(settings) {
    this.settings = settings;
    this.pictures = [];
    this.ring = new Ring(the("learn-ring"), say("studio.learn.progress"));
    const { defaults } = settings;
    this.knobs = [
      knobs.numberField({ name: "steps", label: say("studio.learn.steps"), hint: say("studio.learn.steps.hint"), min: 1, max: 100000, usual: defaults.learning_steps }),
      knobs.numberField({ name: "stages", label: say("studio.learn.stages"), hint: say("studio.learn.stages.hint"), min: 1, max: 1000, usual: defaults.learning_stages }),
      knobs.numberField({ name: "lr", label: say("studio.learn.lr"), hint: say("studio.learn.lr.hint"), min: 0, max: 1, step: "any", usual: defaults.learning_lr }),
      knobs.numberField({ name: "batch", label: say("studio.learn.batch"), hint: say("studio.learn.batch.hint"), min: 1, max: 64, usual: defaults.learning_batch }),
      knobs.numberField({ name: "seed", label: say("studio.seed"), hint: say("studio.learn.seed.hint"), min: 0, max: 4294967295, usual: 0 }),
    ];
    this.init = make("input", { id: "init", type: "text", placeholder: defaults.learning_init, autocomplete: "off" });
    const init = make("div", { class: "knob" }, make("label", { for: "init" }, say("studio.learn.init")), this.init, make("p", { class: "hint" }, say("studio.learn.init.hint")));
    the("knobs-learn").append(...this.knobs.map((knob) => knob.place), init);
    this.tuning = new Tuning(defaults, (fault) => (the("learn-line").textContent = fault));
    const stages = this.knobs.find((knob) => knob.name === "stages");
    const count = () => this.tuning.count(stages.value() ?? defaults.learning_stages);
    stages.input.addEventListener("input", count);
    count();
    // a field that is wrong is shown, wherever it is
    the("lesson").addEventListener("invalid", ({ target }) => target.closest("details")?.setAttribute("open", ""), true);
    dropped(the("learn-drop"), the("learn-files"), (files) => this.#add(files));
    the("learn-preview").addEventListener("load", ({ target }) => shape(target.parentElement, target.naturalWidth, target.naturalHeight));
    dropped(the("bring-drop"), the("bring"), ([file]) => this.#bring(file));
    the("lesson").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#order();
    });
    the("learn-cancel").addEventListener("click", () => this.id && api.cancel(this.id).catch(() => {}));
    this.#resume();
  }

  /** A lesson may have begun before this page was opened. */
  async #resume() {
    const jobs = await api.jobs().catch(() => []);
    const lesson = jobs.find((job) => job.kind === "learning" && (job.state === "running" || job.state === "queued"));
    if (lesson && !this.id) this.#follow(lesson.id);
  }

  async #add(files) {
    for (const file of files) {
      const canvas = make("canvas", { "aria-hidden": "true" });
      if (!(await draw(file, canvas, 320))) {
        the("learn-line").textContent = say("studio.nopicture");
        continue;
      }
      const entry = { file, proposal: null };
      entry.field = make("textarea", { rows: 2, required: true, "aria-label": say("studio.learn.context", { n: number(this.pictures.length + 1) }), placeholder: say("studio.learn.context.hint") });
      entry.note = make("p", { class: "hint" }, say("studio.learn.describe"));
      const away = () => {
        this.pictures = this.pictures.filter((other) => other !== entry);
        entry.place.remove();
        this.#ready();
      };
      entry.place = make("li", { class: "picture" }, canvas, make("div", {}, entry.field, entry.note),
        make("button", { type: "button", class: "quiet", "aria-label": say("studio.learn.remove", { name: file.name ?? "" }), onclick: away }, "×"));
      this.pictures.push(entry);
      the("pictures").append(entry.place);
      if (this.settings.captioner) this.#propose(entry);
    }
    the("learn-files").value = "";
    this.#ready();
  }

  async #propose(entry) {
    entry.note.textContent = say("studio.learn.looking");
    try {
      const caption = await api.caption(entry.file);
      entry.proposal = caption.includes("{}") ? caption : `${caption}, ${say("studio.learn.instyle")}`;
      if (!entry.field.value) entry.field.value = entry.proposal;
      entry.note.textContent = say("studio.learn.proposed");
    } catch {
      entry.note.textContent = say("studio.learn.describe");
    }
  }

  #ready() {
    the("learn-order").disabled = !this.pictures.length || Boolean(this.id);
  }

  async #order() {
    const wish = { ...knobs.turned(this.knobs), ...this.tuning.wish(), contexts: this.pictures.map((entry) => context(entry.field.value)) };
    const proposals = this.pictures.map((entry) => entry.proposal ?? "");
    if (proposals.some(Boolean)) wish.proposals = proposals;
    if (this.init.value.trim()) wish.init = this.init.value.trim();
    try {
      const ticket = await api.learn(wish, this.pictures.map((entry) => entry.file), this.tuning.photographs);
      this.pictures = [];
      the("pictures").replaceChildren();
      this.tried = Boolean(wish.validate_prompts || this.tuning.photographs.length);
      this.#follow(ticket.id);
    } catch (fault) {
      the("learn-line").textContent = fault.message;
    }
  }

  #follow(id) {
    this.id = id;
    this.#ready();
    this.ring.set(0, "…");
    show(the("learn-progress"));
    show(the("learn-look"), false);
    the("curve").replaceChildren();
    the("curve-key").replaceChildren();
    this.validation = null;
    show(the("learn-cancel"));
    the("learn-line").textContent = say("studio.learn.waits");
    this.catchUp();
  }

  hear(name, event) {
    if (event.id !== this.id) return;
    if (name === "learning") this.#step(event);
    else if (name === "preview") this.#look(event.version);
    else if (name === "failed") this.#over(event.error);
    else if (name === "cancelled") this.#over(say("studio.cancelled"));
    else if (name === "finished") this.catchUp();
  }

  #step({ step, steps, smoothed, validation }) {
    this.ring.set(step / steps, say("studio.percent", { n: number((100 * step) / steps) }));
    the("learn-line").textContent = say("studio.learn.step", { step: number(step), steps: number(steps), loss: number(smoothed, 3) });
    this.validation = validation ?? this.validation;
    if (this.validation) the("learn-line").textContent += ` ${say("studio.learn.validation", { loss: number(this.validation, 3) })}`;
    if (Date.now() - (this.drawn ?? 0) > EVERY) this.#curve(steps);
  }

  async #curve(steps) {
    this.drawn = Date.now();
    const points = await api.losses(this.id).catch(() => []);
    drawCurve(the("curve"), the("curve-key"), points, steps);
  }

  #look(version) {
    this.#hang(`${api.paintingFile(this.id, "preview.jpg")}?v=${version}`);
  }

  #hang(source) {
    const next = new Image();
    next.src = source;
    next.decode().then(() => {
      the("learn-preview").src = next.src;
      the("learn-preview").alt = say("studio.learn.preview");
      show(the("learn-look"));
    }, () => {}); // the lesson is over meanwhile
  }

  async catchUp() {
    const id = this.id;
    const job = id && (await api.job(id).catch(() => null));
    if (!job || this.id !== id) return;
    if (job.preview) this.#look(job.preview);
    if (job.state === "running" && job.steps) {
      this.#step({ step: job.step, steps: job.steps, smoothed: job.loss ?? NaN });
      if (job.seconds_left) the("learn-line").textContent += ` ${say("studio.learn.left", { time: duration(job.seconds_left) })}`;
    } else if (job.state === "failed") this.#over(job.error);
    else if (job.state === "cancelled") this.#over(say("studio.cancelled"));
    else if (job.state === "finished") await this.#done(id, job.steps);
  }

  async #done(id, steps) {
    const points = await api.losses(id).catch(() => []);
    drawCurve(the("curve"), the("curve-key"), points, points.at(-1)?.step ?? steps);
    this.ring.set(1, say("studio.percent", { n: number(100) }));
    show(the("learn-cancel"), false);
    if (this.tried) this.#hang(api.styleValidation(id));
    this.tried = false;
    this.id = null;
    this.#ready();
    the("learn-line").textContent = say("studio.learn.done");
    this.stock(await api.styles());
    the("learned").querySelector("input")?.focus();
  }

  #over(line) {
    this.id = null;
    this.#ready();
    show(the("learn-progress"), false);
    the("learn-line").textContent = line;
  }

  /** The styles there are now: those just learned are to be kept or thrown away. */
  stock(styles) {
    const fresh = styles.filter((style) => style.source === "learned" && !style.kept);
    const shown = [...the("learned").children].map((form) => form.dataset.style);
    if (fresh.map((style) => style.id).join() !== shown.join()) the("learned").replaceChildren(...fresh.map((style) => this.#verdict(style)));
    the("own-styles").replaceChildren(...styles.filter((style) => style.kept).map(entry));
  }

  #verdict(style) {
    const name = make("input", { type: "text", required: true, maxlength: 64, value: style.name, autocomplete: "off" });
    const license = make("input", { type: "text", value: style.license, placeholder: say("studio.license.hint"), autocomplete: "off" });
    const line = make("p", { class: "line", role: "alert" });
    const attempt = (action) => async (event) => {
      event.preventDefault();
      try {
        await action();
        this.stock(await api.styles());
      } catch (fault) {
        line.textContent = fault.message;
      }
    };
    const keep = attempt(() => api.changeStyle(style.id, { name: name.value.trim(), license: license.value.trim(), kept: true, shown: true }));
    const better = style.loss_before !== null && style.loss_after !== null
      ? make("p", { class: "hint" }, say("studio.learn.losses", { before: number(style.loss_before, 3), after: number(style.loss_after, 3) })) : null;
    return make("form", { class: "verdict", "data-style": style.id, onsubmit: keep },
      make("h2", {}, say("studio.learn.verdict")), better,
      make("label", { class: "field" }, make("span", {}, say("studio.name")), name),
      make("label", { class: "field" }, make("span", {}, say("studio.license")), license),
      make("div", { class: "buttons" },
        make("button", { type: "submit", class: "loud" }, say("studio.keep")),
        make("a", { class: "button", href: api.styleFile(style.id), download: true }, say("studio.download")),
        make("button", { type: "button", class: "quiet", onclick: attempt(() => api.deleteStyle(style.id)) }, say("studio.throw"))), line);
  }

  async #bring(file) {
    try {
      const style = await api.bringStyle(file);
      the("bring-line").textContent = say("studio.bring.done", { name: style.name });
    } catch (fault) {
      the("bring-line").textContent = fault.message;
    }
    the("bring").value = "";
  }
}

/** A description in which nobody put the style's place gets it at its end. */
function context(text) {
  const trimmed = text.trim();
  return trimmed.includes("{}") ? trimmed : `${trimmed}, in the style of {}`;
}

function entry(style) {
  return make("li", {},
    style.has_picture ? make("img", { src: api.stylePicture(style.id), alt: "", loading: "lazy" }) : make("span", { class: "tile-blank", "aria-hidden": "true" }, style.name.slice(0, 1)),
    make("span", {}, style.name),
    make("a", { class: "button quiet", href: api.styleFile(style.id), download: true, "aria-label": say("studio.download.named", { name: style.name }) }, say("studio.download")));
}
