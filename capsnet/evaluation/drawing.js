// From strokes of a pen to a picture as MNIST has them: within a box of 20 of
// 28 pixels, the centre of mass in the middle; other sizes in proportion. Where
// the data have a light ground, black on white.
"use strict";

const Drawing = (() => {
  const BOX = 20 / 28;
  const PEN = 2.3 / 28; // About as thick as MNIST's.
  const FINE = 8; // Pixels of the canvas for one of the picture's.
  const LARGEST = 4; // A dot is not blown up to the whole box.
  const SIDE = 280; // The width of the field, in pixels of its own.
  const PAUSE = 100; // Milliseconds between two readings of a drawing.

  // Strokes are lists of points [x, y], in pixels of a field.
  function extent(strokes, axis) {
    const places = strokes.flat().map((point) => point[axis]);
    const least = Math.min(...places);
    const most = Math.max(...places);
    return { size: most - least, middle: (least + most) / 2 };
  }

  function trace(context, strokes, placed) {
    for (const stroke of strokes) {
      context.beginPath();
      // A dot is a line to itself.
      for (const point of [stroke[0], ...stroke]) {
        context.lineTo(...placed(point));
      }
      context.stroke();
    }
  }

  // The strokes on a black canvas, their `middle` moved to `centre`.
  function inked(strokes, scale, middle, centre, [height, width]) {
    const canvas = document.createElement("canvas");
    canvas.width = width * FINE;
    canvas.height = height * FINE;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.strokeStyle = "white";
    context.lineCap = context.lineJoin = "round";
    context.lineWidth = PEN * Math.min(height, width) * FINE;
    trace(context, strokes, (point) =>
      point.map((place, axis) => {
        const moved = (place - middle[axis]) * scale + centre[axis];
        return moved * FINE;
      }),
    );
    return context.getImageData(0, 0, canvas.width, canvas.height).data;
  }

  // The mean of each block of fine pixels.
  function averaged(fine, [height, width]) {
    const pixels = new Uint8ClampedArray(height * width);
    for (let y = 0; y < height; y += 1) {
      for (let x = 0; x < width; x += 1) {
        let sum = 0;
        for (let down = 0; down < FINE; down += 1) {
          for (let right = 0; right < FINE; right += 1) {
            const row = (y * FINE + down) * width * FINE;
            sum += fine[4 * (row + x * FINE + right)];
          }
        }
        pixels[y * width + x] = sum / FINE ** 2; // Rounded by the array.
      }
    }
    return pixels;
  }

  function centreOfMass(pixels, [, width]) {
    let [total, right, down] = [0, 0, 0];
    pixels.forEach((value, place) => {
      total += value;
      right += value * ((place % width) + 0.5);
      down += value * (Math.floor(place / width) + 0.5);
    });
    return [right / total, down / total];
  }

  // Pixels of 0 to 255, of a picture of [height, width].
  function pictureOf(strokes, size, fieldScale) {
    const [height, width] = size;
    const pen = PEN * Math.min(height, width);
    const [across, along] = [extent(strokes, 0), extent(strokes, 1)];
    const scale = Math.min(
      (BOX * width - pen) / across.size,
      (BOX * height - pen) / along.size,
      LARGEST * fieldScale,
    );
    const middle = [across.middle, along.middle];
    const centre = [width / 2, height / 2];
    const first = averaged(inked(strokes, scale, middle, centre, size), size);
    const mass = centreOfMass(first, size);
    const moved = centre.map((place, axis) => 2 * place - mass[axis]);
    return averaged(inked(strokes, scale, middle, moved, size), size);
  }

  // A field to draw in: `read` gets the pixels, now and then and at the end.
  function makeField(field, clear, size, light, read) {
    const [height, width] = size;
    const [ground, ink] = light ? ["white", "black"] : ["black", "white"];
    let strokes = [];
    let waiting = 0;
    field.width = SIDE;
    field.height = Math.round((SIDE * height) / width);

    function show() {
      const context = field.getContext("2d");
      context.fillStyle = ground;
      context.fillRect(0, 0, field.width, field.height);
      if (strokes.length === 0) {
        context.fillStyle = light ? "#666666" : "#9a9a9a";
        context.font = "16px sans-serif";
        context.textAlign = "center";
        context.fillText("Draw here", field.width / 2, field.height / 2);
      }
      context.strokeStyle = ink;
      context.lineCap = context.lineJoin = "round";
      context.lineWidth = PEN * Math.min(field.width, field.height);
      trace(context, strokes, (point) => point);
    }

    function placeOf(event) {
      const box = field.getBoundingClientRect();
      const scale = field.width / box.width;
      return [
        (event.clientX - box.left) * scale,
        (event.clientY - box.top) * scale,
      ];
    }

    function finish() {
      clearTimeout(waiting);
      waiting = 0;
      if (strokes.length > 0) {
        const pixels = pictureOf(strokes, size, width / SIDE);
        read(light ? pixels.map((value) => 255 - value) : pixels);
      }
    }

    field.addEventListener("pointerdown", (event) => {
      field.setPointerCapture(event.pointerId);
      strokes.push([placeOf(event)]);
      show();
    });
    field.addEventListener("pointermove", (event) => {
      if (field.hasPointerCapture(event.pointerId)) {
        strokes.at(-1).push(placeOf(event));
        show();
        waiting ||= setTimeout(finish, PAUSE);
      }
    });
    field.addEventListener("pointerup", finish);
    clear.addEventListener("click", () => {
      strokes = [];
      show();
    });
    show();
  }

  return { makeField };
})();
