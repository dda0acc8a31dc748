// Paintings one after the other, when nobody is there or somebody wants to look.

import * as api from "./api.js";
import { make, shape } from "./element.js";
import { spoken, wallLabel } from "./label.js";

export class Slideshow {
  /** Fills `place` with a painting every `seconds`; `filter` as the gallery's. */
  constructor(place, seconds, filter = {}) {
    this.place = place;
    this.seconds = seconds;
    this.filter = filter;
  }

  /** Whether there was anything to show. */
  async start() {
    this.on = true;
    this.slides = [];
    this.next = 0;
    return this.#turn();
  }

  stop() {
    this.on = false;
    clearTimeout(this.timer);
    this.place.replaceChildren();
  }

  async #turn() {
    try {
      if (this.next >= this.slides.length) {
        this.slides = (await api.paintings(this.filter)).paintings;
        this.next = 0;
      }
      if (this.on && this.slides.length) await this.#show(this.slides[this.next++]);
    } catch {
      this.slides = []; // the daemon is away; the next turn tries again
    }
    if (this.on) this.timer = setTimeout(() => this.#turn(), this.seconds * 1000);
    return this.slides.length > 0;
  }

  async #show(painting) {
    const image = make("img", { src: api.paintingFile(painting.id, "image.png"), alt: spoken(painting) });
    shape(image, painting.width, painting.height);
    await image.decode().catch(() => {}); // deleted meanwhile: the next one comes soon
    if (!this.on || !image.naturalWidth) return;
    const slide = make("figure", { class: "slide" }, make("div", { class: "mat" }, image), make("figcaption", {}, wallLabel(painting)));
    const before = [...this.place.children];
    this.place.append(slide);
    requestAnimationFrame(() => slide.classList.add("shown"));
    setTimeout(() => before.forEach((old) => old.remove()), 1500);
  }
}
