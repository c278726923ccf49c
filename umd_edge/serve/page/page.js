// The page of the local service: one image at a time, questions and tasks about it.

import { answerCard, element, taskCard } from "./results.js";
import { access, call, post } from "./service.js";

const byId = (id) => document.getElementById(id);
const state = {
  file: null, frame: null, imageId: null, turn: 0, plain: "", heat: "",
  proven: new Map(), asking: undefined,
};

// What the command takes of an MP4 file.
const CLIP_FRAMES = "8";

function wholeClip() {
  return !byId("frames").hidden && byId("clip-on").checked;
}

function upload(path) {
  const form = new FormData();
  if (path === "/v1/images" && wholeClip()) form.append("frames", CLIP_FRAMES);
  else if (state.frame !== null) form.append("frame", String(state.frame));
  form.append("image", state.file, "image");
  return call("POST", path, form);
}

function say(text) {
  byId("state").textContent = text;
}

function complain(error) {
  byId("problem").textContent = error ? error.message : "";
  byId("problem").hidden = !error;
}

// --- the image -----------------------------------------------------------------------------------

function show(url, of = "") {
  byId("preview").src = url;
  byId("preview").alt = of ? `Heat map over the image: ${of}` : "The image as the model reads it";
}

// Nothing of an earlier image, or of another frame, may stand beside a new one.
function clear() {
  byId("preview").removeAttribute("src");
  byId("preview").alt = "";
  for (const key of ["plain", "heat"]) {
    if (state[key]) URL.revokeObjectURL(state[key]);
    state[key] = "";
  }
  byId("heat").hidden = true;
  byId("results").replaceChildren();
  byId("nothing").hidden = false;
}

function ready(yes) {
  byId("ask-button").disabled = !yes;
  for (const button of document.querySelectorAll(".buttons button, button.heat")) button.disabled = !yes;
}

async function open(file, frame = null) {
  const turn = ++state.turn;
  const old = state.imageId;
  Object.assign(state, { file, frame, imageId: null });
  if (old) call("DELETE", `/v1/images/${old}`).catch(() => {});
  clear();
  complain(null);
  ready(false);
  say("Reading the image ...");
  try {
    const response = await upload("/v1/preview");
    const drawn = await response.blob();
    if (turn !== state.turn) return;
    state.plain = URL.createObjectURL(drawn);
    show(state.plain);
    offerFrames(Number(response.headers.get("x-image-frames")), frame ?? 1);
    byId("figure").hidden = false;
    byId("invitation").hidden = true;
    byId("caption").textContent = file.name;
    ready(true);
    say("Ready.");
  } catch (error) {
    if (turn !== state.turn) return;
    if (error.frames && frame === null) {
      // A video gets one answer, as from the command; a DICOM object shows what was chosen.
      byId("clip-on").checked = error.type === "ImageInputError";
      await open(file, 1); // the user sees and moves the number of the frame
      return;
    }
    byId("figure").hidden = true;
    byId("invitation").hidden = false;
    byId("frames").hidden = true;
    state.file = null;
    say("");
    complain(error);
  }
}

function offerFrames(frames, frame) {
  byId("frames").hidden = frames < 2;
  byId("frame").max = String(frames);
  byId("frame").value = String(frame);
  byId("frame-shown").textContent = `${frame} of ${frames}`;
}

async function encoded() {
  if (state.imageId === null) {
    const turn = state.turn;
    const { image_id: imageId } = await (await upload("/v1/images")).json();
    if (turn === state.turn) state.imageId = imageId;
    return imageId;
  }
  return state.imageId;
}

// The service forgets images after some minutes: it is given the image once more then.
async function about(path, fields) {
  try {
    return await post(path, { image_id: await encoded(), ...fields });
  } catch (error) {
    if (error.status !== 404 || error.type !== "NotFoundError") throw error;
    state.imageId = null;
    return post(path, { image_id: await encoded(), ...fields });
  }
}

// --- results -------------------------------------------------------------------------------------

function add(card) {
  byId("nothing").hidden = true;
  byId("results").prepend(card);
}

async function during(text, work) {
  const turn = state.turn;
  complain(null);
  ready(false);
  say(text);
  byId("main").setAttribute("aria-busy", "true");
  try {
    await work(() => turn === state.turn);
    if (turn === state.turn) say("Ready.");
  } catch (error) {
    if (turn !== state.turn) return; // it was about an image that is not shown any more
    say("");
    complain(error);
  } finally {
    byId("main").removeAttribute("aria-busy");
    if (turn === state.turn) ready(state.file !== null);
  }
}

function ask(question) {
  return during("Answering ...", async (current) => {
    const line = await (await about("/v1/ask", { question, task: state.asking })).json();
    if (current()) for (const answer of line.answers) add(answerCard(line, answer, heatButton));
  });
}

function classify(task) {
  return during("Classifying ...", async (current) => {
    const given = valuesOf(task);
    const line = await (await about("/v1/classify", { task: task.name, ...given })).json();
    if (current()) add(taskCard(line, task, given, heatButton));
  });
}

// --- heat maps -----------------------------------------------------------------------------------

function heatButton(title, fields) {
  if (wholeClip()) return []; // a map is of one frame
  const proven = state.proven.get(fields.task ?? state.asking)?.length > 0;
  const words = proven ? "Where it looked" : "Where it looked: unproven map";
  const button = element("button", { type: "button", className: "plain heat" }, words);
  button.setAttribute("aria-label", `${words}: ${title}`);
  const asked = { ...fields, unproven: !proven };
  button.addEventListener("click", () => drawHeat(proven ? title : `${title} (unproven)`, asked));
  return [button];
}

function drawHeat(title, fields) {
  return during("Drawing the heat map ...", async (current) => {
    const asked = { ...fields, format: "png", side: 1024 };
    const response = await about("/v1/explain", asked);
    const drawn = await response.blob();
    if (!current()) return;
    const old = state.heat;
    state.heat = URL.createObjectURL(drawn);
    byId("heat-of").textContent = title;
    byId("heat-on").checked = true;
    byId("heat").hidden = false;
    show(state.heat, title);
    if (old) URL.revokeObjectURL(old);
  });
}

byId("heat-on").addEventListener("change", (event) => {
  if (event.target.checked) show(state.heat, byId("heat-of").textContent);
  else show(state.plain);
});

// --- what the bundle offers ----------------------------------------------------------------------

function fieldFor(item) {
  const name = item.name.split(".").pop().replaceAll("_", " ");
  const unit = item.unit_name ? ` (${item.unit_name})` : "";
  let input;
  if (item.kind === "numeric") {
    input = element("input", { type: "number", step: "any" });
  } else {
    const choices = item.kind === "binary" ? ["yes", "no"] : item.categories;
    input = element("select", {}, element("option", { value: "" }, "not known"));
    for (const choice of choices) input.append(element("option", { value: choice }, choice));
  }
  input.dataset.name = item.name;
  input.dataset.kind = item.kind;
  return element("label", {}, name + unit, input);
}

function valuesOf(task) {
  const given = {};
  const structured = {};
  for (const item of task.reads) {
    const input = document.querySelector(`[data-name="${CSS.escape(item.name)}"]`);
    if (!input || input.value === "") continue;
    if (item.kind === "numeric") structured[item.name] = Number(input.value);
    else if (item.kind === "binary") structured[item.name] = input.value === "yes";
    else structured[item.name] = input.value;
  }
  if (Object.keys(structured).length) given.structured = structured;
  const text = byId("text-field");
  if (task.reads_text && text && text.value.trim()) given.text = text.value;
  return given;
}

function offer(tasks, suggestions) {
  const classifying = tasks.filter((task) => task.kind === "classification");
  byId("tasks").replaceChildren(
    ...classifying.map((task) => {
      const button = element("button", { type: "button", disabled: true }, task.name);
      button.addEventListener("click", () => classify(task));
      return button;
    }),
  );
  byId("suggestions").replaceChildren(
    ...suggestions.map((question) => {
      const button = element("button", { type: "button", className: "plain" }, question);
      button.disabled = true;
      button.addEventListener("click", () => {
        byId("question").value = question;
        ask(question);
      });
      return button;
    }),
  );
  byId("suggested").replaceChildren(
    ...suggestions.map((question) => element("option", { value: question })),
  );
  const fields = new Map(classifying.flatMap((task) => task.reads.map((item) => [item.name, item])));
  byId("value-fields").replaceChildren(...[...fields.values()].map(fieldFor));
  if (classifying.some((task) => task.reads_text)) {
    byId("value-fields").append(
      element("label", {}, "text about the patient", element("input", { type: "text", id: "text-field" })),
    );
  }
  byId("asking").hidden = state.asking === undefined;
  byId("classifying").hidden = classifying.length === 0;
  byId("values").hidden = byId("value-fields").children.length === 0;
}

async function start() {
  try {
    const info = await (await call("GET", "/v1/info")).json();
    const { tasks, suggestions } = await (await call("GET", "/v1/tasks")).json();
    byId("bundle").textContent =
      `${info.name} ${info.version}, ${info.service.variant} on ${info.service.provider}, ` +
      `${info.sha256.slice(0, 12)}`;
    byId("intended").textContent = info.intended_use.statement;
    byId("sha256").textContent = `SHA-256 of the manifest: ${info.sha256}`;
    byId("access").hidden = true;
    byId("main").hidden = false;
    state.proven = new Map(tasks.map((task) => [task.name, task.proven_maps]));
    state.asking = tasks.find((task) => task.kind === "vqa")?.name;
    offer(tasks, suggestions);
    complain(null);
    document.documentElement.dataset.started = "yes";
  } catch (error) {
    byId("bundle").textContent = error.status === 401 ? "a token is needed" : error.message;
    byId("access").hidden = error.status !== 401;
    byId("main").hidden = error.status === 401;
    if (error.status === 401) byId("token").focus();
  }
}

byId("access").addEventListener("submit", (event) => {
  event.preventDefault();
  access.token = byId("token").value.trim();
  start();
});
byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  if (state.file && byId("question").value.trim()) ask(byId("question").value);
});
byId("file").addEventListener("change", (event) => {
  const [file] = event.target.files;
  if (file) open(file);
  event.target.value = ""; // the same file may be chosen again
});
byId("frame").addEventListener("input", (event) => {
  byId("frame-shown").textContent = `${event.target.value} of ${event.target.max}`;
});
byId("clip-on").addEventListener("change", () => open(state.file, Number(byId("frame").value)));
byId("frame").addEventListener("change", (event) => open(state.file, Number(event.target.value)));
for (const kind of ["dragenter", "dragover"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    byId("drop").classList.add("over");
  });
}
for (const kind of ["dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    byId("drop").classList.remove("over");
  });
}
document.addEventListener("drop", (event) => {
  const [file] = event.dataTransfer.files;
  if (file) open(file);
});
document.addEventListener("paste", (event) => {
  const [file] = event.clipboardData.files;
  if (file) open(file);
});
start();
