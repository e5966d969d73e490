// A brush for polygons: what is painted, or wiped off, becomes rings along the borders of the pixels.

const MOST_PIXELS = 25_000_000; // of the part of the image that a stroke and its object take
const HALF = 128; // of an alpha of 255: a pixel belongs to what covers half of it

// Return the rings of an object after a stroke of a round brush, [] where nothing is left, null where it is too large.
export function painted(rings, { points, radius, erases }, [width, height]) {
  const ends = [...rings.flat(), ...points.flatMap(([x, y]) => [[x - radius, y - radius], [x + radius, y + radius]])];
  const [xs, ys] = [0, 1].map((axis) => ends.map((point) => point[axis]));
  const span = (values, most) => [
    Math.max(Math.floor(values.reduce((a, b) => Math.min(a, b))), 0),
    Math.min(Math.ceil(values.reduce((a, b) => Math.max(a, b))), most),
  ];
  const [[left, right], [top, bottom]] = [span(xs, width), span(ys, height)];
  const size = [right - left, bottom - top];
  if (size[0] * size[1] > MOST_PIXELS) return null;
  if (size[0] < 1 || size[1] < 1) return rings;
  const canvas = Object.assign(document.createElement("canvas"), { width: size[0], height: size[1] });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.translate(-left, -top);
  context.beginPath();
  for (const ring of rings) {
    for (const [number, [x, y]] of ring.entries()) context[number ? "lineTo" : "moveTo"](x, y);
    context.closePath();
  }
  context.fill("evenodd");
  if (erases) context.globalCompositeOperation = "destination-out";
  strokeAlong(context, points, radius);
  const { data } = context.getImageData(0, 0, ...size);
  const isSet = (x, y) => x >= 0 && y >= 0 && x < size[0] && y < size[1] && data[4 * (y * size[0] + x) + 3] >= HALF;
  return outlines(isSet, size).map((ring) => ring.map(([x, y]) => [x + left, y + top]));
}

export function strokeAlong(context, points, radius) {
  Object.assign(context, { lineWidth: 2 * radius, lineCap: "round", lineJoin: "round" });
  context.beginPath();
  context.moveTo(points[0][0] - 0.001, points[0][1]); // a line without a length would not be drawn
  for (const point of points) context.lineTo(...point);
  context.stroke();
}

// Return the borders of the pixels that are set as rings of corners; a hole is a ring, too. Parts that touch at a
// corner alone are rings of their own.
export function outlines(isSet, [width, height]) {
  const ways = new Map(); // from each corner, on which a border begins, to where it leads: its pixel lies to the right
  const add = (x, y, dx, dy) => {
    const key = y * (width + 1) + x;
    ways.set(key, [...(ways.get(key) ?? []), [dx, dy]]);
  };
  for (let y = 0; y < height; y += 1) {
    for (let x = 0; x < width; x += 1) {
      if (!isSet(x, y)) continue;
      if (!isSet(x, y - 1)) add(x, y, 1, 0);
      if (!isSet(x + 1, y)) add(x + 1, y, 0, 1);
      if (!isSet(x, y + 1)) add(x + 1, y + 1, -1, 0);
      if (!isSet(x - 1, y)) add(x, y + 1, 0, -1);
    }
  }
  const rings = [];
  for (const [start] of ways) if (ways.get(start)?.length) rings.push(followed(ways, start, width + 1));
  return rings;
}

function followed(ways, start, columns) {
  const ring = [];
  let [key, before] = [start, null];
  do {
    const open = ways.get(key);
    const turn = ([dx, dy]) => (before ? before[0] * dy - before[1] * dx : 0); // 1: to the right
    const way = open.reduce((best, each) => (turn(each) > turn(best) ? each : best));
    open.splice(open.indexOf(way), 1);
    if (!before || turn(way)) ring.push([key % columns, Math.floor(key / columns)]);
    before = way;
    key += way[1] * columns + way[0];
  } while (key !== start);
  const [first, last] = [ring[0], ring.at(-1)];
  const isStraight = (last[0] === first[0] && before[0] === 0 && ring[1][0] === first[0]) ||
    (last[1] === first[1] && before[1] === 0 && ring[1][1] === first[1]);
  return isStraight ? ring.slice(1) : ring; // it began in the middle of a side
}
