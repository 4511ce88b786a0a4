// Theme, chart reading and smoothing, samples, small comforts. The page is whole without it.
"use strict";
const root = document.documentElement;
const themes = ["system", "light", "dark"];
const stored = (() => { try { return localStorage.getItem("align-theme"); } catch { return null; } })();
setTheme(themes.includes(stored) ? stored : "system");
document.addEventListener("DOMContentLoaded", start);

function setTheme(theme) {
  if (theme === "system") delete root.dataset.theme; else root.dataset.theme = theme;
  try { localStorage.setItem("align-theme", theme); } catch { /* a file may have no storage */ }
  const label = document.querySelector('[data-action="theme"] span');
  if (label) label.textContent = theme;
}

function start() {
  for (const element of document.querySelectorAll("[data-action], [data-controls]")) element.hidden = false;
  setTheme(root.dataset.theme ?? "system");
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-action]");
    if (!button) return;
    if (button.dataset.action === "theme") setTheme(themes[(themes.indexOf(root.dataset.theme ?? "system") + 1) % 3]);
    if (button.dataset.action === "print") window.print();
    if (button.dataset.action === "copy") copy(button);
  });
  for (const plot of document.querySelectorAll("svg.plot[data-box]")) readable(plot);
  curveControls();
  sampleControls();
  followScroll();
  openForPrint();
}

async function copy(button) {
  const block = button.parentElement.querySelector("pre");
  try {
    await navigator.clipboard.writeText(block.textContent);
  } catch { // without permission: select the text, so that one key copies it
    getSelection().selectAllChildren(block);
  }
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
}

// ---- charts: data-box holds left, right, top, bottom in pixels and the ranges of x and y
function box(plot) {
  const [left, right, top, bottom, x0, x1, y0, y1] = JSON.parse(plot.dataset.box);
  return {
    left, right, top, bottom,
    x: (value) => left + (value - x0) / (x1 - x0) * (right - left),
    y: (value) => bottom - (value - y0) / (y1 - y0) * (bottom - top),
    step: (pixel) => x0 + (pixel - left) / (right - left) * (x1 - x0),
  };
}

function series(line) {
  if (!line.points) {
    const steps = line.dataset.x.includes(":")
      ? (([first, gap, count]) => Array.from({ length: count }, (_, i) => first + i * gap))(line.dataset.x.split(":").map(Number))
      : line.dataset.x.split(",").map(Number);
    line.points = { steps, values: line.dataset.y.split(",").map(Number) };
  }
  return line.points;
}

function readable(plot) {
  const svg = "http://www.w3.org/2000/svg";
  const tip = document.querySelector(".tip");
  const layer = plot.querySelector(".hover");
  const scale = box(plot);
  const lines = () => [...plot.querySelectorAll(".line")].filter((line) => getComputedStyle(line).display !== "none");
  let at = null;

  function show(step, place) {
    layer.replaceChildren();
    const read = lines().map((line) => {
      const { steps, values } = series(line);
      const index = nearest(steps, step);
      return { line, step: steps[index], value: values[index] };
    });
    if (!read.length) return;
    at = read.reduce((a, b) => Math.abs(b.step - step) < Math.abs(a.step - step) ? b : a).step;
    const rule = document.createElementNS(svg, "line");
    for (const [name, value] of [["x1", scale.x(at)], ["x2", scale.x(at)], ["y1", scale.top], ["y2", scale.bottom]]) rule.setAttribute(name, value);
    layer.append(rule);
    const across = plot.dataset.across ?? "step";
    const rows = [row(across, String(at))];
    for (const { line, step: own, value } of read) {
      const dot = document.createElementNS(svg, "circle");
      for (const [name, number] of [["cx", scale.x(own)], ["cy", scale.y(value)], ["r", 3.2]]) dot.setAttribute(name, number);
      dot.setAttribute("class", [...line.classList].find((name) => name.startsWith("hue-")) ?? "");
      layer.append(dot);
      rows.push(row(line.dataset.label + (own === at ? "" : ` (${across} ${own})`), String(value)));
    }
    tip.replaceChildren(...rows);
    tip.hidden = false;
    const { width, height } = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(8, Math.min(place.x + 16, innerWidth - width - 8))}px`;
    tip.style.top = `${place.y - height - 14 < 8 ? place.y + 18 : place.y - height - 14}px`;
  }
  function hide() { layer.replaceChildren(); tip.hidden = true; at = null; }

  plot.addEventListener("pointermove", (event) => {
    const frame = plot.getBoundingClientRect();
    const pixel = (event.clientX - frame.left) / frame.width * plot.viewBox.baseVal.width;
    show(scale.step(pixel), { x: event.clientX, y: event.clientY });
  });
  plot.addEventListener("pointerleave", hide);
  plot.addEventListener("blur", hide);
  plot.addEventListener("keydown", (event) => {
    if (event.key === "Escape") return hide();
    if (!["ArrowLeft", "ArrowRight", "Home", "End"].includes(event.key) || !lines().length) return;
    event.preventDefault();
    const { steps } = series(lines().reduce((a, b) => series(b).steps.length > series(a).steps.length ? b : a));
    const last = steps.length - 1;
    const now = at === null ? -1 : nearest(steps, at);
    const next = { Home: 0, End: last, ArrowLeft: Math.max(0, now - 1), ArrowRight: Math.min(last, now + 1) }[event.key];
    const frame = plot.getBoundingClientRect();
    const x = frame.left + scale.x(steps[next]) / plot.viewBox.baseVal.width * frame.width;
    show(steps[next], { x, y: frame.top + frame.height / 3 });
  });
}

function row(label, value) {
  const line = document.createElement("div");
  for (const text of [label, value]) line.append(Object.assign(document.createElement("span"), { textContent: text }));
  return line;
}

function nearest(sorted, value) {
  let low = 0, high = sorted.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < value) low = middle; else high = middle;
  }
  return value - sorted[low] <= sorted[high] - value ? low : high;
}

function curveControls() {
  const controls = document.querySelector('[data-controls="curves"]');
  if (!controls) return;
  const training = document.getElementById("training");
  const [slider, seeds, output] = [controls.querySelector('[name="smoothing"]'), controls.querySelector('[name="seeds"]'), controls.querySelector("output")];
  seeds.addEventListener("change", () => training.classList.toggle("no-seeds", !seeds.checked));
  slider.addEventListener("input", () => {
    const weight = Number(slider.value);
    output.textContent = weight ? weight.toFixed(2) : "off";
    training.classList.toggle("smoothed", weight > 0);
    for (const plot of training.querySelectorAll("svg.plot[data-box]")) smooth(plot, weight);
  });
}

// Exponential moving average with the correction for its start (Kingma and Ba, 2015, section 3).
function smooth(plot, weight) {
  const scale = box(plot);
  for (const line of plot.querySelectorAll(".line:not(.held-out)")) {
    line.querySelector(".smooth")?.remove();
    if (!weight) continue;
    const { steps, values } = series(line);
    let mean = 0;
    const points = values.map((value, index) => {
      mean = weight * mean + (1 - weight) * value;
      return `${scale.x(steps[index]).toFixed(1)},${scale.y(mean / (1 - weight ** (index + 1))).toFixed(1)}`;
    });
    const shape = line.querySelector(".raw").cloneNode();
    shape.setAttribute("class", "smooth");
    shape.setAttribute("points", points.join(" "));
    line.append(shape);
  }
}

// ---- samples: search, source, order, pages
function sampleControls() {
  const controls = document.querySelector('[data-controls="samples"]');
  if (!controls) return;
  const list = document.querySelector(".samples");
  const all = [...list.children];
  const texts = all.map((sample) => sample.textContent.toLowerCase());
  const part = (name) => controls.querySelector(`[name="${name}"]`);
  const size = 4;
  let page = 0;

  function update() {
    const query = part("query").value.trim().toLowerCase();
    const source = part("source")?.value ?? "";
    const order = part("order")?.value ?? "";
    const found = all.filter((sample, index) => (!query || texts[index].includes(query)) && (!source || sample.dataset.source === source));
    const gain = (sample) => Number(sample.dataset.gain ?? (order === "up" ? -Infinity : Infinity));
    if (order) found.sort((a, b) => order === "up" ? gain(b) - gain(a) : gain(a) - gain(b));
    const pages = Math.max(1, Math.ceil(found.length / size));
    page = Math.min(page, pages - 1);
    const shown = found.slice(page * size, (page + 1) * size);
    for (const sample of all) sample.hidden = !shown.includes(sample);
    list.prepend(...shown);
    document.querySelector(".nothing").hidden = found.length > 0;
    controls.querySelector(".place").textContent = found.length ? `${page * size + 1}–${page * size + shown.length} of ${found.length}` : "0 of 0";
    part("previous").disabled = page === 0;
    part("next").disabled = page >= pages - 1;
  }
  for (const name of ["query", "source", "order"]) part(name)?.addEventListener("input", () => { page = 0; update(); });
  part("previous").addEventListener("click", () => { page -= 1; update(); });
  part("next").addEventListener("click", () => { page += 1; update(); });
  update();
}

// ---- contents and printing
function followScroll() {
  const links = new Map([...document.querySelectorAll(".contents a")].map((link) => [link.hash.slice(1), link]));
  const parts = [...links.keys()].map((id) => document.getElementById(id)).filter(Boolean);
  const mark = () => {
    const current = parts.filter((part) => part.getBoundingClientRect().top < innerHeight * 0.35).at(-1) ?? parts[0];
    for (const [id, link] of links) {
      if (id === current?.id) link.setAttribute("aria-current", "true"); else link.removeAttribute("aria-current");
    }
  };
  addEventListener("scroll", mark, { passive: true });
  mark();
}

// On paper: warnings and curves unfolded; configuration and provenance as the reader left them.
function openForPrint() {
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("#notices details:not([open]), #training details:not([open])")];
    for (const fold of opened) fold.open = true;
  });
  addEventListener("afterprint", () => { for (const fold of opened) fold.open = false; });
}
