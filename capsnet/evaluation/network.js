// What the page computes: the decoder, a small encoder, and how a drawing
// becomes a picture. Plain loops on typed arrays; page.py writes the layers.
"use strict";

const Network = (() => {
  // Arrays come as base64 of little-endian bytes, as every browser reads them.
  function bytesOf(text) {
    return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  }

  function floatsOf(text) {
    return new Float32Array(bytesOf(text).buffer);
  }

  // Integers of 12 bits with a scale for each column become floats again.
  function weightsOf(packed) {
    const upper = new Int8Array(bytesOf(packed.upper).buffer);
    const lower = bytesOf(packed.lower); // Two in a byte.
    const scales = floatsOf(packed.scales);
    return Float32Array.from(upper, (bits, place) => {
      const half = (lower[place >> 1] >> (4 * (place & 1))) & 15;
      return (16 * bits + half) * scales[place % scales.length];
    });
  }

  // Inputs outermost: rows of the kernel are read in order, zeros skipped.
  function addProducts(outputs, inputs, inputStart, count, kernel, rowStart) {
    const columns = outputs.length;
    for (let input = 0; input < count; input += 1) {
      const value = inputs[inputStart + input];
      if (value !== 0) {
        const start = (rowStart + input) * columns;
        for (let column = 0; column < columns; column += 1) {
          outputs[column] += value * kernel[start + column];
        }
      }
    }
  }

  function relu(values) {
    for (let place = 0; place < values.length; place += 1) {
      if (values[place] < 0) {
        values[place] = 0;
      }
    }
  }

  // From the capsules that are kept, all others zero, to a picture in [0, 1].
  function decoderOf(layers) {
    const dense = layers.map((layer) => ({
      kernel: weightsOf(layer.kernel),
      bias: floatsOf(layer.bias),
      activation: layer.activation,
    }));
    return function decode(masked) {
      let values = masked;
      for (const { kernel, bias, activation } of dense) {
        const outputs = Float32Array.from(bias);
        addProducts(outputs, values, 0, values.length, kernel, 0);
        if (activation === "relu") {
          relu(outputs);
        } else if (activation === "sigmoid") {
          for (let place = 0; place < outputs.length; place += 1) {
            outputs[place] = 1 / (1 + Math.exp(-outputs[place]));
          }
        }
        values = outputs;
      }
      return values;
    };
  }

  function lengthOf(vector) {
    return Math.hypot(...vector);
  }

  // In place: the paper's Eq. 1, or the small network's exponential kind.
  function squash(vector, kind) {
    const norm = lengthOf(vector);
    let factor = norm / (1 + norm * norm);
    if (kind === "exponential") {
      factor = norm > 0 ? -Math.expm1(-norm) / norm : 1;
    }
    for (let place = 0; place < vector.length; place += 1) {
      vector[place] *= factor;
    }
  }

  // Without padding. Features are {values, height, width, channels}.
  function convolution(layer) {
    const kernel = weightsOf(layer.kernel);
    const bias = floatsOf(layer.bias);
    const [kernelHeight, kernelWidth] = layer.size;
    const [strideDown, strideRight] = layer.strides;
    return function convolve({ values, height, width, channels }) {
      const rows = Math.floor((height - kernelHeight) / strideDown) + 1;
      const columns = Math.floor((width - kernelWidth) / strideRight) + 1;
      const outputs = new Float32Array(rows * columns * bias.length);
      const count = kernelWidth * channels; // Neighbours in a row of pixels.
      for (let row = 0; row < rows; row += 1) {
        for (let column = 0; column < columns; column += 1) {
          const place = (row * columns + column) * bias.length;
          const cell = outputs.subarray(place, place + bias.length);
          cell.set(bias);
          for (let down = 0; down < kernelHeight; down += 1) {
            const y = row * strideDown + down;
            const start = (y * width + column * strideRight) * channels;
            addProducts(cell, values, start, count, kernel, down * count);
          }
        }
      }
      if (layer.activation === "relu") {
        relu(outputs);
      }
      return {
        values: outputs,
        height: rows,
        width: columns,
        channels: bias.length,
      };
    };
  }

  // One kernel for each channel, as large as all that is left of the picture.
  function covering(layer) {
    const kernel = weightsOf(layer.kernel);
    const bias = floatsOf(layer.bias);
    return function cover({ values }) {
      const outputs = Float32Array.from(bias);
      for (let place = 0; place < values.length; place += 1) {
        outputs[place % bias.length] += values[place] * kernel[place];
      }
      return { values: outputs, height: 1, width: 1, channels: bias.length };
    };
  }

  // Neighbouring channels of a cell make a capsule.
  function grouping(layer) {
    return function group({ values }) {
      const capsules = [];
      for (let start = 0; start < values.length; start += layer.dimensions) {
        const capsule = values.slice(start, start + layer.dimensions);
        squash(capsule, layer.squash);
        capsules.push(capsule);
      }
      return capsules;
    };
  }

  // Logits of one input capsule, in place, to its shares for the outputs.
  const couplings = {
    dynamic(logits) {
      softmax(logits, 0);
    },
    leaky(logits) {
      softmax(logits, 1);
    },
    max_min(logits) {
      const least = Math.min(...logits);
      const spread = Math.max(...logits) - least;
      for (let output = 0; output < logits.length; output += 1) {
        logits[output] = spread > 1e-30 ? (logits[output] - least) / spread : 1;
      }
    },
  };

  // With another logit of 0, whose share is dropped, where `leak` is 1.
  function softmax(logits, leak) {
    const largest = Math.max(...logits, leak ? 0 : -Infinity);
    let total = leak * Math.exp(-largest);
    for (let output = 0; output < logits.length; output += 1) {
      logits[output] = Math.exp(logits[output] - largest);
      total += logits[output];
    }
    for (let output = 0; output < logits.length; output += 1) {
      logits[output] /= total;
    }
  }

  // Procedure 1 of the paper, and the other kinds of routing.
  function routing(layer) {
    const { outputs: count, inputs: inputCount, dimensions } = layer;
    const kernel = weightsOf(layer.kernel); // (outputs, inputs, dimensions, below)
    const bias = layer.bias
      ? floatsOf(layer.bias)
      : new Float32Array(count * dimensions);
    const prior = layer.prior && floatsOf(layer.prior);

    function votesOf(inputs) {
      const below = inputs[0].length;
      const votes = new Float32Array(count * inputCount * dimensions);
      for (let place = 0; place < votes.length; place += 1) {
        const input = inputs[Math.floor(place / dimensions) % inputCount];
        let sum = 0;
        for (let k = 0; k < below; k += 1) {
          sum += kernel[place * below + k] * input[k];
        }
        votes[place] = sum;
      }
      return votes;
    }

    // Sums over the inputs, weighted by `shares(output, input)`.
    function sums(votes, shares) {
      const totals = [];
      for (let output = 0; output < count; output += 1) {
        const total = new Float32Array(dimensions);
        for (let input = 0; input < inputCount; input += 1) {
          const share = shares[input * count + output];
          const start = (output * inputCount + input) * dimensions;
          for (let d = 0; d < dimensions; d += 1) {
            total[d] += share * votes[start + d];
          }
        }
        totals.push(total);
      }
      return totals;
    }

    function agreements(votes, vectors) {
      const found = new Float32Array(inputCount * count);
      for (let output = 0; output < count; output += 1) {
        for (let input = 0; input < inputCount; input += 1) {
          const start = (output * inputCount + input) * dimensions;
          for (let d = 0; d < dimensions; d += 1) {
            found[input * count + output] +=
              votes[start + d] * vectors[output][d];
          }
        }
      }
      return found;
    }

    function coupled(logits, couple) {
      for (let input = 0; input < inputCount; input += 1) {
        couple(logits.subarray(input * count, (input + 1) * count));
      }
      return logits;
    }

    function outputsOf(votes, shares) {
      const capsules = sums(votes, shares);
      capsules.forEach((capsule, output) => {
        for (let d = 0; d < dimensions; d += 1) {
          capsule[d] += bias[output * dimensions + d];
        }
        squash(capsule, layer.squash);
      });
      return capsules;
    }

    function attention(votes) {
      const ones = new Float32Array(inputCount * count).fill(1);
      const logits = agreements(votes, sums(votes, ones));
      const shares = coupled(
        logits.map((logit) => logit / Math.sqrt(dimensions)),
        couplings.dynamic,
      );
      const all = shares.map((share, place) => {
        const output = place % count;
        return share + prior[output * inputCount + (place - output) / count];
      });
      return outputsOf(votes, all);
    }

    return function route(inputs) {
      const votes = votesOf(inputs);
      if (layer.routing === "attention") {
        return attention(votes);
      }
      const logits = new Float32Array(inputCount * count);
      let capsules = null;
      for (let round = 0; round < layer.rounds; round += 1) {
        const shares = coupled(logits.slice(), couplings[layer.routing]);
        capsules = outputsOf(votes, shares);
        agreements(votes, capsules).forEach((agreement, place) => {
          logits[place] += agreement;
        });
      }
      return capsules;
    };
  }

  const kinds = { convolution, covering, grouping, routing };

  // From pixels in [0, 1] to the class capsules, one array.
  function encoderOf(layers, [height, width, channels]) {
    const steps = layers.map((layer) => kinds[layer.kind](layer));
    return function encode(values) {
      let result = { values, height, width, channels };
      for (const step of steps) {
        result = step(result);
      }
      return Float32Array.from(result.flatMap((capsule) => [...capsule]));
    };
  }

  return { bytesOf, floatsOf, lengthOf, decoderOf, encoderOf };
})();
