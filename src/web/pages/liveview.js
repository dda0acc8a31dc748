// What the camera sees: the browser's own, mirrored, or the machine's as a stream of JPEGs.

import * as api from "./api.js";
import { make, shape } from "./element.js";
import { say } from "./strings.js";

const LONGEST_PAUSE = 30_000;
const WIDEST = 1280;

export class LiveView {
  /** `source`: the daemon's camera, `browser` for the page's own. `tell(message)` hears what is wrong with it, or null when
   * frames come. */
  constructor(place, source, tell) {
    this.tell = tell;
    this.own = source !== "browser";
    this.pause = 1000;
    this.video = make("video", { class: "live mirrored", muted: true, playsinline: true, "aria-hidden": "true" });
    this.video.muted = true;
    this.image = make("img", { class: source === "folder" ? "live" : "live mirrored", alt: say("kiosk.live") });
    this.view = this.own ? this.image : this.video;
    this.place = place;
    place.prepend(this.view);
    this.image.addEventListener("load", () => this.#came());
    this.image.addEventListener("error", () => this.#lost(say("kiosk.camera.gone")));
    queueMicrotask(() => this.#open()); // who is told has to know this view first
  }

  /** The picture of now, as a JPEG, and drawn on `canvas`. */
  async photograph(canvas) {
    const source = this.own ? await frame() : this.video;
    const width = source.videoWidth || source.width;
    const height = source.videoHeight || source.height;
    if (!width) throw new Error(say("kiosk.camera.gone"));
    const cut = this.own ? { width, height } : part(width, height);
    const scale = Math.min(1, WIDEST / Math.max(cut.width, cut.height));
    canvas.width = Math.round(cut.width * scale);
    canvas.height = Math.round(cut.height * scale);
    const left = (width - cut.width) / 2;
    const top = (height - cut.height) / 2;
    shape(this.place, cut.width, cut.height);
    canvas.getContext("2d").drawImage(source, left, top, cut.width, cut.height, 0, 0, canvas.width, canvas.height);
    return new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.95));
  }

  /** The daemon has news of its camera. */
  hear({ up, message }) {
    if (!this.own) return;
    if (up) {
      if (!this.up) this.#open();
    } else this.#lost(message ?? say("kiosk.camera.gone"));
  }

  #open() {
    clearTimeout(this.timer);
    if (this.own) {
      this.image.src = `${api.liveView}?${Date.now()}`;
    } else {
      this.#ask();
    }
  }

  async #ask() {
    if (!navigator.mediaDevices) return this.#lost(say("kiosk.camera.insecure"), false);
    try {
      const wish = { video: { width: { ideal: 1280 }, height: { ideal: 960 }, facingMode: "user" }, audio: false };
      const stream = await navigator.mediaDevices.getUserMedia(wish);
      stream.getVideoTracks()[0].addEventListener("ended", () => this.#lost(say("kiosk.camera.gone")));
      this.video.srcObject = stream;
      await this.video.play();
      this.#came();
    } catch (fault) {
      this.#lost(say(fault.name === "NotAllowedError" ? "kiosk.camera.refused" : "kiosk.camera.gone"));
    }
  }

  /** Back to the shape of the live view. */
  refit() {
    if (this.own) shape(this.place, this.image.naturalWidth, this.image.naturalHeight);
    else this.place.style.removeProperty("--shape");
  }

  #came() {
    if (this.up) return; // some browsers tell of every frame
    this.up = true;
    this.pause = 1000;
    this.refit();
    this.tell(null);
  }

  #lost(message, again = true) {
    this.up = false;
    this.tell(message);
    clearTimeout(this.timer);
    if (!again) return;
    this.timer = setTimeout(() => this.#open(), this.pause);
    this.pause = Math.min(this.pause * 2, LONGEST_PAUSE);
  }
}

async function frame() {
  const answer = await fetch(api.liveFrame, { cache: "no-store" });
  if (!answer.ok) throw new Error(say("kiosk.camera.gone"));
  return createImageBitmap(await answer.blob());
}

/** The part of the browser's picture that the easel shows: a square in portrait, 4:3 in landscape. */
function part(width, height) {
  const wanted = matchMedia("(orientation: portrait)").matches ? 1 : 4 / 3;
  return width / height > wanted ? { width: Math.round(height * wanted), height } : { width, height: Math.round(width / wanted) };
}
