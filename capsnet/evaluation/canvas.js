// Pictures on canvases: one, or the two digits of a pair over each other.
"use strict";

const Canvas = (() => {
  // Orange and blue, which colour-blind people can tell apart. Where both are
  // light, it is white.
  const COLOURS = [
    [1, 0.5, 0],
    [0, 0.5, 1],
  ];

  function lightOf(bytes) {
    return Float32Array.from(bytes, (value) => value / 255);
  }

  function lightness(part, channels, place) {
    if (channels === 1) {
      return part[place];
    }
    const start = place * channels;
    return (part[start] + part[start + 1] + part[start + 2]) / 3;
  }

  function levelOf(parts, channels, place, colour) {
    if (parts.length === 1) {
      return parts[0][place * channels + (channels > 1 ? colour : 0)];
    }
    return (
      COLOURS[0][colour] * lightness(parts[0], channels, place) +
      COLOURS[1][colour] * lightness(parts[1], channels, place)
    );
  }

  // Each part is a picture in [0, 1], one value after the other.
  function paint(canvas, parts, [height, width, channels]) {
    canvas.width = width;
    canvas.height = height;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    const image = context.createImageData(width, height);
    for (let place = 0; place < height * width; place += 1) {
      for (let colour = 0; colour < 3; colour += 1) {
        const level = levelOf(parts, channels, place, colour);
        image.data[4 * place + colour] = 255 * level; // Rounded by the array.
      }
      image.data[4 * place + 3] = 255;
    }
    context.putImageData(image, 0, 0);
  }

  // Large enough to be seen elsewhere, with its pixels as they are.
  function save(canvas, name) {
    const scale = Math.ceil(280 / Math.max(canvas.height, canvas.width));
    const large = document.createElement("canvas");
    large.width = canvas.width * scale;
    large.height = canvas.height * scale;
    const context = large.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.drawImage(canvas, 0, 0, large.width, large.height);
    const link = document.createElement("a");
    link.download = name;
    link.href = large.toDataURL("image/png");
    link.click();
  }

  return { lightOf, paint, save };
})();
