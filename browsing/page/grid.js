// The grid: a window on the samples of a view. Only what is on the screen, and some rows around it, is kept.

import {address, ask, byId, count, element, explain, go, path, remember, say, state, viewQuery} from "./common.js";
import {badges, setMark, toggled} from "./marks.js";

const CELL = 192, ROW = 214, PART = 120, PARTS = 12;
const TALLEST = 8_000_000;  // pixels: browsers cut off what is taller than some ten millions
const grid = byId("grid"), space = byId("space");
const cells = new Map();  // place -> element
const parts = new Map();  // number of a part -> its samples, or the promise of them
let total = 0, columns = 1, version = "", viewOf = null;
let margin = 4;
let top = 0;  // in the whole grid, in pixels
let lastScroll = 0, selected = 0, masks = true, timer = 0;

export async function openGrid(setVersion) {
  version = setVersion;
  const view = `${state.set}?${viewQuery()}`;
  if (view !== viewOf) {
    clear();
    total = 0;
    viewOf = view;
    say("looking ...");
    try {
      const answer = await loadPart(Math.floor(state.at / PART));
      if (viewOf !== view) return;
      total = answer.total;
      say(text(answer));
    } catch (error) {
      if (viewOf === view) {
        viewOf = null;
        say(error.message, true);
      }
      return;
    }
  }
  selected = Math.min(state.at, Math.max(total - 1, 0));
  measure();
  show(selected, true);
  grid.focus({preventScroll: true});
}

function text({total, objects}) {
  const samples = `${count(total)} sample${total === 1 ? "" : "s"}`;
  return objects === undefined ? samples : `${samples} with ${count(objects)} chosen object${objects === 1 ? "" : "s"}`;
}

export const setMasks = (on) => { masks = on; clearCells(); update(); };

function clear() {
  parts.clear();
  clearCells();
}

function clearCells() {
  for (const cell of cells.values()) drop(cell);
  cells.clear();
}

function drop(cell) {
  cell.querySelector("img")?.removeAttribute("src");  // so that it is not loaded any more
  cell.remove();
}

const whole = () => Math.ceil(total / columns) * ROW;
const most = () => Math.max(whole() - grid.clientHeight, 0);
const mostScroll = () => Math.max(Math.min(whole(), TALLEST) - grid.clientHeight, 0);

function measure() {
  columns = Math.max(1, Math.floor((grid.clientWidth - 8) / CELL));
  margin = Math.max(Math.floor((grid.clientWidth - columns * CELL) / 2), 4);
  space.style.height = `${Math.min(whole(), TALLEST)}px`;
}

function scrollTo(to) {
  top = Math.min(Math.max(to, 0), most());
  lastScroll = most() ? Math.round(top / most() * mostScroll()) : 0;
  grid.scrollTop = lastScroll;
  lastScroll = grid.scrollTop;
  update();
}

grid.addEventListener("scroll", () => {
  const moved = grid.scrollTop - lastScroll;
  if (!moved) return;
  lastScroll = grid.scrollTop;
  const isShort = mostScroll() === most();
  // Steps are as long as they look; jumps, and the ends of the bar, go by its share of the way.
  if (isShort || Math.abs(moved) > 2 * grid.clientHeight || grid.scrollTop <= 0 || grid.scrollTop >= mostScroll()) {
    top = mostScroll() ? grid.scrollTop / mostScroll() * most() : 0;
  } else {
    top = Math.min(Math.max(top + moved, 0), most());
    clearTimeout(timer);
    timer = setTimeout(() => scrollTo(top), 200);
  }
  update();
});

new ResizeObserver(() => {
  if (!total || !grid.clientWidth) return;
  const first = Math.floor(top / ROW) * columns;
  const before = columns;
  measure();
  clearCells();
  scrollTo(columns === before ? top : Math.floor(first / columns) * ROW);
}).observe(grid);

function update() {
  if (!grid.clientHeight) return;
  const first = Math.max(Math.floor(top / ROW) - 1, 0) * columns;
  const end = Math.min((Math.floor((top + grid.clientHeight) / ROW) + 2) * columns, total);
  for (const [place, cell] of cells) {
    if (place < first || place >= end) {
      drop(cell);
      cells.delete(place);
    }
  }
  for (let place = first; place < end; place++) {
    if (!cells.has(place)) {
      cells.set(place, makeCell(place));
      fill(place, cells.get(place));
    }
    const cell = cells.get(place);
    cell.style.left = `${margin + place % columns * CELL}px`;
    cell.style.top = `${Math.floor(place / columns) * ROW - top + grid.scrollTop + 4}px`;
    cell.classList.toggle("selected", place === selected);
    cell.setAttribute("aria-selected", String(place === selected));
  }
  grid.setAttribute("aria-activedescendant", `cell-${selected}`);
}

function makeCell(place) {
  const view = element("span", {class: "view"});
  const cell = element("a", {class: "cell", href: "?", tabindex: "-1", role: "option", id: `cell-${place}`}, view, element("span", {class: "name"}));
  space.append(cell);
  cell.addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    selected = place;
    open();
  });
  return cell;
}

async function fill(place, cell) {
  const number = Math.floor(place / PART);
  let part = parts.get(number);
  if (!part) {
    await new Promise((resolve) => setTimeout(resolve, 60));  // places that only fly past are not asked for
    if (cells.get(place) !== cell) return;
    try {
      part = await loadPart(number);
    } catch (error) {
      say(error.message, true);
      return;
    }
  } else if (part instanceof Promise) {
    part = await part.catch(() => null);
  }
  const sample = part?.samples[place - number * PART];
  if (!sample || cells.get(place) !== cell) return;
  const view = cell.querySelector(".view");
  const img = element("img", {alt: `sample ${sample.key}`, draggable: false});
  img.addEventListener("error", () => explain(img, view));
  const query = new URLSearchParams({v: version});
  if (sample.objects !== undefined) query.set("objects", sample.objects);
  if (!masks) query.set("masks", "0");
  img.src = `${path(state.set, sample.position, "picture")}?${query}`;
  view.replaceChildren(img);
  cell.href = address({page: "", sample: sample.position, at: place});
  cell.title = sample.key;
  cell.querySelector(".name").textContent = sample.key;
  drawBadges(cell, sample.key);
}

function drawBadges(cell, key) {
  for (const badge of cell.querySelectorAll(".badge")) badge.remove();
  cell.append(...badges(key).slice(0, 1));
}

function loadPart(number) {
  const known = parts.get(number);
  if (known) return Promise.resolve(known);
  const view = viewOf;
  const loading = ask(`${path(state.set, "rows")}?${viewQuery({begin: number * PART, count: PART})}`);
  parts.set(number, loading);
  while (parts.size > PARTS) parts.delete(parts.keys().next().value);
  return loading.then((part) => {
    if (view === viewOf) parts.set(number, part);
    return part;
  }, (error) => {
    parts.delete(number);
    throw error;
  });
}

function show(place, isNew = false) {
  const at = Math.floor(place / columns) * ROW;
  if (isNew) scrollTo(at - (grid.clientHeight - ROW) / 2);
  else if (at < top) scrollTo(at);
  else if (at + ROW > top + grid.clientHeight) scrollTo(at + ROW - grid.clientHeight);
  else update();
}

export function move(step) {
  if (!total) return;
  selected = Math.min(Math.max(selected + step, 0), total - 1);
  show(selected);
  remember({at: selected});
}

function sampleAt(place) {
  const part = parts.get(Math.floor(place / PART));
  return part instanceof Promise ? null : part?.samples[place % PART];
}

export function open() {
  const sample = sampleAt(selected);
  if (!sample) return;
  remember({at: selected});
  go({page: "", sample: sample.position});
}

export async function markSelected(mark) {
  const sample = sampleAt(selected);
  const cell = cells.get(selected);
  if (!sample) return;
  await setMark(sample.position, sample.key, null, mark ? toggled(sample.key, null, mark) : "");
  if (cell && cells.get(selected) === cell) drawBadges(cell, sample.key);
}

export function gridKey(event) {
  const rows = Math.max(Math.floor(grid.clientHeight / ROW), 1);
  const steps = {
    ArrowLeft: -1, k: -1, ArrowRight: 1, j: 1, ArrowUp: -columns, ArrowDown: columns,
    PageUp: -rows * columns, PageDown: rows * columns, Home: -total, End: total,
  };
  if (event.key in steps) move(steps[event.key]);
  else if (event.key === "Enter") open();
  else if (event.key === "m") setMasks(!masks);
  else if (event.key === "b") markSelected("broken");
  else if (event.key === "x") markSelected("keep");
  else if (event.key === "u") markSelected("");
  else return false;
  return true;
}
