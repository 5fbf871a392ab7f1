// Marks of the current set: of samples, and of objects.

import {ask, byId, element, path, say, state} from "./common.js";

let ofSet = "";
let marks = new Map();  // key -> Map(object or null -> mark)

export async function loadMarks() {
  if (ofSet === state.set) return;
  ofSet = state.set;
  marks = new Map();
  for (const {key, object, mark} of (await ask(path(state.set, "marks"))).marks) note(key, object, mark);
}

function note(key, object, mark) {
  const own = marks.get(key) ?? new Map();
  if (mark) own.set(object, mark);
  else own.delete(object);
  marks.set(key, own);
}

export const markOf = (key, object = null) => marks.get(key)?.get(object) ?? "";
export const marksOf = (key) => [...(marks.get(key) ?? [])];

export async function setMark(position, key, object, mark) {
  try {
    const body = JSON.stringify({position, object, mark});
    await ask(path(state.set, "marks"), {method: "POST", headers: {"Content-Type": "application/json"}, body});
    note(key, object, mark);
  } catch (error) {
    say(error.message, true);
  }
}

export const toggled = (key, object, mark) => (markOf(key, object) === mark ? "" : mark);

export function badges(key, nameOf = (object) => `object ${object}: `) {
  return marksOf(key).map(([object, mark]) => element("span", {class: "badge"}, (object === null ? "" : nameOf(object)) + mark));
}

export function showExport(hasTable) {
  const link = byId("export");
  if (hasTable) link.href = path(state.set, "marks.parquet");
  else link.removeAttribute("href");
  link.title = hasTable ? "Marks as parquet, for cli.py join" : "needs the set's table";
}
