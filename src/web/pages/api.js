// The daemon's HTTP interface; /api/openapi.json describes it.

import { say } from "./strings.js";

const ROOT = "/api/v1";

/** What the daemon does not want to do, and when to ask again. */
export class Refusal extends Error {
  constructor(status, message, retryAfter) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

async function ask(method, path, body) {
  const wish = { method, headers: {} };
  if (body instanceof FormData) wish.body = body;
  else if (body !== undefined) {
    wish.body = JSON.stringify(body);
    wish.headers["content-type"] = "application/json";
  }
  let answer;
  try {
    answer = await fetch(ROOT + path, wish);
  } catch {
    throw new Refusal(0, say("page.unreachable"));
  }
  const json = answer.headers.get("content-type")?.includes("json");
  if (!answer.ok) {
    const said = json ? (await answer.json()).error : await answer.text();
    throw new Refusal(answer.status, said || say("page.refused"), Number(answer.headers.get("retry-after")) || null);
  }
  return json ? answer.json() : answer.text();
}

const part = encodeURIComponent;

export const settings = () => ask("GET", "/kiosk");
export const jobs = async () => (await ask("GET", "/jobs")).jobs;
export const job = (id) => ask("GET", `/jobs/${part(id)}`);
export const cancel = (id) => ask("DELETE", `/jobs/${part(id)}`);
export const styles = async () => (await ask("GET", "/styles")).styles;
export const losses = (id) => ask("GET", `/styles/${part(id)}/losses`);
export const changeStyle = (id, change) => ask("PATCH", `/styles/${part(id)}`, change);
export const deleteStyle = (id) => ask("DELETE", `/styles/${part(id)}`);
export const mixStyles = (name, rules) => ask("POST", "/styles/mix", { name, rules });
export const painting = (id) => ask("GET", `/paintings/${part(id)}`);
export const deletePainting = (id) => ask("DELETE", `/paintings/${part(id)}`);
export const print = (id) => ask("POST", `/paintings/${part(id)}/print`);
export const status = () => ask("GET", "/status");
export const log = async () => (await ask("GET", "/log")).lines;
export const pairing = () => ask("GET", "/pairing");
export const cameras = async () => (await ask("GET", "/cameras")).cameras;
export const chooseCamera = (id) => ask("PUT", "/camera", { id });
export const pressShutter = () => ask("POST", "/shutter");

/** Paintings of the gallery, the newest first. */
export function paintings(filter = {}) {
  const given = Object.entries(filter).filter(([, value]) => value);
  return ask("GET", `/paintings?${new URLSearchParams(given)}`);
}

/** Orders a painting, told by the keys of its request besides origin, kept and mix: of a picture (a Blob), of what the machine's camera sees now (`"camera"`), or of words
 * alone (null). */
export function paint(wish, picture) {
  if (picture === "camera") return ask("POST", "/paintings", { ...wish, camera: true });
  if (!picture) return ask("POST", "/paintings", wish);
  const form = new FormData();
  form.append("wish", JSON.stringify(wish));
  form.append("frame", picture, "frame");
  return ask("POST", "/paintings", form);
}

/** Orders a lesson; `wish.contexts` has a text for each picture, and the unfinished style is tried on the photographs. */
export function learn(wish, pictures, photographs = []) {
  const form = new FormData();
  form.append("wish", JSON.stringify(wish));
  for (const picture of pictures) form.append("image", picture, "image");
  for (const photograph of photographs) form.append("validate_image", photograph, "photograph");
  return ask("POST", "/styles", form);
}

/** Takes in a style file. */
export function bringStyle(file) {
  const form = new FormData();
  form.append("style", file, file.name);
  return ask("POST", "/styles", form);
}

/** What a captioner sees in a picture. */
export async function caption(picture) {
  const form = new FormData();
  form.append("image", picture, "image");
  return (await ask("POST", "/captions", form)).caption;
}

/** The file of a painting: `image.png`, `control.png`, `preview.jpg`, `content.jpg`, `thumbnail.jpg`, `qr.svg`. */
export const paintingFile = (id, file) => `${ROOT}/paintings/${part(id)}/${file}`;
export const stylePicture = (id) => `${ROOT}/styles/${part(id)}/picture.jpg`;
/** What a lesson tried its style on, as it was last painted. */
export const styleValidation = (id) => `${ROOT}/styles/${part(id)}/validation.png`;
export const styleFile = (id) => `${ROOT}/styles/${part(id)}.safetensors`;
export const liveView = `${ROOT}/camera.mjpeg`;
export const liveFrame = `${ROOT}/frame.jpg`;

/** Calls `hear[name](data)` for every event of that name; `hear.again()` when some may have been missed. */
export function listen(hear) {
  const stream = new EventSource(`${ROOT}/events`);
  let cut = false;
  stream.addEventListener("error", () => (cut = true));
  stream.addEventListener("open", () => {
    if (cut) hear.again?.();
    cut = false;
  });
  stream.addEventListener("lagged", () => hear.again?.());
  for (const name of Object.keys(hear).filter((name) => name !== "again")) {
    stream.addEventListener(name, (event) => hear[name](JSON.parse(event.data)));
  }
  return stream;
}
