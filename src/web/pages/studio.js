// The studio: paint with every knob, mix styles stage by stage, teach a style.

import * as api from "./api.js";
import { begin, show, the } from "./element.js";
import { Learning } from "./learning.js";
import { Mixing } from "./mixing.js";
import { Painting } from "./painting.js";
import { say, speak } from "./strings.js";

const TABS = ["paint", "mix", "learn"];

function choose(name, focus) {
  for (const tab of TABS) {
    const button = the(`tab-${tab}`);
    button.setAttribute("aria-selected", String(tab === name));
    button.tabIndex = tab === name ? 0 : -1;
    show(the(tab), tab === name);
  }
  if (focus) the(`tab-${name}`).focus();
  history.replaceState(null, "", `${location.pathname}${location.search}#${name}`);
  document.dispatchEvent(new CustomEvent("tab", { detail: name }));
}

function tabs() {
  TABS.forEach((tab, index) => {
    the(`tab-${tab}`).addEventListener("click", () => choose(tab));
    the(`tab-${tab}`).addEventListener("keydown", ({ key }) => {
      const by = { ArrowRight: 1, ArrowLeft: -1 }[key];
      if (by) choose(TABS[(index + by + TABS.length) % TABS.length], true);
    });
  });
  const asked = location.hash.slice(1);
  choose(TABS.includes(asked) ? asked : "paint");
}

async function open() {
  const settings = await api.settings();
  await speak(settings.language);
  document.title = `${say("studio.title")} – ${settings.title}`;
  const rooms = [new Painting(settings), new Mixing(settings), new Learning(settings)];
  const restock = async () => {
    const styles = await api.styles().catch(() => []);
    for (const room of rooms) room.stock(styles);
  };
  await restock();
  tabs();
  const tell = (name) => (event) => rooms.forEach((room) => room.hear(name, event));
  const names = ["step", "preview", "learning", "finished", "failed", "cancelled"];
  api.listen({
    ...Object.fromEntries(names.map((name) => [name, tell(name)])),
    styles: restock,
    again: () => restock().then(() => rooms.forEach((room) => room.catchUp())),
  });
}

begin(open);
