// What a person draws on one image: classes, boxes, polygons, points; by the mouse, fingers or keys, with undo.

import { painted } from "./brush.js";
import { paint } from "./paint.js";
import { showPanel } from "./panel.js";
import * as shapes from "./shapes.js";

const NEAR = { mouse: 7, pen: 10, touch: 18 }; // screen pixels within which a press takes what is there
const LEAST_DRAG = 3; // screen pixels; less is a click
const FAR_STEP = 10; // pixels of an arrow with Shift
const MOST_JOINTS = 1000; // of an object
const RADIUS_STEP = 1.25; // of the brush, by a key

export class Labeller {
  // `page` has what the rest of the page does: confirm(), save(), edited(), findClass(), notice(text), text(), isShown().
  constructor(frame, canvas, zoom, panel, page) {
    Object.assign(this, { frame, canvas, zoom, panel, page, kind: "", classes: [], skeleton: [], current: 0 });
    Object.assign(this, { hasBrush: false, radius: 10 }); // of the brush, in pixels of the image
    this.kept = new Map(); // edits that have not been acknowledged, by record
    this.close();
    zoom.mayDrag = (event) => !this.#draws(event);
    zoom.onPlace = () => this.paint();
    frame.addEventListener("pointerdown", (event) => this.#down(event));
    frame.addEventListener("pointermove", (event) => this.#move(event));
    frame.addEventListener("pointerup", (event) => this.#up(event));
    frame.addEventListener("pointercancel", () => this.#cancel());
    frame.addEventListener("dblclick", () => this.#closeRing());
    frame.addEventListener("contextmenu", (event) => this.kind && event.preventDefault()); // that button moves the image
    document.addEventListener("keyup", (event) => event.key === " " && (this.isPanning = false));
  }

  begin({ labelling, classes, skeleton }) {
    Object.assign(this, { kind: labelling, classes, skeleton, current: 0, hasBrush: false });
    this.numJoints = Math.min(1 + Math.max(0, ...skeleton.flat()), MOST_JOINTS);
    this.panel.hidden = !labelling;
    this.canvas.hidden = !this.isDrawn;
  }

  open(record) {
    const found = this.kept.get(record.index) ?? record.draft;
    this.close();
    Object.assign(this, { record, size: [record.width, record.height], label: found.label ?? -1 });
    this.objects = this.draft = (found.objects ?? []).map((object) => this.#opened(object));
    this.isProposed = found.origin === "predictions";
    this.show();
  }

  close() {
    Object.assign(this, { record: null, objects: [], draft: [], label: -1, size: [0, 0], isProposed: false });
    Object.assign(this, { selected: -1, active: -1, ring: null, pointer: null, drag: null, isPanning: false, skipped: 0 });
    this.stroke = null;
    Object.assign(this, { past: [], future: [] });
  }

  get isDrawn() {
    return Boolean(this.kind) && this.kind !== "CLASS";
  }

  get isChanged() {
    return this.isDrawn && this.record !== null && this.objects !== this.draft;
  }

  labels() {
    return this.isDrawn ? { objects: this.objects } : { label: this.label };
  }

  // Return the sentence why what is there cannot be confirmed, or "".
  problem() {
    return this.isDrawn || this.label >= 0 ? "" : this.page.text().chooseClass;
  }

  // --- Edits

  undo() {
    if (this.ring) return this.#setRing(this.ring.length > 1 ? this.ring.slice(0, -1) : null);
    if (!this.past.length) return false;
    this.future.push(this.#now());
    return this.#restore(this.past.pop());
  }

  redo() {
    if (!this.future.length) return false;
    this.past.push(this.#now());
    return this.#restore(this.future.pop());
  }

  setClass(label) {
    if (label >= this.classes.length) return;
    this.current = label;
    if (!this.isDrawn) {
      this.label = label;
      return this.page.confirm();
    }
    if (this.selected >= 0) this.#edit(() => this.#put({ ...this.objects[this.selected], label }));
    else this.show();
  }

  // Take away what is active: the last corner that was set, a corner or joint, the object, or the class.
  remove() {
    if (!this.isDrawn) {
      this.label = -1;
      return this.page.save();
    }
    if (this.ring) return this.undo();
    const object = this.objects[this.selected];
    if (!object) return false;
    const handle = shapes.handlesOf(object, this.kind)[this.active];
    let left = null;
    if (handle && this.kind === "POLYGON") left = shapes.withoutCorner(object, handle);
    if (handle && this.kind === "POINT") left = shapes.withoutJoint(object, handle.joint);
    this.#edit(() => {
      if (left) return this.#put(left);
      this.#set(this.objects.toSpliced(this.selected, 1), -1);
    });
    return true;
  }

  select(number) {
    Object.assign(this, { selected: number, active: -1, skipped: 0 });
    if (this.objects[number]) this.current = this.objects[number].label;
    this.show();
  }

  // Add an object, or a joint, in the middle of what is shown: for those who have no mouse.
  add() {
    if (!this.#canDraw()) return;
    const { clientWidth, clientHeight } = this.frame;
    const { left, top } = this.frame.getBoundingClientRect();
    const at = (x, y) => {
      const place = { clientX: left + x * clientWidth, clientY: top + y * clientHeight };
      return shapes.snapped(this.zoom.pointAt(place), this.size);
    };
    const box = shapes.boxBetween(at(0.4, 0.4), at(0.6, 0.6));
    if (this.kind === "POINT") return this.#edit(() => this.#addJoint(at(0.5, 0.5), false));
    if (box[0] === box[2] || box[1] === box[3]) return;
    const shape = this.kind === "RECT" ? { box } : { rings: [shapes.corners(box)] };
    this.#edit(() => this.#set([...this.objects, shapes.newObject(this.current, shape)], this.objects.length));
  }

  // --- Keys

  // Return whether a key was ours.
  key(key, event) {
    if (this.drag && key !== "Escape") return true; // one thing at a time
    if (/^[1-9]$/.test(key)) {
      if (!event.repeat) this.setClass(Number(key) - 1);
      return true;
    }
    const action = (this.isDrawn ? DRAWING_KEYS : CLASS_KEYS)[key];
    return action ? action(this, event) !== false : false;
  }

  nudge(right, down, { shiftKey }) {
    const object = this.objects[this.selected];
    if (!object) return false;
    const by = [right, down].map((step) => step * (shiftKey ? FAR_STEP : 1));
    const handle = shapes.handlesOf(object, this.kind)[this.active];
    this.#edit(() => {
      if (!handle) return this.#put(shapes.moved(object, this.kind, by, this.size));
      const to = handle.point.map((at, axis) => Math.min(Math.max(at + by[axis], 0), this.size[axis]));
      this.#putAt(object, handle, to);
    });
    return true;
  }

  cycle(step) {
    const next = this.selected < 0 ? (step > 0 ? 0 : this.objects.length - 1) : this.selected + step;
    const isThere = next >= 0 && next < this.objects.length;
    this.select(isThere ? next : -1);
    return isThere; // beyond the last one the browser goes on to what follows
  }

  cycleHandle(step) {
    const object = this.objects[this.selected];
    if (!object) return false;
    const count = shapes.handlesOf(object, this.kind).length;
    this.active = ((this.active + 1 + step + count + 1) % (count + 1)) - 1;
    this.show();
  }

  insertCorner() {
    const object = this.objects[this.selected];
    if (this.kind !== "POLYGON" || !object) return false;
    const number = Math.max(this.active, 0);
    const middle = shapes.middlesOf(object)[number];
    this.#edit(() => {
      this.#put(shapes.withCorner(object, middle, shapes.snapped(middle.point, this.size)));
      this.active = number + 1;
    });
  }

  // Show a joint as hidden or seen; without one, leave out the joint that would be set next.
  toggleJoint() {
    const object = this.objects[this.selected];
    if (this.kind !== "POINT") return false;
    const joint = object && shapes.handlesOf(object, this.kind)[this.active]?.joint;
    if (joint === undefined) {
      this.skipped += 1;
      return this.show();
    }
    const sight = object.visible[joint] === shapes.SEEN ? shapes.HIDDEN : shapes.SEEN;
    this.#edit(() => this.#put({ ...object, visible: object.visible.with(joint, sight) }));
  }

  toggleBrush() {
    if (this.kind !== "POLYGON") return false;
    this.hasBrush = !this.hasBrush;
    this.ring = null;
    this.show();
  }

  resizeBrush(step) {
    if (!this.hasBrush) return false;
    this.radius = Math.min(Math.max(this.radius * RADIUS_STEP ** step, 0.5), 500);
    this.paint();
  }

  escape() {
    if (this.drag) return this.#cancel();
    if (this.hasBrush) return this.toggleBrush();
    if (this.ring) return this.#setRing(null);
    if (this.active >= 0) return this.#activate(-1);
    if (this.selected >= 0) return this.select(-1);
    return false;
  }

  confirm() {
    if (this.ring) return this.#closeRing();
    this.page.confirm();
  }

  // --- The mouse, pens and fingers

  #draws(event) {
    const isOurs = this.#canDraw() && event.button === 0 && !this.isPanning;
    return isOurs && !this.drag && !this.zoom.pointers.size;
  }

  #canDraw() {
    return this.isDrawn && this.record !== null && this.size[0] > 0 && this.size[1] > 0 && !this.record.holder;
  }

  #down(event) {
    if (this.zoom.pointers.has(event.pointerId)) {
      if (this.drag) this.zoom.grab(this.drag.event); // a second finger: both zoom
      return this.#cancel();
    }
    if (!this.#draws(event)) return;
    this.frame.setPointerCapture(event.pointerId);
    const at = this.zoom.pointAt(event);
    const near = (NEAR[event.pointerType] ?? NEAR.mouse) / this.zoom.scale;
    this.drag = { event, before: this.#now(), ...this.#gripped(at, near, event.shiftKey) };
    this.drag.start?.();
    this.paint();
  }

  #move(event) {
    if (!this.#canDraw()) return;
    const at = this.zoom.pointAt(event);
    this.pointer = this.hasBrush ? at : shapes.snapped(at, this.size);
    if (this.ring || this.hasBrush) this.paint();
    const { drag } = this;
    if (!drag || event.pointerId !== drag.event.pointerId) return;
    const apart = Math.hypot(event.clientX - drag.event.clientX, event.clientY - drag.event.clientY);
    if (!drag.isMoved && apart < LEAST_DRAG) return;
    drag.isMoved = true;
    drag.pull?.(this.zoom.pointAt(event));
    this.paint();
  }

  #up(event) {
    const { drag } = this;
    if (!drag || event.pointerId !== drag.event.pointerId) return;
    this.drag = null;
    if (!drag.isMoved) drag.click?.();
    drag.end?.();
    this.#keep(drag.before);
    this.show();
  }

  #cancel() {
    if (this.drag) this.#restore(this.drag.before);
    Object.assign(this, { drag: null, pointer: null, stroke: null });
    this.paint();
  }

  // Return what a press at a point takes: what it does at once (start), when it is moved (pull), and when not (click).
  #gripped(at, near, isNew) {
    if (this.hasBrush) return this.#painting(at, isNew);
    if (this.ring) return { start: () => this.#addCorner(at, near) };
    const object = this.objects[this.selected];
    const grip = object && !isNew ? this.#grippedHandle(object, at, near) : null;
    if (grip) return grip;
    const found = isNew ? -1 : shapes.taken(this.objects, this.kind, at, near, this.selected);
    if (found >= 0) return this.#grippedObject(found, at);
    const start = shapes.snapped(at, this.size);
    if (this.kind === "POINT") {
      return {
        start: () => this.#addJoint(start, isNew),
        pull: (to) => this.#putAt(this.objects[this.selected], this.#handle(), shapes.snapped(to, this.size)),
      };
    }
    if (this.kind === "POLYGON") return { click: () => this.#setRing([start]) };
    const count = this.objects.length;
    return {
      pull: (to) => {
        const box = shapes.boxBetween(start, shapes.snapped(to, this.size));
        if (box[0] === box[2] || box[1] === box[3]) return;
        this.#set(this.objects.toSpliced(count, 1, shapes.newObject(this.current, { box })), count);
      },
      click: () => this.select(shapes.smallestAround(this.objects, this.kind, at)),
    };
  }

  // Paint on the selected object, or a new one; or wipe off the selected one.
  #painting(at, erases) {
    this.stroke = { points: [at], radius: this.radius, erases };
    return {
      pull: (to) => this.stroke.points.push(to),
      end: () => {
        const object = this.objects[this.selected];
        const rings = painted(object?.rings ?? [], this.stroke, this.size);
        this.stroke = null;
        if (!rings) return this.page.notice(this.page.text().strokeTooLarge);
        if (object && rings.length) return this.#put({ ...object, rings });
        if (object) return this.#set(this.objects.toSpliced(this.selected, 1), -1);
        if (rings.length) this.#set([...this.objects, shapes.newObject(this.current, { rings })], this.objects.length);
      },
    };
  }

  #grippedHandle(object, at, near) {
    const handles = shapes.handlesOf(object, this.kind);
    const number = shapes.nearestHandle(handles, at, near);
    const pulled = (taken, handle) => (to) => this.#putAt(taken, handle, shapes.snapped(to, this.size));
    if (number >= 0) return { start: () => this.#activate(number), pull: pulled(object, handles[number]) };
    const middles = this.kind === "POLYGON" ? shapes.middlesOf(object) : [];
    const middle = middles[shapes.nearestHandle(middles, at, near)];
    if (!middle) return null;
    const made = shapes.withCorner(object, middle, middle.point);
    return { pull: pulled(made, middle) };
  }

  #grippedObject(number, at) {
    const object = this.objects[number];
    const joint = this.kind === "POINT" ? shapes.nearestHandle(shapes.handlesOf(object, this.kind), at) : -1;
    return {
      start: () => {
        if (number !== this.selected) this.select(number);
        if (joint >= 0) this.active = joint;
      },
      pull: (to) => {
        if (joint >= 0) return this.#putAt(object, this.#handle(), shapes.snapped(to, this.size));
        const by = [0, 1].map((axis) => Math.round(to[axis] - at[axis]));
        this.#put(shapes.moved(object, this.kind, by, this.size));
      },
    };
  }

  // --- Parts of edits

  #opened(object) {
    if (this.kind !== "POINT" || !object.box) return object;
    const there = object.joints.filter((_, joint) => object.visible[joint] > shapes.MISSING);
    const around = there.length ? shapes.envelope(there) : [];
    const isAround = around.every((side, number) => Math.abs(side - object.box[number]) <= 1);
    return there.length && isAround ? { ...object, box: null } : object; // it follows its joints
  }

  #addCorner(at, near) {
    const point = shapes.snapped(at, this.size);
    if (this.ring.length > 2 && shapes.distance(this.ring[0], at) <= near) return this.#closeRing();
    const isSecondClick = shapes.distance(this.ring.at(-1), at) * this.zoom.scale < LEAST_DRAG; // it closes the ring
    if (!isSecondClick) this.ring = [...this.ring, point];
  }

  #closeRing() {
    if (!this.ring) return;
    if (this.ring.length < 3) return this.page.notice(this.page.text().threeCorners);
    const object = shapes.newObject(this.current, { rings: [this.ring] });
    this.ring = null;
    this.#edit(() => this.#set([...this.objects, object], this.objects.length));
  }

  #setRing(ring) {
    this.ring = ring;
    if (ring) Object.assign(this, { selected: -1, active: -1 });
    this.show();
  }

  // Set the next joint of the selected object, or the first of a new one.
  #addJoint(point, isNew) {
    const chosen = isNew ? undefined : this.objects[this.selected];
    const isFree = (object, joint) => (object.visible[joint] ?? shapes.MISSING) === shapes.MISSING;
    const places = [...Array(this.numJoints).keys()];
    const free = chosen && this.numJoints > 1 ? places.filter((joint) => isFree(chosen, joint)) : [];
    const blank = { joints: places.map(() => [0, 0]), visible: places.map(() => shapes.MISSING) };
    if (free.length) {
      const joint = free[this.skipped % free.length];
      const object = chosen.joints.length ? chosen : { ...chosen, ...blank };
      this.#put(shapes.withJoint(object, joint, point));
      this.#activateJoint(joint);
    } else {
      const object = shapes.withJoint(shapes.newObject(this.current, blank), 0, point);
      this.#set([...this.objects, object], this.objects.length, 0);
    }
  }

  #activateJoint(joint) {
    const handles = shapes.handlesOf(this.objects[this.selected], this.kind);
    this.active = handles.findIndex((handle) => handle.joint === joint);
  }

  #activate(number) {
    this.active = number;
    this.show();
  }

  #handle() {
    return shapes.handlesOf(this.objects[this.selected], this.kind)[this.active];
  }

  #putAt(object, handle, point) {
    const made = shapes.withHandleAt(object, handle, point);
    const [x0, y0, x1, y1] = this.kind === "RECT" ? made.box : [0, 0, 1, 1];
    if (x0 < x1 && y0 < y1) this.#put(made);
  }

  #put(object) {
    this.#set(this.objects.with(this.selected, object), this.selected, this.active);
  }

  #set(objects, selected, active = -1) {
    Object.assign(this, { objects, selected, active });
  }

  #edit(change) {
    if (!this.#canDraw()) return;
    const before = this.#now();
    change();
    this.#keep(before);
    this.show();
  }

  #now() {
    return { objects: this.objects, selected: this.selected, active: this.active, ring: this.ring };
  }

  #keep(before) {
    if (before.objects === this.objects) return;
    this.past.push(before);
    this.future = [];
    this.isProposed = false;
    this.page.edited();
  }

  #restore({ objects, selected, active, ring }) {
    this.#set(objects, selected, active);
    this.ring = ring;
    this.show();
    return true;
  }

  // --- What is shown

  show() {
    this.paint();
    showPanel(this.panel, this);
  }

  paint() {
    if (!this.isDrawn || this.isPlanned) return;
    this.isPlanned = true; // many moves, one painting
    requestAnimationFrame(() => {
      this.isPlanned = false;
      paint(this.canvas, this.zoom, this.page.isShown() ? this : { ...this, objects: [], ring: null });
    });
  }
}

const CLASS_KEYS = {
  Enter: (labeller, event) => event.repeat || labeller.confirm(),
  Delete: (labeller, event) => event.repeat || labeller.remove(),
  Backspace: (labeller, event) => event.repeat || labeller.remove(),
  c: (labeller) => labeller.page.findClass(),
};
const DRAWING_KEYS = {
  ...CLASS_KEYS,
  Delete: (labeller) => labeller.remove(),
  Backspace: (labeller) => labeller.remove(),
  Tab: (labeller, event) => labeller.cycle(event.shiftKey ? -1 : 1),
  Escape: (labeller) => labeller.escape(),
  ArrowLeft: (labeller, event) => labeller.nudge(-1, 0, event),
  ArrowRight: (labeller, event) => labeller.nudge(1, 0, event),
  ArrowUp: (labeller, event) => labeller.nudge(0, -1, event),
  ArrowDown: (labeller, event) => labeller.nudge(0, 1, event),
  a: (labeller) => labeller.add(),
  e: (labeller, event) => labeller.cycleHandle(event.shiftKey ? -1 : 1),
  m: (labeller) => labeller.insertCorner(),
  v: (labeller) => labeller.toggleJoint(),
  k: (labeller) => labeller.toggleBrush(),
  "[": (labeller) => labeller.resizeBrush(-1),
  "]": (labeller) => labeller.resizeBrush(1),
  " ": (labeller) => (labeller.isPanning = true),
};
