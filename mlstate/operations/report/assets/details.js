// What is known of the selected state, in words.

const MOST = 15;

function pairs(entries) {
  return el("dl", {}, ...entries.filter(([, value]) => value !== null && value !== "")
    .flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
}

function showDetails() {
  const state = chosen.state;
  byId("clear").hidden = state === null;
  if (state === null) {
    byId("details").replaceChildren(el("p", { className: "empty" },
      states.length ? "Select a state in any view: here is then what it takes, what it came of and what it changed."
        : "There are no states in this store."));
    return;
  }
  const parts = [el("p", { className: "title" }, state.key)];
  if (state.error) parts.push(el("p", { className: "bad" }, state.error));
  parts.push(pairs([
    ["size", bytes(state.nbytes)],
    ["its own", state.own === null ? null : bytes(state.own)],
    ["shared", state.shared === null ? null : bytes(state.shared)],
    ["cached", state.cached],
    [data.timed ? "saved" : "last used", state.modified ? `${when(state.modified)} UTC` : null],
    ["digest", state.digest ? el("code", {}, state.digest) : "none"],
  ]));
  if (state.column) parts.push(...comparison(state), ...notes(state.column));
  byId("details").replaceChildren(...parts);
}

function comparison(state) {
  const { column, map } = state;
  const count = tally(state);
  const known = map.layers.length - count["."];
  if (column.base === null) {
    return [el("h3", {}, "Compared with none"), el("p", { className: "muted" }, `A first state, of ${counted(known, "tensor")}.`)];
  }
  const parts = [
    el("h3", {}, "Compared with"), el("p", {}, stateLink(column.base)),
    el("h3", {}, `${number(count["~"])} of ${counted(known, "tensor")} changed`),
  ];
  const more = [[count["="], "equal"], [count["+"], "new"], [column.removed.length, "left out"]]
    .filter(([some]) => some).map(([some, word]) => `${number(some)} ${word}`);
  if (more.length) parts.push(el("p", { className: "muted" }, more.join(", ")));
  if (column.unread.length) {
    parts.push(el("p", { className: "bad" }, `Damaged or missing bytes, of this state or its base: ${someOf(column.unread)}`));
  }
  const largest = [...column.changes].sort((one, other) => (other[1] ?? -1) - (one[1] ?? -1));
  parts.push(el("div", { id: "changes" }, ...largest.slice(0, MOST).map((change) => changeLine(map, change))));
  if (largest.length > MOST) parts.push(el("p", { className: "muted" }, `and ${number(largest.length - MOST)} more`));
  const fresh = map.layers.filter((_, place) => column.marks[place] === "+").map((layer) => layer.name);
  if (fresh.length) parts.push(el("h3", {}, "New"), el("p", { className: "muted" }, someOf(fresh)));
  if (column.removed.length) parts.push(el("h3", {}, "Left out"), el("p", { className: "muted" }, someOf(column.removed)));
  return parts;
}

function someOf(names, most = 6) {
  const more = names.length > most ? ` and ${number(names.length - most)} more` : "";
  return names.slice(0, most).join(", ") + more;
}

function changeLine(map, change) {
  const [layer, value] = change;
  const bar = el("i", {});
  if (value !== null) {
    bar.style.width = `${100 * Math.min(1, Math.max(0.01, value > 0 ? Math.log10(value) / DECADES + 1 : 0))}%`;
    bar.style.background = rampColour(value);
  }
  return el("div", { className: "change" },
    el("span", { className: "name" }, map.layers[layer].name),
    el("span", { "data-relative": value }, value === null ? "not known" : relative(value)),
    value === null ? null : el("span", { className: "bar-line", "aria-hidden": "true" }, bar));
}

function notes(column) {
  const parts = [];
  if (column.meta.length) parts.push(el("h3", {}, "Notes"), pairs(column.meta));
  if (column.files.length) parts.push(el("h3", {}, "Files"), el("p", { className: "muted" }, someOf(column.files)));
  return parts;
}

function startDetails() {
  showDetails();
  onChange(showDetails);
}
