// What all parts of the page share: the state, which is the address; answers of the server; elements.

export const state = {set: "", where: "", sort: "", page: "", at: 0, sample: null, reason: "", begin: 0, order: ""};
const numbers = new Set(["at", "sample", "begin"]);

export function readAddress() {
  const query = new URLSearchParams(location.search);
  for (const name of Object.keys(state)) {
    const text = query.get(name);
    const number = text !== null && /^\d{1,15}$/.test(text) ? Number(text) : null;
    state[name] = numbers.has(name) ? (number ?? (name === "sample" ? null : 0)) : (text ?? "");
  }
}

export function address(changes = {}) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries({...state, ...changes})) {
    if (value !== null && value !== "" && value !== 0 || (name === "sample" && value === 0)) query.set(name, value);
  }
  return `?${query}`;
}

let draw = () => {};
export function onChange(handler) { draw = handler; }

export function go(changes, replace = false) {
  const to = address(changes);
  if (to !== location.search) history[replace ? "replaceState" : "pushState"](null, "", to || "?");
  readAddress();
  draw();
}

export function remember(changes) {  // in the address alone: nothing is drawn again
  history.replaceState(null, "", address(changes));
  Object.assign(state, changes);
}

export const byId = (id) => document.getElementById(id);

export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") made.className = value;
    else if (name in made && typeof value !== "string") made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

export class Refused extends Error {}

export async function ask(path, options) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("the server does not answer; it may have been stopped");
  }
  const type = answer.headers.get("content-type") ?? "";
  const value = type.startsWith("application/json") ? await answer.json() : {error: `the server answers ${answer.status}`};
  if (!answer.ok) throw new Refused(value.error);
  return value;
}

export function say(text, isError = false) {
  const message = byId("message");
  message.textContent = text;
  message.hidden = !text;
  message.classList.toggle("error", isError);
}

export const path = (...parts) => ["api", ...parts.map((part) => encodeURIComponent(part))].join("/");

export function viewQuery(more = {}) {
  const query = new URLSearchParams(more);
  if (state.where) query.set("where", state.where);
  if (state.sort) query.set("sort", state.sort);
  return query;
}

export function press(button, isPressed) { button.setAttribute("aria-pressed", String(isPressed)); }
export const isPressed = (button) => button.getAttribute("aria-pressed") === "true";

// Put the reason in a picture's place: the server sends it in JSON where there is no picture.
export async function explain(img, place) {
  const source = img.getAttribute("src");
  if (!source) return;
  let text;
  let isError = true;
  try {
    const answer = await ask(source);
    text = answer.text;
    isError = text === undefined;
  } catch (error) {
    text = error.message;
  }
  if (img.getAttribute("src") !== source) return;
  img.remove();
  place.textContent = text ?? "the picture cannot be shown";
  place.classList.add(isError ? "error" : "text");
}

export const count = (number) => number.toLocaleString("en");
