// A daemon of the test's own: any free port, a data folder that goes with it.

import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdir, mkdtemp, readdir, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { createInterface } from "node:readline";

export const ROOT = resolve(import.meta.dirname, "../..");
const PROGRAM = resolve(ROOT, process.env.PLEINAIR ?? "target/debug/pleinair");
const MODEL = resolve(ROOT, process.env.MODEL ?? "tests/fixtures/tiny-sd15");

/** The model with a second ControlNet, which looks at Canny's edges, in this folder. */
export async function withCanny(folder) {
  await mkdir(folder, { recursive: true });
  for (const name of await readdir(MODEL)) await symlink(join(MODEL, name), join(folder, name));
  await symlink(join(MODEL, "controlnet"), join(folder, "controlnet_canny"));
  return folder;
}

/** Starts a daemon with this configuration (TOML); resolves once it listens. */
export async function serve(toml = "", model = MODEL) {
  const data = await mkdtemp(join(tmpdir(), "pleinair-browser-"));
  const config = join(data, "pleinair.toml");
  await writeFile(config, toml);
  const order = ["serve", "--config", config, "--listen", "127.0.0.1:0", "--data", join(data, "data"), "--bundle", model];
  const child = spawn(PROGRAM, order, { stdio: ["ignore", "ignore", "pipe"], cwd: ROOT });
  const ended = once(child, "exit");
  const said = [];
  const url = await new Promise((done, failed) => {
    createInterface({ input: child.stderr }).on("line", (line) => {
      said.push(line);
      const found = line.match(/^listening on (http:\S+)/);
      if (found) done(found[1]);
    });
    child.on("error", failed);
    ended.then(([code]) => failed(new Error(`the daemon ended with ${code}:\n${said.join("\n")}`)));
  });
  const api = async (method, path, body) => {
    const json = body && !(body instanceof FormData);
    const headers = json ? { "content-type": "application/json" } : {};
    const answer = await fetch(`${url}/api/v1${path}`, { method, headers, body: json ? JSON.stringify(body) : body });
    if (!answer.ok) throw new Error(`${method} ${path}: ${answer.status} ${await answer.text()}`);
    return answer.headers.get("content-type")?.includes("json") ? answer.json() : Buffer.from(await answer.arrayBuffer());
  };
  const painted = async (wish) => {
    const { id } = await api("POST", "/paintings", wish);
    return over(() => api("GET", `/paintings/${id}`));
  };
  const learned = async (name, picture, wish = {}) => {
    const form = new FormData();
    form.append("wish", JSON.stringify({ name, steps: 3, batch: 1, contexts: ["a house in the style of {}"], ...wish }));
    form.append("image", new Blob([picture]), "picture");
    const { id } = await api("POST", "/styles", form);
    await over(() => api("GET", `/jobs/${id}`));
    return api("PATCH", `/styles/${id}`, { kept: true, shown: true });
  };
  /** Once so many pages listen to the events. */
  const heard = async (pages) => {
    for (let i = 0; i < 600; i++) {
      const metrics = await (await fetch(`${url}/metrics`)).text();
      const listeners = metrics.match(/^\w*event_listeners (\d+)/m);
      if (!listeners) throw new Error(`no listeners in\n${metrics}`);
      if (Number(listeners[1]) >= pages) return;
      await new Promise((done) => setTimeout(done, 100));
    }
    throw new Error(`nobody listens`);
  };
  const stop = async () => {
    child.kill("SIGTERM");
    await ended;
    await rm(data, { recursive: true, force: true });
  };
  return { url, api, painted, learned, heard, stop, said, data };
}

async function over(look) {
  for (let i = 0; i < 1200; i++) {
    const now = await look();
    if (now.state === "finished") return now;
    if (now.state === "failed" || now.state === "cancelled") throw new Error(`${now.state}: ${now.error}`);
    await new Promise((done) => setTimeout(done, 100));
  }
  throw new Error("it takes too long");
}
