// The page: which part is shown, the controls above it, and the keys.

import {address, ask, byId, count, element, go, onChange, path, readAddress, say, state} from "./common.js";
import {gridKey, openGrid} from "./grid.js";
import {loadMarks, showExport} from "./marks.js";
import {openPredictions, predictionsKey} from "./predictions.js";
import {openSample, sampleKey} from "./sample.js";

let sets = [];
const columnsOf = new Map();  // name of a set -> its columns, or why there are none
const current = () => sets.find((one) => one.name === state.set);
const shownPage = () => (["set", "predictions"].includes(state.page) ? state.page : state.sample === null ? "grid" : "sample");

async function draw() {
  const one = current();
  if (!one) return say(`no such set: ${state.set}`, true);
  document.title = `${one.name} - browse`;
  const page = shownPage();
  for (const name of ["grid", "sample", "set", "predictions"]) byId(`${name}-page`).hidden = name !== page;
  drawControls(one, page);
  drawColumns(one);
  try {
    await loadMarks();
  } catch (error) {
    say(error.message, true);
  }
  if (page === "grid") await openGrid(one.version);
  else if (page === "sample") await openSample(one.version);
  else if (page === "set") await openSet(one);
  else await openPredictions();
}

function drawControls(one, page) {
  say("");
  byId("set").value = one.name;
  byId("where").value = state.where;
  byId("direction").setAttribute("aria-pressed", String(state.sort.startsWith("-")));
  byId("to-grid").href = address({page: "", sample: null, order: "", begin: 0});
  byId("to-predictions").href = address({page: "predictions", sample: null, order: "iou", begin: 0});
  byId("to-set").href = address({page: "set", sample: null, reason: "", begin: 0, order: ""});
  for (const [id, name] of [["to-grid", "grid"], ["to-set", "set"], ["to-predictions", "predictions"]]) {
    if (page === name) byId(id).setAttribute("aria-current", "page");
    else byId(id).removeAttribute("aria-current");
  }
}

async function drawColumns(one) {
  try {
    if (!columnsOf.has(one.name)) columnsOf.set(one.name, await ask(path(one.name, "columns")));
  } catch (error) {
    return say(error.message, true);
  }
  if (one !== current()) return;
  const {columns, no_table} = columnsOf.get(one.name);
  const hasTable = !no_table;
  byId("columns").hidden = !hasTable;
  byId("hint").hidden = hasTable;
  byId("hint").textContent = `Filter and sort need the set's table: ${no_table}`;
  const column = state.sort.replace(/^-/, "");
  byId("sort").replaceChildren(element("option", {value: ""}, "the set's order"),
    ...Object.keys(columns).filter((name) => name !== "position").map((name) => element("option", {value: name}, name)));
  byId("sort").value = column === "position" ? "" : column;
  byId("column-list").replaceChildren(...Object.entries(columns).map(([name, kind]) => {
    const button = element("button", {type: "button", title: `Put ${name} into the condition`}, name, " ", element("small", {}, kind));
    button.addEventListener("click", () => insert(name));
    return button;
  }));
  showExport(hasTable);
}

function insert(name) {
  const where = byId("where");
  where.setRangeText(name, where.selectionStart, where.selectionEnd, "end");
  where.focus();
}

async function openSet(one) {
  byId("set-name").textContent = one.name;
  byId("set-facts").replaceChildren(...Object.entries(one.facts)
    .flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
  const reasons = Object.entries(one.left_out);
  byId("ledger-note").textContent = reasons.length
    ? "Inputs that did not become a sample, as the ledger lists them." : "Every input became a sample.";
  const link = (reason, text) => {
    const made = element("a", {href: address({reason, begin: 0})}, text);
    if (reason === state.reason) made.setAttribute("aria-current", "true");
    return element("li", {}, made);
  };
  byId("reasons").replaceChildren(...(reasons.length ? [link("", "all reasons")] : []),
    ...reasons.map(([reason, number]) => link(reason, `${reason}: ${count(number)}`)));
  const query = new URLSearchParams({begin: state.begin, reason: state.reason});
  const body = byId("ledger").querySelector("tbody"), next = byId("ledger-next");
  try {
    const answer = await ask(`${path(one.name, "ledger")}?${query}`);
    body.replaceChildren(...answer.lines.map((line) => element("tr", {}, element("td", {}, line.path),
      element("td", {}, line.reason + (line.bad ? "" : " (the input is sound)")), element("td", {}, line.detail))));
    byId("ledger").hidden = !answer.lines.length;
    next.hidden = answer.next === null;
    next.href = address({begin: answer.next ?? 0});
  } catch (error) {
    say(error.message, true);
  }
}

function filter() {
  const column = byId("sort").value, isDown = byId("direction").getAttribute("aria-pressed") === "true";
  go({where: byId("where").value.trim(), sort: (isDown ? "-" : "") + (column || (isDown ? "position" : "")), at: 0, sample: null, page: ""});
}

byId("controls").addEventListener("submit", (event) => {
  event.preventDefault();
  filter();
});
byId("sort").addEventListener("change", filter);
byId("direction").addEventListener("click", () => {
  const button = byId("direction");
  button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
  filter();
});
byId("set").addEventListener("change", () => go({set: byId("set").value, at: 0, sample: null, page: state.page, reason: "", begin: 0}));
byId("help-button").addEventListener("click", () => byId("help").showModal());
addEventListener("popstate", () => { readAddress(); draw(); });

document.addEventListener("click", (event) => {  // links to this page change it, and load nothing again
  const link = event.target.closest("a[href]");
  if (!link || event.defaultPrevented || event.ctrlKey || event.metaKey || event.shiftKey || link.hasAttribute("download")) return;
  event.preventDefault();
  history.pushState(null, "", link.href);
  readAddress();
  draw();
});

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || byId("help").open) return;
  if (event.target.matches("input[type=text], select")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (event.key === "Enter" && event.target.matches("button, a, summary, input")) return;
  let isTaken = true;
  if (event.key === "?") byId("help").showModal();
  else if (event.key === "/") byId("where").focus();
  else if (shownPage() === "sample") isTaken = sampleKey(event);
  else if (shownPage() === "grid") isTaken = gridKey(event);
  else if (shownPage() === "predictions") isTaken = predictionsKey(event);
  else isTaken = false;
  if (isTaken) event.preventDefault();
});

readAddress();
onChange(draw);
try {
  const answer = await ask("api/sets");
  sets = answer.sets;
  byId("set").replaceChildren(...sets.map((one) => element("option", {value: one.name}, one.name)));
  byId("to-predictions").hidden = !answer.predictions;
  const start = {...answer.start};
  if (!location.search) Object.assign(state, start);
  if (!state.set) state.set = sets[0].name;
  history.replaceState(null, "", address());
  await draw();
} catch (error) {
  say(error.message, true);
}
