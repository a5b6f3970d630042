"use strict";
(() => {
  const tip = document.getElementById("tip");

  /* Says `text` beside the pointer (or the focused mark). */
  function say(text, x, y) {
    tip.textContent = text;
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    tip.style.left = Math.max(4, Math.min(x + 14, innerWidth - box.width - 4)) + "px";
    tip.style.top = (y + 18 + box.height > innerHeight ? y - box.height - 10 : y + 18) + "px";
  }
  const quiet = () => { tip.hidden = true; };

  document.addEventListener("pointerover", (event) => {
    const mark = event.target.closest("[data-tip]");
    if (mark) say(mark.dataset.tip, event.clientX, event.clientY);
  });
  document.addEventListener("pointerout", (event) => { if (event.target.closest("[data-tip]")) quiet(); });
  document.addEventListener("focusin", (event) => {
    if (!event.target.matches("[data-tip]")) return;
    const box = event.target.getBoundingClientRect();
    say(event.target.dataset.tip, box.right, box.bottom);
  });
  document.addEventListener("focusout", quiet);
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") quiet(); });

  /* Curves: the values of every line at the place under the pointer. */
  const SVG = "http://www.w3.org/2000/svg";
  function draw(svg, name, attributes, style) {
    const made = svg.appendChild(document.createElementNS(SVG, name));
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    Object.assign(made.style, style);
    return made;
  }
  for (const svg of document.querySelectorAll("svg:has([data-points])")) {
    const lines = [...svg.querySelectorAll("[data-points]")].map((path) => ({
      path, name: path.dataset.name, points: JSON.parse(path.dataset.points),
    }));
    const hint = svg.appendChild(document.createElementNS(SVG, "g"));
    const clear = () => { hint.replaceChildren(); quiet(); };
    svg.addEventListener("pointermove", (event) => {
      if (event.target.closest("[data-tip]")) return;
      const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
      const nearest = lines.filter((line) => !line.path.classList.contains("off")).map((line) => ({
        ...line, point: line.points.reduce((a, b) => (Math.abs(b[0] - at.x) < Math.abs(a[0] - at.x) ? b : a)),
      }));
      hint.replaceChildren();
      if (!nearest.length) return quiet();
      const first = nearest.reduce((a, b) => (Math.abs(b.point[0] - at.x) < Math.abs(a.point[0] - at.x) ? b : a));
      draw(hint, "path", { class: "guide", d: `M${first.point[0]} 0V${svg.viewBox.baseVal.height - 26}` }, {});
      for (const { path, point } of nearest) {
        draw(hint, "circle", { cx: point[0], cy: point[1], r: 3 }, { fill: path.style.stroke });
      }
      const label = first.path.dataset.label;
      const rows = nearest.map(({ name, point }) => `${name}: ${point[3]}`);
      say([`${label} ${first.point[2]}`, ...rows].join("\n"), event.clientX, event.clientY);
    });
    svg.addEventListener("pointerleave", clear);
  }

  /* A legend's entry shows and hides its line. */
  for (const key of document.querySelectorAll(".legend button")) {
    key.addEventListener("click", () => {
      const on = key.getAttribute("aria-pressed") !== "true";
      key.setAttribute("aria-pressed", on);
      for (const part of key.closest("figure").querySelectorAll("svg [data-name]")) {
        if (part.dataset.name === key.dataset.series) part.classList.toggle("off", !on);
      }
    });
  }

  /* The lineage: what an artifact came from and what came from it. */
  for (const graph of document.querySelectorAll("svg.graph")) {
    const edges = [...graph.querySelectorAll("[data-from]")];
    const nodes = [...graph.querySelectorAll("[data-node]")];
    function reach(name, from, to, found) {
      found.add(name);
      for (const edge of edges) {
        if (edge.dataset[from] === name && !found.has(edge.dataset[to])) reach(edge.dataset[to], from, to, found);
      }
      return found;
    }
    function mark(name) {
      const kin = name && new Set([...reach(name, "to", "from", new Set()), ...reach(name, "from", "to", new Set())]);
      for (const node of nodes) node.classList.toggle("dim", Boolean(kin) && !kin.has(node.dataset.node));
      for (const edge of edges) {
        edge.classList.toggle("dim", Boolean(kin) && !(kin.has(edge.dataset.from) && kin.has(edge.dataset.to)));
      }
    }
    for (const node of nodes) {
      node.addEventListener("pointerenter", () => mark(node.dataset.node));
      node.addEventListener("pointerleave", () => mark(null));
      node.addEventListener("focus", () => mark(node.dataset.node));
      node.addEventListener("blur", () => mark(null));
    }
  }

  /* A link into a closed list opens it. */
  for (const link of document.querySelectorAll("a[href^='#']")) {
    link.addEventListener("click", () => {
      const list = document.getElementById(link.getAttribute("href").slice(1))?.closest("details");
      if (list) list.open = true;
    });
  }

  /* Samples: filtered by text and by change of score, ordered, a few at a time. */
  const PAGE = 6;
  for (const form of document.querySelectorAll("form[data-filter]")) {
    const section = document.getElementById(form.dataset.filter);
    const more = section.querySelector("button.more");
    const cards = [...section.querySelectorAll(".sample")].map((card) => ({
      card, text: card.textContent.toLowerCase(), changes: JSON.parse(card.dataset.changes),
    }));
    const value = (name) => (form.elements[name] ? form.elements[name].value : "");
    let room = PAGE;
    function matches({ text, changes }) {
      const change = changes[value("arm")];
      const asked = value("change");
      if (!text.includes(value("text").trim().toLowerCase())) return false;
      if (!asked) return true;
      if (change === undefined) return false;
      return asked === "up" ? change > 1e-9 : asked === "down" ? change < -1e-9 : Math.abs(change) <= 1e-9;
    }
    function show() {
      const found = cards.filter(matches);
      const order = value("order");
      const sign = order === "gain" ? -1 : 1;
      const of = ({ changes }) => changes[value("arm")] ?? 0;
      const sorted = order ? [...found].sort((a, b) => sign * (of(a) - of(b))) : found;
      for (const { card } of cards) card.hidden = true;
      for (const { card } of sorted.slice(0, room)) card.hidden = false;
      for (const { card } of sorted) section.insertBefore(card, more);
      more.hidden = sorted.length <= room;
      form.querySelector("output").textContent =
        `${Math.min(room, sorted.length)} of ${sorted.length} shown` +
        (sorted.length < cards.length ? `, ${cards.length} in all` : "");
    }
    form.hidden = false;
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("input", () => { room = PAGE; show(); });
    more.addEventListener("click", () => { room += 3 * PAGE; show(); });
    show();
  }
})();
