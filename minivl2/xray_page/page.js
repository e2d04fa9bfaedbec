// What moves on the X-ray page. xray(main) reads the JSON in the page and fills the panels; play.js calls it again
// for every new answer. Text is only ever set as textContent, so that markup in it stays text.
"use strict";

const $ = (id) => document.getElementById(id);

function make(tag, className = "", text = "") {
  const element = document.createElement(tag);
  element.className = className;
  element.textContent = text;
  return element;
}

const percent = (share) => `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)} %`;
// Spaces and the like made visible; the full-width bars of special tokens made plain, as many fonts lack them.
const SHOWN = { " ": "·", "\n": "↵", "\t": "→", "｜": "|", "▁": "_" };
const visible = (text) => text.replace(/[ \n\t｜▁]/g, (c) => SHOWN[c]).replace(/[\x00-\x1f\x7f]/g, (c) => `\\x${c.charCodeAt(0).toString(16).padStart(2, "0")}`);
const isSpecial = (text) => /^<.+>$/s.test(text);

// Numbers packed by panels.py: bytes(data) as they are; rows(data)[i] scaled back by the largest of row i.
const raw = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const bytes = (packed) => raw(packed.bytes);
function rows(packed) {
  const levels = bytes(packed), top = new Float32Array(raw(packed.top).buffer), n = packed.shape.at(-1);
  return Array.from(top, (most, i) => Float32Array.from(levels.subarray(i * n, (i + 1) * n), (level) => (level / 255) * most));
}

function picture(source) {
  return new Promise((resolve) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.src = source;
  });
}

function options(select, entries, value) {
  select.replaceChildren(...entries.map(([key, label]) => Object.assign(make("option", "", label), { value: key })));
  if (entries.some(([key]) => String(key) === String(value))) select.value = value;
}

// The two selects that choose one of the (layer, head) pairs that were kept.
function chooser(layerSelect, headSelect, channels, mean, changed) {
  const name = (head) => (head < 0 ? "mean of all" : `head ${head + 1}`);
  const layers = [...new Set(channels.map(([layer]) => layer))];
  const entries = layers.map((layer) => [layer, `layer ${layer + 1}`]);
  options(layerSelect, mean ? [["mean", "mean of all"], ...entries] : entries, mean ? "mean" : layers.at(-1));
  const refresh = () => {
    const here = layerSelect.value === "mean" ? [-1] : channels.filter(([l]) => l === Number(layerSelect.value)).map(([, h]) => h);
    options(headSelect, here.map((head) => [head, name(head)]), headSelect.value);
    changed();
  };
  layerSelect.onchange = refresh;
  headSelect.onchange = changed;
  return {
    refresh,
    chosen() {         // indices of channels to be averaged
      const layer = layerSelect.value, head = Number(headSelect.value);
      return channels.flatMap(([l, h], i) => (h === head && (layer === "mean" || l === Number(layer)) ? [i] : []));
    },
  };
}

// Where in a grid of columns x lines an event of pointer or keyboard leads, from where it was.
function pointed(canvas, event, columns, lines) {
  const box = canvas.getBoundingClientRect();
  const clamp = (x, n) => Math.max(0, Math.min(n - 1, Math.floor(x)));
  return [clamp(((event.clientX - box.left) / box.width) * columns, columns), clamp(((event.clientY - box.top) / box.height) * lines, lines)];
}
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function sized(canvas, width, height) {
  canvas.width = width;
  canvas.height = height;
  const pen = canvas.getContext("2d");
  pen.imageSmoothingEnabled = false;
  return pen;
}

function copyOf(canvas) {
  const copy = document.createElement("canvas");
  sized(copy, canvas.width, canvas.height).drawImage(canvas, 0, 0);
  return copy;
}

// A picture in pale greys, for heat to be laid over.
function pale(pen, image, width, height, crop = [0, 0, image.width, image.height]) {
  pen.clearRect(0, 0, width, height);
  pen.fillStyle = "#fff";
  pen.fillRect(0, 0, width, height);
  pen.filter = "grayscale(1)";
  pen.globalAlpha = 0.6;
  pen.drawImage(image, ...crop, 0, 0, width, height);
  pen.filter = "none";
  pen.globalAlpha = 1;
}

async function xray(main) {
  const data = JSON.parse(main.querySelector("#data").textContent);
  for (const image of main.querySelectorAll("img[data-picture]")) {
    const its = data.pictures[image.dataset.picture];
    image.src = image.dataset.view ? its.views[image.dataset.view] : its.picture;
  }
  for (const grids of main.querySelectorAll("[data-background]")) {
    grids.style.setProperty("--picture", `url(${data.pictures[grids.dataset.background].picture})`);
  }
  for (const its of data.pictures) {
    its.image = await picture(its.picture);
    its.shownViews = await Promise.all(its.views.map(picture));
  }
  const heat = bytes(data.heat);
  data.colour = (strength) => {
    const k = 4 * Math.round(255 * Math.min(1, Math.max(0, strength)));
    return `rgba(${heat[k]},${heat[k + 1]},${heat[k + 2]},${heat[k + 3] / 255})`;
  };
  if (data.seeing) vision(data);
  tokens(data);
  reading(data);
  if (data.gates) experts(data);
  if (data.pictures.length) drawBoxes($("boxes"), data.boxes);
  main.dataset.ready = "yes";
}

// ---------------------------------------------------------------------------------------- 2 vision

function vision(data) {
  const { side, grid, patch, views, channels, blocks, with_attention: kept } = data.seeing;
  const attention = rows(data.seeing.attention), colours = bytes(data.seeing.colours), all = data.seeing.colours.shape[1];
  const P = side * side, canvas = $("vision-attention"), size = 480;
  const pen = sized(canvas, size, size);
  let at = [side >> 1, side >> 1];

  const name = (view) => {
    const its = data.pictures[view.picture], [w] = its.grid, which = data.pictures.length > 1 ? `picture ${view.picture + 1}, ` : "";
    if (view.tile === 0) return `${which}${its.grid[0] * its.grid[1] === 1 ? "whole" : "global view"}`;
    return `${which}tile ${Math.floor((view.tile - 1) / w) + 1}, ${((view.tile - 1) % w) + 1} (row, column)`;
  };
  options($("vision-view"), views.map((view, i) => [i, name(view) + (kept.includes(view.seen) ? "" : " (colours only)")]), 0);

  // Patches of one view, as a small picture of their colours
  const painted = (seen, block) => {
    const small = document.createElement("canvas"), brush = sized(small, grid, grid), image = brush.createImageData(grid, grid);
    const start = (blocks.indexOf(block) * all + seen) * grid * grid * 3;
    for (let i = 0; i < grid * grid; i++) image.data.set([...colours.subarray(start + 3 * i, start + 3 * i + 3), 255], 4 * i);
    brush.putImageData(image, 0, 0);
    return small;
  };

  function draw() {
    const view = views[$("vision-view").value], its = data.pictures[view.picture], [w, h] = its.grid;
    const block = Number($("vision-layer").value), covered = patch * grid;
    const left = view.tile ? ((view.tile - 1) % w) * its.tile : 0, top = view.tile ? Math.floor((view.tile - 1) / w) * its.tile : 0;
    const source = its.shownViews[view.tile ? 1 : 0], shrunk = source.width / its.frames[view.tile ? 1 : 0][0];
    pale(pen, source, size, size, [left, top, covered, covered].map((x) => x * shrunk));

    const which = kept.indexOf(view.seen), channel = choice.chosen()[0], cell = size / side, query = at[1] * side + at[0];
    let said = "Of this view only the colours were kept.";
    if (which >= 0) {
      const row = attention[(channel * kept.length + which) * P + query], most = Math.max(...row);
      row.forEach((weight, k) => {
        pen.fillStyle = data.colour(weight / most);
        pen.fillRect((k % side) * cell, Math.floor(k / side) * cell, cell + 0.5, cell + 0.5);
      });
      const best = row.indexOf(most);
      said = `Patch in row ${at[1] + 1}, column ${at[0] + 1} looks most at row ${Math.floor(best / side) + 1}, ` +
        `column ${(best % side) + 1}: ${percent(most)} of its attention (an even look at all would be ${percent(1 / P)}).`;
    }
    pen.lineWidth = 3;
    for (const [style, grow] of [["#fff", 2.5], ["#ff3d81", 0]]) {
      pen.strokeStyle = style;
      pen.strokeRect(at[0] * cell - grow, at[1] * cell - grow, cell + 2 * grow, cell + 2 * grow);
    }
    canvas.dataset.patch = query;
    canvas.setAttribute("aria-label", said);
    $("vision-readout").textContent = said;

    sized($("vision-colours"), size, size).drawImage(painted(view.seen, block), 0, 0, size, size);
    const n = Math.max(w, h), cellSize = Math.floor(size / n), mosaic = sized($("vision-mosaic"), cellSize * w, cellSize * h);
    for (const tile of views.filter((v) => v.picture === view.picture && (v.tile || w * h === 1))) {
      const k = Math.max(0, tile.tile - 1);
      mosaic.drawImage(painted(tile.seen, block), (k % w) * cellSize, Math.floor(k / w) * cellSize, cellSize, cellSize);
    }
  }
  const choice = chooser($("vision-layer"), $("vision-head"), channels, false, draw);
  $("vision-view").onchange = draw;
  canvas.onpointermove = canvas.onpointerdown = (event) => { at = pointed(canvas, event, side, side); draw(); };
  canvas.onkeydown = (event) => {
    const step = ARROWS[event.key];
    if (!step) return;
    event.preventDefault();
    at = at.map((x, i) => Math.max(0, Math.min(side - 1, x + step[i])));
    draw();
  };
  choice.refresh();
}

// ---------------------------------------------------------------------------------------- 3 tokens

function chip(text, kind, title = "", tag = "span") {
  const element = make(tag, `chip ${kind}${isSpecial(text) ? " special" : ""}`, visible(text));
  element.title = title;
  if (tag === "button") element.type = "button";
  return element;
}

function tokens(data) {
  const say = (...parts) => {
    $("tokens-readout").replaceChildren(...parts.map((part, i) => (i % 2 ? document.createTextNode(part) : make("b", "", part))));
  };
  $("line").replaceChildren(...data.line.map((stretch) => {
    if (stretch.kind === "image") return imageTokens(data, stretch, say);
    const line = make("p", "chips");
    stretch.tokens.forEach(([id, text], i) => {
      const place = stretch.first + i, element = chip(text, stretch.kind, `token ${place + 1}, id ${id}`);
      element.onpointerenter = () => say(`Token ${place + 1}`, `: ${stretch.kind}, “${visible(text)}”, number ${id} of the vocabulary`);
      line.append(element);
    });
    return line;
  }));
}

function imageTokens(data, { picture: which, first }, say) {
  const its = data.pictures[which], block = make("div", "image"), figure = make("figure"), source = make("div", "source");
  const shown = Object.assign(make("img"), { src: its.picture, alt: `The picture ${its.name}` });
  const outlines = [0, 1].map(() => Object.assign(make("i", "outline"), { hidden: true }));
  source.append(shown, ...outlines);
  figure.append(source, make("figcaption", "", `${its.name}: ${its.places.length} tokens`));

  const layout = make("div", "layout"), cell = Math.max(12, Math.min(40, Math.floor(520 / (its.side * its.grid[0] + 1))));
  const canvases = [0, 1].map((view) => {
    const columns = its.side * (view ? its.grid[0] : 1) + 1, lines = its.side * (view ? its.grid[1] : 1);
    const canvas = make("canvas"), own = its.places.map((place, i) => [place, i]).filter(([place]) => place[1] === view);
    Object.assign(canvas, { tabIndex: 0 });
    canvas.setAttribute("role", "img");
    canvas.style.width = `${columns * cell}px`;
    return { canvas, columns, lines, own, at: new Map(own.map(([place, i]) => [place[2] * columns + place[3], i])) };
  });
  const separator = its.places.findIndex((place) => place[0] === 3);
  const bar = make("canvas");
  bar.style.width = `${canvases[0].columns * cell}px`;
  bar.setAttribute("role", "img");
  bar.setAttribute("aria-label", "the separator between the two views, one token");

  const kindColour = (kind) => getComputedStyle(document.documentElement).getPropertyValue(["--global", "--local", "--newline", "--separator"][kind]);
  const scale = 2 * cell;
  function draw(lit) {
    for (const [view, { canvas, columns, lines, own }] of canvases.entries()) {
      const pen = sized(canvas, columns * scale, lines * scale), shrunk = its.shownViews[view].width / its.frames[view][0];
      for (const [[kind, , row, column, inView], i] of own) {
        const x = column * scale + 1, y = row * scale + 1, size = scale - 2;
        if (inView) {
          const [l, t, r, b] = inView.map((edge) => edge * shrunk);
          pen.drawImage(its.shownViews[view], l, t, r - l, b - t, x, y, size, size);
        } else {
          pen.fillStyle = kindColour(kind);
          pen.fillRect(x + size * 0.3, y, size * 0.4, size);
        }
        if (lit.has(i)) {
          pen.lineWidth = 6;
          pen.strokeStyle = "#ff3d81";
          pen.strokeRect(x + 2, y + 2, size - 4, size - 4);
        }
      }
    }
    const pen = sized(bar, canvases[0].columns * scale, scale);
    pen.fillStyle = lit.has(separator) ? "#ff3d81" : kindColour(3);
    pen.fillRect(1, scale * 0.3, canvases[0].columns * scale - 2, scale * 0.4);
  }

  // Outline a rectangle of the picture's pixels, in percent, so that it fits at any size.
  function outline(element, rectangle) {
    element.hidden = !rectangle;
    if (!rectangle) return;
    const [l, t, r, b] = rectangle, style = element.style;
    style.left = `${(100 * l) / its.width}%`;
    style.top = `${(100 * t) / its.height}%`;
    style.width = `${(100 * (r - l)) / its.width}%`;
    style.height = `${(100 * (b - t)) / its.height}%`;
  }
  function light(indices) {
    draw(new Set(indices));
    outlines.forEach((element, k) => outline(element, indices[k] === undefined ? null : its.places[indices[k]][5]));
    block.dataset.token = indices.map((i) => first + i).join(" ");
    const words = indices.map((i) => {
      const [kind, , row, column, , pixels] = its.places[i];
      if (kind >= 2) return [`Token ${first + i + 1}`, `: ${data.kinds[kind]}, a learned vector, the same in every picture. `];
      const where = pixels ? `pixels ${Math.round(pixels[0])}–${Math.round(pixels[2])} across, ${Math.round(pixels[1])}–${Math.round(pixels[3])} down` : "padding only";
      return [`Token ${first + i + 1}`, `: ${data.kinds[kind]}, row ${row + 1}, column ${column + 1}, ${where}. `];
    });
    say(...words.flat());
    for (const { canvas } of canvases) canvas.setAttribute("aria-label", words.flat().join("") || "visual tokens in their layout");
  }
  for (const { canvas, columns, lines, at } of canvases) {
    let here = [0, 0];
    const go = () => light([at.get(here[1] * columns + here[0])]);
    canvas.onpointermove = canvas.onpointerdown = (event) => { here = pointed(canvas, event, columns, lines); go(); };
    canvas.onkeydown = (event) => {
      const step = ARROWS[event.key];
      if (!step) return;
      event.preventDefault();
      here = [Math.max(0, Math.min(columns - 1, here[0] + step[0])), Math.max(0, Math.min(lines - 1, here[1] + step[1]))];
      go();
    };
  }
  bar.onpointermove = () => light([separator]);
  source.onpointermove = source.onpointerdown = (event) => {
    const box = source.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * its.width, y = ((event.clientY - box.top) / box.height) * its.height;
    const inside = ([l, t, r, b]) => l <= x && x < r && t <= y && y < b;
    light([1, 0].flatMap((view) => canvases[view].own.filter(([place]) => place[5] && inside(place[5])).map(([, i]) => i)));
  };
  layout.append(canvases[0].canvas, bar, canvases[1].canvas);
  block.append(figure, layout);
  light([]);
  return block;
}

// ---------------------------------------------------------------------------------------- 4 reading

function reading(data) {
  const { channels, prompt, likely, ids } = data.reading, attention = rows(data.reading.attention);
  const kept = data.reading.attention.shape[1], slider = $("step");
  slider.value = 0;
  const words = data.line.filter((stretch) => stretch.kind !== "image").flatMap((stretch) =>
    stretch.tokens.map(([, text], i) => ({ at: stretch.first + i, text, kind: stretch.kind })));

  const spoken = likely.map(({ chosen }, n) => {
    const element = chip(chosen[0], "answer", `token ${n + 1} of the answer: ${percent(chosen[1])}`, "button");
    element.onclick = () => { slider.value = n; draw(); };
    return element;
  });
  $("reading-answer").replaceChildren(...spoken);
  const seen = words.map((word) => ({ ...word, element: chip(word.text, "heat") }));
  $("reading-text").replaceChildren(...seen.map(({ element }) => element));

  const maps = data.pictures.flatMap((its) => [1, 0].map((view) => {
    const figure = make("figure"), canvas = make("canvas"), scale = 560 / Math.max(its.width, its.height);
    const size = [its.width * scale, its.height * scale].map(Math.round);
    canvas.setAttribute("role", "img");
    const caption = make("figcaption");
    figure.append(canvas, caption);
    return { its, view, figure, canvas, caption, size, scale, own: its.places.map((place, i) => [place, its.first + i]).filter(([place]) => place[0] === view) };
  }));
  $("reading-maps").replaceChildren(...maps.map(({ figure }) => figure));
  const kindAt = new Map(data.pictures.flatMap((its) => its.places.map((place, i) => [its.first + i, place[0]])));
  const SHARES = [["global view", "--global"], ["local view", "--local"], ["newlines, separator", "--newline"], ["question", "--text"], ["answer so far", "--answer"]];

  function weightsAt(step) {
    const which = choice.chosen(), sum = new Float32Array(data.reading.attention.shape[2]);
    for (const channel of which) attention[channel * kept + step].forEach((weight, i) => { sum[i] += weight / which.length; });
    return sum;
  }
  function draw() {
    const step = Number(slider.value), { chosen, top } = likely[step];
    const says = `token ${step + 1} of ${likely.length}: “${visible(chosen[0])}”`;
    $("step-says").textContent = says;
    slider.setAttribute("aria-valuetext", says);
    spoken.forEach((element, n) => (n === step ? element.setAttribute("aria-current", "true") : element.removeAttribute("aria-current")));

    const lines = top.map(([id, text, p]) => [text, p, id === ids[step]]);
    if (!lines.some(([, , taken]) => taken)) lines.push([...chosen, true]);
    $("reading-top").replaceChildren(...lines.map(([text, p, taken]) => {
      const line = make("li", taken ? "taken" : ""), bar = make("span", "bar"), fill = make("i");
      fill.style.width = `${100 * p}%`;
      bar.append(fill);
      line.append(chip(text, taken ? "answer" : "text", taken ? "the token that was chosen" : ""), bar, make("span", "", percent(p)));
      return line;
    }));

    const weights = step < kept ? weightsAt(step) : new Float32Array(data.reading.attention.shape[2]);
    const most = Math.max(1e-12, ...[...kindAt].filter(([, kind]) => kind < 2).map(([i]) => weights[i]));
    for (const { its, view, canvas, caption, size, scale, own } of maps) {
      const pen = sized(canvas, ...size);
      pale(pen, its.image, ...size);
      let sum = 0, brightest = 0;
      for (const [place, i] of own) {
        sum += weights[i];
        brightest = Math.max(brightest, weights[i]);
        if (!place[5]) continue;
        const [l, t, r, b] = place[5].map((edge) => Math.round(edge * scale));
        pen.fillStyle = data.colour(weights[i] / most);
        pen.fillRect(l, t, r - l, b - t);
      }
      caption.replaceChildren(make("b", "", view ? "Local tiles" : "Global view"), `: ${percent(sum)}, at most ${percent(brightest)} a token`);
      canvas.setAttribute("aria-label", `Heat map of the ${caption.textContent}`);
    }
    const shares = [0, 0, 0, 0, 0];
    weights.forEach((weight, i) => { shares[kindAt.has(i) ? Math.min(2, kindAt.get(i)) : i < prompt ? 3 : 4] += weight; });
    const listed = SHARES.map(([label, colour], k) => [label, colour, shares[k]]).filter(([, , share]) => share > 0);
    $("reading-shares").replaceChildren(...listed.map(([, colour, share]) => {
      const part = make("i");
      part.style.setProperty("--c", `var(${colour})`);
      part.style.flex = `${share} 1 0`;
      return part;
    }));
    $("reading-shares").setAttribute("aria-label", listed.map(([label, , share]) => `${label} ${percent(share)}`).join(", "));
    $("reading-key").replaceChildren(...listed.map(([label, colour, share]) => {
      const line = make("li"), key = make("span", "key");
      key.style.setProperty("--c", `var(${colour})`);
      line.append(key, `${label} ${percent(share)}`);
      return line;
    }));
    const mostText = Math.max(1e-12, ...seen.map(({ at }) => weights[at] ?? 0));
    for (const { at, element } of seen) {
      element.hidden = at >= prompt + step;            // not yet written when this token was chosen
      element.style.setProperty("--heat", (weights[at] ?? 0) / mostText);
      element.title = percent(weights[at] ?? 0);
    }
    $("reading").dataset.step = step;
  }
  const choice = chooser($("reading-layer"), $("reading-head"), channels, true, draw);
  slider.oninput = draw;
  choice.refresh();
}

// ---------------------------------------------------------------------------------------- 5 experts

function experts(data) {
  const { layers, experts: E } = data.gates, chosen = bytes(data.gates.chosen), weights = rows(data.gates.weights);
  const [, n, K] = data.gates.chosen.shape;
  const kinds = new Array(n).fill("--text"), names = new Array(n);
  for (const stretch of data.line) {
    if (stretch.kind === "image") {
      data.pictures[stretch.picture].places.forEach(([kind, , row, column], i) => {
        kinds[stretch.first + i] = ["--global", "--local", "--newline", "--separator"][kind];
        names[stretch.first + i] = kind < 2 ? `${data.kinds[kind]}, row ${row + 1}, column ${column + 1}` : data.kinds[kind];
      });
    } else {
      stretch.tokens.forEach(([, text], i) => {
        names[stretch.first + i] = `“${visible(text)}”`;
        if (stretch.kind === "answer") kinds[stretch.first + i] = "--answer";
      });
    }
  }
  const wide = n > 600 ? 2 : 4, high = E > 16 ? 4 : 12, band = 10, style = getComputedStyle(document.documentElement);
  let at = 0;
  const paged = layers.length * E > 64, select = $("gates-layer");       // many rows: one layer at a time
  options(select, layers.map((layer, l) => [l, `layer ${layer + 1}`]), 0);
  select.parentElement.hidden = !paged;
  const strips = layers.map((layer, l) => {
    const strip = make("div", "strip"), scroll = make("div", "scroll"), canvas = make("canvas");
    canvas.tabIndex = 0;
    canvas.setAttribute("role", "img");
    canvas.style.width = `max(100%, ${n * (wide - 1)}px)`;
    canvas.style.height = `${E * high + band}px`;
    scroll.append(canvas);
    const label = make("span", "", `layer ${layer + 1}`);
    label.append(make("small", "", `${E} experts`));
    strip.append(label, scroll);
    canvas.onpointermove = canvas.onpointerdown = (event) => { [at] = pointed(canvas, event, n, 1); draw(); };
    canvas.onkeydown = (event) => {
      const step = ARROWS[event.key];
      if (!step || !step[0]) return;
      event.preventDefault();
      at = Math.max(0, Math.min(n - 1, at + step[0]));
      draw();
    };
    return { strip, canvas, l };
  });
  $("gates").replaceChildren(...strips.map(({ strip }) => strip));

  const most = Math.max(...weights.map((row) => Math.max(...row)));
  function paint(canvas, l) {
    const pen = sized(canvas, n * wide, E * high + band);
    for (let t = 0; t < n; t++) {
      pen.fillStyle = style.getPropertyValue(kinds[t]);
      pen.fillRect(t * wide, 0, wide, band - 3);
      for (let k = 0; k < K; k++) {
        pen.fillStyle = `rgba(58, 134, 200, ${0.12 + 0.88 * (weights[l * n + t][k] / most)})`;
        pen.fillRect(t * wide, band + chosen[(l * n + t) * K + k] * high, wide, high - (high > 6 ? 1 : 0));
      }
    }
    return copyOf(canvas);
  }
  function draw() {
    const shown = strips.filter(({ strip, l }) => !(strip.hidden = paged && l !== Number(select.value)));
    const said = shown.map(({ canvas, l }) => {
      canvas.unmarked ??= paint(canvas, l);
      const pen = canvas.getContext("2d");
      pen.clearRect(0, 0, canvas.width, canvas.height);
      pen.drawImage(canvas.unmarked, 0, 0);
      pen.strokeStyle = "#ff3d81";
      pen.lineWidth = 2;
      pen.strokeRect(at * wide, 1, wide, canvas.height - 2);
      const own = [...weights[l * n + at]].map((weight, k) => [weight, chosen[(l * n + at) * K + k]]).sort((a, b) => b[0] - a[0]);
      return `layer ${layers[l] + 1}: expert ${own.map(([weight, expert]) => `${expert} (${weight.toFixed(2)})`).join(", ")}`;
    });
    const words = `Token ${at + 1}, ${names[at]}. ${said.join("; ")}`;
    $("experts-readout").textContent = words;
    for (const { canvas } of strips) canvas.setAttribute("aria-label", words);
  }
  select.onchange = draw;
  draw();
}

// ---------------------------------------------------------------------------------------- 7 answer

function drawBoxes(figure, boxes) {
  figure.querySelectorAll(".box").forEach((box) => box.remove());
  for (const { label, colour, corners: [l, t, r, b] } of boxes) {
    const box = make("div", "box");
    Object.assign(box.style, { left: `${l}%`, top: `${t}%`, width: `${r - l}%`, height: `${b - t}%` });
    box.style.setProperty("--c", colour);
    if (label) box.append(make("span", "", label));
    figure.append(box);
  }
}

$("theme").onclick = () => {
  const root = document.documentElement, dark = getComputedStyle(root).colorScheme;
  const isDark = dark === "dark" || (dark !== "light" && matchMedia("(prefers-color-scheme: dark)").matches);
  root.style.colorScheme = isDark ? "light" : "dark";
};
if ($("data")) xray(document.querySelector("main"));
