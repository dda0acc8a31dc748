// Elements from code, without markup in strings: nothing a person typed is ever read as HTML.

/** `make("button", {class: "quiet", onclick: go}, "Go")`; what is null or false is left out. */
export function make(tag, properties = {}, ...children) {
  const svg = tag.startsWith("svg:");
  const element = svg
    ? document.createElementNS("http://www.w3.org/2000/svg", tag.slice(4))
    : document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** The element with this id, which the page's own markup has. */
export function the(id) {
  return document.getElementById(id);
}

/** Shows or hides an element. */
export function show(element, visible = true) {
  element.hidden = !visible;
}

/** Tells the style sheet the shape of the picture in an element. */
export function shape(element, width, height) {
  if (width && height) element.style.setProperty("--shape", String(Math.min(2.4, Math.max(0.4, width / height))));
}

/** Calls `action` once nothing has asked for so many milliseconds. */
export function settled(action, millis) {
  let timer;
  return (...given) => {
    clearTimeout(timer);
    timer = setTimeout(() => action(...given), millis);
  };
}

/** Opens a page. A daemon that was away at that moment is asked again soon: nobody may be there to reload. */
export function begin(open) {
  open().catch((fault) => {
    reportError(fault);
    setTimeout(() => location.reload(), 5000);
  });
}

export function sleep(millis) {
  return new Promise((done) => setTimeout(done, millis));
}
