"use strict";
(() => {
  // A page that renews itself keeps what its reader chose.
  const key = "sdlora:" + location.pathname;
  const state = (() => { try { return JSON.parse(sessionStorage.getItem(key)) || {}; } catch { return {}; } })();
  const keep = (name, value) => {
    state[name] = value;
    try { sessionStorage.setItem(key, JSON.stringify(state)); } catch { /* Without a store it is not kept. */ }
  };

  document.querySelectorAll("table.sortable").forEach((table, n) => {
    const body = table.tBodies[0];
    const heads = [...table.tHead.rows[0].cells];
    const value = (row, i) => {
      const cell = row.cells[i], v = cell.dataset.v;
      return v === undefined ? cell.textContent.trim() : v === "" ? null : Number(v);
    };
    const compare = (a, b) =>
      a === null || b === null ? (a === null) - (b === null)
        : typeof a === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true });
    const sort = (i, descending) => {
      const rows = [...body.rows].map((row) => [value(row, i), row]);
      // What is undefined stays at the end.
      rows.sort(([a], [b]) => (a === null || b === null ? 1 : descending ? -1 : 1) * compare(a, b));
      body.append(...rows.map(([, row]) => row));
      heads.forEach((head, j) => {
        if (head.hasAttribute("aria-sort")) {
          head.setAttribute("aria-sort", i !== j ? "none" : descending ? "descending" : "ascending");
        }
      });
      keep("sort" + n, [i, descending]);
    };
    heads.forEach((head, i) => {
      const button = head.querySelector("button");
      if (button) button.addEventListener("click", () => sort(i, head.getAttribute("aria-sort") === "ascending"));
    });
    if (state["sort" + n]) sort(...state["sort" + n]);
  });

  const data = document.getElementById("confusion-data");
  if (data) {
    const { names, cells, totals } = JSON.parse(data.textContent);
    const svg = document.getElementById("confusion");
    const list = document.getElementById("confusion-list");
    const says = document.getElementById("confusion-says");
    const selects = ["rows", "columns"].map((name) => document.getElementById("confusion-" + name));
    const counts = new Map();
    for (let k = 0; k < cells.length; k += 3) counts.set(cells[k] * names.length + cells[k + 1], cells[k + 2]);
    const cursor = document.getElementById("confusion-cursor");
    const view = () => selects.map((select) => select.value.split(" ").map(Number));
    const sentence = (i, j, n) => names[i] + (i === j ? ", right" : " taken for " + names[j]) + ": " + n + " of " + totals[i];
    let at = [0, 0];
    const point = (i, j) => {
      const [[y, height], [x, width]] = view();
      at = [Math.min(Math.max(i, y), y + height - 1), Math.min(Math.max(j, x), x + width - 1)];
      cursor.setAttribute("x", at[1]);
      cursor.setAttribute("y", at[0]);
      cursor.removeAttribute("hidden");
      says.textContent = sentence(at[0], at[1], counts.get(at[0] * names.length + at[1]) || 0);
    };
    const zoom = () => {
      const [[y, height], [x, width]] = view();
      svg.setAttribute("viewBox", [x, y, width, height].join(" "));
      const seen = [];
      counts.forEach((n, place) => {
        const i = Math.floor(place / names.length), j = place % names.length;
        if (i !== j && i >= y && i < y + height && j >= x && j < x + width) seen.push([n, i, j]);
      });
      seen.sort((a, b) => b[0] - a[0] || a[1] - b[1] || a[2] - b[2]);
      list.replaceChildren(...seen.slice(0, 10).map(([n, i, j]) => {
        const item = document.createElement("li");
        item.textContent = sentence(i, j, n);
        return item;
      }));
      cursor.setAttribute("hidden", "");
      says.textContent = "";
      keep("zoom", selects.map((select) => select.value));
    };
    selects.forEach((select, n) => {
      if (state.zoom && [...select.options].some((option) => option.value === state.zoom[n])) select.value = state.zoom[n];
      select.addEventListener("change", zoom);
    });
    if (state.zoom) zoom();
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect(), [[y, height], [x, width]] = view();
      point(y + Math.floor((event.clientY - box.top) / box.height * height),
        x + Math.floor((event.clientX - box.left) / box.width * width));
    });
    svg.addEventListener("keydown", (event) => {
      const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (step) {
        event.preventDefault();
        point(at[0] + step[0], at[1] + step[1]);
      }
    });
  }

  // A run that was killed cannot say so.
  const minutes = Math.round((Date.now() - Date.parse(document.lastModified)) / 60000);
  const running = document.querySelector("meta[http-equiv=refresh]") && document.getElementById("state");
  if (running && minutes >= 15) running.append(" The page is " + minutes + " minutes old: the task is long, or the run has ended.");
})();
