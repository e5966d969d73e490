// The geometry of objects that are drawn, in the image's pixels. An object is never changed: each edit makes a new one.
// {label, box: [x0, y0, x1, y1] or null, rings: [[[x, y], ...], ...], joints: [[x, y], ...], visible: [0, 1 or 2, ...]}

export const MISSING = 0;
export const HIDDEN = 1;
export const SEEN = 2;

export function newObject(label, shape) {
  return { label, box: null, rings: [], joints: [], visible: [], shown: null, ...shape };
}

export function envelope(points) {
  const [xs, ys] = [0, 1].map((axis) => points.map((point) => point[axis]));
  return [Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys)];
}

// Return the box between two corners, whichever they are.
export function boxBetween(a, b) {
  return envelope([a, b]);
}

export function corners([x0, y0, x1, y1]) {
  return [[x0, y0], [x1, y0], [x1, y1], [x0, y1]];
}

// Return the nearest pixel border of the image.
export function snapped([x, y], [width, height]) {
  return [Math.min(Math.max(Math.round(x), 0), width), Math.min(Math.max(Math.round(y), 0), height)];
}

// Return the points of an object that the kind of labelling draws; those of missing joints are left out.
export function pointsOf(object, kind) {
  if (kind === "RECT") return corners(object.box);
  if (kind === "POLYGON") return object.rings.flat();
  const there = object.joints.filter((_, joint) => object.visible[joint] > MISSING);
  return there.length || !object.box ? there : corners(object.box);
}

// Return the handles of an object, each with its point, in the order in which a key goes through them.
export function handlesOf(object, kind) {
  if (kind === "RECT") {
    const [x0, y0, x1, y1] = object.box;
    const [x, y] = [(x0 + x1) / 2, (y0 + y1) / 2];
    const columns = [[0, x0], [null, x], [2, x1]];
    const rows = [[1, y0], [null, y], [3, y1]];
    const places = [[0, 0], [1, 0], [2, 0], [2, 1], [2, 2], [1, 2], [0, 2], [0, 1]];
    return places.map(([column, row]) => ({
      sides: [columns[column][0], rows[row][0]],
      point: [columns[column][1], rows[row][1]],
    }));
  }
  if (kind === "POLYGON") {
    return object.rings.flatMap((ring, number) => ring.map((point, corner) => ({ ring: number, corner, point })));
  }
  return object.joints
    .map((point, joint) => ({ joint, point }))
    .filter(({ joint }) => object.visible[joint] > MISSING);
}

// Return the middles of a polygon's edges, where a new corner can be pulled out.
export function middlesOf(object) {
  return object.rings.flatMap((ring, number) =>
    ring.map((point, corner) => {
      const next = ring[(corner + 1) % ring.length];
      return { ring: number, corner: corner + 1, point: [(point[0] + next[0]) / 2, (point[1] + next[1]) / 2] };
    }),
  );
}

// Return an object whose handle lies at a point.
export function withHandleAt(object, handle, point) {
  if (handle.sides) {
    const box = [...object.box];
    for (const [axis, side] of handle.sides.entries()) if (side !== null) box[side] = point[axis];
    return { ...object, box: boxBetween(box.slice(0, 2), box.slice(2)) };
  }
  if (handle.joint !== undefined) return { ...object, joints: object.joints.with(handle.joint, point) };
  return withRing(object, handle.ring, object.rings[handle.ring].with(handle.corner, point));
}

export function withCorner(object, { ring, corner }, point) {
  return withRing(object, ring, object.rings[ring].toSpliced(corner, 0, point));
}

// Return an object without a corner; without the whole ring where it has three; null where nothing is left.
export function withoutCorner(object, { ring, corner }) {
  if (object.rings[ring].length > 3) return withRing(object, ring, object.rings[ring].toSpliced(corner, 1));
  const rings = object.rings.toSpliced(ring, 1);
  return rings.length ? { ...object, rings } : null;
}

export function withoutJoint(object, joint) {
  const visible = object.visible.with(joint, MISSING);
  if (!visible.some(Boolean) && !object.box) return null;
  return { ...object, visible, joints: object.joints.with(joint, [0, 0]) };
}

export function withJoint(object, joint, point) {
  return { ...object, joints: object.joints.with(joint, point), visible: object.visible.with(joint, SEEN) };
}

// Return an object that lies elsewhere, as a whole within the image.
export function moved(object, kind, [right, down], [width, height]) {
  const box = kind === "POINT" && object.box ? corners(object.box) : [];
  const [x0, y0, x1, y1] = envelope([...pointsOf(object, kind), ...box]);
  const dx = Math.min(Math.max(right, -x0), width - x1);
  const dy = Math.min(Math.max(down, -y0), height - y1);
  const shift = ([x, y]) => [x + dx, y + dy];
  if (kind === "POLYGON") return { ...object, rings: object.rings.map((ring) => ring.map(shift)) };
  const shifted = object.box && [...shift(object.box.slice(0, 2)), ...shift(object.box.slice(2))];
  if (kind === "RECT") return { ...object, box: shifted };
  const joints = object.joints.map((point, joint) => (object.visible[joint] > MISSING ? shift(point) : point));
  return { ...object, box: shifted, joints };
}

function isInside(object, kind, [x, y]) {
  if (kind === "POLYGON") return object.rings.reduce((inside, ring) => inside !== isInRing(ring, [x, y]), false);
  const [x0, y0, x1, y1] = envelope(pointsOf(object, kind));
  return x >= x0 && x <= x1 && y >= y0 && y <= y1;
}

// Return whether a point lies on an object's border, or on one of its joints.
function isOnBorder(object, kind, point, tolerance) {
  const rings = kind === "POLYGON" ? object.rings : kind === "RECT" ? [corners(object.box)] : [];
  if (kind === "POINT") return handlesOf(object, kind).some((handle) => distance(handle.point, point) <= tolerance);
  return rings.some((ring) =>
    ring.some((corner, number) => fromEdge(point, corner, ring[(number + 1) % ring.length]) <= tolerance),
  );
}

// Return the object that a press takes: that whose border is near, the selected one, of polygons also another; or -1.
export function taken(objects, kind, point, near, selected) {
  const numbers = bySize(objects, kind);
  const byBorder = numbers.find((number) => isOnBorder(objects[number], kind, point, near));
  if (byBorder !== undefined || kind === "POINT") return byBorder ?? -1;
  if (objects[selected] && isInside(objects[selected], kind, point)) return selected;
  return kind === "POLYGON" ? smallestAround(objects, kind, point) : -1;
}

export function smallestAround(objects, kind, point) {
  return bySize(objects, kind).find((number) => isInside(objects[number], kind, point)) ?? -1;
}

// Return the number of the handle nearest to a point, -1 where none is near.
export function nearestHandle(handles, point, near = Infinity) {
  const apart = handles.map((handle) => distance(handle.point, point));
  const number = apart.indexOf(Math.min(...apart));
  return apart[number] <= near ? number : -1;
}

export function distance([ax, ay], [bx, by]) {
  return Math.hypot(ax - bx, ay - by);
}

function bySize(objects, kind) {
  const areas = objects.map((object) => {
    const [x0, y0, x1, y1] = envelope(pointsOf(object, kind));
    return (x1 - x0) * (y1 - y0);
  });
  return [...areas.keys()].sort((a, b) => areas[a] - areas[b]);
}

function withRing(object, number, ring) {
  return { ...object, rings: object.rings.with(number, ring) };
}

function isInRing(ring, [x, y]) {
  let inside = false;
  ring.forEach(([ax, ay], number) => {
    const [bx, by] = ring[(number + 1) % ring.length];
    if (ay > y !== by > y && x < ax + ((y - ay) * (bx - ax)) / (by - ay)) inside = !inside;
  });
  return inside;
}

function fromEdge(point, a, b) {
  const length = distance(a, b) ** 2 || 1;
  const along = ((point[0] - a[0]) * (b[0] - a[0]) + (point[1] - a[1]) * (b[1] - a[1])) / length;
  const share = Math.min(Math.max(along, 0), 1);
  return distance(point, [a[0] + share * (b[0] - a[0]), a[1] + share * (b[1] - a[1])]);
}
