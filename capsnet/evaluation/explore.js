// The page: what is shown, and what a hand or a key changes. Names are data:
// they become text or attributes, never markup.
"use strict";

(() => {
  const element = document.getElementById.bind(document);
  const { content, pictures, means, spreads } = Content;
  const { capsuleOf, lengthsOf, namedIn, listed, described } = Content;
  const { names, shape, labels, dimensions } = content;
  const every = Array.from({ length: dimensions }, (_, d) => d);
  const STEP = 0.05; // Of an arrow key, and between two pictures of the strip.
  const PAPER = 0.25; // Section 5.1: from -0.25 to +0.25.
  const PAUSE = 120; // Milliseconds; then what takes longer is drawn anew.

  const decode = Network.decoderOf(content.decoder);
  const encode = content.encoder && Network.encoderOf(content.encoder, shape);

  const state = {
    picture: null, // What is turned: {number, truth, pixels, capsules}.
    kept: [], // Classes whose capsules the decoder gets.
    slot: 0, // Which of them the sliders turn.
    values: null, // All capsules as they are turned, in one array.
    other: null, // In a blend of two classes: {slot, number, vector}.
    blendWith: 0, // The number of the other picture.
    dimension: 0, // The one under the pointer.
    parts: [], // What the decoder draws, one picture for each colour.
  };

  // ----- What the decoder gets, and what it draws

  function masked(classes, values) {
    const input = new Float32Array(values.length);
    for (const c of classes) {
      capsuleOf(input, c).set(capsuleOf(values, c));
    }
    return input;
  }

  // One picture of all that are kept, or of a pair the digit in a slot.
  function partOf(slot, values) {
    const classes = labels === "pair" ? [state.kept[slot]] : state.kept;
    const input = masked(classes, values);
    if (state.other?.slot === slot) {
      const capsule = capsuleOf(input, state.other.number);
      capsule.set(capsule.map((value, d) => value + state.other.vector[d]));
    }
    return decode(input);
  }

  function partsOf(values) {
    const slots = labels === "pair" ? [0, 1] : [state.slot];
    return slots.map((slot) => partOf(slot, values));
  }

  // With some dimensions changed; the other digit of a pair stays as it is.
  function paintWith(canvas, changes) {
    const values = state.values.slice();
    for (const [d, value] of changes) {
      capsuleOf(values, turned())[d] = value;
    }
    const part = partOf(state.slot, values);
    const parts = labels === "pair" ? state.parts.slice() : [part];
    parts[labels === "pair" ? state.slot : 0] = part;
    Canvas.paint(canvas, parts, shape);
  }

  // ----- The capsule under the sliders

  function turned() {
    return state.kept[state.slot];
  }

  function startOf(d) {
    return capsuleOf(state.picture.capsules, turned())[d];
  }

  function valueOf(d) {
    return capsuleOf(state.values, turned())[d];
  }

  // From the data, and wide enough for the paper's range about the start.
  function rangeOf(d) {
    const mean = capsuleOf(means, turned())[d];
    const spread = capsuleOf(spreads, turned())[d];
    return {
      usual: [mean - spread, mean + spread],
      least: Math.min(mean - 3 * spread, startOf(d) - PAPER - STEP),
      most: Math.max(mean + 3 * spread, startOf(d) + PAPER + STEP),
    };
  }

  // ----- Changes

  let frame = 0;
  let pause = 0;
  const stale = { strip: true, map: true };

  // Shows it in the next frame, and soon what does not hold any more: strip
  // and map show a dimension that is turned as they did before.
  function changed(d = null) {
    frame ||= requestAnimationFrame(show);
    stale.strip ||= d !== state.dimension;
    stale.map ||= !pad.chosen().includes(d);
    clearTimeout(pause);
    pause = setTimeout(() => {
      if (stale.strip) {
        showStrip();
      }
      if (stale.map) {
        pad.showMap();
      }
      stale.strip = stale.map = false;
    }, PAUSE);
  }

  function turn(d, value) {
    const { least, most } = rangeOf(d);
    const within = Math.min(most, Math.max(least, value));
    capsuleOf(state.values, turned())[d] = within;
    changed(d);
  }

  function resetAll() {
    state.values = Float32Array.from(state.picture.capsules);
    state.other = null;
    element("blend").value = 0;
    changed();
  }

  function choosePicture(picture) {
    state.picture = picture;
    state.kept = namedIn(picture.capsules, 1);
    state.slot = 0;
    resetAll();
    const { text, isMistake } = described(picture);
    Canvas.paint(element("picture"), [Canvas.lightOf(picture.pixels)], shape);
    element("picture").setAttribute("aria-label", `picture: ${text}`);
    element("picture-caption").textContent = text;
    element("picture-caption").classList.toggle("wrong", isMistake);
    mark(element("gallery"), picture.number);
    capsuleChosen();
  }

  // Another capsule is under the sliders.
  function capsuleChosen() {
    const spread = capsuleOf(spreads, turned());
    pad.choose(every.toSorted((a, b) => spread[b] - spread[a]));
    showSlots();
    placeSliders();
    changed();
  }

  function chooseClass(c) {
    const slot = state.kept.indexOf(c);
    if (slot >= 0) {
      state.slot = slot;
    } else if (labels === "several") {
      state.slot = state.kept.push(c) - 1;
    } else {
      state.kept[state.slot] = c;
    }
    state.other = null;
    capsuleChosen();
  }

  function leaveOut(slot) {
    state.kept.splice(slot, 1);
    state.slot = 0;
    state.other = null;
    capsuleChosen();
  }

  // The capsule under the sliders, on its way to the other picture's.
  function blend() {
    const share = Number(element("blend").value);
    const { capsules } = pictures[state.blendWith];
    const theirs = namedIn(capsules, 1);
    const number = theirs[Math.min(state.slot, theirs.length - 1)];
    const end = capsuleOf(capsules, number).map((value) => share * value);
    const isSame = number === turned();
    state.other = isSame ? null : { slot: state.slot, number, vector: end };
    capsuleOf(state.values, turned()).forEach((_, d, values) => {
      values[d] = (1 - share) * startOf(d) + (isSame ? end[d] : 0);
    });
    changed();
  }

  function chooseOther({ number }) {
    state.blendWith = number;
    mark(element("blend-gallery"), number);
    if (Number(element("blend").value) > 0) {
      blend();
    }
  }

  function readDrawing(pixels) {
    const before = performance.now();
    const capsules = encode(Canvas.lightOf(pixels));
    tell("read", performance.now() - before);
    choosePicture({ number: null, truth: null, pixels, capsules });
  }

  // ----- What is shown

  function show() {
    frame = 0;
    const before = performance.now();
    state.parts = partsOf(state.values);
    tell("drawn", performance.now() - before);
    Canvas.paint(element("made"), state.parts, shape);
    const made = `reconstruction of ${listed(state.kept)}`;
    element("made").setAttribute("aria-label", made);
    lengthsOf(state.values).forEach((length, c) => showBar(c, length));
    rows.forEach(({ input, output }, d) => {
      input.value = valueOf(d);
      input.setAttribute("aria-valuetext", signed(valueOf(d)));
      output.textContent = signed(valueOf(d));
      const distance = Math.abs(valueOf(d) - startOf(d));
      output.classList.toggle("moved", distance > 5e-4);
    });
    pad.placePoint();
    markStrip();
  }

  function signed(value) {
    const digits = Math.abs(value).toFixed(2);
    return `${value < 0 && digits > 0 ? "\u2212" : "+"}${digits}`;
  }

  function tell(what, milliseconds) {
    const { dataset } = element("timing");
    dataset[what] = milliseconds.toFixed(1);
    const { drawn, read } = dataset;
    const reading = read ? `, your drawing read in ${read} ms` : "";
    element("timing").textContent = `Reconstructed in ${drawn} ms${reading}`;
  }

  function showBar(c, length) {
    const { bar, fill, number } = bars[c];
    fill.style.width = `${100 * Math.min(1, length)}%`;
    number.textContent = length.toFixed(3);
    bar.dataset.slot = state.kept.indexOf(c);
    bar.setAttribute("aria-pressed", state.kept.includes(c));
  }

  function showSlots() {
    const group = element("slots");
    group.replaceChildren();
    state.kept.forEach((c, slot) => {
      const button = makeButton("slot", group, () => chooseClass(c));
      button.textContent = names[c];
      button.dataset.slot = slot;
      button.setAttribute("aria-pressed", slot === state.slot);
      if (labels === "several" && state.kept.length > 1) {
        const remove = makeButton("small", group, () => leaveOut(slot));
        remove.textContent = "\u00d7";
        remove.setAttribute("aria-label", `leave out ${names[c]}`);
      }
    });
  }

  // Ranges and marks of the sliders, for the capsule that is turned.
  function placeSliders() {
    rows.forEach(({ row, input }, d) => {
      const { usual, least, most } = rangeOf(d);
      const start = startOf(d);
      input.min = least;
      input.max = most;
      const marks = {
        begin: start,
        low: start - PAPER,
        high: start + PAPER,
        from: usual[0],
        to: usual[1],
      };
      for (const [name, value] of Object.entries(marks)) {
        const within = Math.min(most, Math.max(least, value));
        row.style.setProperty(`--${name}`, (within - least) / (most - least));
      }
    });
  }

  // The strip is one row of the paper's figure.
  function stripValue(column) {
    return startOf(state.dimension) + STEP * (column - 5);
  }

  function showStrip() {
    const name = `Dimension ${state.dimension + 1}`;
    const range = `${signed(-PAPER)} to ${signed(PAPER)}`;
    element("strip-title").textContent = `${name}, ${range}`;
    strip.forEach(({ button, canvas }, column) => {
      paintWith(canvas, [[state.dimension, stripValue(column)]]);
      const change = signed(STEP * (column - 5));
      button.title = change;
      button.setAttribute("aria-label", `${name}: ${change}`);
    });
    markStrip();
  }

  function markStrip() {
    const distance = valueOf(state.dimension) - startOf(state.dimension);
    const at = Math.round(distance / STEP) + 5;
    strip.forEach(({ button }, column) => {
      button.setAttribute("aria-pressed", column === at);
    });
  }

  function pointAt(d) {
    if (d !== state.dimension) {
      state.dimension = d;
      showStrip();
    }
    rows.forEach(({ row }, other) => {
      row.classList.toggle("pointed", other === d);
    });
  }

  function mark(gallery, number) {
    for (const button of gallery.children) {
      const isIt = Number(button.dataset.number) === number;
      button.setAttribute("aria-pressed", isIt);
    }
  }

  // ----- The parts of the page, made once

  function make(tag, className, parent) {
    const made = document.createElement(tag);
    made.className = className;
    parent.append(made);
    return made;
  }

  function makeButton(className, parent, act) {
    const button = make("button", className, parent);
    button.type = "button";
    button.addEventListener("click", act);
    return button;
  }

  function makeGallery(gallery, choose) {
    for (const picture of pictures) {
      const button = makeButton("thumbnail", gallery, () => choose(picture));
      const { text, isMistake } = described(picture);
      button.dataset.number = picture.number;
      button.title = text;
      button.setAttribute("aria-label", text);
      button.classList.toggle("mistake", isMistake);
      const canvas = make("canvas", "", button);
      Canvas.paint(canvas, [Canvas.lightOf(picture.pixels)], shape);
    }
  }

  function makeBar(name, c) {
    const bar = makeButton("bar", element("bars"), () => chooseClass(c));
    const label = make("span", "name", bar);
    label.textContent = name;
    label.title = name;
    const fill = make("span", "fill", make("span", "meter", bar));
    return { bar, fill, number: make("span", "number", bar) };
  }

  function makeSlider(d) {
    const row = make("div", "row", element("sliders"));
    const label = make("label", "", row);
    const track = make("span", "track", row);
    for (const name of ["whole", "usual", "paper", "begin"]) {
      make("span", `mark ${name}`, track);
    }
    const input = make("input", "", track);
    const output = make("output", "", row);
    label.textContent = d + 1;
    label.htmlFor = input.id = `dimension-${d + 1}`;
    input.type = "range";
    input.step = "any";
    input.setAttribute("aria-label", `dimension ${d + 1}`);
    const reset = makeButton("small", row, () => turn(d, startOf(d)));
    reset.textContent = "\u21ba";
    reset.setAttribute("aria-label", `reset dimension ${d + 1}`);
    reset.tabIndex = -1; // Tab goes on to the next slider; Delete resets.
    input.addEventListener("input", () => {
      pointAt(d);
      turn(d, Number(input.value));
    });
    input.addEventListener("keydown", (event) => sliderKey(event, d));
    row.addEventListener("focusin", () => pointAt(d));
    row.addEventListener("pointerenter", (event) => {
      if (event.buttons === 0) {
        pointAt(d);
      }
    });
    return { row, input, output };
  }

  function sliderKey(event, d) {
    const steps = {
      ArrowLeft: -STEP,
      ArrowDown: -STEP,
      ArrowRight: STEP,
      ArrowUp: STEP,
    };
    if (event.key in steps) {
      turn(d, valueOf(d) + steps[event.key]);
    } else if (event.key === "Delete" || event.key === "Backspace") {
      turn(d, startOf(d));
    } else {
      return;
    }
    event.preventDefault();
  }

  function makeCell(_, column) {
    const button = makeButton("cell", element("strip"), () => {
      turn(state.dimension, stripValue(column));
    });
    return { button, canvas: make("canvas", "", button) };
  }

  // A letter or digit goes to the next class whose name begins with it.
  function classKey(event) {
    const isOther = event.ctrlKey || event.metaKey || event.altKey;
    if (isOther || event.key.length > 1 || event.target.matches("select")) {
      return;
    }
    const key = event.key.toLowerCase();
    const begins = names
      .map((_, c) => c)
      .filter((c) => names[c].toLowerCase().startsWith(key));
    if (begins.length > 0) {
      chooseClass(begins.find((c) => c > turned()) ?? begins[0]);
    }
  }

  const bars = names.map(makeBar);
  const rows = every.map(makeSlider);
  const strip = Array.from({ length: 11 }, makeCell);
  const pad = Pad.make(element("pad"), [element("pad-x"), element("pad-y")], {
    dimensions,
    step: STEP,
    rangeOf,
    valueOf,
    turn,
    paintWith,
  });
  makeGallery(element("gallery"), choosePicture);
  makeGallery(element("blend-gallery"), chooseOther);
  if (encode) {
    const field = [element("field"), element("clear")];
    const size = shape.slice(0, 2);
    Drawing.makeField(...field, size, content.light, readDrawing);
  } else {
    element("field").remove();
    element("clear").remove();
    element("draw-hint").textContent = content.no_encoder;
  }
  element("about").textContent = content.about;
  element("bars-hint").textContent = {
    one: "Choose a class to turn its capsule.",
    pair: "The two longest are the two digits. Choose another for one of them.",
    several:
      "All above 0.5 are named. Choose a class to turn its capsule, too.",
  }[labels];
  document.body.dataset.labels = labels;
  document.body.style.setProperty("--aspect", shape[1] / shape[0]);
  const longest = Math.max(...names.map((name) => name.length));
  document.body.style.setProperty("--name", `${Math.min(longest, 16) + 1}ch`);
  element("reset").addEventListener("click", resetAll);
  element("blend").addEventListener("input", blend);
  element("save").addEventListener("click", () => {
    Canvas.save(element("made"), "capsule.png");
  });
  document.addEventListener("keydown", classKey);
  chooseOther(pictures[0]);
  choosePicture(pictures[Math.floor(pictures.length * 0.4)]);
  showStrip(); // At once, or its buttons had no names for a moment.
})();
