// What a lesson may be told beyond the paper's recipe, and what the unfinished style is tried on.

import { make, the } from "./element.js";
import * as knobs from "./knobs.js";
import { draw, dropped } from "./pictures.js";
import { number, say } from "./strings.js";

export class Tuning {
  /** `told` hears what went wrong. */
  constructor(defaults, told) {
    const off = say("studio.off");
    this.stages = knobs.stages({ name: "learn_stages", label: say("studio.learn.which"), hint: say("studio.learn.which.hint") });
    const fine = [
      this.stages,
      knobs.text({ name: "stage_lr", label: say("studio.learn.rates"), hint: say("studio.learn.rates.hint"), placeholder: "5..3=0.001,2..0=0.004" }),
      knobs.numberField({ name: "vectors_per_stage", label: say("studio.learn.vectors"), hint: say("studio.learn.vectors.hint"), min: 1, max: 75, usual: 1 }),
      knobs.numberField({ name: "accumulate", label: say("studio.learn.accumulate"), hint: say("studio.learn.accumulate.hint"), min: 1, max: 1000, usual: 1 }),
      knobs.numberField({ name: "min_snr", label: say("studio.learn.snr"), hint: say("studio.learn.snr.hint"), min: 0, max: 1000, step: "any", placeholder: off }),
      knobs.numberField({ name: "early_stop", label: say("studio.learn.patience"), hint: say("studio.learn.patience.hint"), min: 1, max: 1000, placeholder: off }),
    ];
    this.prompts = knobs.text({ name: "validate_prompts", label: say("studio.learn.prompts"), hint: say("studio.learn.prompts.hint"), rows: 3, placeholder: "a boat on a lake, {}" });
    const often = knobs.numberField({ name: "validate_every", label: say("studio.learn.often"), hint: say("studio.learn.often.hint"), min: 1, max: 100000 });
    this.numbers = [...fine, often];
    the("knobs-fine").append(...fine.map((knob) => knob.place));
    the("knobs-try").append(this.prompts.place, often.place);
    this.photographs = [];
    this.most = defaults.learning_pictures;
    dropped(the("try-drop"), the("try-files"), (files) => this.#add(files, told));
  }

  /** So many stages are to be learned. */
  count(stages) {
    this.stages.count(stages);
  }

  wish() {
    const prompts = (this.prompts.value() ?? "").split("\n").map((line) => line.trim()).filter(Boolean);
    return { ...knobs.turned(this.numbers), ...(prompts.length ? { validate_prompts: prompts } : {}) };
  }

  async #add(files, told) {
    for (const file of files.slice(0, this.most - this.photographs.length)) {
      const canvas = make("canvas", { "aria-hidden": "true" });
      if (!(await draw(file, canvas, 160))) {
        told(say("studio.nopicture"));
        continue;
      }
      const away = () => {
        this.photographs = this.photographs.filter((other) => other !== file);
        place.remove();
      };
      const name = file.name || number(this.photographs.length + 1);
      const place = make("li", {}, canvas, make("button", { type: "button", class: "quiet", "aria-label": say("studio.learn.remove", { name }), onclick: away }, "×"));
      this.photographs.push(file);
      the("photographs").append(place);
    }
    the("try-files").value = "";
  }
}
