// Stages as the daemon reads them: 5..3 is 5, 4 and 3.

/** Stages of what has none of its own, as many as the paper's. */
export const STAGES = 6;

/** Neighbouring stages with the same value, from noise down; `values` has stage 0 first. */
export function runs(values) {
  const found = [];
  for (let stage = values.length - 1; stage >= 0; stage--) {
    const last = found.at(-1);
    if (last?.value === values[stage]) last.to = stage;
    else found.push({ from: stage, to: stage, value: values[stage] });
  }
  return found;
}

/** As it is written. */
export const span = ({ from, to }) => (from === to ? String(from) : `${from}..${to}`);
