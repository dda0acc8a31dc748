// The kiosk: choose a style, look into the camera, see the painting grow, take it home.

import * as api from "./api.js";
import { compare } from "./compare.js";
import { begin, make, shape, show, sleep, the } from "./element.js";
import { spoken, wallLabel } from "./label.js";
import { LiveView } from "./liveview.js";
import { Ring } from "./ring.js";
import { Slideshow } from "./slideshow.js";
import { duration, number, say, speak } from "./strings.js";
import { Tiles } from "./tiles.js";

/** Seconds before the page goes back to its start at which it says so. */
const WARNING = 10;

class Booth {
  constructor(settings) {
    this.settings = settings;
    this.tiles = new Tiles(the("tiles"));
    this.ring = new Ring(the("progress"), say("kiosk.progress"));
    this.slideshow = new Slideshow(the("slides"), settings.slide_seconds);
    this.live = new LiveView(the("sight"), settings.camera_source, (fault) => this.cameraIs(fault));
    the("title").textContent = settings.title;
    document.title = settings.title;
    this.touched = Date.now();
    setInterval(() => this.watchTheClock(), 1000);
  }

  get scene() {
    return the("booth").dataset.scene;
  }

  /** Shows one scene: start, countdown, painting, result, refused or idle. */
  enter(scene) {
    the("booth").dataset.scene = scene;
    for (const part of document.querySelectorAll("[data-for]")) show(part, part.dataset.for === scene);
    show(the("booth"), scene !== "idle");
    show(this.live.view, scene === "start" || scene === "countdown");
    show(the("photograph"), scene === "painting" || scene === "refused");
    show(the("growing"), scene === "painting" && this.preview > 0);
    show(the("painting"), scene === "result");
    if (scene !== "idle") this.slideshow.stop();
    this.showCameraNotice();
    this.line();
    this.touched = Date.now();
  }

  line(text) {
    const usual = {
      start: "kiosk.invitation", countdown: "kiosk.look", painting: "kiosk.patience", result: "kiosk.yours", refused: "kiosk.sorry",
    };
    the("line").textContent = text ?? (usual[this.scene] ? say(usual[this.scene]) : "");
  }

  async fillTiles() {
    const styles = await api.styles().catch(() => null); // the daemon is away; its events tell when it is back
    if (styles) this.tiles.fill(styles.filter((style) => style.shown && style.kept));
  }

  /** Another camera was chosen: with the next visitor, the page begins anew. */
  renew() {
    this.old = true;
    if (this.scene === "start" || this.scene === "idle") location.reload();
  }

  start() {
    if (this.old) return location.reload();
    this.id = null;
    this.live.refit();
    this.enter("start");
    (this.tiles.buttons?.[this.tiles.index] ?? the("shutter")).focus({ preventScroll: true });
  }

  async press() {
    if (!["start", "idle", "result"].includes(this.scene)) return;
    if (this.fault) return this.start();
    const round = (this.round = Symbol("round"));
    this.enter("countdown");
    the("stop").focus({ preventScroll: true });
    for (let left = this.settings.countdown_seconds; left > 0; left--) {
      the("count").textContent = number(left);
      await sleep(1000);
      if (this.round !== round) return;
    }
    the("count").textContent = "";
    try {
      this.photograph = await this.live.photograph(the("photograph"));
    } catch (fault) {
      return this.cameraIs(fault.message);
    }
    the("sight").classList.remove("flash");
    requestAnimationFrame(() => the("sight").classList.add("flash"));
    await this.order();
  }

  /** Has the photograph painted that was taken last. */
  async order() {
    this.preview = 0;
    this.ring.set(0, "");
    this.enter("painting");
    the("cancel").focus({ preventScroll: true });
    const style = this.tiles.chosen;
    const wish = { styles: style ? [style.id] : [], origin: "kiosk", kept: true };
    const round = this.round;
    try {
      const ticket = await api.paint(wish, this.photograph);
      if (this.round !== round) return void api.cancel(ticket.id).catch(() => {});
      this.id = ticket.id;
      this.waits(ticket.position);
      await this.catchUp();
    } catch (fault) {
      if (this.round === round) this.refuse(fault);
    }
  }

  waits(position) {
    this.ring.set(0, "…");
    this.line(position > 0 ? say("kiosk.before", { n: number(position) }) : say("kiosk.next"));
  }

  steps(i, n) {
    this.ring.set(n ? i / n : 0, n ? say("kiosk.percent", { n: number((100 * i) / n) }) : "…");
    this.line(say("kiosk.patience"));
  }

  grows(version) {
    if (version <= this.preview) return;
    this.preview = version;
    const next = new Image();
    next.src = `${api.paintingFile(this.id, "preview.jpg")}?v=${version}`;
    const id = this.id;
    next.decode().then(() => {
      if (this.id !== id || this.scene !== "painting") return;
      the("growing").src = next.src;
      show(the("growing"));
    }, () => {}); // the painting was finished meanwhile
  }

  /** Where the painting stands, for when events were missed. */
  async catchUp() {
    if (!this.id || this.scene !== "painting") return;
    const id = this.id;
    const now = await api.painting(id).catch((fault) => (this.line(fault.message), null));
    if (!now || this.id !== id || this.scene !== "painting") return;
    if (now.state === "queued") this.waits(now.position ?? 0);
    else if (now.state === "running") this.steps(now.step, now.steps);
    else if (now.painting) await this.reveal(now.painting);
    else if (now.state === "failed") this.refuse(new Error(now.error));
    else this.start();
  }

  async reveal(painting) {
    const { id } = painting;
    const after = api.paintingFile(id, "image.png");
    const picture = painting.has_content
      ? compare(api.paintingFile(id, "content.jpg"), after, spoken(painting))
      : make("img", { src: after, alt: spoken(painting) });
    await Promise.all([...picture.querySelectorAll("img")].map((image) => image.decode().catch(() => {})));
    if (this.id !== id || this.scene !== "painting") return;
    the("painting").replaceChildren(picture);
    shape(the("sight"), painting.width, painting.height);
    the("label").replaceChildren(wallLabel(painting));
    show(the("take"), Boolean(this.settings.public_url));
    if (this.settings.public_url) the("qr").src = api.paintingFile(id, "qr.svg");
    the("qr").alt = say("kiosk.qr");
    show(the("save"), !this.settings.public_url);
    the("save").href = `${after}?download=1`;
    show(the("print"), this.settings.printer);
    the("print").disabled = false;
    this.enter("result");
    the("retake").focus({ preventScroll: true });
  }

  async print() {
    the("print").disabled = true;
    try {
      await api.print(this.id);
      this.line(say("kiosk.printing"));
    } catch (fault) {
      this.line(fault.message);
    }
  }

  refuse(fault) {
    const full = fault.status === 503 && fault.retryAfter;
    the("refused-title").textContent = say(full ? "kiosk.full.title" : "kiosk.error.title");
    the("refused-text").textContent = full ? say("kiosk.full.text", { time: duration(fault.retryAfter) }) : say("kiosk.error.text");
    if (!full) console.info(fault.message);
    this.enter("refused");
    the("again").focus({ preventScroll: true });
  }

  /** Back to the start; a painting nobody waits for is taken back. */
  leave() {
    const unfinished = this.scene === "painting" ? this.id : null;
    this.round = null;
    the("count").textContent = "";
    this.start();
    if (unfinished) api.cancel(unfinished).catch(() => {});
  }

  cameraIs(fault) {
    this.fault = fault;
    if (fault && this.scene === "countdown") this.leave();
    this.showCameraNotice();
  }

  showCameraNotice() {
    const starting = this.scene === "start" || this.scene === "countdown";
    show(the("camera-notice"), Boolean(this.fault) && starting);
    show(this.live.view, starting && !this.fault);
    the("camera-fault").textContent = this.fault ? say("kiosk.camera.text", { fault: this.fault }) : "";
    the("shutter").disabled = Boolean(this.fault);
  }

  async watchTheClock() {
    const still = (Date.now() - this.touched) / 1000;
    const { timeout_seconds: timeout, idle_seconds: idle } = this.settings;
    if (this.scene === "result" || this.scene === "refused") {
      const left = Math.ceil(timeout - still);
      if (left <= 0) this.leave();
      else if (left <= WARNING) this.line(say("kiosk.timeout", { n: number(left) }));
    } else if (this.scene === "start" && idle > 0 && still > idle) {
      this.touched = Date.now();
      if (await this.slideshow.start()) this.enter("idle");
      else this.slideshow.stop();
    } else if (this.scene === "painting" && this.id && Math.round(still) % 5 === 4) {
      await this.catchUp();
    }
  }

  touch() {
    this.touched = Date.now();
    if (this.scene === "result") this.line();
  }

  key(event) {
    this.touch();
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (this.scene === "idle") {
      event.preventDefault();
      return this.start();
    }
    if (event.key === "Escape") return this.leave();
    const own = event.target.closest("button:not(.tile), a, input");
    if (this.scene === "start" && (event.key === " " || event.key === "Enter") && !own && !event.repeat) {
      event.preventDefault();
      this.press();
    }
    const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (this.scene === "start" && by) {
      event.preventDefault();
      this.tiles.step(by);
    }
  }
}

function hear(booth) {
  const mine = (action) => (event) => event.id === booth.id && booth.scene === "painting" && action(event);
  api.listen({
    step: mine(({ i, n }) => booth.steps(i, n)),
    preview: mine(({ version }) => booth.grows(version)),
    finished: () => booth.catchUp(), // of another painting: this one has moved up
    failed: mine(({ error }) => booth.refuse(new Error(error))),
    cancelled: mine(() => booth.start()),
    styles: () => booth.fillTiles(),
    camera: (event) => booth.live.hear(event),
    settings: () => booth.renew(),
    shutter: () => booth.press(),
    again: () => booth.fillTiles().then(() => booth.catchUp()),
  });
}

async function open() {
  const settings = await api.settings();
  await speak(settings.language);
  const booth = new Booth(settings);
  const clicks = {
    shutter: () => booth.press(), stop: () => booth.leave(), cancel: () => booth.leave(), done: () => booth.leave(),
    leave: () => booth.leave(), retake: () => booth.press(), again: () => booth.order(), print: () => booth.print(), wake: () => booth.start(),
  };
  for (const [id, action] of Object.entries(clicks)) the(id).addEventListener("click", action);
  the("show").addEventListener("pointerdown", () => booth.start());
  document.addEventListener("pointerdown", () => booth.touch());
  document.addEventListener("keydown", (event) => booth.key(event));
  document.addEventListener("contextmenu", (event) => event.preventDefault());
  await booth.fillTiles();
  booth.start();
  hear(booth);
}

begin(open);
