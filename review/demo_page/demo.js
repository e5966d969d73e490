// The page of a demo: an image or text goes to the script, and what it answers is shown.

import { TEXTS } from "./texts.js";

const at = (id) => document.getElementById(id);
const state = { language: remembered() ?? (navigator.language.startsWith("zh") ? "zh" : "en"), demo: null };
if (!(state.language in TEXTS)) state.language = "en";

showTexts();
start();

async function start() {
  try {
    state.demo = await ask("api/demo");
  } catch (error) {
    return notice(error.message);
  }
  const { name, takes_images: takesImages, takes_text: takesText, max_text: maxText } = state.demo;
  document.title = at("name").textContent = name;
  at("drop").hidden = !takesImages;
  at("ask").hidden = !takesText;
  at("text").maxLength = maxText;
  listen();
}

async function ask(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error(text().noConnection);
  }
  const content = await response.json().catch(() => ({}));
  if (response.status === 503) throw new Error(text().busy);
  if (!response.ok) throw new Error(content.msg ?? String(response.status));
  return content;
}

// --- What is sent

function sendImages(files) {
  notice("");
  for (const file of files) {
    if (file.size > state.demo.max_picture_mb * 1e6) notice(text().tooLarge(state.demo.max_picture_mb));
    else send(preview(file), "api/image", { method: "POST", headers: { "content-type": "application/octet-stream" }, body: file });
  }
}

function sendText(content) {
  const body = JSON.stringify({ text: content });
  send(element("p", "asked", content), "api/text", { method: "POST", headers: { "content-type": "application/json" }, body });
}

async function send(shown, path, options, card = element("li", "card")) {
  const details = element("div", "details");
  details.append(element("p", "state", text().waiting));
  card.replaceChildren(shown, details);
  if (!card.isConnected) at("cards").prepend(card);
  try {
    const { items } = await ask(path, options);
    details.replaceChildren(...(items.length ? items.map(item) : [element("p", "state", text().nothing)]));
  } catch (error) {
    const again = element("button", "", text().again);
    again.type = "button";
    again.addEventListener("click", () => send(shown, path, options, card));
    details.replaceChildren(element("p", "problem", error.message), again);
  }
}

function preview(file) {
  const frame = element("div", "images");
  const image = new Image();
  image.alt = file.name;
  const address = URL.createObjectURL(file);
  image.addEventListener("load", () => URL.revokeObjectURL(address));
  image.addEventListener("error", () => image.replaceWith(element("p", "no-preview", text().noPreview)));
  image.src = address;
  frame.append(image);
  return frame;
}

// --- What is answered

function item({ title, type, data, name }) {
  const box = element("div", "item");
  box.append(element("span", "", title), shownAs(type, data, name, title));
  return box;
}

function shownAs(type, data, name, title) {
  if (type === "IMAGE") return Object.assign(new Image(), { src: data, alt: title });
  if (type === "VIDEO") return Object.assign(document.createElement("video"), { src: data, controls: true });
  if (type === "FILE") return Object.assign(element("a", "", name), { href: data, download: name });
  if (type === "JSON") return element("pre", "", JSON.stringify(data, null, 2));
  return element("p", type === "SCALAR" ? "number" : "", String(data));
}

function element(tag, kind, content = "") {
  return Object.assign(document.createElement(tag), { className: kind, textContent: content });
}

function notice(message) {
  at("notice").textContent = message;
  at("notice").hidden = !message;
}

// --- Texts, keys and the mouse

function text() {
  return TEXTS[state.language];
}

function showTexts() {
  document.documentElement.lang = text().code;
  for (const each of document.querySelectorAll("[data-text]")) each.textContent = text()[each.dataset.text];
  Object.assign(at("language"), { textContent: text().other, lang: text().otherCode });
}

function listen() {
  at("files").addEventListener("change", ({ target }) => {
    sendImages(target.files);
    target.value = "";
  });
  at("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    notice("");
    sendText(at("text").value);
    at("text").value = "";
  });
  if (!state.demo.takes_images) return;
  document.addEventListener("paste", (event) => {
    if (event.clipboardData.files.length) sendImages(event.clipboardData.files);
  });
  for (const [name, isOver] of [["dragenter", true], ["dragover", true], ["dragleave", false], ["drop", false]]) {
    document.addEventListener(name, (event) => {
      event.preventDefault();
      document.body.classList.toggle("dragging", isOver);
      if (name === "drop") sendImages(event.dataTransfer.files);
    });
  }
}

at("language").addEventListener("click", () => {
  state.language = state.language === "en" ? "zh" : "en";
  try {
    localStorage.setItem("demo-language", state.language);
  } catch {} // not allowed in this browser
  showTexts();
});

function remembered() {
  try {
    return localStorage.getItem("demo-language");
  } catch {
    return null;
  }
}
