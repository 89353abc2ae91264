"use strict";
// What the page does by itself. Without this it can be read, its code shown, its files saved.

const all = (selector, root = document) => [...root.querySelectorAll(selector)];

function made(tag, attributes = {}, ...children) {
  const element = Object.assign(document.createElement(tag), attributes);
  element.append(...children);
  return element;
}

// A browser may refuse to remember anything for a page from a disk.
function remembered(name) {
  try { return localStorage.getItem("report-" + name) ?? ""; } catch { return ""; }
}
function remember(name, value) {
  try { localStorage.setItem("report-" + name, value); } catch { /* only until the page is left */ }
}

// Before the first paint.
document.documentElement.dataset.theme = remembered("theme");

// --- switches ------------------------------------------------------------------------------------

function switches() {
  const theme = document.getElementById("theme"), code = document.getElementById("code");
  theme.value = remembered("theme");
  theme.onchange = () => {
    document.documentElement.dataset.theme = theme.value;
    remember("theme", theme.value);
  };
  code.checked = remembered("code") === "on";
  code.onchange = () => remember("code", code.checked ? "on" : "");
  for (const hidden of all(".tools [hidden]")) hidden.hidden = false;
  const narrow = matchMedia("(max-width: 62rem)"), contents = document.querySelector("nav details");
  const close = () => { if (narrow.matches) contents.open = false; };
  close();
  narrow.onchange = close;
  for (const link of all("nav li a")) link.onclick = close;
}

function showCode() { // of the cell that the address names
  const cell = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  const fold = cell?.closest("details.code");
  if (!fold) return;
  document.getElementById("code").checked = fold.open = true;
  cell.scrollIntoView();
}

function copyButtons() {
  for (const pre of all("details.code pre")) {
    const button = made("button", { type: "button", className: "copy", textContent: "Copy" });
    button.onclick = async () => {
      try {
        await navigator.clipboard.writeText(pre.textContent);
      } catch { // no permission: by the selection
        getSelection().selectAllChildren(pre);
        document.execCommand("copy");
      }
      button.textContent = "Copied";
    };
    pre.before(button);
  }
}

// What is too wide is scrolled by itself, with the keyboard too.
function scrolled() {
  const observer = new ResizeObserver((entries) => {
    for (const { target } of entries) target.tabIndex = target.scrollWidth > target.clientWidth ? 0 : -1;
  });
  for (const wide of all("main :is(math[display='block'], pre)")) observer.observe(wide);
}

// A browser may not reach the file beside the page; the page holds it, compressed.
function savedValues() {
  for (const link of all("a[data-gzip]")) {
    link.onclick = async (event) => {
      if (link.href.startsWith("blob:")) return;
      event.preventDefault();
      const bytes = Uint8Array.from(atob(link.dataset.gzip), (character) => character.charCodeAt(0));
      const content = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
      link.href = URL.createObjectURL(await new Response(content).blob());
      link.click();
    };
  }
}

// --- contents: the section that is read -----------------------------------------------------------

function followReading() {
  const links = new Map(all("nav li > a").map((a) => [decodeURIComponent(a.hash.slice(1)), a]));
  const sections = all("main section[id]").filter((section) => links.has(section.id));
  const seen = new Set();
  const observer = new IntersectionObserver((entries) => {
    for (const entry of entries) seen[entry.isIntersecting ? "add" : "delete"](entry.target);
    const current = sections.findLast((section) => seen.has(section)); // the innermost
    if (!current) return;
    for (const link of links.values()) link.removeAttribute("aria-current");
    const link = links.get(current.id);
    link.setAttribute("aria-current", "true");
    document.getElementById("here").textContent = link.textContent;
    const nav = link.closest("nav"), place = link.getBoundingClientRect();
    if (place.top < 60 || place.bottom > nav.clientHeight - 40) nav.scrollTop += place.top - nav.clientHeight / 2;
  }, { rootMargin: "-15% 0px -84% 0px" }); // a line near the top of the window
  sections.forEach((section) => observer.observe(section));
}

// --- search --------------------------------------------------------------------------------------

function search() {
  const field = document.getElementById("search"), hits = document.getElementById("hits");
  const within = "main :is(h1, h2, h3, p, li, figcaption, caption, tr, pre)";
  let blocks;
  field.oninput = () => {
    blocks ??= all(within).filter((block) => !block.closest("[popover]") && !block.querySelector("p, li"))
      .map((block) => ({ block, text: block.textContent.replace(/\s+/g, " ") }));
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    const code = document.getElementById("code").checked;
    const found = blocks.filter(({ block, text }) => words.length && (code || !block.closest("details.code"))
      && words.every((word) => text.toLowerCase().includes(word)));
    hits.hidden = !words.length;
    hits.replaceChildren(`${found.length} found`, ...found.slice(0, 50).map((hit) => asHit(hit, words[0])));
    highlight(found.map(({ block }) => block), words);
  };
  addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.target.matches("input, select")) return;
    event.preventDefault();
    field.focus();
  });
}

function asHit({ block, text }, word) {
  const place = block.closest("[id]:not(main)"), start = Math.max(0, text.toLowerCase().indexOf(word) - 30);
  const where = block.closest("section")?.querySelector("h1, h2, h3")?.textContent ?? "";
  const snippet = (start ? "…" : "") + text.slice(start, start + 110);
  const link = made("a", { href: "#" + (place?.id ?? "main") }, made("b", { textContent: where }), " ", snippet);
  link.onclick = (event) => {
    event.preventDefault();
    const fold = block.closest("details");
    if (fold) fold.open = true;
    block.scrollIntoView({ block: "center" });
  };
  return link;
}

function highlight(blocks, words) {
  if (!CSS.highlights) return;
  const ranges = [];
  for (const block of blocks.slice(0, 500)) {
    const walker = document.createTreeWalker(block, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
      for (const word of words) {
        const at = walker.currentNode.data.toLowerCase().indexOf(word);
        if (at < 0) continue;
        const range = new Range();
        range.setStart(walker.currentNode, at);
        range.setEnd(walker.currentNode, at + word.length);
        ranges.push(range);
      }
    }
  }
  CSS.highlights.set("found", new Highlight(...ranges));
}

// --- what is shown beside the pointer -------------------------------------------------------------

function showTip(box, ...content) {
  const tip = document.getElementById("tip");
  tip.replaceChildren(...content);
  tip.showPopover();
  const { width, height } = tip.getBoundingClientRect();
  const below = box.bottom + 8 + height < innerHeight || box.top < height + 8;
  tip.style.left = `${Math.max(8, Math.min(box.left, document.body.clientWidth - width - 8))}px`;
  tip.style.top = `${below ? box.bottom + 8 : box.top - height - 8}px`;
}
function hideTip() { document.getElementById("tip").hidePopover(); }

// A figure, table or work where it is referred to.
function previews() {
  const tip = document.getElementById("tip");
  let timer;
  const later = (action, wait) => { clearTimeout(timer); timer = setTimeout(action, wait); };
  for (const link of all("main a:is([href^='#fig-'], [href^='#tbl-'], [href^='#ref-'])")) {
    const target = document.getElementById(link.hash.slice(1));
    if (!target || link.download) continue;
    link.removeAttribute("title"); // which would be shown as well
    const show = () => {
      const copy = target.cloneNode(true);
      for (const element of all(".more, .source, script, .interactive, [hidden]", copy)) element.remove();
      for (const element of [copy, ...all("[id]", copy)]) element.removeAttribute("id");
      showTip(link.getBoundingClientRect(), copy);
    };
    link.onpointerenter = (event) => { if (event.pointerType === "mouse") later(show, 200); };
    link.onpointerleave = () => later(hideTip, 200);
    link.onfocus = () => { if (link.matches(":focus-visible")) later(show, 200); }; // after scrolling
    link.onblur = link.onclick = () => later(hideTip, 0);
  }
  tip.onpointerenter = () => clearTimeout(timer); // it may be pointed at
  tip.onpointerleave = () => later(hideTip, 200);
  addEventListener("keydown", (event) => { if (event.key === "Escape") hideTip(); });
  addEventListener("scroll", () => { if (!tip.matches(":hover")) hideTip(); }, { passive: true });
}

// --- pictures ------------------------------------------------------------------------------------

// A picture of pixels is as large as fits at a whole number of screen pixels for each of its own.
function enlarge(picture) {
  const dialog = document.getElementById("large"), { naturalWidth: width, naturalHeight: height } = picture;
  const fits = Math.min((innerWidth - 24) / width, (innerHeight - 70) / height);
  const whole = Math.max(1, Math.floor(fits * devicePixelRatio)) / devicePixelRatio;
  const copy = made("img", { src: picture.src, alt: picture.alt });
  copy.width = Math.round(width * (picture.src.startsWith("data:image/svg") ? fits : whole));
  copy.points = picture.points;
  dialog.replaceChildren(dialog.firstElementChild, copy);
  dialog.showModal();
}

function pictures() {
  const dialog = document.getElementById("large");
  dialog.onclick = (event) => { if (!event.target.points) dialog.close(); };
  dialog.onclose = hideTip;
  for (const exhibit of all(".figure")) {
    const picture = exhibit.querySelector("figure img"), save = exhibit.querySelector("a[download][href^='#']");
    if (!picture) continue;
    picture.onclick = () => { if (!picture.points || !document.getElementById("tip").matches(":popover-open")) enlarge(picture); };
    if (save) save.onclick = () => { save.href = picture.src; }; // the page holds it once
    const button = made("button", { type: "button", textContent: "enlarge" });
    button.onclick = () => enlarge(picture);
    exhibit.querySelector(".source ul")?.append(made("li", {}, button));
    const data = JSON.parse(exhibit.querySelector("script")?.textContent ?? "{}");
    if (data.points) withPoints(picture, data.points);
    if (data.methods) withMethods(picture, data.methods);
    if (data.slider) picture.decode().then(() => withSlider(picture, data.slider), () => {});
  }
}

// --- a map's points: image, label and prediction --------------------------------------------------

function withPoints(picture, points) {
  picture.points = points;
  picture.tabIndex = 0;
  picture.after(made("p", { className: "interactive", textContent: "Point at a dot, or tap it, to see its image; or focus the map and use the arrow keys." }));
  let last = null;
  picture.onkeydown = (event) => {
    const [dx, dy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] ?? [];
    if (dx === undefined) return;
    event.preventDefault();
    const from = last ?? points.at[0];
    const ahead = points.at.filter(([x, y]) => (x - from[0]) * dx + (y - from[1]) * dy > Math.abs((x - from[0]) * dy) + Math.abs((y - from[1]) * dx));
    last = nearest(ahead, ...from).point ?? from;
    describe(picture, last);
  };
  picture.onblur = hideTip;
}

// Of points [x, y, image, text], with a distance in units of the picture's size.
function nearest(points, x, y, aspect = 1) {
  let best = { distance: Infinity };
  for (const point of points) {
    const distance = Math.hypot(point[0] - x, (point[1] - y) * aspect);
    if (distance < best.distance) best = { point, distance };
  }
  return best;
}

function describe(picture, [x, y, image, text]) {
  const { sheet, columns, rows, texts } = picture.points, sheetImage = document.getElementById(sheet);
  const width = sheetImage.naturalWidth / columns, height = sheetImage.naturalHeight / rows;
  const canvas = made("canvas", { width: 4 * width, height: 4 * height }), context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.drawImage(sheetImage, (image % columns) * width, Math.floor(image / columns) * height, width, height, 0, 0, 4 * width, 4 * height);
  const box = picture.getBoundingClientRect();
  const left = box.left + x * box.width / 10000, top = box.top + y * box.height / 10000;
  showTip({ left: left + 8, top: top - 4, bottom: top + 4 }, canvas, made("p", { textContent: texts[text] }));
}

function pointAt(event) { // in the page and enlarged
  const picture = event.target;
  if (!picture.points) return;
  const box = picture.getBoundingClientRect(), unit = 10000 / box.width;
  const x = (event.clientX - box.left) * unit, y = (event.clientY - box.top) * 10000 / box.height;
  const { point, distance } = nearest(picture.points.at, x, y, box.height / box.width);
  if (distance < 10 * unit) describe(picture, point);
  else hideTip();
}

// --- methods of a plot, which can be hidden ----------------------------------------------------------

function withMethods(picture, methods) {
  const bytes = Uint8Array.from(atob(picture.src.split(",")[1]), (character) => character.charCodeAt(0));
  const svg = new TextDecoder().decode(bytes), boxes = methods.map(() => made("input", { type: "checkbox", checked: true }));
  const labels = boxes.map((box, number) => made("label", {}, box, " " + methods[number]));
  const row = made("div", { className: "interactive" }, ...labels);
  row.onchange = () => {
    const rules = boxes.map((box, number) => (box.checked ? "" : `[id^="method-${number}-"] { display: none }`));
    picture.src = "data:image/svg+xml," + encodeURIComponent(svg.replace("</style>", rules.join("") + "</style>"));
  };
  picture.after(row);
}

// --- a slider between two rows of images ----------------------------------------------------------

function withSlider(picture, { box: [[left, bottom], [right, top]], columns, gap }) {
  const x = (share) => share * picture.naturalWidth / 10000, y = (share) => share * picture.naturalHeight / 10000;
  const width = x(right - left), height = y(bottom - top), dx = gap[0] * width, dy = gap[1] * height;
  const w = (width + dx) / columns - dx, h = (height - dy) / 2;
  const canvas = made("canvas", { width: Math.round(width), height: Math.round(h) }), context = canvas.getContext("2d");
  const range = made("input", { type: "range", min: 0, max: 100, value: 50 });
  const draw = () => {
    for (let column = 0; column < columns; column++) {
      const at = column * (w + dx), part = w * range.value / 100;
      context.drawImage(picture, x(left) + at, y(top) + h + dy, w, h, at, 0, w, h);
      if (part) context.drawImage(picture, x(left) + at, y(top), part, h, at, 0, part, h);
    }
  };
  canvas.style.cssText = `margin-left: ${left / 100}%; width: ${(right - left) / 100}%`;
  canvas.setAttribute("aria-hidden", "true");
  range.oninput = draw;
  draw();
  picture.after(made("div", { className: "interactive" }, canvas, made("label", {}, "reconstruction ", range, " test image")));
}

addEventListener("DOMContentLoaded", () => {
  for (const start of [switches, showCode, copyButtons, scrolled, savedValues, followReading, search, previews, pictures]) start();
  addEventListener("hashchange", showCode);
  addEventListener("pointermove", pointAt);
  addEventListener("pointerdown", pointAt);
});
