// What the page was told of a model, and how its numbers are read.
"use strict";

const Content = (() => {
  const { textContent } = document.getElementById("content");
  const content = JSON.parse(textContent);
  const { names, labels, dimensions } = content;

  function readPictures() {
    const pixels = Network.bytesOf(content.pixels);
    const capsules = Network.floatsOf(content.capsules);
    const part = (array, number) => {
      const size = array.length / content.truth.length;
      return array.subarray(number * size, (number + 1) * size);
    };
    return content.truth.map((truth, number) => ({
      number,
      truth,
      pixels: part(pixels, number),
      capsules: part(capsules, number),
    }));
  }

  function capsuleOf(capsules, number) {
    return capsules.subarray(number * dimensions, (number + 1) * dimensions);
  }

  function lengthsOf(capsules) {
    return names.map((_, c) => Network.lengthOf(capsuleOf(capsules, c)));
  }

  // The classes that lengths stand for: the longest, two, or all above 0.5,
  // of which there may be none; the least that are named all the same.
  function namedIn(capsules, least = 0) {
    const lengths = lengthsOf(capsules);
    const order = names.map((_, c) => c);
    order.sort((a, b) => lengths[b] - lengths[a] || a - b);
    const above = order.filter((c) => lengths[c] > 0.5);
    const count = { one: 1, pair: 2, several: Math.max(above.length, least) }[labels];
    return order.slice(0, count);
  }

  function listed(classes) {
    const sorted = classes.toSorted((a, b) => a - b);
    return sorted.map((c) => names[c]).join(" + ") || "none";
  }

  // What a picture is and what it is taken for.
  function described(picture) {
    const answer = listed(namedIn(picture.capsules));
    const truth = picture.truth && listed(picture.truth);
    const isMistake = truth !== null && truth !== answer;
    return { text: `${truth ?? "yours"}, read as ${answer}`, isMistake };
  }

  return {
    content,
    pictures: readPictures(),
    means: Network.floatsOf(content.means),
    spreads: Network.floatsOf(content.spreads),
    capsuleOf,
    lengthsOf,
    namedIn,
    listed,
    described,
  };
})();
