// The page of the service: images are sent to /predict a few at a time, and their predictions are shown.

import { TEXTS } from "./texts.js";

const MAX_IN_FLIGHT = 3; // images; the service batches what waits
const MAX_BUSY_RETRIES = 10; // of one image
const VIEWS = ["both", "map", "picture"]; // kept in the browser's localStorage
const MAX_MASK_PX = 1024; // of the longer side of a mask, or of an image with boxes, on the page
const MAX_OBJECT_ROWS = 12; // objects whose score is listed

const at = (id) => document.getElementById(id);
const state = {
  language: remembered(() => localStorage, "language") ?? languageOfTheBrowser(),
  view: remembered(() => localStorage, "view"),
  token: remembered(() => sessionStorage, "token") ?? "", // of this tab only
  needsToken: false,
  info: null, // the response of /info
  notice: null, // (text) => message above all cards
  cards: [], // one per image, or pair, see `add`
  loose: [], // the earlier image of a pair, until the later one is chosen
  inFlight: 0,
};
let abortController = new AbortController(); // of the requests in flight, when the images are cleared

if (!(state.language in TEXTS)) state.language = "en";
if (!VIEWS.includes(state.view)) state.view = "both";
listen();
showAll();
loadInfo();

function listen() {
  at("files").addEventListener("change", (event) => {
    add(event.target.files);
    event.target.value = ""; // so that the same file can be chosen again
  });
  document.addEventListener("paste", (event) => {
    if (event.clipboardData.files.length) event.preventDefault();
    add(event.clipboardData.files);
  });
  document.addEventListener("dragover", (event) => {
    event.preventDefault(); // else the browser leaves the page for the image
    document.body.classList.add("dragging");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("dragging");
  });
  document.addEventListener("drop", drop);
  at("language").addEventListener("click", () => {
    state.language = state.language === "en" ? "zh" : "en";
    remember(() => localStorage, "language", state.language);
    showAll();
  });
  at("views").addEventListener("change", (event) => {
    state.view = event.target.value;
    remember(() => localStorage, "view", state.view);
    requestMaps();
    showAll();
  });
  at("token-form").addEventListener("submit", (event) => {
    event.preventDefault();
    useToken(at("token").value.trim());
  });
  at("again").addEventListener("click", () => retry(state.cards.filter((card) => card.problem)));
  at("clear").addEventListener("click", clear);
}

function drop(event) {
  event.preventDefault();
  document.body.classList.remove("dragging");
  const items = [...event.dataTransfer.items].filter((item) => item.kind === "file");
  const isFolder = (item) => item.webkitGetAsEntry()?.isDirectory;
  if (items.some(isFolder)) setNotice((text) => text.folder);
  add(items.filter((item) => !isFolder(item)).map((item) => item.getAsFile()));
}

function add(files) {
  const hadLoose = state.loose.length > 0;
  const chosen = [...state.loose, ...files];
  const size = state.info?.images ?? 1;
  while (chosen.length >= size) addCard(chosen.splice(0, size));
  state.loose = chosen;
  if (chosen.length) setNotice((text) => text.second(chosen[0].name));
  else if (hadLoose) setNotice(null);
  work();
}

// Of a pair the card shows the later image.
function addCard(files) {
  const card = { files, stage: "waiting", retries: 0, prediction: null, problem: null, hasRequestedMap: false };
  card.name = files.map((file) => file.name).join(" → ");
  card.url = URL.createObjectURL(files.at(-1));
  card.image = makeImage(card.url);
  card.image.addEventListener("error", () => {
    card.image = null;
    show(card);
  });
  card.element = make("li", "card");
  state.cards.push(card);
  at("cards").append(card.element);
  show(card);
}

function clear() {
  abortController.abort();
  abortController = new AbortController();
  for (const card of state.cards) {
    card.isRemoved = true;
    URL.revokeObjectURL(card.url);
    card.element.remove();
  }
  state.cards = [];
  state.loose = [];
  if (!state.needsToken) setNotice(null);
  showProgress();
}

function work() {
  while (state.inFlight < MAX_IN_FLIGHT && !state.needsToken) {
    const card = state.cards.find((other) => other.stage === "waiting");
    if (!card) break;
    state.inFlight += 1;
    classify(card).finally(() => {
      state.inFlight -= 1;
      work();
    });
  }
  showProgress();
}

async function classify(card) {
  card.stage = "sending";
  show(card);
  const { token } = state;
  const result = await send(card.files, wantsMaps(), abortController.signal);
  if (card.isRemoved) return;
  if (result.code === 401) {
    card.stage = "waiting";
    requireToken(token);
  } else if (result.code === 503 && card.retries < MAX_BUSY_RETRIES) {
    card.retries += 1;
    await waitToRetry(card, result.retryAfter);
  } else {
    finish(card, result);
  }
  show(card);
}

async function waitToRetry(card, seconds) {
  card.stage = "busy";
  for (card.seconds = seconds; card.seconds > 0 && !card.isRemoved; card.seconds -= 1) {
    show(card);
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
  card.stage = "waiting";
}

function finish(card, result) {
  card.stage = "done";
  if (result.code !== 200) {
    card.problem = result;
    return;
  }
  card.prediction = result.entry;
  card.hasRequestedMap = result.hasRequestedMap;
  card.map = result.entry.heatmap ? makeImage(result.entry.heatmap) : null;
  if (result.entry.mask) drawMask(card, result.entry);
  if (result.entry.objects) drawObjects(card, result.entry);
  if (!state.info) loadInfo();
  else requestMaps(); // the view may have changed meanwhile
}

function retry(cards) {
  for (const card of cards) {
    Object.assign(card, { stage: "waiting", retries: 0, problem: null });
    show(card);
  }
  work();
}

function requestMaps() {
  if (wantsMaps()) retry(state.cards.filter((card) => card.prediction && card.stage === "done" && !card.hasRequestedMap));
}

function wantsMaps() {
  return Boolean(state.info?.heatmap) && state.view !== "picture";
}

// Whether predictions are drawn over their images.
function areDrawn() {
  return ["mask_logits", "boxes"].includes(state.info?.output);
}

// What the page says in the chosen language, of a net that gives masks or boxes in other words.
function texts() {
  const all = TEXTS[state.language];
  return { ...all, ...all[state.info?.output], ...(state.info?.images === 2 ? all.pairs : {}) };
}

// The image, pale, under the colours of its classes; a black class, which data sets call the background, covers nothing.
async function drawMask(card, entry) {
  const mask = makeImage(entry.mask);
  await Promise.all([mask.decode(), card.image?.decode().catch(() => null)]);
  const scale = Math.min(1, MAX_MASK_PX / Math.max(entry.width, entry.height));
  const canvas = make("canvas");
  canvas.width = Math.max(1, Math.round(entry.width * scale));
  canvas.height = Math.max(1, Math.round(entry.height * scale));
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingEnabled = false;
  context.drawImage(mask, 0, 0, canvas.width, canvas.height);
  const colours = context.getImageData(0, 0, canvas.width, canvas.height);
  for (let at = 0; at < colours.data.length; at += 4) {
    const isBlack = !(colours.data[at] || colours.data[at + 1] || colours.data[at + 2]);
    colours.data[at + 3] = isBlack ? 0 : 140;
  }
  const cover = make("canvas");
  cover.width = canvas.width;
  cover.height = canvas.height;
  cover.getContext("2d").putImageData(colours, 0, 0);
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingEnabled = true;
  if (card.image?.naturalWidth) context.drawImage(card.image, 0, 0, canvas.width, canvas.height);
  context.drawImage(cover, 0, 0);
  showDrawn(card, canvas);
}

// The image with a box for each object, the surest on top.
async function drawObjects(card, entry) {
  await card.image?.decode().catch(() => null);
  const scale = Math.min(1, MAX_MASK_PX / Math.max(entry.width, entry.height));
  const canvas = make("canvas");
  canvas.width = Math.max(1, Math.round(entry.width * scale));
  canvas.height = Math.max(1, Math.round(entry.height * scale));
  const context = canvas.getContext("2d");
  if (card.image?.naturalWidth) context.drawImage(card.image, 0, 0, canvas.width, canvas.height);
  const size = Math.max(11, Math.max(canvas.width, canvas.height) / 36);
  context.font = `${size}px system-ui, sans-serif`;
  context.lineWidth = Math.max(1.5, size / 7);
  for (const { label, score, box } of [...entry.objects].reverse()) {
    const { name, title, color } = entry.classes[label];
    const colour = color.some(Boolean) ? color : [220, 30, 30];
    const [left, top, right, bottom] = box.map((value) => value * scale);
    const text = `${title || name} ${score.toFixed(2)}`;
    const plate = top >= 1.3 * size ? top - 1.3 * size : top;
    context.strokeStyle = context.fillStyle = `rgb(${colour.join(" ")})`;
    context.strokeRect(left, top, right - left, bottom - top);
    context.fillRect(left, plate, context.measureText(text).width + 0.5 * size, 1.3 * size);
    const isDark = 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2] < 140;
    context.fillStyle = isDark ? "white" : "black";
    context.fillText(text, left + 0.25 * size, plate + size);
  }
  showDrawn(card, canvas);
}

function showDrawn(card, canvas) {
  canvas.setAttribute("role", "img");
  card.map = canvas;
  show(card);
}

// Returns {code, entry, hasRequestedMap}, or {code, detail, retryAfter}; code 0 if no response came.
async function send(files, needsMap, signal) {
  const form = new FormData();
  for (const file of files) form.append("content", file);
  form.append("need_heatmap", String(needsMap));
  try {
    const response = await fetch("predict", { method: "POST", body: form, headers: authorization(), signal });
    const body = await response.json().catch(() => ({}));
    const code = body.code ?? response.status;
    if (code === 200 && body.data?.length === 1) return { code, entry: body.data[0], hasRequestedMap: needsMap };
    const retryAfter = Number.parseInt(response.headers.get("Retry-After"), 10) || 1; // seconds
    return { code: code === 200 ? "?" : code, detail: body.msg, retryAfter };
  } catch {
    return { code: 0 };
  }
}

async function loadInfo() {
  const { token } = state;
  try {
    const response = await fetch("info", { headers: authorization() });
    const body = await response.json().catch(() => ({ code: "?" }));
    const code = body.code ?? response.status;
    if (code === 200) setInfo(body);
    else if (code === 401) requireToken(token);
    else setNotice((text) => problemText(text, code));
  } catch {
    setNotice((text) => text.problems[0]);
  }
}

function setInfo(info) {
  state.info = info;
  state.notice = null;
  showAll();
  requestMaps();
}

function authorization() {
  return state.token ? { Authorization: `Bearer ${state.token}` } : {};
}

function requireToken(refused) {
  if (refused !== state.token) return; // a late response: another token was entered meanwhile
  state.needsToken = true;
  at("token-form").hidden = false;
  const isWrong = refused !== "";
  setNotice((text) => (isWrong ? text.wrongToken : text.problems[401]));
}

function useToken(token) {
  state.token = token;
  remember(() => sessionStorage, "token", token);
  state.needsToken = false;
  at("token-form").hidden = true;
  setNotice(null);
  loadInfo();
  work();
}

function showAll() {
  const text = texts();
  document.documentElement.lang = text.code;
  document.title = text.title;
  for (const element of document.querySelectorAll("[data-text]")) element.textContent = text[element.dataset.text];
  at("language").textContent = text.other;
  at("language").lang = text.otherCode;
  setNotice(state.notice);
  showInfo();
  state.cards.forEach(show);
  showProgress();
}

function showInfo() {
  const { info } = state;
  if (!info) return;
  const text = texts();
  at("net-summary").textContent = text.net(info.net, info.input.replace("x", " × "));
  at("class-count").textContent = text.classes(info.classes.length);
  at("class-names").textContent = info.classes.join(text.comma);
  at("net").hidden = false;
  at("views").hidden = !info.heatmap && !areDrawn();
  at("views").querySelector(`[value=${state.view}]`).checked = true;
}

function setNotice(notice) {
  state.notice = notice;
  at("notice").hidden = !notice;
  at("notice").textContent = notice ? notice(texts()) : "";
}

function showProgress() {
  const { cards } = state;
  const failed = cards.filter((card) => card.problem).length;
  const done = cards.filter((card) => card.stage === "done" && !card.problem).length;
  at("bar").hidden = !cards.length;
  at("cards").className = wantsMaps() || areDrawn() ? state.view : "picture";
  at("summary").textContent = texts().summary(done, cards.length, failed);
  at("done").max = cards.length || 1;
  at("done").value = done + failed;
  at("again").hidden = failed < 2; // one has its own button
}

function show(card) {
  if (card.isRemoved) return;
  const text = texts();
  const details = make("div", "details");
  details.append(make("p", "file", card.name));
  if (card.prediction) details.append(...predictionParts(card.prediction, text));
  if (card.problem) details.append(...problemParts(card, text));
  else if (card.stage !== "done") {
    details.append(make("p", "state", card.stage === "busy" ? text.busy(card.seconds) : text[card.stage]));
  }
  card.element.replaceChildren(imageParts(card, text), details);
  card.element.setAttribute("aria-busy", String(card.stage !== "done"));
  showProgress();
}

function imageParts(card, text) {
  const images = make("div", "images");
  if (!card.map || state.view !== "map") {
    if (card.image) card.image.alt = text.imageOf(card.name);
    images.append(card.image ?? make("p", "no-preview", text.noPreview));
  }
  if (card.map && state.view !== "picture") {
    card.map.ariaLabel = card.map.alt = text.mapOf(card.prediction.class ?? card.name);
    images.append(card.map);
  }
  return images;
}

function predictionParts(prediction, text) {
  if (prediction.mask) return [bars(sharesOf(prediction))];
  if (prediction.objects) return objectParts(prediction, text);
  const head = make("p", "prediction");
  head.append(make("strong", "", prediction.class), make("span", "number", percent(prediction.score)));
  const rows = prediction.top_k.map(([name, share]) => ({ name, share }));
  return [head, ...(prediction.decision ? [uncertaintyPart(prediction, text)] : []), bars(rows)];
}

// Returns the classes in the mask, the largest first.
function sharesOf(prediction) {
  const rows = prediction.classes.map(({ name, title, color }) => {
    return { name: title || name, share: prediction.shares[name], colour: `rgb(${color.join(" ")})` };
  });
  return rows.filter((row) => row.share > 0).sort((one, other) => other.share - one.share);
}

// Returns how many objects of each class were found, and the score of each.
function objectParts(prediction, text) {
  const { classes, objects } = prediction;
  const titles = objects.map(({ label }) => classes[label].title || classes[label].name);
  const counts = [...new Set(titles)].map((title) => `${titles.filter((other) => other === title).length} × ${title}`);
  const head = make("p", "prediction");
  head.append(make("strong", "", counts.length ? counts.join(text.comma) : text.nothing));
  const rows = objects.slice(0, MAX_OBJECT_ROWS).map(({ label, score }, index) => {
    return { name: titles[index], share: score, colour: `rgb(${classes[label].color.join(" ")})` };
  });
  return [head, bars(rows)];
}

function bars(rows) {
  const list = make("ol", "scores");
  for (const { name, share, colour } of rows) {
    const row = make("li");
    const track = make("span", "track");
    const bar = make("span");
    bar.style.width = `${100 * share}%`;
    if (colour) bar.style.background = colour;
    track.append(bar);
    row.append(make("span", "", name), make("span", "number", percent(share)), track);
    list.append(row);
  }
  return list;
}

function uncertaintyPart(prediction, text) {
  const part = make("div", "uncertainty");
  const digits = { minimumFractionDigits: 3, maximumFractionDigits: 3 };
  const value = prediction.uncertainty.toLocaleString(text.code, digits);
  const head = make("p");
  const decision = make("span", `decision ${prediction.decision}`, text[prediction.decision]);
  head.append(decision, " ", make("span", "number", text.uncertainty(value)));
  part.append(head);
  const names = prediction.conformal_set;
  part.append(make("p", "", text.sets[Math.min(names.length, 2)](names.join(text.comma))));
  return part;
}

function problemParts(card, text) {
  const problem = make("p", "problem", problemText(text, card.problem.code));
  problem.setAttribute("role", "alert");
  if (card.problem.detail) {
    const detail = make("span", "detail", card.problem.detail);
    detail.lang = "en";
    problem.append(detail);
  }
  const again = make("button", "", text.again);
  again.type = "button";
  again.addEventListener("click", () => retry([card]));
  return [problem, again];
}

function problemText(text, code) {
  return text.problems[code] ?? (code >= 500 ? text.failed(code) : text.unknown(code));
}

function languageOfTheBrowser() {
  return navigator.languages.map((tag) => tag.slice(0, 2)).find((language) => language in TEXTS);
}

function percent(score) {
  return score.toLocaleString("en", { style: "percent", minimumFractionDigits: 1, maximumFractionDigits: 1 });
}

// Names of classes and files become text here, never HTML.
function make(tag, className = "", text = "") {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.textContent = text;
  return element;
}

function makeImage(url) {
  const element = make("img");
  element.decoding = "async";
  element.src = url;
  return element;
}

// Where the browser blocks storage, even reading the property raises; then nothing is remembered.
function remembered(storage, key) {
  try {
    return storage().getItem(key);
  } catch {
    return null;
  }
}

function remember(storage, key, value) {
  try {
    storage().setItem(key, value);
  } catch {
    // the choice lasts until the page is closed
  }
}
