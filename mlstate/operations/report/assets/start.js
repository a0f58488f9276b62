// The head of the page, search and theme; then all views begin.

function showHead() {
  byId("title").textContent = data.store;
  byId("made").textContent = `${counted(states.length, "state")}, ${counted(architectures.length, "architecture")}; looked at ${when(data.made)} UTC`;
  const apart = states.reduce((sum, state) => sum + (state.own === null ? 0 : state.nbytes || 0), 0);
  const complete = states.length === architectures.reduce((sum, arch) => sum + arch.count, 0);
  const figures = [["Space taken", data.total]];
  if (complete) figures.push(["As files of their own", apart]);
  if (data.unnamed) figures.push(["In no state", data.unnamed]);
  byId("figures").replaceChildren(...figures.map(([name, count]) =>
    el("div", {}, el("dt", {}, name), el("dd", { "data-bytes": count }, bytes(count)))));
  byId("foot").textContent = `Made by mlstate ${data.version}. One file: nothing is loaded from elsewhere, nothing is sent.`;
}

function search() {
  const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  chosen.matches = (state) => words.every((word) => state.key.toLowerCase().includes(word));
  const count = states.filter(chosen.matches).length;
  byId("matching").textContent = words.length ? `${number(count)} of ${counted(states.length, "state")}` : "";
  changed();
}

// What scripts have painted, in the colours of the theme; paper is light.
function repaint() {
  if (maps.length) { makeRamp(); paint(); }
  showDetails();
}

function startTheme() {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const button = byId("theme");
  const show = (on) => {
    button.setAttribute("aria-pressed", String(on));
    repaint();
  };
  button.onclick = () => {
    const on = button.getAttribute("aria-pressed") !== "true";
    document.documentElement.dataset.theme = on ? "dark" : "light";
    show(on);
  };
  matchMedia("print").onchange = repaint;
  dark.onchange = () => { if (!document.documentElement.dataset.theme) show(dark.matches); };
  button.setAttribute("aria-pressed", String(dark.matches));
}

showHead();
startTreemap();
startHeatmap();
startLineage();
startDetails();
startTables();
startTheme();
byId("search").oninput = search;
byId("clear").onclick = () => { chosen.state = null; changed(); };
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || event.target.type === "search") return;
  hideTip();
  if (chosen.state) { chosen.state = null; changed(); }
});
