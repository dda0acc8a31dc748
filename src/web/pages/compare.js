// Before and after: one picture over the other, parted by a slider that hands and keys move.

import { make } from "./element.js";
import { say } from "./strings.js";

/** The painting `after`, and under a movable edge the photograph `before`; both are addresses. */
export function compare(before, after, alt) {
  const top = make("img", { class: "compare-before", src: before, alt: "", draggable: "false" });
  const range = make("input", {
    type: "range", min: "0", max: "100", value: "0", step: "1", class: "compare-range", "aria-label": say("page.compare"),
  });
  const place = make("div", { class: "compare" },
    make("img", { src: after, alt, draggable: "false" }), top, make("span", { class: "compare-edge", "aria-hidden": "true" }), range);
  const move = () => place.style.setProperty("--edge", `${range.value}%`);
  range.addEventListener("input", move);
  move();
  return place;
}
