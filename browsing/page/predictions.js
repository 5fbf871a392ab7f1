// Predictions beside the truth of the sets, page by page.

import {address, ask, byId, count, element, explain, go, path, say, state} from "./common.js";

const PAGE = 24;

export async function openPredictions() {
  const query = new URLSearchParams({sort: state.order, begin: state.begin, count: PAGE});
  byId("order").value = state.order;
  say("looking ...");
  try {
    const answer = await ask(`predictions?${query}`);
    if (state.page !== "predictions") return;
    const unlinked = answer.total - answer.linked;
    say(`${count(answer.total)} predictions` + (unlinked ? `; ${count(unlinked)} name no sample of these sets` : ""));
    byId("predictions").replaceChildren(...answer.predictions.map(card));
    turn("previous", state.begin > 0, Math.max(state.begin - PAGE, 0));
    turn("next", state.begin + PAGE < answer.total, state.begin + PAGE);
    byId("predictions-page").scrollTop = 0;
  } catch (error) {
    byId("predictions").replaceChildren();
    say(error.message, true);
  }
}

function turn(name, isThere, begin) {
  const link = byId(`predictions-${name}`);
  if (isThere) link.href = address({begin});
  else link.removeAttribute("href");
}

function card(one) {
  const isLinked = one.set !== undefined;
  const frame = isLinked ? path(one.set, one.position, one.frame) : "";
  const pictures = (layer, alt) => {
    const stack = element("div", {class: "stack"});
    const sources = isLinked ? [`${frame}/large?v=${one.version}`] : [];
    if (layer) sources.push(layer);
    for (const [n, source] of sources.entries()) {
      const img = element("img", {alt: n === sources.length - 1 ? alt : "", src: source, loading: "lazy"});
      img.addEventListener("error", () => explain(img, stack));
      stack.append(img);
    }
    return stack;
  };
  const iou = one.numbers.iou === undefined ? "" : `, IoU ${one.numbers.iou.toFixed(3)}`;
  const truth = isLinked ? `${frame}/masks?${new URLSearchParams({v: one.version, objects: one.objects})}` : "";
  const pair = element("div", {class: "pair"});
  if (isLinked) pair.append(element("figure", {}, pictures(truth, "the true mask"), element("figcaption", {}, "truth")));
  const mask = one.masks ? `predictions/${one.number}/mask` : "";
  pair.append(element("figure", {}, pictures(mask, "the predicted mask"),
    element("figcaption", {}, (one.masks ? "prediction" : "no mask predicted") + iou)));
  const rest = Object.entries(one.numbers).filter(([name]) => name !== "iou").map(([name, value]) => `${name} ${value.toFixed(3)}`);
  const to = isLinked
    ? element("a", {href: address({page: "", set: one.set, sample: one.position, where: "", sort: "", order: "", begin: 0, at: one.position})}, one.item)
    : element("small", {}, one.item);
  return element("article", {}, pair, element("p", {}, element("b", {}, one.question || "(no text)")),
    ...(one.answer && one.answer !== one.question ? [element("p", {}, one.answer)] : []),
    element("p", {}, to, " ", element("small", {}, rest.join(", "))));
}

export function predictionsKey(event) {
  const links = {ArrowRight: "next", j: "next", ArrowLeft: "previous", k: "previous"};
  if (!(event.key in links)) return false;
  const link = byId(`predictions-${links[event.key]}`);
  if (link.hasAttribute("href")) link.click();
  return true;
}

byId("order").addEventListener("change", () => go({order: byId("order").value, begin: 0}));
