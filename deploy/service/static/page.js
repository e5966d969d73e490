// The page of the service: pictures go to /predict a few at a time, what it says of them is shown.

const AT_ONCE = 3; // pictures on their way; the service makes one batch of what waits
const BUSY_TRIES = 10; // of one picture, before a busy service is a failure
const VIEWS = ["both", "map", "picture"];

export const TEXTS = {
  en: {
    code: "en",
    other: "中文",
    otherCode: "zh-CN",
    title: "Image classifier",
    choose: "Choose pictures",
    dropOrPaste: "or drop them here, or paste one (Ctrl+V)",
    token: "Access token of this service",
    useToken: "Use it",
    wrongToken: "The service did not accept this token.",
    view: "Show",
    both: "side by side",
    map: "heat map",
    picture: "picture",
    allAgain: "Try the failed ones again",
    again: "Try again",
    clear: "Clear",
    net: (net, input) => `${net}, input ${input}`,
    classes: (count) => (count === 1 ? "1 class" : `${count} classes`),
    comma: ", ",
    summary: (done, all, failed) => `${done} of ${all} answered` + (failed ? `, ${failed} failed` : ""),
    waiting: "Waiting",
    sending: "On its way …",
    busy: (seconds) => `The service is busy; this picture is sent again in ${seconds} s.`,
    noPreview: "This browser cannot show the file.",
    pictureOf: (name) => `The picture ${name}`,
    mapOf: (name) => `Where the net saw ${name}`,
    accept: "Accepted",
    set_aside: "Set aside: too uncertain to rely on",
    uncertainty: (value) => `Uncertainty ${value}`,
    sets: [
      () => "None of the classes fits well enough.",
      (name) => `The true class is probably ${name}.`,
      (names) => `The true class is probably one of: ${names}`,
    ],
    folder: "A folder cannot be read here; open it and drop the pictures in it.",
    problems: {
      0: "No answer from the service: it is not running, not reachable, or closed the connection.",
      400: "The service does not understand the request.",
      401: "The service wants an access token. Enter it below; the pictures that wait are then sent.",
      408: "It took too long, and the service gave up waiting.",
      413: "This is larger than the service takes.",
      422: "The service cannot use this picture.",
      429: "Too many requests; try again later.",
      503: "The service is busy, and stayed so. Try again later.",
    },
    failed: (code) => `The service failed on this request (${code}); its log says why.`,
    odd: (code) => `The service answered something that this page does not understand (${code}).`,
  },
  zh: {
    code: "zh-CN",
    other: "English",
    otherCode: "en",
    title: "图像分类",
    choose: "选择图片",
    dropOrPaste: "或将图片拖到此处，也可直接粘贴（Ctrl+V）",
    token: "本服务的访问令牌",
    useToken: "使用",
    wrongToken: "服务未接受此令牌。",
    view: "显示",
    both: "并排",
    map: "热力图",
    picture: "原图",
    allAgain: "重试失败的图片",
    again: "重试",
    clear: "清空",
    net: (net, input) => `${net}，输入 ${input}`,
    classes: (count) => `${count} 个类别`,
    comma: "、",
    summary: (done, all, failed) => `共 ${all} 张，已完成 ${done} 张` + (failed ? `，失败 ${failed} 张` : ""),
    waiting: "等待中",
    sending: "正在识别……",
    busy: (seconds) => `服务繁忙，${seconds} 秒后自动重新发送。`,
    noPreview: "浏览器无法显示此文件。",
    pictureOf: (name) => `图片 ${name}`,
    mapOf: (name) => `网络判断为“${name}”所依据的位置`,
    accept: "可采信",
    set_aside: "搁置：不确定性过高，请人工确认",
    uncertainty: (value) => `不确定性 ${value}`,
    sets: [
      () => "没有足够相符的类别。",
      (name) => `真实类别很可能是 ${name}。`,
      (names) => `真实类别很可能是其中之一：${names}`,
    ],
    folder: "无法读取文件夹；请打开文件夹，拖入其中的图片。",
    problems: {
      0: "服务没有应答：可能未启动、无法连接，或连接已被关闭。",
      400: "服务无法理解此请求。",
      401: "服务需要访问令牌。请在下方输入，等待中的图片随后会自动发送。",
      408: "耗时过长，服务已停止等待。",
      413: "超出了服务允许的大小。",
      422: "服务无法使用此图片。",
      429: "请求过多，请稍后再试。",
      503: "服务一直繁忙，请稍后再试。",
    },
    failed: (code) => `服务处理此请求时出错（${code}），原因见服务日志。`,
    odd: (code) => `服务的应答无法识别（${code}）。`,
  },
};

const at = (id) => document.getElementById(id);
const state = {
  language: remembered(() => localStorage, "language") ?? languageOfTheBrowser(),
  view: remembered(() => localStorage, "view"),
  token: remembered(() => sessionStorage, "token") ?? "", // of this tab only
  needsToken: false,
  info: null, // what /info says
  notice: null, // (text) => sentence above everything
  cards: [], // one a picture, see `add`
  working: 0,
};
let leaving = new AbortController(); // ends what is on its way when the pictures are cleared

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
    event.preventDefault(); // else the browser leaves the page for the picture
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
    askForMaps();
    showAll();
  });
  at("token-form").addEventListener("submit", (event) => {
    event.preventDefault();
    useToken(at("token").value.trim());
  });
  at("again").addEventListener("click", () => tryAgain(state.cards.filter((card) => card.problem)));
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
  for (const file of files) {
    const card = { file, stage: "waiting", tries: 0, answer: null, problem: null, askedForMap: false };
    card.url = URL.createObjectURL(file);
    card.picture = image(card.url);
    card.picture.addEventListener("error", () => {
      card.picture = null;
      show(card);
    });
    card.element = make("li", "card");
    state.cards.push(card);
    at("cards").append(card.element);
    show(card);
  }
  work();
}

function clear() {
  leaving.abort();
  leaving = new AbortController();
  for (const card of state.cards) {
    card.isGone = true;
    URL.revokeObjectURL(card.url);
    card.element.remove();
  }
  state.cards = [];
  if (!state.needsToken) setNotice(null);
  showProgress();
}

function work() {
  while (state.working < AT_ONCE && !state.needsToken) {
    const card = state.cards.find((other) => other.stage === "waiting");
    if (!card) break;
    state.working += 1;
    ask(card).finally(() => {
      state.working -= 1;
      work();
    });
  }
  showProgress();
}

async function ask(card) {
  card.stage = "sending";
  show(card);
  const { token } = state;
  const reply = await send(card.file, wantsMaps(), leaving.signal);
  if (card.isGone) return;
  if (reply.code === 401) {
    card.stage = "waiting";
    wantToken(token);
  } else if (reply.code === 503 && card.tries < BUSY_TRIES) {
    card.tries += 1;
    await waitForTurn(card, reply.retryAfter);
  } else {
    finish(card, reply);
  }
  show(card);
}

async function waitForTurn(card, seconds) {
  card.stage = "busy";
  for (card.seconds = seconds; card.seconds > 0 && !card.isGone; card.seconds -= 1) {
    show(card);
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
  card.stage = "waiting";
}

function finish(card, reply) {
  card.stage = "done";
  if (reply.code !== 200) {
    card.problem = reply;
    return;
  }
  card.answer = reply.entry;
  card.askedForMap = reply.askedForMap;
  card.map = reply.entry.heatmap ? image(reply.entry.heatmap) : null;
  if (!state.info) loadInfo();
  else askForMaps(); // the view may have changed while it was on its way
}

function tryAgain(cards) {
  for (const card of cards) {
    Object.assign(card, { stage: "waiting", tries: 0, problem: null });
    show(card);
  }
  work();
}

function askForMaps() {
  if (wantsMaps()) tryAgain(state.cards.filter((card) => card.answer && card.stage === "done" && !card.askedForMap));
}

function wantsMaps() {
  return Boolean(state.info?.heatmap) && state.view !== "picture";
}

// Gives {code, entry, askedForMap}, or {code, detail, retryAfter}; code 0 where no answer came.
async function send(file, needsMap, signal) {
  const form = new FormData();
  form.append("content", file);
  form.append("need_heatmap", String(needsMap));
  try {
    const response = await fetch("predict", { method: "POST", body: form, headers: authorization(), signal });
    const reply = await response.json().catch(() => ({}));
    const code = reply.code ?? response.status;
    if (code === 200 && reply.data?.length === 1) return { code, entry: reply.data[0], askedForMap: needsMap };
    const retryAfter = Number.parseInt(response.headers.get("Retry-After"), 10) || 1; // seconds
    return { code: code === 200 ? "?" : code, detail: reply.msg, retryAfter };
  } catch {
    return { code: 0 };
  }
}

async function loadInfo() {
  const { token } = state;
  try {
    const response = await fetch("info", { headers: authorization() });
    const reply = await response.json().catch(() => ({ code: "?" }));
    const code = reply.code ?? response.status;
    if (code === 200) takeInfo(reply);
    else if (code === 401) wantToken(token);
    else setNotice((text) => sentence(text, code));
  } catch {
    setNotice((text) => text.problems[0]);
  }
}

function takeInfo(info) {
  state.info = info;
  setNotice(null);
  showInfo();
  askForMaps();
}

function authorization() {
  return state.token ? { Authorization: `Bearer ${state.token}` } : {};
}

function wantToken(refused) {
  if (refused !== state.token) return; // a late answer: another token was entered meanwhile
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
  const text = TEXTS[state.language];
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
  const text = TEXTS[state.language];
  at("net-facts").textContent = text.net(info.net, info.input.replace("x", " × "));
  at("class-count").textContent = text.classes(info.classes.length);
  at("class-names").textContent = info.classes.join(text.comma);
  at("net").hidden = false;
  at("views").hidden = !info.heatmap;
  at("views").querySelector(`[value=${state.view}]`).checked = true;
}

function setNotice(notice) {
  state.notice = notice;
  at("notice").hidden = !notice;
  at("notice").textContent = notice ? notice(TEXTS[state.language]) : "";
}

function showProgress() {
  const { cards } = state;
  const failed = cards.filter((card) => card.problem).length;
  const done = cards.filter((card) => card.stage === "done" && !card.problem).length;
  at("bar").hidden = !cards.length;
  at("cards").className = wantsMaps() ? state.view : "picture";
  at("summary").textContent = TEXTS[state.language].summary(done, cards.length, failed);
  at("done").max = cards.length || 1;
  at("done").value = done + failed;
  at("again").hidden = failed < 2; // one has its own button
}

function show(card) {
  if (card.isGone) return;
  const text = TEXTS[state.language];
  const said = make("div", "said");
  said.append(make("p", "file", card.file.name));
  if (card.answer) said.append(...answerParts(card.answer, text));
  if (card.problem) said.append(...problemParts(card, text));
  else if (card.stage !== "done") {
    said.append(make("p", "state", card.stage === "busy" ? text.busy(card.seconds) : text[card.stage]));
  }
  card.element.replaceChildren(pictures(card, text), said);
  card.element.setAttribute("aria-busy", String(card.stage !== "done"));
  showProgress();
}

function pictures(card, text) {
  const shown = make("div", "pictures");
  if (!card.map || state.view !== "map") {
    if (card.picture) card.picture.alt = text.pictureOf(card.file.name);
    shown.append(card.picture ?? make("p", "no-preview", text.noPreview));
  }
  if (card.map && state.view !== "picture") {
    card.map.alt = text.mapOf(card.answer.class);
    shown.append(card.map);
  }
  return shown;
}

function answerParts(answer, text) {
  const head = make("p", "answer");
  head.append(make("strong", "", answer.class), make("span", "number", percent(answer.score)));
  const scores = make("ol", "scores");
  for (const [name, score] of answer.top_k) {
    const row = make("li");
    const track = make("span", "track");
    const bar = make("span");
    bar.style.width = `${100 * score}%`;
    track.append(bar);
    row.append(make("span", "", name), make("span", "number", percent(score)), track);
    scores.append(row);
  }
  return [head, ...(answer.decision ? [doubt(answer, text)] : []), scores];
}

function doubt(answer, text) {
  const said = make("div", "doubt");
  const value = answer.uncertainty.toLocaleString(text.code, { minimumFractionDigits: 3, maximumFractionDigits: 3 });
  const head = make("p");
  const decision = make("span", `decision ${answer.decision}`, text[answer.decision]);
  head.append(decision, " ", make("span", "number", text.uncertainty(value)));
  said.append(head);
  const names = answer.conformal_set;
  said.append(make("p", "", text.sets[Math.min(names.length, 2)](names.join(text.comma))));
  return said;
}

function problemParts(card, text) {
  const problem = make("p", "problem", sentence(text, card.problem.code));
  problem.setAttribute("role", "alert");
  if (card.problem.detail) {
    const detail = make("span", "detail", card.problem.detail);
    detail.lang = "en";
    problem.append(detail);
  }
  const again = make("button", "", text.again);
  again.type = "button";
  again.addEventListener("click", () => tryAgain([card]));
  return [problem, again];
}

function sentence(text, code) {
  return text.problems[code] ?? (code >= 500 ? text.failed(code) : text.odd(code));
}

function languageOfTheBrowser() {
  return navigator.languages.map((tag) => tag.slice(0, 2)).find((language) => language in TEXTS);
}

function percent(score) {
  return score.toLocaleString("en", { style: "percent", minimumFractionDigits: 1, maximumFractionDigits: 1 });
}

// Names of classes and files come in here as text, and never as HTML.
function make(tag, className = "", text = "") {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.textContent = text;
  return element;
}

function image(url) {
  const element = make("img");
  element.decoding = "async";
  element.src = url;
  return element;
}

// A browser may refuse storage altogether, even the mention of it; then nothing is remembered.
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
    // the choice lasts as long as the page
  }
}
