// A ring that closes while a painting grows.

import { make } from "./element.js";

const AROUND = 2 * Math.PI * 54;

export class Ring {
  constructor(place, label) {
    this.arc = make("svg:circle", { class: "ring-arc", cx: 60, cy: 60, r: 54, "stroke-dasharray": AROUND, "stroke-dashoffset": AROUND });
    this.text = make("span", { class: "ring-text", "aria-hidden": "true" });
    this.place = make("div", { class: "ring", role: "progressbar", "aria-label": label, "aria-valuemin": 0, "aria-valuemax": 100 },
      make("svg:svg", { viewBox: "0 0 120 120", "aria-hidden": "true" }, make("svg:circle", { class: "ring-track", cx: 60, cy: 60, r: 54 }), this.arc),
      this.text);
    place.append(this.place);
    this.set(0, "");
  }

  /** `part` from 0 to 1, and a few letters inside. */
  set(part, text) {
    this.arc.setAttribute("stroke-dashoffset", String(AROUND * (1 - part)));
    this.place.setAttribute("aria-valuenow", String(Math.round(100 * part)));
    if (text) this.place.setAttribute("aria-valuetext", text);
    else this.place.removeAttribute("aria-valuetext");
    this.text.textContent = text;
  }
}
