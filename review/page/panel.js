// The classes and the objects beside the image that is labelled: buttons, for those who do not press keys.

import { colourOf } from "./drawing.js";
import { envelope, pointsOf } from "./shapes.js";

const WITH_KEYS = 9; // classes

export function showPanel(panel, labeller) {
  const { classes, objects, selected, isDrawn, hasBrush } = labeller;
  const chosen = isDrawn ? (objects[selected]?.label ?? labeller.current) : labeller.label;
  const colours = classes.map((name) => colourOf(name, classes));
  const [list, found] = panel.querySelectorAll("div");
  list.replaceChildren(
    ...classes.map((name, label) => {
      const button = entry(name, colours[label], label === chosen, () => labeller.setClass(label));
      if (label < WITH_KEYS) button.prepend(Object.assign(document.createElement("kbd"), { textContent: label + 1 }), " ");
      return button;
    }),
  );
  found.replaceChildren(
    ...objects.map((object, number) => {
      const name = `${classes[object.label]} · ${sizeOf(object, labeller.kind)}`;
      return entry(name, colours[object.label], number === selected, () => labeller.select(number));
    }),
  );
  for (const pressed of panel.querySelectorAll("[aria-pressed='true']")) pressed.scrollIntoView({ block: "nearest" });
  document.getElementById("button-brush")?.setAttribute("aria-pressed", hasBrush);
}

function sizeOf(object, kind) {
  if (kind === "POINT") return object.visible.filter(Boolean).length;
  const [x0, y0, x1, y1] = envelope(pointsOf(object, kind)).map(Math.round);
  return `${x1 - x0} × ${y1 - y0}`;
}

function entry(name, colour, isPressed, action) {
  const button = document.createElement("button");
  Object.assign(button, { type: "button", className: "entry", tabIndex: -1 });
  button.setAttribute("aria-pressed", isPressed);
  const dot = document.createElement("i");
  dot.style.background = colour;
  button.append(dot, name);
  button.addEventListener("click", action);
  return button;
}
