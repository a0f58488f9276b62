// The lineage: states from the oldest to the newest; what each has of older ones as lines.

const LINE = 34;
const LANE = 22;
const WIDEST = 10;

const known = states.filter((state) => state.column !== null);

// The states in the order in which their report has them: the oldest first.
function byAge() {
  const time = (state) => (data.timed && state.modified ? state.modified : "9");
  return [...known].sort((one, other) =>
    (time(one) < time(other) ? -1 : time(one) > time(other) ? 1 : one.place - other.place));
}

// A lane for each state: that of the state that it has most of, if none took it on; else a free one.
function lanesOf(order) {
  const row = new Map(order.map((state, place) => [state.place, place]));
  const busyUntil = [];
  const lane = new Map();
  const next = new Map();
  order.forEach((state, place) => {
    const parents = state.from.filter(({ older }) => row.has(older) && row.get(older) < place);
    const main = parents.length ? parents[0].older : null;
    const end = Math.max(place, ...state.into.filter(({ newer }) => row.has(newer)).map(({ newer }) => row.get(newer)));
    let mine = -1;
    if (main !== null && !next.has(main) && Math.max(...states[main].into.map(({ newer }) => row.get(newer) ?? 0)) === place) {
      mine = lane.get(main);
      next.set(main, state.place);
    }
    if (mine < 0) {
      mine = busyUntil.findIndex((until) => until < place);
      if (mine < 0) mine = busyUntil.length;
    }
    busyUntil[mine] = end;
    lane.set(state.place, mine);
  });
  return { row, lane, count: Math.max(1, busyUntil.length) };
}

const lines = byId("lines");
let lineRows = [];
let lineMarks = [];

function drawLineage() {
  const order = byAge();
  const { row, lane, count } = lanesOf(order);
  const space = Math.max(6, Math.min(LANE, (lines.clientWidth * 0.3) / count));
  const x = (place) => 12 + lane.get(place) * space;
  const y = (place) => row.get(place) * LINE + LINE / 2;
  const most = Math.max(1, ...order.flatMap((state) => state.from.map(({ nbytes }) => nbytes)));
  const graph = svg("svg", { width: 24 + count * space, height: order.length * LINE, "aria-hidden": "true" });
  lineMarks = [];
  for (const state of order) {
    for (const { older, nbytes } of state.from.filter((link) => row.has(link.older)).reverse()) {
      const [x0, y0, x1, y1] = [x(older), y(older), x(state.place), y(state.place)];
      const turn = Math.max(y0, y1 - LINE);
      const path = svg("path", {
        class: "edge", d: `M${x0},${y0}L${x0},${turn}C${x0},${turn + LINE * 0.7} ${x1},${y1 - LINE * 0.7} ${x1},${y1}`,
        "stroke-width": Math.max(1, (Math.min(WIDEST, space - 1) * nbytes) / most).toFixed(1), "data-bytes": nbytes,
      });
      graph.append(path);
      lineMarks.push({ node: path, has: (one) => one === state });
    }
  }
  for (const state of order) {
    const node = colours(state.arch, svg("circle", { class: "node", cx: x(state.place), cy: y(state.place), r: 6 }));
    graph.append(node);
    lineMarks.push({ node, has: (one) => one === state });
  }
  lineRows = order.map((state) => ({ state, node: lineRow(state, 30 + count * space) }));
  lines.replaceChildren(graph, ...lineRows.map(({ node }) => node));
  roving(lines, lineRows.map(({ node }) => node));
  byId("lineage-about").textContent = lineageWords(most, order);
  markLineage();
}

function lineageWords(most, order) {
  const first = data.timed ? "From the oldest state down" : "States by key, since their age is not known";
  const links = order.some((state) => state.from.length);
  return links ? `${first}. A line says that a state has tensors of an older one; its width says how many bytes, ${bytes(most)} at the widest.`
    : `${first}. No two states share a tensor.`;
}

// What a state has of older ones: a number, and words for which narrow windows have no room.
function inheritedWords(state) {
  const shared = state.from.reduce((sum, { nbytes }) => sum + nbytes, 0);
  const first = state.column.base === null ? "first state" : "shares nothing older";
  return state.from.length ? [bytes(shared), " of older states"] : ["", first];
}

function lineRow(state, left) {
  const [number, words] = inheritedWords(state);
  const node = el("button", { type: "button", className: "row", onclick: () => select(state) },
    el("span", { className: "name" },
      el("span", { className: "prefix muted" }, state.key.slice(0, -state.short.length)), state.short),
    el("span", { className: "muted" }, number, el("span", { className: "more" }, words)),
    el("span", { className: "muted when" }, data.timed ? when(state.modified) : ""));
  node.style.paddingLeft = `${left}px`;
  withTip(node, () => [state.key, ...state.from.map(({ older, nbytes }) => `${bytes(nbytes)} of ${nameOf(older)}`)]);
  return node;
}

function markLineage() {
  for (const { state, node } of lineRows) {
    node.classList.toggle("chosen", state === chosen.state);
    node.classList.toggle("dim", !chosen.matches(state));
    node.setAttribute("aria-pressed", String(state === chosen.state));
    if (state === chosen.state) reveal(lines, node);
  }
  for (const { node, has } of lineMarks) {
    node.classList.toggle("chosen", chosen.state !== null && has(chosen.state));
  }
}

function startLineage() {
  if (!known.length) {
    byId("lineage-about").textContent = "There is nothing to compare yet.";
    lines.remove();
    return;
  }
  let width = -1;
  new ResizeObserver(() => {
    if (lines.clientWidth !== width) { width = lines.clientWidth; drawLineage(); }
  }).observe(lines);
  onChange(markLineage);
}
