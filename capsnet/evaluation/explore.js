// The page: what is shown, and what a hand or a key changes. Names are data:
// they become text or attributes, never markup.
"use strict";

(() => {
  const content = JSON.parse(document.getElementById("content").textContent);
  const { names, shape, labels, dimensions } = content;
  const [height, width, channels] = shape;
  const pixelCount = height * width * channels;
  const STEP = 0.05; // Of an arrow key, and between two pictures of the strip.
  const PAPER = 0.25; // Section 5.1: from -0.25 to +0.25.
  const MAP_SIDE = 7; // Reconstructions along a side of the pad.
  // Two digits lie over each other; where both are light, it is white.
  const COLOURS = [
    [1, 0.5, 0],
    [0, 0.5, 1],
  ];

  const decode = Network.decoderOf(content.decoder);
  const encode = content.encoder && Network.encoderOf(content.encoder, shape);
  const means = Network.floatsOf(content.means);
  const spreads = Network.floatsOf(content.spreads);
  const pictures = readPictures();

  const state = {
    picture: null, // What is turned: {pixels, capsules, truth, title}.
    kept: [], // Classes whose capsules the decoder gets.
    slot: 0, // Which of them the sliders turn.
    values: null, // All capsules, as they are turned, in one array.
    other: null, // Of a blend: {number, share, vector}, a part of another class.
    dimension: 0, // The one under the pointer.
    parts: [], // What the decoder draws, one for each colour.
  };

  const element = (id) => document.getElementById(id);

  function make(tag, className, parent) {
    const made = document.createElement(tag);
    made.className = className;
    parent.append(made);
    return made;
  }

  function signed(value) {
    return `${value < 0 ? "\u2212" : "+"}${Math.abs(value).toFixed(2)}`;
  }

  // ----- The pictures and the capsules in the file

  function readPictures() {
    const pixels = Network.bytesOf(content.pixels);
    const capsules = Network.floatsOf(content.capsules);
    const size = names.length * dimensions;
    return content.truth.map((truth, number) => ({
      number,
      truth,
      pixels: pixels.subarray(number * pixelCount, (number + 1) * pixelCount),
      capsules: capsules.subarray(number * size, (number + 1) * size),
    }));
  }

  function capsuleOf(capsules, number) {
    return capsules.subarray(number * dimensions, (number + 1) * dimensions);
  }

  function lengthsOf(capsules) {
    return names.map((_, number) => Network.lengthOf(capsuleOf(capsules, number)));
  }

  // The classes that lengths stand for: the longest, two, or all above 0.5.
  function named(capsules) {
    const lengths = lengthsOf(capsules);
    const order = names.map((_, number) => number);
    order.sort((a, b) => lengths[b] - lengths[a] || a - b);
    if (labels === "several") {
      const above = order.filter((number) => lengths[number] > 0.5);
      return above.length ? above : order.slice(0, 1);
    }
    return order.slice(0, labels === "pair" ? 2 : 1);
  }

  function listed(numbers) {
    return numbers.map((number) => names[number]).join(" + ") || "none";
  }

  // ----- Pictures on canvases

  function paint(canvas, parts) {
    canvas.width = width;
    canvas.height = height;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    const image = context.createImageData(width, height);
    for (let place = 0; place < height * width; place += 1) {
      for (let colour = 0; colour < 3; colour += 1) {
        // Clamped and rounded by the array.
        image.data[4 * place + colour] = 255 * levelOf(parts, place, colour);
      }
      image.data[4 * place + 3] = 255;
    }
    context.putImageData(image, 0, 0);
  }

  function levelOf(parts, place, colour) {
    if (parts.length === 1) {
      return parts[0][place * channels + (channels > 1 ? colour : 0)];
    }
    const [first, second] = parts.map((part) => lightness(part, place));
    return COLOURS[0][colour] * first + COLOURS[1][colour] * second;
  }

  function lightness(part, place) {
    const start = place * channels;
    const sum = part[start] + part[start + 1] + part[start + 2];
    return channels > 1 ? sum / 3 : part[place];
  }

  // ----- What the decoder gets, and what it draws

  function masked(classes, values) {
    const input = new Float32Array(values.length);
    for (const number of classes) {
      capsuleOf(input, number).set(capsuleOf(values, number));
    }
    return input;
  }

  // The pictures of `values`: of a pair each digit's, else one of all kept.
  function partsOf(values) {
    const groups = labels === "pair" ? state.kept.map((number) => [number]) : [state.kept];
    return groups.map((classes, group) => {
      const input = masked(classes, values);
      const { other } = state;
      if (other && (labels !== "pair" || group === state.slot)) {
        const part = capsuleOf(input, other.number);
        part.set(part.map((value, d) => value + other.vector[d]));
      }
      return decode(input);
    });
  }

  // Of a pair only the digit that is turned is drawn anew.
  function partsWith(changes) {
    const values = state.values.slice();
    const capsule = capsuleOf(values, turned());
    for (const [dimension, value] of changes) {
      capsule[dimension] = value;
    }
    if (labels !== "pair") {
      return partsOf(values);
    }
    return state.parts.map((part, slot) =>
      slot === state.slot ? decode(masked([state.kept[slot]], values)) : part,
    );
  }

  function turned() {
    return state.kept[state.slot];
  }

  function startOf(dimension) {
    return capsuleOf(state.picture.capsules, turned())[dimension];
  }

  function valueOf(dimension) {
    return capsuleOf(state.values, turned())[dimension];
  }

  // From the data, and wide enough for the paper's range about the start.
  function rangeOf(dimension) {
    const place = turned() * dimensions + dimension;
    const [mean, spread] = [means[place], spreads[place]];
    const start = startOf(dimension);
    return {
      usual: [mean - spread, mean + spread],
      least: Math.min(mean - 3 * spread, start - PAPER - STEP),
      most: Math.max(mean + 3 * spread, start + PAPER + STEP),
    };
  }

  // ----- Changes

  let frame = 0;
  let later = 0;

  // The reconstruction in the next frame; what takes longer when all is still.
  function changed({ stripToo = true } = {}) {
    frame ||= requestAnimationFrame(show);
    clearTimeout(later);
    later = setTimeout(() => {
      if (stripToo) {
        showStrip();
      }
      showMap();
    }, 120);
  }

  function choosePicture(picture) {
    state.picture = picture;
    state.values = Float32Array.from(picture.capsules);
    state.kept = named(picture.capsules);
    state.slot = 0;
    state.other = null;
    element("blend").value = 0;
    paint(element("picture"), [lightOf(picture.pixels)]);
    const read = listed(state.kept);
    const isRight = picture.truth && listed(picture.truth.toSorted()) === listed(state.kept.toSorted());
    const title = picture.truth ? `a ${listed(picture.truth)}` : "your drawing";
    const answer = isRight ? "read right" : `read as ${read}`;
    element("picture-caption").textContent = `${title}, ${answer}`;
    element("picture-caption").classList.toggle("wrong", Boolean(picture.truth) && !isRight);
    element("picture").setAttribute("aria-label", `Picture: ${title}`);
    element("status").textContent = `${title}, ${answer}`;
    mark(element("gallery"), picture.number);
    capsuleChosen();
  }

  // Another capsule is under the sliders.
  function capsuleChosen() {
    const order = Array.from({ length: dimensions }, (_, d) => d);
    const spread = (d) => spreads[turned() * dimensions + d];
    order.sort((a, b) => spread(b) - spread(a));
    element("pad-x").value = order[0];
    element("pad-y").value = order[1] ?? order[0];
    showSlots();
    placeSliders();
    changed();
  }

  function chooseClass(number) {
    const slot = state.kept.indexOf(number);
    if (slot >= 0) {
      state.slot = slot;
    } else if (labels === "several") {
      state.slot = state.kept.push(number) - 1;
    } else {
      state.kept[state.slot] = number;
    }
    capsuleChosen();
  }

  function leave(slot) {
    state.kept.splice(slot, 1);
    state.slot = 0;
    capsuleChosen();
  }

  function turn(dimension, value) {
    const { least, most } = rangeOf(dimension);
    capsuleOf(state.values, turned())[dimension] = Math.min(most, Math.max(least, value));
    const { strip } = pointAt(dimension);
    changed({ stripToo: strip });
  }

  function resetAll() {
    state.values = Float32Array.from(state.picture.capsules);
    state.other = null;
    element("blend").value = 0;
    changed();
  }

  // Turning the dimension of the strip leaves the strip as it is.
  function pointAt(dimension) {
    const strip = state.dimension !== dimension;
    state.dimension = dimension;
    rows.forEach(({ row }, d) => row.classList.toggle("pointed", d === dimension));
    return { strip };
  }

  // ----- What is shown

  function show() {
    frame = 0;
    const before = performance.now();
    state.parts = partsOf(state.values);
    const milliseconds = performance.now() - before;
    paint(element("made"), state.parts);
    element("made").setAttribute("aria-label", `Reconstruction of ${listed(state.kept)}`);
    element("timing").dataset.decode = milliseconds.toFixed(2);
    tellTiming();
    const lengths = lengthsOf(state.values);
    bars.forEach(({ bar, fill, number }, c) => {
      fill.style.width = `${100 * Math.min(1, lengths[c])}%`;
      number.textContent = lengths[c].toFixed(3);
      bar.setAttribute("aria-pressed", String(state.kept.includes(c)));
      bar.dataset.slot = labels === "pair" ? state.kept.indexOf(c) : 0;
      bar.classList.toggle("active", c === turned());
    });
    rows.forEach(({ input, output }, d) => {
      input.value = valueOf(d);
      input.setAttribute("aria-valuetext", signed(valueOf(d)));
      output.textContent = signed(valueOf(d));
      output.classList.toggle("moved", Math.abs(valueOf(d) - startOf(d)) > 5e-4);
    });
    placePoint();
    markStrip();
  }

  function tellTiming() {
    const { decode: drawn, encode: read } = element("timing").dataset;
    element("timing").textContent =
      `Reconstructed in ${drawn} ms` + (read ? `, your drawing read in ${read} ms` : "");
  }

  function showSlots() {
    const group = element("slots");
    group.replaceChildren();
    state.kept.forEach((number, slot) => {
      const button = make("button", "slot", group);
      button.type = "button";
      button.dataset.slot = labels === "pair" ? slot : 0;
      button.textContent = names[number];
      button.setAttribute("aria-pressed", String(slot === state.slot));
      button.addEventListener("click", () => chooseClass(number));
      if (labels === "several" && state.kept.length > 1) {
        const remove = make("button", "small", group);
        remove.type = "button";
        remove.textContent = "\u00d7";
        remove.setAttribute("aria-label", `leave out ${names[number]}`);
        remove.addEventListener("click", () => leave(slot));
      }
    });
  }

  // Ranges and marks of the sliders, for the capsule that is turned.
  function placeSliders() {
    rows.forEach(({ row, input }, d) => {
      const { usual, least, most } = rangeOf(d);
      const start = startOf(d);
      const share = (value) => (Math.min(most, Math.max(least, value)) - least) / (most - least);
      input.min = least;
      input.max = most;
      const marks = { "start-at": start, low: start - PAPER, high: start + PAPER, from: usual[0], to: usual[1] };
      for (const [name, value] of Object.entries(marks)) {
        row.style.setProperty(`--${name}`, share(value));
      }
    });
  }

  // ----- The strip: the paper's figure, one row of it

  function stripValue(column) {
    return startOf(state.dimension) + STEP * (column - 5);
  }

  function showStrip() {
    element("strip-title").textContent = `Dimension ${state.dimension + 1} of ${names[turned()]}, from \u22120.25 to +0.25`;
    strip.forEach(({ button, canvas }, column) => {
      paint(canvas, partsWith([[state.dimension, stripValue(column)]]));
      const change = signed(STEP * (column - 5));
      button.title = change;
      button.setAttribute("aria-label", `dimension ${state.dimension + 1} ${change}`);
    });
    markStrip();
  }

  function markStrip() {
    const column = Math.round((valueOf(state.dimension) - startOf(state.dimension)) / STEP) + 5;
    strip.forEach(({ button }, c) => button.setAttribute("aria-pressed", String(c === column)));
  }

  // ----- The pad

  function padDimensions() {
    return [Number(element("pad-x").value), Number(element("pad-y").value)];
  }

  function placePoint() {
    const [x, y] = padDimensions().map((d) => {
      const { least, most } = rangeOf(d);
      return (valueOf(d) - least) / (most - least);
    });
    element("point").style.left = `${100 * x}%`;
    element("point").style.bottom = `${100 * y}%`;
    const [across, up] = padDimensions();
    const text = `dimension ${across + 1} ${signed(valueOf(across))}, dimension ${up + 1} ${signed(valueOf(up))}`;
    element("pad").setAttribute("aria-valuetext", text);
    element("pad").setAttribute("aria-valuenow", String(Math.round(100 * valueOf(across))));
  }

  function movePoint(event) {
    const box = element("pad").getBoundingClientRect();
    const shares = [
      (event.clientX - box.left) / box.width,
      (box.bottom - event.clientY) / box.height,
    ];
    padDimensions().forEach((d, axis) => {
      const { least, most } = rangeOf(d);
      turn(d, least + shares[axis] * (most - least));
    });
  }

  let mapping = 0;

  // Row by row, a row a frame: all of it takes a tenth of a second.
  function showMap() {
    const canvas = element("map");
    canvas.width = MAP_SIDE * width;
    canvas.height = MAP_SIDE * height;
    const context = canvas.getContext("2d");
    const cell = document.createElement("canvas");
    const [across, up] = padDimensions();
    const [x, y] = [rangeOf(across), rangeOf(up)];
    const middle = ({ least, most }, place) => least + ((place + 0.5) / MAP_SIDE) * (most - least);
    const drawRow = (row) => {
      for (let column = 0; column < MAP_SIDE; column += 1) {
        const changes = [[across, middle(x, column)]];
        if (up !== across) {
          changes.push([up, middle(y, MAP_SIDE - 1 - row)]);
        }
        paint(cell, partsWith(changes));
        context.drawImage(cell, column * width, row * height);
      }
      mapping = row + 1 < MAP_SIDE ? requestAnimationFrame(() => drawRow(row + 1)) : 0;
    };
    cancelAnimationFrame(mapping);
    mapping = requestAnimationFrame(() => drawRow(0));
  }

  // ----- The blend

  // The capsule that the sliders turn, on its way to the other picture's.
  function blend() {
    const share = Number(element("blend").value);
    const other = pictures[blendWith];
    const theirs = named(other.capsules);
    const number = theirs[Math.min(state.slot, theirs.length - 1)];
    const capsule = capsuleOf(other.capsules, number);
    const start = capsuleOf(state.picture.capsules, turned());
    const values = capsuleOf(state.values, turned());
    state.other = null;
    if (number !== turned()) {
      state.other = { number, vector: capsule.map((value) => share * value) };
    }
    values.forEach((_, d) => {
      const end = number === turned() ? capsule[d] : 0;
      values[d] = (1 - share) * start[d] + share * end;
    });
    changed();
  }

  let blendWith = 0;

  function chooseOther(number) {
    blendWith = number;
    mark(element("blend-gallery"), number);
    if (Number(element("blend").value) > 0) {
      blend();
    }
  }

  // ----- The field

  let strokes = [];
  let reading = 0;

  function placeIn(field, event) {
    const box = field.getBoundingClientRect();
    const scale = field.width / box.width;
    return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
  }

  function showStrokes() {
    const field = element("field");
    const context = field.getContext("2d");
    context.fillStyle = "black";
    context.fillRect(0, 0, field.width, field.height);
    context.strokeStyle = "white";
    context.lineCap = context.lineJoin = "round";
    context.lineWidth = Math.min(field.width, field.height) / 12;
    for (const stroke of strokes) {
      context.beginPath();
      for (const [x, y] of [stroke[0], ...stroke]) {
        context.lineTo(x, y);
      }
      context.stroke();
    }
  }

  function read() {
    reading = 0;
    if (strokes.length === 0) {
      return;
    }
    const before = performance.now();
    const fieldScale = width / element("field").width;
    const pixels = Drawing.pictureOf(strokes, [height, width], fieldScale);
    const capsules = encode(lightOf(pixels));
    element("timing").dataset.encode = (performance.now() - before).toFixed(0);
    choosePicture({ number: -1, truth: null, pixels, capsules });
  }

  function makeField() {
    const field = element("field");
    if (!encode) {
      element("draw-hint").textContent = content.no_encoder;
      field.remove();
      element("clear").remove();
      return;
    }
    element("draw-hint").textContent =
      "It is centred and scaled as the data are, read by the network, and becomes the start of the sliders.";
    field.width = 280;
    field.height = Math.round((280 * height) / width);
    showStrokes();
    field.addEventListener("pointerdown", (event) => {
      field.setPointerCapture(event.pointerId);
      strokes.push([placeIn(field, event)]);
      showStrokes();
    });
    field.addEventListener("pointermove", (event) => {
      if (field.hasPointerCapture(event.pointerId)) {
        strokes.at(-1).push(placeIn(field, event));
        showStrokes();
        reading ||= setTimeout(read, 100);
      }
    });
    field.addEventListener("pointerup", () => {
      clearTimeout(reading);
      read();
    });
    element("clear").addEventListener("click", () => {
      strokes = [];
      showStrokes();
    });
  }

  // ----- The parts of the page, made once

  function mark(gallery, number) {
    for (const button of gallery.querySelectorAll("button")) {
      button.setAttribute("aria-pressed", String(Number(button.dataset.number) === number));
    }
  }

  function makeGallery(gallery, choose) {
    for (const picture of pictures) {
      const button = make("button", "thumbnail", gallery);
      button.type = "button";
      button.dataset.number = picture.number;
      const truth = listed(picture.truth.toSorted((a, b) => a - b));
      const read = named(picture.capsules);
      const isRight = truth === listed(read.toSorted((a, b) => a - b));
      const title = isRight ? truth : `${truth}, read as ${listed(read)}`;
      button.title = title;
      button.setAttribute("aria-label", title);
      button.classList.toggle("mistake", !isRight);
      paint(make("canvas", "", button), [lightOf(picture.pixels)]);
      button.addEventListener("click", () => choose(picture));
    }
  }

  function makeBars() {
    return names.map((name, c) => {
      const bar = make("button", "bar", element("bars"));
      bar.type = "button";
      const label = make("span", "name", bar);
      label.textContent = name;
      label.title = name;
      const fill = make("span", "fill", make("span", "meter", bar));
      const number = make("span", "number", bar);
      bar.addEventListener("click", () => chooseClass(c));
      return { bar, fill, number };
    });
  }

  function makeSliders() {
    return Array.from({ length: dimensions }, (_, d) => {
      const row = make("div", "row", element("sliders"));
      const label = make("label", "", row);
      label.textContent = d + 1;
      label.htmlFor = `dimension-${d}`;
      const track = make("span", "track", row);
      make("span", "line-mark", track);
      make("span", "spread-mark", track);
      make("span", "paper-mark", track);
      make("span", "start-mark", track);
      const input = make("input", "", track);
      input.id = label.htmlFor;
      input.type = "range";
      input.step = "any";
      input.setAttribute("aria-label", `dimension ${d + 1}`);
      const output = make("output", "", row);
      output.htmlFor = input.id;
      const reset = make("button", "small", row);
      reset.type = "button";
      reset.textContent = "\u21ba";
      reset.title = "reset";
      reset.setAttribute("aria-label", `reset dimension ${d + 1}`);
      reset.tabIndex = -1; // Delete does it on the slider.
      reset.addEventListener("click", () => turn(d, startOf(d)));
      input.addEventListener("input", () => turn(d, Number(input.value)));
      input.addEventListener("keydown", (event) => sliderKey(event, d));
      for (const type of ["pointerenter", "focusin"]) {
        row.addEventListener(type, () => {
          if (pointAt(d).strip) {
            showStrip();
          }
        });
      }
      return { row, input, output };
    });
  }

  function sliderKey(event, dimension) {
    const steps = { ArrowLeft: -STEP, ArrowDown: -STEP, ArrowRight: STEP, ArrowUp: STEP };
    if (event.key in steps) {
      turn(dimension, valueOf(dimension) + steps[event.key]);
    } else if (event.key === "Delete" || event.key === "Backspace") {
      turn(dimension, startOf(dimension));
    } else {
      return;
    }
    event.preventDefault();
  }

  function makeStrip() {
    return Array.from({ length: 11 }, (_, column) => {
      const button = make("button", "cell", element("strip"));
      button.type = "button";
      const canvas = make("canvas", "", button);
      button.addEventListener("click", () => turn(state.dimension, stripValue(column)));
      return { button, canvas };
    });
  }

  function makePad() {
    const pad = element("pad");
    for (const id of ["pad-x", "pad-y"]) {
      for (let d = 0; d < dimensions; d += 1) {
        const option = make("option", "", element(id));
        option.value = d;
        option.textContent = `dimension ${d + 1}`;
      }
      element(id).addEventListener("change", () => changed());
    }
    pad.addEventListener("pointerdown", (event) => {
      pad.setPointerCapture(event.pointerId);
      movePoint(event);
    });
    pad.addEventListener("pointermove", (event) => {
      if (pad.hasPointerCapture(event.pointerId)) {
        movePoint(event);
      }
    });
    pad.addEventListener("keydown", (event) => {
      const [across, up] = padDimensions();
      const steps = {
        ArrowLeft: [across, -STEP],
        ArrowRight: [across, STEP],
        ArrowDown: [up, -STEP],
        ArrowUp: [up, STEP],
      };
      if (event.key in steps) {
        const [dimension, step] = steps[event.key];
        turn(dimension, valueOf(dimension) + step);
        event.preventDefault();
      }
    });
  }

  // A letter or digit goes to the next class whose name begins with it.
  function classKey(event) {
    const isTyping = event.target.closest?.("select");
    if (isTyping || event.ctrlKey || event.metaKey || event.altKey || event.key.length !== 1) {
      return;
    }
    const key = event.key.toLowerCase();
    const begins = names.flatMap((name, c) => (name.toLowerCase().startsWith(key) ? [c] : []));
    if (begins.length) {
      chooseClass(begins.find((c) => c > turned()) ?? begins[0]);
    }
  }

  function save() {
    const scale = Math.ceil(280 / Math.max(height, width));
    const canvas = document.createElement("canvas");
    canvas.width = width * scale;
    canvas.height = height * scale;
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.drawImage(element("made"), 0, 0, canvas.width, canvas.height);
    const link = document.createElement("a");
    link.download = "capsule.png";
    link.href = canvas.toDataURL("image/png");
    link.click();
  }

  const bars = makeBars();
  const rows = makeSliders();
  const strip = makeStrip();
  makeGallery(element("gallery"), choosePicture);
  makeGallery(element("blend-gallery"), (picture) => chooseOther(picture.number));
  makePad();
  makeField();
  element("about").textContent = content.about;
  element("bars-hint").textContent = {
    one: "How sure each class is. Choose one to turn its capsule.",
    pair: "The two longest are the two digits. Choose another for the one that you turn.",
    several: "All above 0.5 are named. Choose one to turn its capsule, too.",
  }[labels];
  document.body.dataset.labels = labels;
  document.body.style.setProperty("--aspect", width / height);
  element("reset").addEventListener("click", resetAll);
  element("blend").addEventListener("input", blend);
  element("save").addEventListener("click", save);
  document.addEventListener("keydown", classKey);
  choosePicture(pictures[0]);
  chooseOther(Math.min(3, pictures.length - 1));
  showStrip();
})();
