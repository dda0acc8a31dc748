// A lesson's loss: a thin line for each stage, smoothed, and a strong one for their mean.

import { make } from "./element.js";
import { number, say } from "./strings.js";

const [WIDTH, HEIGHT, LEFT, BOTTOM, TOP] = [640, 260, 52, 28, 10];
/** More stages than these have no key. */
const MOST = 24;

/** From cyan next to noise to pink at the last brush stroke; none is the mean's. */
const colour = (stage, stages) => `hsl(${190 + (145 * (stages - 1 - stage)) / Math.max(1, stages - 1)} 60% 72%)`;

/** Draws `points` ({step, t_stage, smoothed_loss}) into `place`, and says in `key` which line is which stage's. */
export function drawCurve(place, key, points, steps) {
  const stages = Map.groupBy ? Map.groupBy(points, (point) => point.t_stage) : grouped(points);
  const mean = meanOf(points, stages.size);
  const losses = points.map((point) => point.smoothed_loss).filter(Number.isFinite);
  key.replaceChildren();
  if (!losses.length) return place.replaceChildren();
  let [low, high] = [Math.min(...losses), Math.max(...losses)];
  if (high - low < 1e-6) [low, high] = [low - 0.5, high + 0.5];
  const x = (step) => LEFT + ((WIDTH - LEFT - 8) * step) / Math.max(steps, 1);
  const y = (loss) => TOP + ((HEIGHT - TOP - BOTTOM) * (high - loss)) / (high - low);
  const line = (name, curve, extra = {}) => make("svg:polyline", { class: name, points: curve.map(([step, loss]) => `${x(step).toFixed(1)},${y(loss).toFixed(1)}`).join(" "), ...extra });
  const all = [...stages.entries()].sort(([a], [b]) => b - a);
  const count = all[0][0] + 1;
  const thin = all.map(([stage, curve]) =>
    line("curve-stage", curve.map((point) => [point.step, point.smoothed_loss]), { stroke: colour(stage, count), "data-stage": stage }));
  if (count <= MOST) key.append(...all.map(([stage, curve]) => entry(stage, count, curve.at(-1).smoothed_loss)));
  const ticks = [low, (low + high) / 2, high].flatMap((loss) => [
    make("svg:line", { class: "curve-grid", x1: LEFT, x2: WIDTH - 8, y1: y(loss), y2: y(loss) }),
    make("svg:text", { x: LEFT - 8, y: y(loss) + 4, "text-anchor": "end" }, number(loss, 3)),
  ]);
  const foot = [make("svg:text", { x: LEFT, y: HEIGHT - 6 }, "0"), make("svg:text", { x: WIDTH - 8, y: HEIGHT - 6, "text-anchor": "end" }, number(steps))];
  const last = mean.at(-1)[1];
  place.replaceChildren(make("svg:svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": say("studio.learn.curve.spoken", { loss: number(last, 3) }) },
    ticks, thin, line("curve-mean", mean), foot));
}

function entry(stage, stages, loss) {
  const swatch = make("svg:svg", { viewBox: "0 0 20 6", "aria-hidden": "true" }, make("svg:line", { x1: 0, x2: 20, y1: 3, y2: 3, stroke: colour(stage, stages), "stroke-width": 3 }));
  return make("li", {}, swatch, say("studio.learn.key.entry", { n: number(stage), loss: number(loss, 3) }));
}

/** The mean of the stages' last smoothed losses after each step, once every stage has one. */
function meanOf(points, stages) {
  const latest = new Map();
  const mean = new Map();
  for (const point of points) {
    latest.set(point.t_stage, point.smoothed_loss);
    if (latest.size === stages) mean.set(point.step, [...latest.values()].reduce((a, b) => a + b) / stages);
  }
  return [...mean.entries()];
}

function grouped(points) {
  const groups = new Map();
  for (const point of points) groups.set(point.t_stage, [...(groups.get(point.t_stage) ?? []), point]);
  return groups;
}
