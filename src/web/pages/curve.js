// A lesson's loss: a thin line for each stage, smoothed, and a strong one for their mean.

import { make } from "./element.js";
import { number, say } from "./strings.js";

const [WIDTH, HEIGHT, LEFT, BOTTOM, TOP] = [640, 260, 52, 28, 10];

/** Draws `points` ({step, t_stage, smoothed_loss}) into `place`. */
export function drawCurve(place, points, steps) {
  const stages = Map.groupBy ? Map.groupBy(points, (point) => point.t_stage) : grouped(points);
  const mean = meanOf(points, stages.size);
  const losses = points.map((point) => point.smoothed_loss).filter(Number.isFinite);
  if (!losses.length) return place.replaceChildren();
  let [low, high] = [Math.min(...losses), Math.max(...losses)];
  if (high - low < 1e-6) [low, high] = [low - 0.5, high + 0.5];
  const x = (step) => LEFT + ((WIDTH - LEFT - 8) * step) / Math.max(steps, 1);
  const y = (loss) => TOP + ((HEIGHT - TOP - BOTTOM) * (high - loss)) / (high - low);
  const line = (name, curve, extra = {}) => make("svg:polyline", { class: name, points: curve.map(([step, loss]) => `${x(step).toFixed(1)},${y(loss).toFixed(1)}`).join(" "), ...extra });
  const thin = [...stages.entries()].sort(([a], [b]) => a - b).map(([stage, curve], i) =>
    line("curve-stage", curve.map((point) => [point.step, point.smoothed_loss]), { "stroke-opacity": 0.25 + (0.6 * i) / Math.max(1, stages.size - 1), "data-stage": stage }));
  const ticks = [low, (low + high) / 2, high].flatMap((loss) => [
    make("svg:line", { class: "curve-grid", x1: LEFT, x2: WIDTH - 8, y1: y(loss), y2: y(loss) }),
    make("svg:text", { x: LEFT - 8, y: y(loss) + 4, "text-anchor": "end" }, number(loss, 3)),
  ]);
  const foot = [make("svg:text", { x: LEFT, y: HEIGHT - 6 }, "0"), make("svg:text", { x: WIDTH - 8, y: HEIGHT - 6, "text-anchor": "end" }, number(steps))];
  const last = mean.at(-1)[1];
  place.replaceChildren(make("svg:svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": say("studio.learn.curve.spoken", { loss: number(last, 3) }) },
    ticks, thin, line("curve-mean", mean), foot));
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
