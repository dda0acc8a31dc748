// The admin page: how daemon and machine are, what waits, which styles visitors may choose, who may come in.

import * as api from "./api.js";
import { begin, make, show, the } from "./element.js";
import { bytes, duration, moment, number, say, speak } from "./strings.js";

/** Milliseconds between two looks. */
const EVERY = 3000;
/** Jobs that are over and still listed. */
const OVER = 6;

function facts(place, pairs) {
  const shown = pairs.filter(([, value]) => value !== null && value !== undefined);
  the(place).replaceChildren(...shown.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
}

function lamp(name, fine) {
  return make("li", { class: fine ? "fine" : "bad" }, `${name}: ${say(fine ? "admin.fine" : "admin.bad")}`);
}

async function look() {
  const now = await api.status();
  const { health } = now;
  the("health").replaceChildren(lamp(say("admin.painter"), health.painter), lamp(say("admin.store"), health.store), lamp(say("admin.camera"), health.camera));
  const degrees = (celsius) => say("admin.celsius", { n: number(celsius) });
  const sensors = now.temperatures.map(({ name, celsius }) => [name || say("admin.temperature"), degrees(celsius)]);
  facts("machine", [
    [say("admin.uptime"), duration(now.uptime_seconds)],
    [say("admin.memory"), say("admin.memory.of", { own: bytes(now.resident_bytes), free: bytes(now.memory_free_bytes), all: bytes(now.memory_bytes) })],
    [say("admin.load"), number(now.load, 2)],
    ...(sensors.length ? sensors : [[say("admin.temperature"), say("admin.unknown")]]),
  ]);
  facts("model", [
    [say("admin.bundle"), now.bundle],
    [say("admin.device"), now.device],
    [say("admin.isa"), now.isa],
    [say("admin.seconds"), now.painting_seconds === null ? say("admin.unknown") : say("admin.seconds.value", { n: number(now.painting_seconds, 1) })],
    [say("admin.version"), now.version],
  ]);
  facts("storage", [
    [say("admin.paintings"), number(now.paintings)],
    [say("admin.bytes"), bytes(now.painting_bytes)],
    [say("admin.free"), now.disk_free_bytes === null ? say("admin.unknown") : bytes(now.disk_free_bytes)],
  ]);
  facts("camera", [[say("admin.source"), now.camera], [say("admin.state"), now.camera_fault ?? say("admin.fine")]]);
}

const STATES = {
  queued: "admin.queued", running: "admin.running", finished: "admin.finished", failed: "admin.failed", cancelled: "admin.cancelled",
};

async function queue() {
  const isOpen = (job) => job.state === "queued" || job.state === "running";
  const all = await api.jobs();
  const jobs = [...all.filter(isOpen), ...all.filter((job) => !isOpen(job)).slice(0, OVER)];
  const rows = jobs.map((job) => {
    const kind = say(job.kind === "painting" ? "admin.painting" : "admin.lesson");
    const progress = job.state === "running" && job.steps ? say("admin.step", { i: number(job.step), n: number(job.steps) }) : say(STATES[job.state]);
    const stop = make("button", { type: "button", class: "quiet", "aria-label": say("admin.cancel.named", { what: `${kind}, ${moment(job.created)}` }), onclick: () => attempt(() => api.cancel(job.id)) }, say("admin.cancel"));
    return make("li", { "data-job": job.id }, make("span", {}, kind), make("span", {}, progress), make("span", { class: "muted" }, job.error ?? moment(job.created)), isOpen(job) ? stop : null);
  });
  if (the("queue").contains(document.activeElement) && the("queue").children.length === rows.length) return; // somebody is about to press
  the("queue").replaceChildren(...(rows.length ? rows : [make("li", { class: "muted" }, say("admin.queue.empty"))]));
}

async function styles() {
  const all = await api.styles();
  the("styles").replaceChildren(...all.map((style) => {
    const name = make("input", { type: "text", value: style.name, maxlength: 64, "aria-label": say("admin.name", { name: style.name }), autocomplete: "off" });
    name.addEventListener("change", () => attempt(() => api.changeStyle(style.id, { name: name.value.trim() })));
    const shown = make("input", { type: "checkbox", "aria-label": say("admin.shown.named", { name: style.name }), ...(style.shown ? { checked: true } : {}) });
    shown.addEventListener("change", () => attempt(() => api.changeStyle(style.id, { shown: shown.checked })));
    const remove = make("button", { type: "button", class: "quiet", "aria-label": say("admin.delete.named", { name: style.name }), onclick: () => confirm(say("admin.delete.sure", { name: style.name })) && attempt(() => api.deleteStyle(style.id)) }, say("admin.delete"));
    const picture = style.has_picture ? make("img", { src: api.stylePicture(style.id), alt: "", loading: "lazy" }) : make("span", { class: "tile-blank", "aria-hidden": "true" }, style.name.slice(0, 1));
    return make("li", { "data-style": style.id }, picture, name, make("label", { class: "check" }, shown, make("span", {}, say("admin.shown"))),
      style.source === "shipped" ? make("span", { class: "muted" }, say("admin.shipped")) : remove);
  }));
}

async function pair() {
  const { pairings } = await api.pairing();
  const roles = { admin: say("admin.role.admin"), kiosk: say("admin.role.kiosk"), gallery: say("admin.role.gallery") };
  const codes = pairings.map(({ role, svg }) => make("figure", { class: "qr" }, drawn(svg, say("admin.pairing.qr", { role: roles[role] })), make("figcaption", {}, roles[role])));
  the("pairing").replaceChildren(...(codes.length ? codes : [make("p", { class: "hint" }, say("admin.pairing.none"))]));
}

/** A code that the daemon drew; its address holds a token and is not written out. */
function drawn(svg, label) {
  const code = document.importNode(new DOMParser().parseFromString(svg, "image/svg+xml").documentElement, true);
  code.setAttribute("role", "img");
  code.setAttribute("aria-label", label);
  return code;
}

/** The cameras that may be chosen; the list is asked for again when it is opened, for one that was plugged in since. */
async function cameras() {
  const all = await api.cameras();
  const shown = ({ id, name }) => name ? `${name} (${id})` : id === "browser" ? say("admin.camera.browser") : id;
  the("cameras").replaceChildren(...all.map((camera) => make("option", { value: camera.id, ...(camera.chosen ? { selected: true } : {}) }, shown(camera))));
}

async function logTail() {
  const place = the("log");
  const below = place.scrollHeight - place.scrollTop - place.clientHeight < 40;
  const lines = await api.log();
  place.textContent = lines.join("\n");
  if (below) place.scrollTop = place.scrollHeight;
}

async function attempt(action) {
  the("line").textContent = "";
  try {
    await action();
  } catch (fault) {
    the("line").textContent = fault.message;
    await Promise.all([styles(), cameras()]);
  }
}

async function open() {
  const settings = await api.settings();
  await speak(settings.language);
  document.title = `${say("admin.title")} – ${settings.title}`;
  the("shutter").addEventListener("click", () => attempt(() => api.pressShutter()));
  the("live").alt = say("admin.live");
  the("live").addEventListener("error", () => show(the("live"), false));
  const showLive = () => {
    show(the("live"));
    the("live").src = `${api.liveView}?${Date.now()}`;
  };
  const hideLive = () => {
    show(the("live"), false);
    the("live").removeAttribute("src");
  };
  the("cameras").addEventListener("pointerdown", () => attempt(cameras));
  the("cameras").addEventListener("change", (event) => attempt(() => api.chooseCamera(event.target.value)));
  const round = () => Promise.all([look(), queue(), logTail()]).then(() => the("line").textContent = "", (fault) => (the("line").textContent = fault.message));
  await Promise.all([attempt(styles), attempt(pair), attempt(cameras), round()]);
  if (settings.camera) showLive();
  setInterval(round, EVERY);
  const soon = () => attempt(queue);
  api.listen({
    queued: soon, finished: soon, failed: soon, cancelled: soon, styles: () => attempt(styles), camera: ({ up }) => up && showLive(),
    settings: () => {
      hideLive(); // until the camera that was chosen sends a picture
      attempt(() => Promise.all([cameras(), look()]));
    },
  });
}

begin(open);
