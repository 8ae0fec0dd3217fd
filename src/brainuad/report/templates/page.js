"use strict";
// What the page does beside drawing: choosing a scan, buttons and keys, the table of findings, sorting.

const byId = (id) => document.getElementById(id);
const AXES = ["x", "y", "z"];
const number = (value, digits) => value.toFixed(digits).replace(/^-(?=[0.]*$)/, "").replace("-", "−");

function sortable(table) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const value = (row, column) => {
    const text = row.cells[column].textContent.trim();
    if (text === "–") return null; // sorts last, both ways
    const parsed = Number(text);
    return Number.isNaN(parsed) || text === "" ? text.toLowerCase() : parsed;
  };
  heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const rows = [...body.rows].map((row) => [value(row, column), row]);
    rows.sort(([a], [b]) => {
      if (a === null || b === null) return (a === null) - (b === null);
      const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
      return down ? -order : order;
    });
    body.append(...rows.map(([, row]) => row));
  }));
}

function supportsWebGL2() {
  try {
    return Boolean(document.createElement("canvas").getContext("webgl2"));
  } catch {
    return false;
  }
}

async function start() {
  const articles = [...document.querySelectorAll("article.scan")];
  const section = byId("viewer");
  const payload = (article) => JSON.parse(byId(`${article.id}-data`)?.textContent || "null");
  let current = null;
  let shown = null; // what the viewer shows
  let fallen = false;

  function fallBack() {
    fallen = true;
    document.body.classList.remove("live");
    section.hidden = true;
    byId("no-viewer").hidden = false;
  }
  byId("planes").addEventListener("webglcontextlost", fallBack);

  function onMove(mm, value, finding) {
    if (!shown) return;
    byId("at-mm").textContent = mm.map((part, axis) => `${AXES[axis]} ${number(part, 0)}`).join("  ");
    byId("at-value").textContent = number(value, 3);
    const [, meaning] = shown.steps.find(([from]) => value >= from);
    byId("at-meaning").textContent = value === 0 ? "outside the brain, or at its rim" : finding ? `${meaning} · finding ${finding}` : meaning;
    document.querySelectorAll("input[data-axis]").forEach((slider) => {
      const axis = Number(slider.dataset.axis);
      slider.value = mm[axis];
      const text = `${AXES[axis]} = ${number(mm[axis], 0)} mm`;
      slider.setAttribute("aria-valuetext", text);
      byId(`slice-${AXES[axis]}`).textContent = text;
    });
  }

  const viewer = await createViewer(byId("planes"), byId("outlines"), byId("bare"), onMove);

  function refresh() { // the buttons say what the viewer shows
    const { state } = viewer;
    const pressed = { s: state.under === "scan", r: state.under === "reconstruction", a: state.map, f: state.findings, t: state.lesion, b: state.beside };
    const layer = { s: "scan", r: "reconstruction", f: "findings", t: "lesion" };
    section.querySelectorAll("button[data-key]").forEach((button) => {
      const { key } = button.dataset;
      if (!(key in pressed)) return;
      button.setAttribute("aria-pressed", pressed[key]);
      button.hidden = key in layer && !viewer.has(layer[key]);
    });
    byId("opacity").value = state.opacity * 100;
    section.querySelectorAll("input[data-grey]").forEach((slider) => {
      slider.value = Math.round(state[slider.dataset.grey] * 100);
      const text = `${slider.value} %`;
      slider.setAttribute("aria-valuetext", text);
      byId(`${slider.id}-shown`).textContent = text;
    });
  }

  function describeScale() {
    const { first, full, threshold } = shown.scale;
    byId("bar-first").textContent = first.toFixed(3);
    byId("bar-full").textContent = full.toFixed(3);
    byId("legend-words").textContent = shown.words;
    const mark = byId("bar-threshold");
    mark.hidden = threshold === null;
    mark.firstElementChild.textContent = threshold === null ? "" : `findings from ${threshold.toFixed(3)}`;
    if (threshold === null) return;
    const share = Math.min(Math.max((threshold - first) / (full - first), 0), 1) * 100;
    mark.style.left = `${share}%`;
    // the words stay within the bar
    mark.firstElementChild.style.transform = `translateX(-${share}%)`;
  }

  function go(row) {
    const centre = row.dataset.centre.split(" ").map(Number);
    const folded = row.closest("details");
    if (folded) folded.open = true;
    current.querySelectorAll("tr[data-centre]").forEach((other) => other.classList.toggle("selected", other === row));
    viewer.set({ selected: Number(row.dataset.label) });
    viewer.moveTo(centre);
    byId("announce").textContent = `Crosshair at finding ${row.dataset.label}`;
  }

  async function choose(article) {
    if (article === current || fallen) return;
    current = article;
    const next = payload(article);
    articles.forEach((other) => other.classList.toggle("current", other === article));
    document.querySelectorAll("tr[data-scan]").forEach((row) => row.classList.toggle("selected", row.dataset.scan === article.id));
    byId("announce").textContent = `Scan ${article.dataset.name}`;
    if (!next) {
      section.hidden = true;
      return;
    }
    byId("loading").hidden = false;
    article.querySelector(".slot").append(section);
    section.hidden = false;
    if (!await viewer.show(next)) return;
    shown = next;
    byId("planes").setAttribute("aria-label", `Three planes of ${next.name}`);
    document.querySelectorAll("input[data-axis]").forEach((slider) => {
      [slider.min, slider.max, slider.step] = viewer.range(Number(slider.dataset.axis));
    });
    describeScale();
    refresh();
    const finding = article.querySelector("tr[data-centre]");
    if (finding && !finding.closest("details")) go(finding); else viewer.moveTo([0, 1, 2].map((axis) => (viewer.range(axis)[0] + viewer.range(axis)[1]) / 2));
    byId("loading").hidden = true;
  }

  function stepScan(by) {
    const next = articles[articles.indexOf(current) + by];
    if (!next) return;
    history.replaceState(null, "", `#${next.id}`); // stays where the page is scrolled to
    choose(next).catch(fallBack);
  }

  function stepFinding(by) {
    const rows = [...current.querySelectorAll("tr[data-centre]")];
    const next = rows[rows.findIndex((row) => row.classList.contains("selected")) + by];
    if (next) go(next);
  }

  const keys = {
    s: () => viewer.has("scan") && viewer.set({ under: "scan" }),
    r: () => viewer.has("reconstruction") && viewer.set({ under: "reconstruction" }),
    a: () => viewer.set({ map: !viewer.state.map }),
    f: () => viewer.set({ findings: !viewer.state.findings }),
    t: () => viewer.set({ lesion: !viewer.state.lesion }),
    b: () => viewer.setBeside(!viewer.state.beside).then(refresh),
    "+": () => viewer.set({ map: true, opacity: Math.min(viewer.state.opacity + 0.1, 1) }),
    "-": () => viewer.set({ opacity: Math.max(viewer.state.opacity - 0.1, 0) }),
    n: () => stepFinding(1),
    p: () => stepFinding(-1),
    "[": () => stepScan(-1),
    "]": () => stepScan(1),
  };
  keys["="] = keys["+"];
  // the patient's right is on the left
  const moves = { ArrowLeft: [0, 1], ArrowRight: [0, -1], ArrowUp: [1, 1], ArrowDown: [1, -1], PageUp: [2, 1], PageDown: [2, -1] };

  document.addEventListener("keydown", (event) => {
    const onPlanes = event.target === byId("planes");
    if (onPlanes) event.stopPropagation(); // NiiVue has keys of its own
    if (event.ctrlKey || event.metaKey || event.altKey || fallen || section.hidden || !shown) return;
    const key = event.key.toLowerCase();
    if (onPlanes && event.key in moves) viewer.step(...moves[event.key]);
    else if (key in keys) {
      keys[key]();
      refresh();
    } else return;
    event.preventDefault();
  }, true);
  section.querySelectorAll("button[data-key]").forEach((button) => button.addEventListener("click", () => {
    keys[button.dataset.key]();
    refresh();
  }));
  byId("opacity").addEventListener("change", (event) => {
    viewer.set({ map: true, opacity: event.target.value / 100 });
    refresh();
  });
  section.querySelectorAll("input[data-grey]").forEach((slider) => slider.addEventListener("input", () => {
    const { state } = viewer;
    const [value, step] = [slider.value / 100, slider.step / 100];
    // the other end gives way
    if (slider.dataset.grey === "darkest") viewer.set({ darkest: value, brightest: Math.max(state.brightest, value + step) });
    else viewer.set({ darkest: Math.min(state.darkest, value - step), brightest: value });
    refresh();
  }));
  document.querySelectorAll("input[data-axis]").forEach((slider) => slider.addEventListener("input", () => {
    viewer.moveTo(viewer.here().map((value, axis) => (axis === Number(slider.dataset.axis) ? Number(slider.value) : value)));
  }));
  document.querySelectorAll("tr[data-centre]").forEach((row) => row.addEventListener("click", () => go(row)));

  byId("steps").hidden = articles.length < 2;
  const wanted = () => articles.find((article) => `#${article.id}` === location.hash);
  addEventListener("hashchange", () => {
    if (!wanted() || fallen) return;
    choose(wanted()).catch(fallBack);
    wanted().scrollIntoView();
  });
  document.body.classList.add("live");
  byId("no-viewer").hidden = true;
  const first = choose(wanted() || articles.find((article) => payload(article)));
  if (wanted()) wanted().scrollIntoView();
  await first;
}

document.body.classList.add("scripted");
document.querySelectorAll("table.scores").forEach(sortable);
if (typeof createViewer === "undefined") byId("no-viewer").hidden = true; // no scan on this page has volumes
else if (supportsWebGL2()) {
  start().catch((error) => {
    console.error(error);
    document.body.classList.remove("live");
    byId("viewer").hidden = true;
    byId("no-viewer").hidden = false;
  });
}
