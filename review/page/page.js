// The page of a review: a grid of images or a single one, tags by keys, filters, undo.
// What is shown as done has been acknowledged by the server, which writes it to the disk first.

import { Zoom, nameTags, overlay } from "./drawing.js";
import { Labeller } from "./label.js";
import { TEXTS } from "./texts.js";

const PER_PAGE = [12, 24, 50, 100];
const SIDES = [160, 320, 640]; // of small images, that the server has
const RENEWED_MS = 60_000; // a lease, by whoever draws longer: it ends after ten minutes
const PRELOADED = 2; // images after the one that is shown
const DOUBTS = ["0.05", "0.1", "0.2", "0.3", "0.5", "0.7", "0.9"]; // at least
const FILTERS = { label: "label", tag: "tag", state: "reviewed", net: "net", doubt: "doubt", order: "order", part: "name" };

const at = (id) => document.getElementById(id);
const state = {
  language: remembered("language") ?? (navigator.language.startsWith("zh") ? "zh" : "en"),
  perPage: Number(remembered("perPage")) || 24,
  session: null,
  list: [], // the records that pass the filters, in their order
  cursor: 0, // a place in the list
  records: new Map(), // what is on the page, by the record's index
  selected: new Set(), // records
  near: "", // the record that the others are compared with, where they are ordered by similarity
  anchor: 0, // where a selection with Shift began
  isGrid: true,
  isShown: false, // the single image, or the reason why there is none
  shown: { objects: true, net: true },
  columns: 1,
  looks: 0, // counts the requests for records: only the newest counts
  leasedAt: 0, // when the server was told last that this person has it before them
  isSkipping: false, // from a labelled image to the next one that nobody has labelled or has before them
};
let queue = Promise.resolve(); // what is pressed is sent in its order
const zoom = new Zoom(at("stage-frame"), at("stage"));
const labeller = new Labeller(at("stage-frame"), at("drawn"), zoom, at("panel"), {
  ...{ text, notice, edited: renewLease, isShown: () => state.shown.objects, findClass: () => at("find-class").focus() },
  confirm: confirmLabels,
  save: () => saveAndGoOn(current()),
});

if (!(state.language in TEXTS)) state.language = "en";
if (!PER_PAGE.includes(state.perPage)) state.perPage = 24;
listen();
showTexts();
start();

// --- The server

async function ask(path, body) {
  const options = body && {
    method: "POST",
    headers: { "content-type": "application/json", "x-review-token": state.session?.token ?? "" },
    body: JSON.stringify(body),
  };
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Problem(0, text().noConnection);
  }
  const content = await response.json().catch(() => ({}));
  if (!response.ok) throw new Problem(response.status, content.msg ?? "", response.headers.get("retry-after"));
  return content;
}

class Problem extends Error {
  constructor(status, message, seconds) {
    super(message);
    Object.assign(this, { status, seconds });
  }
}

function tell(error) {
  if (!(error instanceof Problem)) throw error;
  if (error.status === 401 && state.session) return start();
  const { tooMany, notKept } = text();
  notice(error.status === 429 ? tooMany(error.seconds) : error.status === 507 ? `${notKept} ${error.message}` : error.message);
}

async function start() {
  state.session = null;
  const session = await ask("api/session").catch(tell);
  if (!session) return;
  at("login").hidden = !session.needs_login;
  for (const id of ["top", "bottom", "main", "open"]) at(id).hidden = true;
  if (session.needs_login) return at("user").focus();
  await begin(session);
}

async function begin(session) {
  state.session = session;
  at("open").hidden = Boolean(session.name);
  for (const id of ["top", "bottom", "main"]) at(id).hidden = !session.name;
  if (!session.name) return at("path").focus();
  state.selected.clear();
  if (session.labelling) state.isGrid = false;
  labeller.begin(session);
  fillFilters();
  showTexts();
  await relist();
  if (session.can_mark && session.reviewed < session.total && isTaken(state.list[state.cursor])) await toNext();
  main().focus();
}

async function relist() {
  const query = new URLSearchParams();
  for (const [id, key] of Object.entries(FILTERS)) if (at(id).value) query.set(key, at(id).value);
  if (state.near !== "") query.set("near", state.near);
  const current = state.list[state.cursor];
  const found = await ask(`api/list?${query}`).catch(tell);
  if (!found) return;
  state.list = found.records;
  state.cursor = Math.max(state.list.indexOf(current), 0);
  state.selected.clear();
  await look();
}

async function look() {
  const number = ++state.looks;
  if (labeller.isChanged) saveLabels(labeller.record.index); // what has been drawn is not lost by going on
  labeller.close();
  const wanted = visible();
  setShown(false);
  at("nothing").hidden = wanted.length > 0;
  if (!wanted.length) {
    state.records.clear();
    return render();
  }
  state.leasedAt = Date.now();
  const found = await ask("api/look", { records: wanted }).catch(tell);
  if (!found || number !== state.looks) return;
  state.session.reviewed = found.reviewed;
  state.records = new Map(found.records.map((record) => [record.index, record]));
  const skips = state.isSkipping && isTaken(state.list[state.cursor]);
  state.isSkipping = false;
  if (!(skips && (await toNext()))) render();
}

function renewLease() {
  if (Date.now() - state.leasedAt < RENEWED_MS) return;
  state.leasedAt = Date.now();
  ask("api/look", { records: visible() }).catch(tell);
}

// --- What is pressed

function mark(records, tag) {
  if (!state.session.can_mark) return notice(text().lookOnly);
  const free = freeOf(records);
  if (!free.length) return;
  const isOn = !tag || !free.every((index) => state.records.get(index)?.tags?.includes(tag));
  queue = queue.then(() => ask("api/change", { records: free, tag, on: isOn }).then(marked, (error) => failed(error, free)));
  state.selected.clear();
  if (isOn && records.length === 1 && records[0] === state.list[state.cursor]) move(1);
  else updateCells();
}

// Return the records that nobody else has, and tell of the others.
function freeOf(records) {
  const held = records.filter((index) => state.records.get(index)?.holder);
  const free = records.filter((index) => !held.includes(index));
  if (held.length) notice(free.length ? text().someHeld : text().isHeld(state.records.get(held[0]).holder));
  return free;
}

// Return whether somebody has labelled a record, or tagged it, or has it before them.
function isTaken(index) {
  const record = state.records.get(index);
  return Boolean(record && (record.tags || record.holder));
}

// Label images of the grid with a class, or each as its draft is.
function labelMany(records, label) {
  const hasDraft = (index) => state.records.get(index)?.draft.label !== -1;
  const free = freeOf(records).filter((index) => label !== undefined || hasDraft(index));
  if (!free.length) return records.some(hasDraft) ? undefined : notice(text().chooseClass);
  const labels = label === undefined ? {} : { labels: { label } };
  queue = queue.then(() => ask("api/label", { records: free, ...labels }).then(marked, (error) => failed(error, free)));
  state.selected.clear();
  updateCells();
}

function confirmLabels() {
  const problem = labeller.problem();
  if (problem) return notice(problem);
  saveAndGoOn(current());
}

function saveAndGoOn(records) {
  const [index] = freeOf(records);
  if (index === undefined) return;
  saveLabels(index);
  state.isSkipping = true;
  if (state.cursor + 1 < state.list.length) move(1);
  else toNext();
}

function saveLabels(index) {
  const labels = labeller.labels();
  labeller.kept.set(index, labels);
  labeller.draft = labeller.objects;
  const kept = (found) => {
    if (labeller.kept.get(index) === labels) labeller.kept.delete(index);
    marked(found);
  };
  queue = queue.then(() => ask("api/label", { records: [index], labels }).then(kept, (error) => failed(error, [index])));
}

function marked(found) {
  state.session.reviewed = found.reviewed;
  for (const [index, view] of Object.entries(found.marks)) Object.assign(state.records.get(Number(index)) ?? {}, view);
  if (state.session.labelling && state.isGrid) renderGrid();
  else updateCells();
  showProgress();
  if (!state.isGrid) showAbout();
}

function failed(error, records) {
  tell(error);
  const place = state.list.indexOf(records[0]);
  if (place >= 0 && place !== state.cursor) goTo(place); // where it was not kept
}

function undo() {
  if (!state.session.can_mark || (!state.isGrid && labeller.undo() !== false)) return;
  queue = queue.then(async () => {
    const found = await ask("api/undo", {}).catch(tell);
    if (!found) return;
    const records = Object.keys(found.marks).map(Number);
    for (const index of records) labeller.kept.delete(index);
    marked(found);
    notice(records.length ? text().undone(records.length) : text().nothingToUndo);
    const place = state.list.indexOf(records[0]);
    if (place >= 0 && !(state.isGrid && visible().includes(records[0]))) goTo(place);
    if (state.session.labelling && visible().includes(records[0])) await look();
  });
}

async function finish() {
  if (labeller.isChanged) saveLabels(labeller.record.index);
  await queue;
  if (labeller.kept.size) return; // what could not be kept has been told
  const { total, reviewed, labelling, can_leave_out: canLeaveOut } = state.session;
  try {
    const { path } = await ask("api/finish", {});
    if (state.session.can_open) return notice(text().written(path));
    notice(text().finished(path));
    for (const id of ["top", "bottom", "main"]) at(id).hidden = true;
  } catch (error) {
    if (error.status === 409 && reviewed < total && !canLeaveOut) notice((labelling ? text().leftToLabel : text().left)(total - reviewed));
    else tell(error);
  }
}

async function toNext() {
  await queue;
  const found = await ask("api/list?reviewed=no").catch(tell);
  if (!found) return;
  const open = new Set(found.records);
  const order = [...state.list.slice(state.cursor + 1), ...state.list.slice(0, state.cursor + 1)];
  const next = order.find((index) => open.has(index));
  if (next !== undefined) goTo(state.list.indexOf(next));
  else if (state.session.labelling) notice(state.session.reviewed < state.session.total ? text().othersHave : text().allLabelled);
  return next !== undefined;
}

async function showSimilar() {
  const index = state.list[state.cursor];
  if (!state.session.orders.includes("similarity")) return notice(text().noSimilarity);
  if (index === undefined) return;
  state.near = index;
  at("order").value = "similarity";
  notice(text().similarTo(state.records.get(index)?.file ?? ""));
  await queue;
  await relist();
}

// --- Where one is

function pageStart() {
  return Math.floor(state.cursor / state.perPage) * state.perPage;
}

function visible() {
  if (!state.isGrid) return state.list.slice(state.cursor, state.cursor + 1);
  return state.list.slice(pageStart(), pageStart() + state.perPage);
}

function move(steps, extends_ = false) {
  goTo(Math.min(Math.max(state.cursor + steps, 0), state.list.length - 1), extends_);
}

function goTo(place, extends_ = false) {
  if (place < 0 || !state.list.length) return;
  const before = pageStart();
  const isSame = place === state.cursor;
  state.cursor = place;
  if (state.isGrid && extends_) {
    const [from, to] = [Math.min(state.anchor, place), Math.max(state.anchor, place)];
    state.selected = new Set(state.list.slice(Math.max(from, pageStart()), to + 1));
  } else {
    state.anchor = place;
  }
  if (state.isGrid && before === pageStart()) return updateCells();
  if (!state.isGrid && isSame) return;
  if (state.isGrid) state.selected.clear();
  look();
}

function setMode(isGrid) {
  if (isGrid === state.isGrid) return;
  state.isGrid = isGrid;
  state.selected.clear();
  showMode();
  look();
  (isGrid ? at("grid") : at("stage-frame")).focus();
}

function targets() {
  return state.isGrid && state.selected.size ? visible().filter((index) => state.selected.has(index)) : current();
}

function current() {
  const index = state.list[state.cursor];
  const canMark = state.records.has(index) && (state.isGrid || state.isShown); // nobody tags what is not seen
  return canMark ? [index] : [];
}

function selectAll() {
  const all = visible();
  const isAll = all.every((index) => state.selected.has(index));
  state.selected = new Set(isAll ? [] : all);
  updateCells();
}

function toggle(index) {
  if (!state.selected.delete(index)) state.selected.add(index);
  updateCells();
}

// --- What is shown

function render() {
  at("grid").hidden = !state.isGrid || !state.list.length;
  at("single").hidden = state.isGrid || !state.list.length;
  if (state.isGrid) renderGrid();
  else renderSingle();
  showProgress();
}

function renderGrid() {
  const grid = at("grid");
  const records = visible().map((index) => state.records.get(index)).filter(Boolean);
  const size = arrange(grid, Math.min(state.perPage, Math.max(records.length, 1)));
  const wanted = size * devicePixelRatio;
  const side = SIDES.find((each) => each >= wanted) ?? SIDES.at(-1);
  grid.replaceChildren(...records.map((record) => cell(record, side)));
  updateCells();
}

function arrange(grid, count) {
  const { clientWidth, clientHeight } = grid;
  let best = 0;
  for (let columns = 1; columns <= count; columns += 1) {
    const size = Math.min(clientWidth / columns, clientHeight / Math.ceil(count / columns));
    if (size > best) [best, state.columns] = [size, columns];
  }
  grid.style.gridTemplateColumns = `repeat(${state.columns}, minmax(0, 1fr))`;
  grid.style.gridTemplateRows = `repeat(${Math.ceil(count / state.columns)}, minmax(0, 1fr))`;
  return best;
}

function cell(record, side) {
  const box = document.createElement("div");
  box.className = "cell";
  box.setAttribute("role", "option");
  box.dataset.index = record.index;
  box.title = record.file;
  const picture = document.createElement("div");
  picture.className = "picture";
  picture.append(image(record, side, (reason) => picture.append(problem(reason))));
  if (record.width && record.height) picture.append(overlay(record, state.session.skeleton, state.shown, state.session.classes));
  const caption = document.createElement("div");
  caption.className = "caption";
  box.append(picture, caption);
  return box;
}

function image(record, side, onProblem) {
  const element = new Image();
  element.alt = record.file;
  element.draggable = false;
  element.decoding = "async";
  if (!record.has_file) {
    onProblem(text().noFile(record.file));
    return element;
  }
  const address = `image/${record.index}${side ? `?side=${side}` : ""}`;
  element.addEventListener("error", async () => {
    const reason = await fetch(address).then((response) => response.json()).catch(() => ({}));
    element.hidden = true;
    onProblem(`${text().cannotShow} ${reason.msg ?? ""}`);
  });
  element.src = address;
  return element;
}

function problem(reason) {
  const line = document.createElement("p");
  line.className = "problem";
  line.textContent = reason;
  return line;
}

function updateCells() {
  if (!state.isGrid) return showPosition();
  const current = state.list[state.cursor];
  for (const box of at("grid").children) {
    const record = state.records.get(Number(box.dataset.index));
    if (!record) continue;
    const isSelected = state.selected.has(record.index);
    box.setAttribute("aria-selected", isSelected);
    box.classList.toggle("current", record.index === current);
    box.classList.toggle("reviewed", record.tags !== null);
    box.classList.toggle("held", Boolean(record.holder));
    box.classList.toggle("contradicted", Boolean(record.net?.contradicts || record.judged?.is_wrong));
    box.querySelector(".caption").replaceChildren(...captions(record));
    if (record.index === current) at("grid").setAttribute("aria-activedescendant", (box.id = `cell-${record.index}`));
  }
  showPosition();
}

function captions(record) {
  const parts = (record.tags ?? []).map((tag) => ["given-tag", tag]);
  if (record.tags?.length === 0) parts.push(["given-tag", "✓"]);
  if (record.holder) parts.push(["holder", text().heldBy(record.holder)]);
  if (record.label) parts.push(["class", record.label]);
  else if (record.draft?.label >= 0) parts.push(["class", `${state.session.classes[record.draft.label]}?`]);
  else if (!record.draft && record.net?.label) parts.push(["class", `${record.net.label}?`]);
  if (record.net?.contradicts) parts.push(["net", `≠ ${record.net.label}`]);
  if (record.judged?.is_wrong) parts.push(["net", `? ${record.judged.predicted}`]);
  return parts.map(([kind, content]) => span(kind, content));
}

function span(kind, content) {
  const element = document.createElement("span");
  element.className = kind;
  element.textContent = content;
  return element;
}

function renderSingle() {
  const record = state.records.get(state.list[state.cursor]);
  if (!record) return;
  const stage = at("stage");
  const done = (reason) => {
    if (state.records.get(state.list[state.cursor]) !== record) return;
    setShown(true);
    at("no-image").hidden = !reason;
    at("no-image").textContent = reason;
  };
  const picture = image(record, 0, done);
  picture.addEventListener("load", () => {
    if (!record.width) Object.assign(record, { width: picture.naturalWidth, height: picture.naturalHeight });
    if (!stage.contains(picture)) return;
    zoom.show(record.width, record.height);
    done("");
  });
  at("no-image").hidden = record.has_file;
  stage.replaceChildren(picture);
  if (record.width && record.height) {
    const isOther = record.draft?.origin !== "predictions"; // else they are what is being drawn
    const shown = labeller.isDrawn ? { objects: false, net: state.shown.net && isOther } : state.shown;
    stage.append(overlay(record, state.session.skeleton, shown, state.session.classes));
    stage.append(...nameTags(record, shown, state.session.classes));
    zoom.show(record.width, record.height);
  }
  if (state.session.labelling && labeller.record !== record) labeller.open(record);
  showAbout();
  updateCells();
  for (const index of state.list.slice(state.cursor + 1, state.cursor + 1 + PRELOADED)) new Image().src = `image/${index}`;
}

function setShown(isShown) {
  state.isShown = isShown;
  at("single").setAttribute("aria-busy", !isShown);
}

function showAbout() {
  const record = state.records.get(state.list[state.cursor]);
  if (!record) return;
  const { label, netSays, size, origin, tag, score, doubt, objects, contradicts, setAside, by, othersSay, judged } = text();
  const round = (number) => number.toFixed(3);
  const rows = [[text().file, record.file]];
  if (record.label) rows.push([label, record.label]);
  if (record.objects.length && !labeller.isDrawn) rows.push(["", objects(record.objects.length)]);
  if (record.net?.label !== undefined) {
    const numbers = [record.net.score === null ? "" : `${score} ${round(record.net.score)}`, `${doubt} ${round(record.net.doubt)}`];
    const notes = [record.net.contradicts ? contradicts : "", record.net.decision === "set_aside" ? setAside : ""];
    rows.push([netSays, [record.net.label, ...numbers].filter(Boolean).join(", "), record.net.contradicts]);
    if (notes.some(Boolean)) rows.push(["", notes.filter(Boolean).join(", "), true]);
  }
  if (record.judged) rows.push([othersSay, judged(record.judged, round), record.judged.is_wrong]);
  if (record.width) rows.push([size, `${record.width} × ${record.height}`]);
  if (record.from) rows.push([origin, record.from]);
  if (record.tags) rows.push([tag, record.tags.join(", ") || "✓"], ["", by(record.user, record.time)]);
  if (record.holder) rows.push(["", text().isHeld(record.holder), true]);
  const list = document.createElement("dl");
  for (const [name, content, isLoud] of rows) {
    const [title, value] = [document.createElement("dt"), document.createElement("dd")];
    title.textContent = name;
    value.textContent = content;
    value.classList.toggle("loud", Boolean(isLoud));
    list.append(title, value);
  }
  at("about").replaceChildren(list);
}

function showProgress() {
  const { reviewed, total, can_mark: canMark } = state.session;
  at("progress").hidden = !canMark;
  Object.assign(at("done"), { max: total, value: reviewed });
  const { labelled, reviewed: isReviewed } = text();
  at("reviewed").textContent = (state.session.labelling ? labelled : isReviewed)(reviewed, total);
}

function showPosition() {
  const { list, isGrid, cursor, perPage, selected } = state;
  const [from, to] = isGrid ? [pageStart() + 1, Math.min(pageStart() + perPage, list.length)] : [cursor + 1, cursor + 1];
  const parts = list.length ? [text().position(from, to, list.length)] : [];
  if (selected.size) parts.push(text().selected(selected.size));
  at("position").textContent = parts.join(" · ");
  const record = state.records.get(list[cursor]);
  for (const button of at("tags").querySelectorAll("[data-tag]")) {
    const isGiven = selected.size === 0 && Boolean(record?.tags?.includes(button.dataset.tag));
    button.setAttribute("aria-pressed", isGiven);
  }
}

function notice(message) {
  at("notice").textContent = message;
  at("notice").hidden = !message;
}

// --- Texts

function text() {
  return TEXTS[state.language];
}

function showTexts() {
  const texts = text();
  document.documentElement.lang = texts.code;
  for (const element of document.querySelectorAll("[data-text]")) element.textContent = texts[element.dataset.text];
  Object.assign(at("language"), { textContent: texts.other, lang: texts.otherCode });
  const session = state.session;
  at("key-list").replaceChildren(
    ...Object.entries(session?.labelling ? texts.helpOfLabels : texts.helpOf).flatMap(([keys, meaning]) => {
      const [name, what] = [document.createElement("dt"), document.createElement("dd")];
      name.append(...keys.split(", ").map((key) => Object.assign(document.createElement("kbd"), { textContent: key })));
      what.textContent = meaning;
      return [name, what];
    }),
  );
  at("nothing").textContent = texts.nothing;
  document.title = session?.name ? `${session.name} · ${texts.title}` : texts.title;
  at("help-button").setAttribute("aria-label", texts.keys);
  if (!session?.name) return;
  at("name").textContent = session.name;
  at("logout").textContent = texts.logout(session.user);
  at("logout").hidden = !session.has_users;
  at("finish").hidden = !session.can_finish;
  at("other-file").hidden = !session.can_open;
  for (const element of document.querySelectorAll(".marking")) element.hidden = !session.can_mark;
  for (const element of document.querySelectorAll(".tagging")) element.hidden = !session.can_mark || Boolean(session.labelling);
  at("find-class").hidden = session.classes.length < 10;
  at("find-class").placeholder = texts.findClass;
  at("part").placeholder = texts.file;
  for (const id of ["objects-title", "objects"]) at(id).hidden = !labeller.isDrawn;
  at("stage-frame").classList.toggle("drawing", labeller.isDrawn);
  at("net-filter").hidden = !session.has_answers && !session.orders.includes("wrong_label");
  at("doubt-filter").hidden = !session.has_answers;
  fillSelect(at("per-page"), PER_PAGE.map((count) => [count, texts.perPage(count)]), state.perPage);
  showMode();
}

function showMode() {
  fillTags();
  at("mode").textContent = state.isGrid ? text().single : text().grid;
  at("per-page").hidden = !state.isGrid;
}

function fillFilters() {
  const { labelling, classes, tags, order, orders: kinds, has_answers: hasAnswers } = state.session;
  const texts = text();
  const { noClass, untagged, notReviewed, isReviewed, notLabelled, isLabelled, contradicts, setAside, wrongLabel, atLeast, orders } = texts;
  const all = (name) => ["", texts[name]]; // the header has one line
  const named = [...classes.entries()].sort((a, b) => a[1].localeCompare(b[1], undefined, { numeric: true }));
  const ofNet = hasAnswers ? [["contradicts", contradicts], ["set_aside", setAside]] : [];
  if (kinds.includes("wrong_label")) ofNet.push(["wrong_label", wrongLabel]);
  const kept = at("order").value || order;
  fillSelect(at("label"), [all("class"), ...named, ["-1", noClass]]);
  fillSelect(at("tag"), [all("tag"), ...tags.map((tag) => [tag, tag]), ["-", untagged]]);
  fillSelect(at("state"), [all("show"), ["no", labelling ? notLabelled : notReviewed], ["yes", labelling ? isLabelled : isReviewed]]);
  fillSelect(at("net"), [all("net"), ...ofNet]);
  fillSelect(at("doubt"), [all("doubtFilter"), ...DOUBTS.map((least) => [least, `${texts.doubtFilter} ${atLeast(least)}`])]);
  at("class-names").replaceChildren(...classes.map((name) => new Option(name, name)));
  fillSelect(at("order"), kinds.map((kind) => [kind, `↓ ${orders[kind]}`]), kinds.includes(kept) ? kept : "file");
}

function fillSelect(select, rows, value = select.value) {
  select.replaceChildren(...rows.map(([key, name]) => new Option(name, key)));
  select.value = value;
  if (select.selectedIndex < 0) select.selectedIndex = 0;
}

function fillTags() {
  const { tags } = state.session;
  const buttons = tags.map((tag, number) => {
    const button = document.createElement("button");
    button.type = "button";
    button.dataset.tag = tag;
    if (number < 9) button.append(Object.assign(document.createElement("kbd"), { textContent: number + 1 }), " ");
    button.append(tag);
    button.addEventListener("click", () => mark(targets(), tag));
    return button;
  });
  const rows = state.session.labelling
    ? [["confirm", state.isGrid ? "R" : "Enter", confirmShown], ["undo", "Z", undo], ["redo", "Y", () => labeller.redo()]]
    : [["mark", "R", () => mark(targets(), "")], ["undo", "Z", undo]];
  if (labeller.isDrawn && !state.isGrid) rows.push(["remove", "Del", () => labeller.remove()]);
  if (state.session.labelling === "POINT" && !state.isGrid) rows.push(["hide", "V", () => labeller.toggleJoint()]);
  if (state.session.labelling === "POLYGON" && !state.isGrid) rows.push(["brush", "K", () => labeller.toggleBrush()]);
  const more = rows.map(([name, key, action]) => {
    const button = document.createElement("button");
    Object.assign(button, { type: "button", className: "quiet", id: `button-${name}` });
    button.append(Object.assign(document.createElement("kbd"), { textContent: key }), ` ${text()[name]}`);
    button.addEventListener("click", () => {
      notice("");
      action();
      if (state.session.labelling) main().focus(); // where the keys draw
    });
    return button;
  });
  at("tags").replaceChildren(...buttons, ...more);
  showPosition();
}

// --- Keys and the mouse

const KEYS = {
  r: () => (state.session.labelling ? confirmShown() : mark(targets(), "")),
  z: (event) => (event.shiftKey ? labeller.redo() : undo()),
  y: () => labeller.redo(),
  g: () => setMode(!state.isGrid),
  Escape: () => setMode(!state.isGrid),
  n: toNext,
  m: showSimilar,
  f: () => at("label").focus(),
  l: switchLanguage,
  "?": () => at("help").showModal(),
  b: () => showOrHide("objects"),
  p: () => showOrHide("net"),
  PageUp: () => turn(-1),
  PageDown: () => turn(1),
  ArrowLeft: (event) => move(-1, event.shiftKey),
  ArrowRight: (event) => move(1, event.shiftKey),
  ArrowUp: (event) => move(state.isGrid ? -state.columns : -1, event.shiftKey),
  ArrowDown: (event) => move(state.isGrid ? state.columns : 1, event.shiftKey),
  Home: (event) => goTo(0, event.shiftKey),
  End: (event) => goTo(state.list.length - 1, event.shiftKey),
};
const GRID_KEYS = {
  a: selectAll,
  " ": () => toggle(state.list[state.cursor]),
  Enter: () => setMode(false),
};
const SINGLE_KEYS = {
  Enter: () => mark(current(), ""),
  "+": () => zoom.by(1),
  "=": () => zoom.by(1),
  "-": () => zoom.by(-1),
  0: () => zoom.whole(),
  w: () => zoom.move(0, -1),
  s: () => zoom.move(0, 1),
  x: () => zoom.move(-1, 0),
  d: () => zoom.move(1, 0),
};

// Confirm what is laid before a person: of this image, or of those that are selected in the grid.
function confirmShown() {
  if (state.isGrid) labelMany(targets());
  else labeller.confirm();
}

function labelKey(key, event) {
  if (!state.isGrid) return labeller.key(key, event);
  if (state.session.labelling !== "CLASS" || !(Number(key) >= 1 && Number(key) <= state.session.classes.length)) return false;
  labelMany(targets(), Number(key) - 1);
  return true;
}

function onKey(event) {
  const { target, ctrlKey, metaKey, altKey } = event;
  if (!state.session?.name || at("top").hidden || at("help").open || event.isComposing) return;
  if (target.matches("input, select")) {
    if (event.key === "Escape") main().focus();
    return;
  }
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (ctrlKey || metaKey || altKey) {
    if (key !== "z" && !(key === "y" && state.session.labelling) && !(key === "a" && state.isGrid)) return; // the browser's
  }
  if (target.matches("button") && (key === "Enter" || key === " " || key === "Tab")) return; // the button's
  if (state.session.labelling && labelKey(key, event)) return event.preventDefault();
  const tag = /^[1-9]$/.test(key) ? state.session.tags[Number(key) - 1] : undefined;
  const action = tag ? () => mark(targets(), tag) : (KEYS[key] ?? (state.isGrid ? GRID_KEYS : SINGLE_KEYS)[key]);
  if (!action || (event.repeat && (tag || key === "Enter" || key === "r"))) return; // a key that is held tags once
  event.preventDefault();
  notice("");
  action(event);
}

function main() {
  return state.isGrid ? at("grid") : at("stage-frame");
}

function turn(steps) {
  move(steps * (state.isGrid ? state.perPage : 1));
}

function showOrHide(what) {
  state.shown[what] = !state.shown[what];
  render();
}

function switchLanguage() {
  state.language = state.language === "en" ? "zh" : "en";
  remember("language", state.language);
  notice("");
  showTexts();
  if (!state.session?.name) return;
  fillFilters();
  render();
}

function listen() {
  document.addEventListener("keydown", onKey);
  at("find-class").addEventListener("change", ({ target }) => {
    const part = target.value.toLowerCase();
    const names = state.session.classes.map((name) => name.toLowerCase());
    const label = names.includes(part) ? names.indexOf(part) : names.findIndex((name) => name.startsWith(part));
    target.value = "";
    main().focus();
    if (part && label >= 0) labeller.setClass(label);
  });
  window.addEventListener("beforeunload", (event) => (labeller.isChanged || labeller.kept.size) && event.preventDefault());
  at("language").addEventListener("click", switchLanguage);
  at("help-button").addEventListener("click", () => at("help").showModal());
  at("finish").addEventListener("click", finish);
  at("mode").addEventListener("click", () => setMode(!state.isGrid));
  at("back").addEventListener("click", () => turn(-1));
  at("forward").addEventListener("click", () => turn(1));
  at("other-file").addEventListener("click", () => {
    at("open").hidden = false;
    at("path").focus();
  });
  at("logout").addEventListener("click", () => ask("api/logout", {}).then(start, tell));
  at("order").addEventListener("change", () => (state.near = ""));
  for (const id of Object.keys(FILTERS)) at(id).addEventListener("change", () => queue.then(relist));
  at("filters").addEventListener("submit", (event) => event.preventDefault());
  at("per-page").addEventListener("change", (event) => {
    state.perPage = Number(event.target.value);
    remember("perPage", state.perPage);
    look();
  });
  at("login").addEventListener("submit", async (event) => {
    event.preventDefault();
    const body = { user: at("user").value, password: at("password").value };
    at("password").value = "";
    try {
      await ask("api/login", body);
      notice("");
      await start();
    } catch (error) {
      if (error.status === 401) notice(text().wrongLogin);
      else tell(error);
    }
  });
  at("open").addEventListener("submit", async (event) => {
    event.preventDefault();
    const session = await ask("api/open", { path: at("path").value }).catch(tell);
    if (!session) return;
    notice("");
    Object.assign(state, { list: [], near: "" });
    await begin(session);
  });
  at("grid").addEventListener("click", (event) => {
    const box = event.target.closest(".cell");
    if (!box) return;
    const index = Number(box.dataset.index);
    if (event.ctrlKey || event.metaKey || event.pointerType === "touch") toggle(index);
    else if (!event.shiftKey) state.selected.clear();
    goTo(state.list.indexOf(index), event.shiftKey);
  });
  at("grid").addEventListener("dblclick", () => setMode(false));
  let timer;
  window.addEventListener("resize", () => {
    clearTimeout(timer);
    timer = setTimeout(() => state.isGrid && state.session?.name && renderGrid(), 100);
  });
}

function remember(key, value) {
  try {
    localStorage.setItem(`review-${key}`, value);
  } catch {} // not allowed in this browser
}

function remembered(key) {
  try {
    return localStorage.getItem(`review-${key}`);
  } catch {
    return null;
  }
}
