// Two dimensions at once: a point that is dragged over a map of pictures.
"use strict";

const Pad = (() => {
  const SIDE = 7; // Pictures along a side of the map.

  // `knobs` are the sliders: dimensions, step, rangeOf(d), valueOf(d),
  // turn(d, value), and paintWith(canvas, [[d, value], ...]).
  function make(pad, selects, knobs) {
    const [map, point] = pad.children;
    const chosen = () => selects.map((select) => Number(select.value));
    let frame = 0;

    function placePoint() {
      const shares = chosen().map((d) => {
        const { least, most } = knobs.rangeOf(d);
        return (knobs.valueOf(d) - least) / (most - least);
      });
      point.style.left = `${100 * shares[0]}%`;
      point.style.bottom = `${100 * shares[1]}%`;
      const texts = chosen().map(
        (d) => `dimension ${d + 1} ${knobs.valueOf(d).toFixed(2)}`,
      );
      pad.setAttribute("aria-valuetext", texts.join(", "));
      pad.setAttribute("aria-valuenow", Math.round(100 * shares[0]));
    }

    function movePoint(event) {
      const box = pad.getBoundingClientRect();
      const shares = [
        (event.clientX - box.left) / box.width,
        (box.bottom - event.clientY) / box.height,
      ];
      chosen().forEach((d, axis) => {
        const { least, most } = knobs.rangeOf(d);
        knobs.turn(d, least + shares[axis] * (most - least));
      });
    }

    // In the middle of a picture of the map.
    function value(d, place) {
      const { least, most } = knobs.rangeOf(d);
      return least + ((place + 0.5) / SIDE) * (most - least);
    }

    // A row a frame: the whole map takes a tenth of a second.
    function showMap() {
      const [across, up] = chosen();
      const cell = document.createElement("canvas");
      const drawRow = (row) => {
        for (let column = 0; column < SIDE; column += 1) {
          const right = [across, value(across, column)];
          knobs.paintWith(cell, [right, [up, value(up, SIDE - 1 - row)]]);
          if (row === 0 && column === 0) {
            map.width = SIDE * cell.width;
            map.height = SIDE * cell.height;
          }
          const corner = [column * cell.width, row * cell.height];
          map.getContext("2d").drawImage(cell, ...corner);
        }
        if (row + 1 < SIDE) {
          frame = requestAnimationFrame(() => drawRow(row + 1));
        }
      };
      cancelAnimationFrame(frame);
      frame = requestAnimationFrame(() => drawRow(0));
    }

    function key(event) {
      const [across, up] = chosen();
      const steps = {
        ArrowLeft: [across, -knobs.step],
        ArrowRight: [across, knobs.step],
        ArrowDown: [up, -knobs.step],
        ArrowUp: [up, knobs.step],
      };
      if (event.key in steps) {
        const [d, step] = steps[event.key];
        knobs.turn(d, knobs.valueOf(d) + step);
        event.preventDefault();
      }
    }

    for (const select of selects) {
      for (let d = 0; d < knobs.dimensions; d += 1) {
        select.add(new Option(`dimension ${d + 1}`, d));
      }
      select.addEventListener("change", () => {
        placePoint();
        showMap();
      });
    }
    pad.addEventListener("keydown", key);
    pad.addEventListener("pointerdown", (event) => {
      pad.setPointerCapture(event.pointerId);
      movePoint(event);
    });
    pad.addEventListener("pointermove", (event) => {
      if (pad.hasPointerCapture(event.pointerId)) {
        movePoint(event);
      }
    });
    // From the order of dimensions, the most interesting ones first.
    function choose(order) {
      selects[0].value = order[0];
      selects[1].value = order[1] ?? order[0];
    }

    return { chosen, choose, placePoint, showMap };
  }

  return { make };
})();
