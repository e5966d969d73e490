// Paints what is being labelled on a canvas as large as the frame: its cost does not grow with the image.

import { strokeAlong } from "./brush.js";
import { colourOf } from "./drawing.js";
import { HIDDEN, MISSING, corners, envelope, handlesOf, middlesOf, pointsOf } from "./shapes.js";

const HANDLE = 4.5; // half of its side, in screen pixels
const NAME_HEIGHT = 18;
const MOST_HANDLES = 200; // of an object: those of a painted one would cover it
const LEAST_NAMED = 24; // screen pixels that an object has to be wide to show its name

export function paint(canvas, zoom, scene) {
  const ratio = devicePixelRatio;
  const size = [canvas.clientWidth * ratio, canvas.clientHeight * ratio].map(Math.round);
  if (canvas.width !== size[0] || canvas.height !== size[1]) [canvas.width, canvas.height] = size;
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, canvas.clientWidth, canvas.clientHeight);
  const pen = { context, on: ([x, y]) => [zoom.x + x * zoom.scale, zoom.y + y * zoom.scale] };
  const order = [...scene.objects.keys()].filter((number) => number !== scene.selected);
  if (scene.objects[scene.selected]) order.push(scene.selected); // on top
  for (const number of order) {
    const object = scene.objects[number];
    if (isInView(canvas, pen, pointsOf(object, scene.kind))) paintObject(pen, scene, object, number === scene.selected);
  }
  if (scene.ring) paintRing(pen, scene);
  if (scene.hasBrush) paintBrush(pen, scene, zoom.scale);
}

function isInView({ clientWidth, clientHeight }, { on }, points) {
  if (!points.length) return false;
  const [x0, y0, x1, y1] = envelope(points);
  const [[left, top], [right, bottom]] = [on([x0, y0]), on([x1, y1])];
  return right > -HANDLE && bottom > -HANDLE && left < clientWidth + HANDLE && top < clientHeight + HANDLE + NAME_HEIGHT;
}

function paintObject(pen, scene, object, isSelected) {
  const { context } = pen;
  const colour = colourOf(scene.classes[object.label], scene.classes);
  Object.assign(context, { strokeStyle: colour, fillStyle: colour, lineWidth: isSelected ? 3 : 2 });
  context.setLineDash(scene.isProposed ? [7, 4] : []);
  if (scene.kind === "POLYGON") {
    trace(pen, object.rings);
    context.globalAlpha = isSelected ? 0.35 : 0.2;
    context.fill("evenodd");
    context.globalAlpha = 1;
    context.stroke();
  } else if (object.box) {
    trace(pen, [corners(object.box)]);
    if (scene.kind === "POINT") context.lineWidth = 1;
    context.stroke();
  }
  context.setLineDash([]);
  if (scene.kind === "POINT") paintJoints(pen, scene, object, colour);
  const points = pointsOf(object, scene.kind);
  paintName(pen, scene.classes[object.label], colour, points, isSelected);
  if (isSelected) paintHandles(pen, scene, object, colour);
}

function paintJoints(pen, scene, object, colour) {
  const { context, on } = pen;
  const isThere = (joint) => object.visible[joint] > MISSING;
  for (const pair of scene.skeleton) {
    if (!pair.every(isThere)) continue;
    trace(pen, [pair.map((joint) => object.joints[joint])]);
    context.stroke();
  }
  for (const [joint, point] of object.joints.entries()) {
    if (!isThere(joint)) continue;
    context.beginPath();
    context.arc(...on(point), 5, 0, 2 * Math.PI);
    context.fillStyle = object.visible[joint] === HIDDEN ? "#fff" : colour;
    context.fill();
    context.stroke();
  }
}

function paintName({ context, on }, name, colour, points, isSelected) {
  const [left, top] = on(envelope(points).slice(0, 2));
  const [right] = on(envelope(points).slice(2));
  if (right - left < LEAST_NAMED && points.length > 1 && !isSelected) return;
  context.font = "12px system-ui, sans-serif";
  const width = context.measureText(name).width + 8;
  const y = Math.max(top, NAME_HEIGHT);
  context.fillStyle = colour;
  context.fillRect(left - 1, y - NAME_HEIGHT, width, NAME_HEIGHT - 2);
  context.fillStyle = "#14161a";
  context.fillText(name, left + 3, y - 6);
}

function paintHandles({ context, on }, scene, object, colour) {
  const handles = handlesOf(object, scene.kind);
  if (scene.hasBrush || handles.length > MOST_HANDLES) return;
  for (const [number, { point }] of handles.entries()) {
    const [x, y] = on(point);
    const half = number === scene.active ? HANDLE + 2 : HANDLE;
    Object.assign(context, { lineWidth: 1.5, strokeStyle: "#14161a", fillStyle: number === scene.active ? colour : "#fff" });
    context.fillRect(x - half, y - half, 2 * half, 2 * half);
    context.strokeRect(x - half, y - half, 2 * half, 2 * half);
  }
  if (scene.kind !== "POLYGON") return;
  Object.assign(context, { lineWidth: 1, strokeStyle: "#14161a", fillStyle: "rgb(255 255 255 / 70%)" });
  for (const { point } of middlesOf(object)) {
    context.beginPath();
    context.arc(...on(point), 3, 0, 2 * Math.PI);
    context.fill();
    context.stroke();
  }
}

function paintRing({ context, on }, scene) {
  const colour = colourOf(scene.classes[scene.current], scene.classes);
  Object.assign(context, { strokeStyle: colour, fillStyle: "#fff", lineWidth: 2.5 });
  context.beginPath();
  for (const point of [...scene.ring, ...(scene.pointer ? [scene.pointer] : [])]) context.lineTo(...on(point));
  context.stroke();
  for (const [number, point] of scene.ring.entries()) {
    context.beginPath();
    context.arc(...on(point), number ? 3.5 : 6, 0, 2 * Math.PI); // the first closes it
    context.fill();
    context.stroke();
  }
}

function paintBrush({ context, on }, scene, scale) {
  const colour = scene.stroke?.erases ? "#fff" : colourOf(scene.classes[scene.current], scene.classes);
  Object.assign(context, { strokeStyle: colour, globalAlpha: 0.5 });
  if (scene.stroke) strokeAlong(context, scene.stroke.points.map(on), scene.radius * scale);
  Object.assign(context, { globalAlpha: 1, lineWidth: 1.5 });
  if (!scene.pointer) return;
  context.beginPath();
  context.arc(...on(scene.pointer), scene.radius * scale, 0, 2 * Math.PI);
  context.stroke();
}

function trace({ context, on }, rings) {
  context.beginPath();
  for (const ring of rings) {
    for (const [number, point] of ring.entries()) {
      if (number) context.lineTo(...on(point));
      else context.moveTo(...on(point));
    }
    context.closePath();
  }
}
