// The styles a visitor chooses from: a strip of pictures, one of them chosen.

import * as api from "./api.js";
import { make } from "./element.js";

export class Tiles {
  constructor(strip) {
    this.strip = strip;
    this.chosen = null;
    strip.addEventListener("keydown", (event) => {
      if (event.key === "Home") this.choose(0);
      else if (event.key === "End") this.choose(this.buttons.length - 1);
      else return;
      event.preventDefault();
    });
  }

  /** Shows these styles; the chosen one stays so if it is still there. */
  fill(styles) {
    this.styles = styles;
    this.buttons = styles.map((style, index) => make("button", {
      type: "button", role: "radio", class: "tile", "data-style": style.id, onclick: () => this.choose(index),
    }, picture(style), make("span", { class: "tile-name" }, style.name)));
    this.strip.replaceChildren(...this.buttons);
    this.#mark(Math.max(0, styles.findIndex((style) => style.id === this.chosen?.id)));
  }

  /** The one `by` further on. */
  step(by) {
    const count = this.buttons.length;
    if (count) this.choose((this.index + by + count) % count);
  }

  choose(index) {
    this.#mark(index);
    this.buttons[index]?.focus();
    this.buttons[index]?.scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  #mark(index) {
    this.index = index;
    this.chosen = this.styles[index] ?? null;
    this.buttons.forEach((button, i) => {
      button.setAttribute("aria-checked", String(i === index));
      button.tabIndex = i === index ? 0 : -1;
    });
  }
}

function picture(style) {
  if (!style.has_picture) return make("span", { class: "tile-blank", "aria-hidden": "true" }, style.name.slice(0, 1));
  return make("img", { src: api.stylePicture(style.id), alt: "", draggable: "false" });
}
