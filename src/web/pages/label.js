// The label beside a painting, as on a museum's wall.

import * as api from "./api.js";
import { make } from "./element.js";
import { day, say } from "./strings.js";

const KINDS = { "soft-edge": "page.control.soft_edge", depth: "page.control.depth", canny: "page.control.canny", lineart: "page.control.lineart" };

/** What a painting is called, in which style, when it was made. */
export function wallLabel(painting) {
  const styles = painting.styles.join(", ");
  const medium = painting.has_content ? say("page.medium.photograph") : say("page.medium.words");
  return make("div", { class: "label" },
    make("p", { class: "label-title" }, styles ? say("page.label.style", { style: styles }) : say("page.label.plain")),
    make("p", {}, day(painting.created)),
    make("p", { class: "label-medium" }, `${medium}, ${painting.width} × ${painting.height}`));
}

/** What a person who cannot see the painting hears. */
export function spoken(painting) {
  const styles = painting.styles.join(", ");
  return styles ? say("page.spoken.style", { style: styles }) : say("page.spoken.plain", { prompt: painting.prompt });
}

/** Links that save what the ControlNets looked at, where it was kept. */
export function controlLinks(painting) {
  const link = (kind) => make("a", { class: "button quiet", href: `${api.paintingFile(painting.id, "control.png")}?kind=${kind}&download=1`, download: true }, say(KINDS[kind]));
  return painting.controls.map(link);
}
