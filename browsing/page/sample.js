// One sample, large: its frames with layers, its objects, its texts, its JSON.

import {address, ask, byId, count, element, explain, go, isPressed, path, press, say, state, viewQuery} from "./common.js";
import {badges, markOf, setMark, toggled} from "./marks.js";

let sample = null, place = null, version = "";
let shown = new Set();  // positions of the objects whose masks are drawn
let chosen = null;  // of them, those of the condition; null: all
let selected = null;  // the object that marks belong to
const buttons = Object.fromEntries(["masks", "cells", "small", "square", "broken", "keep"].map((id) => [id, byId(id)]));

export async function openSample(setVersion) {
  version = setVersion;
  const wanted = state.sample, set = state.set;
  sample = place = selected = null;
  const error = byId("sample-error");
  error.hidden = true;
  byId("key").textContent = "";
  const isCurrent = () => state.sample === wanted && state.set === set;
  await ask(`${path(set, wanted, "place")}?${viewQuery()}`).then(
    (answer) => { if (isCurrent()) drawPlace(answer); },
    (reason) => { if (isCurrent()) { drawPlace(null); say(reason.message, true); } },
  );
  if (!isCurrent()) return;
  try {
    const answer = await ask(path(set, wanted));
    if (!isCurrent()) return;
    sample = answer;
  } catch (reason) {
    if (!isCurrent()) return;
    error.textContent = reason.message;
    error.hidden = false;
  }
  byId("sample").hidden = !sample;
  if (sample) drawSample();
}

function drawPlace(answer) {
  place = answer;
  for (const [id, to] of [["previous", answer?.before], ["next", answer?.after]]) {
    const link = byId(id), isThere = to !== null && to !== undefined;
    if (isThere) link.href = address({sample: to, at: answer.place + (id === "next" ? 1 : -1)});
    else link.removeAttribute("href");
    link.setAttribute("aria-disabled", String(!isThere));
  }
  if (!answer) byId("place").textContent = "";
  else if (answer.place === null) byId("place").textContent = "not among the chosen samples";
  else byId("place").textContent = `${count(answer.place + 1)} of ${count(answer.total)}`;
}

function drawSample() {
  document.title = `${sample.key} - browse`;
  byId("key").textContent = sample.key;
  chosen = place?.objects === null || place?.objects === undefined ? null : fromRanges(place.objects);
  shown = new Set(chosen ?? sample.objects.keys());
  const facts = {
    path: sample.path, shard: `${sample.shard}, sample ${count(sample.position)}, ${(sample.bytes / 1e6).toFixed(2)} MB`,
    original: [...new Set(sample.frames.map((frame) => `${frame.width} x ${frame.height}`))].join(", "),
  };
  byId("facts").replaceChildren(...Object.entries(facts).filter(([, value]) => value)
    .flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
  byId("turns").replaceChildren(...sample.turns
    .flatMap((turn) => [element("dt", {}, turn.question), element("dd", {}, turn.answer)]));
  byId("texts-part").hidden = !sample.texts.length;
  byId("texts").replaceChildren(...sample.texts.map((item) => element("li", {}, item.text, " ",
    element("small", {}, item.objects.length ? `objects ${item.objects.join(", ")}` : item.kind === "caption" ? "caption" : "no object"))));
  byId("json").textContent = sample.json;
  byId("objects-part").hidden = !sample.objects.length;
  byId("objects").replaceChildren(...sample.objects.map(objectRow));
  byId("frames").replaceChildren(...sample.frames.map(frameFigure));
  for (const id of ["masks", "cells"]) buttons[id].disabled = !sample.objects.length;
  buttons.small.disabled = !sample.large;
  drawLayers();
  drawMarks();
}

function objectRow(object, number) {
  const box = element("input", {type: "checkbox", "aria-label": `show object ${object.id}`});
  box.checked = shown.has(number);
  box.addEventListener("change", () => {
    shown[box.checked ? "add" : "delete"](number);
    drawLayers();
  });
  const swatch = element("span", {class: "swatch"});
  swatch.style.background = object.colour;
  const name = element("button", {type: "button", "aria-pressed": "false", title: "Select: marks belong to it"},
    element("b", {}, object.id), object.category && object.category !== object.id ? ` ${object.category}` : "",
    ...object.texts.flatMap((text) => [element("br"), text]));
  name.addEventListener("click", () => select(selected === number ? null : number));
  const row = element("li", {}, box, swatch, name);
  row.addEventListener("mouseenter", () => drawLayers(number));
  row.addEventListener("mouseleave", () => drawLayers());
  return row;
}

function select(number) {
  selected = number;
  [...byId("objects").children].forEach((row, n) => {
    row.classList.toggle("selected", n === number);
    press(row.querySelector("button"), n === number);
  });
  drawMarks();
}

function frameFigure(frame, n) {
  const stack = element("div", {class: "stack"});
  const caption = sample.frames.length > 1 || frame.name !== "1" ? `${n + 1}: ${frame.name}, ` : "";
  const figure = element("figure", {}, stack, element("figcaption", {}, `${caption}${frame.width} x ${frame.height}`));
  for (const layer of ["picture", "masks", "cells"]) {
    const alt = layer === "picture" ? `frame ${n + 1} of ${sample.key}` : "";
    const img = element("img", {class: layer, alt, loading: "lazy"});
    img.addEventListener("error", () => explain(img, stack));
    stack.append(img);
  }
  return figure;
}

function drawLayers(only = null) {
  if (!sample) return;
  const numbers = only === null ? [...shown].sort((a, b) => a - b) : [only];
  const isAll = numbers.length === sample.objects.length;
  [...byId("frames").children].forEach((figure, n) => {
    const stack = figure.querySelector(".stack"), frame = sample.frames[n];
    const shape = isPressed(buttons.square) ? 1 : frame.width / frame.height;
    stack.style.aspectRatio = String(shape);
    stack.style.width = `min(100%, calc((100vh - 13rem) * ${shape}))`;
    for (const img of stack.querySelectorAll("img")) {
      const layer = img.className === "picture" ? (isPressed(buttons.small) || !sample.large ? "small" : "large") : img.className;
      const isOn = img.className === "picture" || (sample.objects.length && (only !== null && layer === "masks" || isPressed(buttons[layer])));
      img.hidden = !isOn || (img.className !== "picture" && !numbers.length);
      if (img.hidden) continue;
      const query = new URLSearchParams({v: version});
      if (img.className !== "picture" && !isAll) query.set("objects", ranges(numbers));
      const source = `${path(state.set, sample.position, n + 1, layer)}?${query}`;
      if (img.getAttribute("src") !== source) img.src = source;
    }
  });
}

function drawMarks() {
  const nameOf = (object) => `${sample.objects[object]?.id ?? object}: `;
  byId("marks").replaceChildren(...badges(sample.key, nameOf));
  const mark = markOf(sample.key, selected);
  for (const id of ["broken", "keep"]) press(buttons[id], mark === id);
  byId("label").value = ["broken", "keep"].includes(mark) ? "" : mark;
  byId("marked-what").textContent = selected === null ? "marks the sample" : `marks object ${sample.objects[selected].id}`;
}

async function mark(text, toggles = true) {
  if (!sample) return;
  const {key, position} = sample;
  await setMark(position, key, selected, toggles && text ? toggled(key, selected, text) : text);
  if (sample?.key === key) drawMarks();
}

function toggle(id) {
  if (buttons[id].disabled) return;
  press(buttons[id], !isPressed(buttons[id]));
  drawLayers();
}

function step(to) {
  const link = byId(to);
  if (link.hasAttribute("href")) link.click();
}

export function back() {
  if (selected !== null) select(null);
  else go({sample: null, at: place?.place ?? state.at});
}

export function sampleKey(event) {
  const actions = {
    ArrowLeft: () => step("previous"), k: () => step("previous"), ArrowRight: () => step("next"), j: () => step("next"),
    m: () => toggle("masks"), c: () => toggle("cells"), p: () => toggle("small"), s: () => toggle("square"),
    b: () => mark("broken"), x: () => mark("keep"), u: () => mark(""), l: () => byId("label").focus(), Escape: back,
  };
  if (!(event.key in actions)) return false;
  actions[event.key]();
  return true;
}

for (const id of ["masks", "cells", "small", "square"]) buttons[id].addEventListener("click", () => toggle(id));
for (const id of ["broken", "keep"]) buttons[id].addEventListener("click", () => mark(id));
byId("unmark").addEventListener("click", () => mark(""));
byId("label").addEventListener("keydown", (event) => {
  if (event.key === "Enter") {
    mark(byId("label").value.trim(), false);
    byId("label").blur();
  }
});
for (const [id, isOn] of [["all", true], ["none", false]]) {
  byId(id).addEventListener("click", () => {
    shown = new Set(isOn ? sample.objects.keys() : []);
    for (const box of byId("objects").querySelectorAll("input")) box.checked = isOn;
    drawLayers();
  });
}

export function ranges(numbers) {
  const parts = [];
  for (const number of numbers) {
    const last = parts.at(-1);
    if (last && last[1] === number - 1) last[1] = number;
    else parts.push([number, number]);
  }
  return parts.map(([a, b]) => (a === b ? `${a}` : `${a}-${b}`)).join(",");
}

function fromRanges(text) {
  return text.split(",").filter(Boolean).flatMap((part) => {
    const [a, b = a] = part.split("-").map(Number);
    return Array.from({length: b - a + 1}, (_, n) => a + n);
  });
}
