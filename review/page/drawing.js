// A record's objects over its image, and the one image that is zoomed and moved.

const SVG = "http://www.w3.org/2000/svg";
const COLOURS = ["#ff7a1a", "#2f9bff", "#35c46a", "#e0479e", "#b38cff", "#ffd21f", "#00c2c7", "#ff5a4f", "#9bd32a"];
const MOST_ZOOM = 40; // screen pixels of an image's pixel
const ZOOM_STEP = 1.25;
const MOVE_SHARE = 0.2; // of the frame, by a key

// Return an SVG as large as its parent, in the image's pixels; strokes keep their width at any zoom.
export function overlay(record, skeleton, shown, classes) {
  const svg = make("svg", { viewBox: `0 0 ${record.width} ${record.height}`, "aria-hidden": "true" });
  const layers = [
    [shown.objects ? record.objects : [], "given"],
    [shown.net ? (record.net?.objects ?? []) : [], "proposed"],
  ];
  for (const [objects, kind] of layers) {
    for (const object of objects) svg.append(drawn(object, kind, skeleton, colourOf(object.name, classes)));
  }
  return svg;
}

// Return elements with the objects' names, placed in per cent of the image.
export function nameTags(record, shown, classes) {
  const objects = [
    ...(shown.objects ? record.objects.map((object) => [object, "given"]) : []),
    ...(shown.net ? (record.net?.objects ?? []).map((object) => [object, "proposed"]) : []),
  ];
  return objects
    .filter(([object]) => object.name)
    .map(([object, kind]) => {
      const tag = document.createElement("span");
      tag.className = `name-tag ${kind}`;
      tag.textContent = object.name;
      tag.style.left = `${(100 * object.box[0]) / record.width}%`;
      tag.style.top = `${(100 * object.box[kind === "given" ? 1 : 3]) / record.height}%`;
      tag.style.background = colourOf(object.name, classes);
      return tag;
    });
}

function drawn(object, kind, skeleton, colour) {
  const group = make("g", { class: kind, stroke: colour, fill: "none" });
  const [x0, y0, x1, y1] = object.box;
  group.append(make("rect", { class: "box", x: x0, y: y0, width: x1 - x0, height: y1 - y0 }));
  if (object.rings.length) {
    const path = object.rings.map((ring) => `M${ring.map((point) => point.join(" ")).join("L")}Z`).join("");
    group.append(make("path", { class: "ring", d: path, fill: colour, "fill-rule": "evenodd" }));
  }
  const isThere = (joint) => object.joints[joint] && (object.visible[joint] ?? 1) > 0;
  for (const pair of skeleton) {
    if (!Array.isArray(pair) || pair.length !== 2 || !pair.every(isThere)) continue;
    const [[ax, ay], [bx, by]] = pair.map((joint) => object.joints[joint]);
    group.append(make("line", { class: "limb", x1: ax, y1: ay, x2: bx, y2: by }));
  }
  object.joints.forEach(([x, y], joint) => {
    if (isThere(joint)) group.append(make("line", { class: "joint", x1: x, y1: y, x2: x, y2: y })); // a dot: round ends
  });
  return group;
}

export function colourOf(name, classes) {
  const index = classes.indexOf(name);
  return COLOURS[(index < 0 ? 0 : index) % COLOURS.length];
}

function make(name, attributes) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

// An image in a frame: the whole of it at first, then zoomed about a point, and moved.
export class Zoom {
  constructor(frame, stage) {
    Object.assign(this, { frame, stage, width: 1, height: 1, scale: 1, x: 0, y: 0, isWhole: true });
    Object.assign(this, { mayDrag: () => true, onPlace: () => {} }); // of whoever draws on the image
    frame.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
    frame.addEventListener("pointerdown", (event) => this.mayDrag(event) && this.grab(event));
    frame.addEventListener("pointermove", (event) => this.#drag(event));
    for (const kind of ["pointerup", "pointercancel"]) {
      frame.addEventListener(kind, (event) => this.pointers.delete(event.pointerId));
    }
    this.pointers = new Map();
    new ResizeObserver(() => (this.isWhole ? this.whole() : this.#place())).observe(frame);
  }

  show(width, height) {
    Object.assign(this, { width, height });
    this.whole();
  }

  whole() {
    const { clientWidth, clientHeight } = this.frame;
    this.isWhole = true;
    this.scale = Math.min(clientWidth / this.width, clientHeight / this.height) || 1;
    this.x = (clientWidth - this.width * this.scale) / 2;
    this.y = (clientHeight - this.height * this.scale) / 2;
    this.#place();
  }

  by(steps, at) {
    const { left, top, width, height } = this.frame.getBoundingClientRect();
    this.#zoom(ZOOM_STEP ** steps, at ? at.clientX - left : width / 2, at ? at.clientY - top : height / 2);
  }

  move(right, down) {
    this.x -= right * MOVE_SHARE * this.frame.clientWidth;
    this.y -= down * MOVE_SHARE * this.frame.clientHeight;
    this.#place();
  }

  #zoom(factor, x, y) {
    const { clientWidth, clientHeight } = this.frame;
    const smallest = Math.min(clientWidth / this.width, clientHeight / this.height, 1);
    const scale = Math.min(Math.max(this.scale * factor, smallest), MOST_ZOOM);
    this.x = x - ((x - this.x) * scale) / this.scale;
    this.y = y - ((y - this.y) * scale) / this.scale;
    this.scale = scale;
    this.isWhole = false;
    this.#place();
  }

  #wheel(event) {
    event.preventDefault(); // else the page scrolls
    this.by(-Math.sign(event.deltaY), event);
  }

  // Return the image's point, in its pixels, at a place on the screen.
  pointAt({ clientX, clientY }) {
    const { left, top } = this.frame.getBoundingClientRect();
    return [(clientX - left - this.x) / this.scale, (clientY - top - this.y) / this.scale];
  }

  // Let a pointer that is down move the image.
  grab(event) {
    this.frame.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, [event.clientX, event.clientY]);
  }

  #drag(event) {
    if (!this.pointers.has(event.pointerId)) return;
    const before = [...this.pointers.values()];
    const [x, y] = this.pointers.get(event.pointerId);
    this.pointers.set(event.pointerId, [event.clientX, event.clientY]);
    const after = [...this.pointers.values()];
    this.x += (event.clientX - x) / after.length;
    this.y += (event.clientY - y) / after.length;
    if (after.length === 2) {
      const apart = ([a, b]) => Math.hypot(a[0] - b[0], a[1] - b[1]) || 1; // two fingers
      const { left, top } = this.frame.getBoundingClientRect();
      const middle = [0, 1].map((axis) => (after[0][axis] + after[1][axis]) / 2);
      this.#zoom(apart(after) / apart(before), middle[0] - left, middle[1] - top);
    } else {
      this.#place();
    }
  }

  #place() {
    const { clientWidth, clientHeight } = this.frame;
    const size = [this.width * this.scale, this.height * this.scale];
    this.x = Math.min(Math.max(this.x, clientWidth / 2 - size[0]), clientWidth / 2); // never out of sight
    this.y = Math.min(Math.max(this.y, clientHeight / 2 - size[1]), clientHeight / 2);
    Object.assign(this.stage.style, { width: `${size[0]}px`, height: `${size[1]}px` });
    this.stage.style.transform = `translate(${this.x}px, ${this.y}px)`;
    this.stage.classList.toggle("pixels", this.scale > 3);
    this.onPlace();
  }
}
