// The gallery: every painting that was kept. It can look, and with an admin's token delete; it cannot take pictures.

import * as api from "./api.js";
import { compare } from "./compare.js";
import { begin, make, settled, shape, show, the } from "./element.js";
import { controlLinks, spoken, wallLabel } from "./label.js";
import { Slideshow } from "./slideshow.js";
import { moment, say, speak } from "./strings.js";

class Gallery {
  constructor(settings) {
    this.settings = settings;
    this.slideshow = new Slideshow(the("slides"), settings.slide_seconds);
    this.paintings = [];
    new IntersectionObserver(([end]) => end.isIntersecting && this.more(), { rootMargin: "600px" }).observe(the("end"));
  }

  filter() {
    return { style: the("style").value, text: the("text").value.trim() };
  }

  async styles() {
    const chosen = the("style").value;
    const names = (await api.styles().catch(() => [])).filter((style) => style.kept).map((style) => style.name);
    const options = [["", say("gallery.all")], ...names.map((name) => [name, name])];
    the("style").replaceChildren(...options.map(([value, text]) => make("option", { value, ...(value === chosen ? { selected: true } : {}) }, text)));
  }

  /** From the newest on, again. */
  async refresh() {
    this.turn = Symbol("turn");
    this.cursor = null;
    this.all = false;
    this.loading = false;
    this.paintings = [];
    the("wall").replaceChildren();
    await this.more();
  }

  async more() {
    if (this.loading || this.all || !this.turn) return;
    this.loading = true;
    const turn = this.turn;
    try {
      const page = await api.paintings({ ...this.filter(), cursor: this.cursor });
      if (this.turn !== turn) return;
      this.cursor = page.next;
      this.all = !page.next;
      this.hang(page.paintings, "append");
    } catch (fault) {
      the("line").textContent = fault.message;
      this.all = true;
    }
    this.loading = false;
    // a tall screen may still show the end
    if (!this.all && the("end").getBoundingClientRect().top < innerHeight + 600) this.more();
  }

  hang(paintings, way) {
    const known = new Set(this.paintings.map((painting) => painting.id));
    const fresh = paintings.filter((painting) => !known.has(painting.id));
    this.paintings = way === "append" ? [...this.paintings, ...fresh] : [...fresh, ...this.paintings];
    the("wall")[way](...fresh.map((painting) => this.frame(painting)));
    the("line").textContent = this.paintings.length ? "" : say("gallery.empty");
  }

  frame(painting) {
    const image = make("img", { src: api.paintingFile(painting.id, "thumbnail.jpg"), alt: spoken(painting), loading: "lazy", width: painting.width, height: painting.height });
    const mat = make("span", { class: "mat" }, image);
    shape(mat, painting.width, painting.height);
    const caption = painting.styles.join(", ") || painting.prompt;
    return make("li", { "data-painting": painting.id },
      make("button", { type: "button", class: "framed", onclick: () => this.open(painting.id) }, mat, make("span", { class: "caption" }, caption)));
  }

  open(id) {
    const painting = this.paintings.find((other) => other.id === id);
    if (!painting) return;
    this.large = id;
    const [before, after] = [api.paintingFile(id, "content.jpg"), api.paintingFile(id, "image.png")];
    the("large-picture").replaceChildren(painting.has_content ? compare(before, after, spoken(painting)) : make("img", { src: after, alt: spoken(painting) }));
    shape(the("large-picture").parentElement, painting.width, painting.height);
    the("large-label").replaceChildren(wallLabel(painting));
    the("recipe").replaceChildren(...facts(painting));
    the("controls").replaceChildren(...controlLinks(painting));
    the("large-line").textContent = "";
    the("download").href = `${after}?download=1`;
    the("download").download = `pleinair-${id}.png`;
    const at = this.paintings.indexOf(painting);
    the("earlier").disabled = at === 0;
    the("later").disabled = at === this.paintings.length - 1 && this.all;
    if (!the("large").open) the("large").showModal();
  }

  async step(by) {
    const at = this.paintings.findIndex((painting) => painting.id === this.large);
    if (at + by >= this.paintings.length) await this.more();
    const next = this.paintings[at + by];
    if (next) this.open(next.id);
  }

  async remove() {
    if (!confirm(say("gallery.delete.sure"))) return;
    try {
      await api.deletePainting(this.large);
      this.gone(this.large);
    } catch (fault) {
      the("large-line").textContent = fault.message;
    }
  }

  gone(id) {
    this.paintings = this.paintings.filter((painting) => painting.id !== id);
    the("wall").querySelector(`[data-painting="${CSS.escape(id)}"]`)?.remove();
    if (this.large === id) the("large").close();
    if (!this.paintings.length) the("line").textContent = say("gallery.empty");
  }

  /** A painting was finished somewhere: it hangs first, unless the filter is on. */
  async arrived(id) {
    const { style, text } = this.filter();
    if (style || text) return;
    const { painting } = await api.painting(id);
    if (painting?.kept) this.hang([painting], "prepend");
  }

  async slides() {
    this.slideshow.filter = this.filter();
    show(the("show"));
    the("wake").focus();
    if (!(await this.slideshow.start())) this.stop();
  }

  stop() {
    this.slideshow.stop();
    show(the("show"), false);
    the("slideshow").focus();
  }
}

function facts(painting) {
  const flat = (value) => (value !== null && typeof value === "object" ? JSON.stringify(value) : String(value));
  const recipe = Object.entries(painting.recipe ?? {}).filter(([, value]) => value !== null && value !== "");
  const all = [[say("gallery.made"), moment(painting.created)], ...recipe, ["sha256", painting.sha256]];
  return all.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, flat(value))]);
}

async function open() {
  const settings = await api.settings();
  await speak(settings.language);
  document.title = `${say("gallery.title")} – ${settings.title}`;
  const gallery = new Gallery(settings);
  show(the("delete"), settings.role === "admin");
  const again = settled(() => gallery.refresh(), 250);
  the("style").addEventListener("change", again);
  the("text").addEventListener("input", again);
  the("filter").addEventListener("submit", (event) => event.preventDefault());
  the("slideshow").addEventListener("click", () => gallery.slides());
  the("show").addEventListener("click", () => gallery.stop());
  the("close").addEventListener("click", () => the("large").close());
  the("delete").addEventListener("click", () => gallery.remove());
  the("earlier").addEventListener("click", () => gallery.step(-1));
  the("later").addEventListener("click", () => gallery.step(1));
  the("large").addEventListener("click", (event) => event.target === the("large") && the("large").close());
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !the("show").hidden) gallery.stop();
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (by && the("large").open && event.target.type !== "range") gallery.step(by);
  });
  await gallery.styles();
  await gallery.refresh();
  api.listen({
    finished: ({ id, kind }) => kind === "painting" && gallery.arrived(id).catch(() => {}),
    deleted: ({ id }) => gallery.gone(id),
    styles: () => gallery.styles(),
    again,
  });
}

begin(open);
