// The treemap: the space by architecture and state, with what is shared.

// Tiles of an architecture: what each state alone needs, what several of them share.
function architectureTiles(arch) {
  const tiles = arch.states.filter((state) => state.own > 0)
    .map((state) => ({ kind: "own", arch, state, bytes: state.own }));
  const known = tiles.reduce((sum, tile) => sum + tile.bytes, 0);
  const left = arch.own - known;
  if (left > 0) {
    const whole = arch.states.length === arch.count;
    tiles.push({ kind: whole ? "shared" : "others", arch, bytes: left });
  }
  return { arch, children: tiles };
}

function spaceTree() {
  const parts = architectures.map(architectureTiles).filter((part) => part.children.length);
  const named = architectures.reduce((sum, arch) => sum + arch.own, 0);
  const common = data.total - named;
  if (common > 0) parts.push({ children: [{ kind: "common", bytes: common }], loose: true });
  if (data.unnamed) parts.push({ children: [{ kind: "unnamed", bytes: data.unnamed }], loose: true });
  if (data.trash) parts.push({ children: [{ kind: "trash", bytes: data.trash }], loose: true });
  return { children: parts };
}

const tileTexts = {
  own: (tile) => [tile.state.short, `${tile.state.key}: needed by this state alone`],
  shared: (tile) => ["shared", `${tile.arch.name}: shared by several of its states`],
  others: (tile) => ["other states", `${tile.arch.name}: states that this report leaves out, and what is shared`],
  common: () => ["shared between architectures", "Shared between architectures, or kept as a cache"],
  unnamed: () => ["in no state", "Objects that no state needs: mlstate prune removes them when they are old enough"],
  trash: () => ["trash", "Removed, and kept for a while"],
};

// Whether a state has a part in a tile.
function hasPart(tile, state) {
  if (tile.kind === "own") return tile.state === state;
  if (tile.kind === "shared") return tile.arch.place === state.arch && state.shared > 0;
  return tile.kind === "common" && state.shared > 0 && architectures[state.arch].shared > 0;
}

const treemap = byId("treemap");
let tiles = [];

function tileButton(tile, box) {
  const [short, long] = tileTexts[tile.kind](tile);
  const share = data.total ? ` (${(100 * tile.bytes / data.total).toFixed(1)} %)` : "";
  const hatched = tile.kind === "shared" || tile.kind === "common";
  const dots = ["unnamed", "trash", "others"].includes(tile.kind);
  const node = el("button", {
    type: "button",
    className: `tile${hatched ? " shared" : ""}${dots ? " dots" : ""}${tile.arch ? "" : " rest"}`,
    "data-bytes": tile.bytes,
    onclick: () => { if (tile.state) select(tile.state); },
  });
  if (tile.arch) colours(tile.arch.place, node);
  Object.assign(node.style, {
    left: `${box.x0}px`, top: `${box.y0}px`,
    width: `${Math.max(1, box.x1 - box.x0)}px`, height: `${Math.max(1, box.y1 - box.y0)}px`,
  });
  const [width, height] = [box.x1 - box.x0, box.y1 - box.y0];
  const [fits, both] = [width >= 44 && height >= 24, width >= 44 && height > 42];
  if (!fits) node.style.padding = "0";
  node.append(
    el("span", { className: fits ? "" : "hidden" }, short), " ",
    el("span", { className: both ? "size" : "hidden" }, bytes(tile.bytes)),
    el("span", { className: "hidden" }, `${share}. ${long}`));
  withTip(node, () => [long, `${bytes(tile.bytes)}${share}`]);
  return node;
}

// Whether a part of the map has room for the name of its architecture.
const hasHead = (node) => node.depth === 1 && !node.data.loose && node.y1 - node.y0 > 44 && node.x1 - node.x0 > 44;

function drawTreemap() {
  const tree = spaceTree();
  treemap.hidden = !tree.children.length;
  const [width, height] = [treemap.clientWidth, treemap.clientHeight];
  if (treemap.hidden || !width) return;
  const root = d3.hierarchy(tree).sum((node) => node.bytes || 0)
    .sort((one, other) => other.value - one.value);
  d3.treemap().size([width, height]).paddingInner(3).round(true)
    .paddingTop((node) => (hasHead(node) ? 23 : 0))(root);
  const heads = (root.children || []).filter(hasHead).map((part) => {
    const head = el("div", { className: "part", "aria-hidden": "true" },
      el("b", {}, part.data.arch.name), ` ${bytes(part.value)}`);
    Object.assign(head.style, {
      left: `${part.x0}px`, top: `${part.y0}px`, height: "21px", border: "0", padding: "0 2px",
      width: `${part.x1 - part.x0}px`,
    });
    return head;
  });
  tiles = root.leaves().map((leaf) => ({ tile: leaf.data, node: tileButton(leaf.data, leaf) }));
  treemap.replaceChildren(...heads, ...tiles.map(({ node }) => node));
  roving(treemap, tiles.map(({ node }) => node));
  markTreemap();
}

function markTreemap() {
  for (const { tile, node } of tiles) {
    const part = chosen.state !== null && hasPart(tile, chosen.state);
    const own = tile.kind === "own";
    node.classList.toggle("chosen", part && own);
    node.classList.toggle("part-of", part && !own);
    node.classList.toggle("dim", own && !chosen.matches(tile.state));
    if (own) node.setAttribute("aria-pressed", String(part));
  }
}

function treemapLegend() {
  const items = architectures.slice(0, hues.length).map((arch) =>
    el("li", {}, colours(arch.place, el("i", { className: "swatch" })), arch.name));
  if (architectures.length > hues.length) {
    items.push(el("li", {}, `and ${counted(architectures.length - hues.length, "more architecture")}`));
  }
  items.push(el("li", {}, el("i", { className: "swatch shared rest" }), "hatched: shared by several states"));
  byId("space-legend").replaceChildren(...items);
}

function startTreemap() {
  if (!spaceTree().children.length) {
    treemap.replaceWith(el("p", { className: "empty" }, "Nothing takes space here yet."));
    return;
  }
  treemapLegend();
  new ResizeObserver(drawTreemap).observe(treemap);
  onChange(markTreemap);
}
