// Looks at a page of sdlora in a frame, presses what can be pressed, and leaves what it found as JSON.
"use strict";
const wanted = WANTED;
const out = document.getElementById("found");
const frame = document.getElementById("page");

const luminance = (color) => {
  const [r, g, b] = color.match(/[\d.]+/g).slice(0, 3).map(Number).map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const contrast = (a, b) => {
  const [high, low] = [luminance(a), luminance(b)].sort((x, y) => y - x);
  return (high + 0.05) / (low + 0.05);
};

const look = (view, page) => {
  const wrong = [];
  const check = (holds, what) => { if (!holds) wrong.push(what); };
  const headings = [...page.querySelectorAll("h1, h2")].map((heading) => heading.textContent);
  wanted.headings.forEach((name) => check(headings.includes(name), `no heading ${name}`));

  const figures = [...page.querySelectorAll("svg, img")];
  check(figures.length >= wanted.figures, `${figures.length} figures`);
  figures.forEach((figure) => {
    const text = figure.getAttribute("alt") ?? (figure.getAttribute("role") === "img" && figure.getAttribute("aria-label"));
    check(text && text.trim().length > 8, `a figure without a text: ${figure.outerHTML.slice(0, 120)}`);
  });
  [...page.images].forEach((image) => check(image.naturalWidth > 0, `a picture that does not decode: ${image.alt}`));
  const drawn = [...page.querySelectorAll("figure svg")];
  drawn.forEach((svg) => check(svg.getBoundingClientRect().height > 20, `a flat figure: ${svg.getAttribute("aria-label")}`));

  const root = page.documentElement;
  check(root.scrollWidth <= root.clientWidth, `the page is ${root.scrollWidth} wide on a screen of ${root.clientWidth}`);

  const loaded = view.performance.getEntriesByType("resource").filter((entry) => !entry.name.startsWith("data:"));
  check(loaded.length === 0, `the page loads ${loaded.map((entry) => entry.name)}`);

  // Every column that sorts, both ways.
  const tables = [...page.querySelectorAll("table.sortable")];
  check(tables.length >= 1, "no table that sorts");
  tables.forEach((table) => {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, i) => {
      const button = head.querySelector("button");
      if (!button) return;
      ["ascending", "descending"].forEach((order) => {
        button.click();
        check(head.getAttribute("aria-sort") === order, `${button.textContent} is not ${order}`);
        const values = [...table.tBodies[0].rows].map((row) => row.cells[i].dataset.v ?? row.cells[i].textContent);
        const known = values.filter((value) => value !== "");
        check(values.slice(known.length).every((value) => value === ""), `${button.textContent}: gaps are not last`);
        if (known.every((value) => !Number.isNaN(Number(value)))) {
          const numbers = known.map(Number);
          const sign = order === "ascending" ? 1 : -1;
          check(numbers.every((value, k) => k === 0 || sign * (value - numbers[k - 1]) >= 0), `${button.textContent} is not sorted: ${numbers}`);
        }
      });
      check(heads.filter((other) => ["ascending", "descending"].includes(other.getAttribute("aria-sort"))).length === 1, "two columns are sorted");
      button.focus();
      check(page.activeElement === button, "a heading takes no focus");
    });
  });

  page.querySelectorAll(".scroll").forEach((part) => check(part.tabIndex === 0, "a part that scrolls takes no focus"));

  const confusion = page.getElementById("confusion");
  if (confusion) {
    confusion.focus();
    check(page.activeElement === confusion, "the confusion takes no focus");
    const says = page.getElementById("confusion-says");
    confusion.dispatchEvent(new view.KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
    check(/: \d+ of \d+$/.test(says.textContent), `the confusion says ${says.textContent}`);
    const rows = page.getElementById("confusion-rows");
    const whole = confusion.getAttribute("viewBox");
    rows.selectedIndex = rows.options.length - 1;
    rows.dispatchEvent(new view.Event("change", { bubbles: true }));
    const [, y, , height] = confusion.getAttribute("viewBox").split(" ").map(Number);
    check([y, height].join(" ") === rows.value && whole !== confusion.getAttribute("viewBox"), "the confusion does not zoom");
    check(page.querySelectorAll("#confusion-list li").length <= 10, "too many mistakes are listed");
    rows.selectedIndex = 0;
    rows.dispatchEvent(new view.Event("change", { bubbles: true }));
    check(confusion.getAttribute("viewBox") === whole, "the confusion does not zoom back");
  }

  const style = (selector) => view.getComputedStyle(page.querySelector(selector));
  const ground = style("body").backgroundColor;
  const isDark = luminance(ground) < 0.1;
  check(isDark === wanted.dark, `the page is ${isDark ? "dark" : "light"}: ${ground}`);
  const panel = style("figure, .panel").backgroundColor;
  [["body", ground], ["figcaption p, .panel > p", panel], ["td", panel], ["th button", panel], ["svg text", panel]].forEach(([selector, behind]) => {
    const found = page.querySelector(selector);
    if (!found) return;
    const of = view.getComputedStyle(found);
    const ink = found.namespaceURI.endsWith("svg") ? of.fill : of.color;
    check(contrast(ink, behind) >= 4.5, `${selector}: a contrast of ${contrast(ink, behind).toFixed(2)}`);
  });
  return { wrong, figures: figures.length, tables: tables.length };
};

frame.addEventListener("load", () => setTimeout(() => {
  let found;
  try {
    found = look(frame.contentWindow, frame.contentDocument);
  } catch (error) {
    found = { wrong: [`the check ended early: ${error.stack || error}`] };
  }
  out.textContent = JSON.stringify(found);
}, 200));
