// The form and the job's input that it stands for. An empty field is not sent: the template decides.
import { $, el, keep, kept } from "./dom.js";

const KEPT = "form";
const TASKS = { txt2img: "txt2img", img2img: "img2img" };
const LARGEST_INIT = 20e6; // bytes; a request may have 30 MB, and base64 needs a third more
let initImage = null; // data URI
let rowNumber = 0;

/** A value of a field cannot be sent. */
export class FieldError extends Error {
  constructor(message, input) {
    super(message);
    this.input = input;
  }
}

const inputs = () => [...$("form").elements].filter((one) => one.name);
const named = (name) => inputs().filter((one) => one.name === name);

// Read ------------------------------------------------------------------------------------------

/** The job's input. Raises FieldError. */
export function read() {
  const job = {};
  for (const input of inputs()) {
    const value = input.matches(":disabled") ? undefined : valueOf(input);
    if (input.name === "more") merge(job, value ?? {});
    else if (value !== undefined) put(job, input.name, value);
  }
  const loras = [...$("lora-rows").children].map(loraOf).filter(Boolean);
  if (loras.length) job.loras = loras;
  if (initImage) Object.assign(job, { task: TASKS.img2img, init_images: [initImage] });
  return job;
}

function valueOf(input) {
  const text = input.value.trim();
  if (input.validity.badInput) throw new FieldError("This is not a number.", input);
  if (input.type === "checkbox") return input.checked || undefined;
  if (text === "") return undefined;
  const kind = input.dataset.kind ?? input.type;
  if (kind === "number") return numberOf(input, text);
  if (kind === "flag") return text === "true";
  if (kind === "json") return jsonIn(input, text);
  if (kind === "seed") return seedOf(input, text);
  return input.tagName === "TEXTAREA" ? input.value : text;
}

/** Digits: a seed may have more of them than a number of JavaScript. */
function seedOf(input, text) {
  if (/^-?\d+$/.test(text)) return BigInt(text).toString();
  throw new FieldError("A seed is a whole number; leave it empty for a random one.", input);
}

function numberOf(input, text) {
  const number = Number(text);
  if (Number.isInteger(number) && !Number.isSafeInteger(number)) {
    throw new FieldError("This number is too large for a browser.", input);
  }
  return number;
}

function jsonIn(input, text) {
  try {
    const value = JSON.parse(text);
    if (input.name !== "more" || (value && typeof value === "object" && !Array.isArray(value))) {
      return value;
    }
  } catch (error) {
    throw new FieldError(`This is not JSON: ${error.message}.`, input);
  }
  throw new FieldError('This must be a JSON object, such as {"eta": 0.5}.', input);
}

/** Put a value where a dotted name says: "output.format" is job.output.format. */
function put(job, name, value) {
  const path = name.split(".");
  const last = path.pop();
  const place = path.reduce((inner, part) => (inner[part] ??= {}), job);
  place[last] = value;
}

/** Add values to an object; objects that both have are put together. */
function merge(job, values) {
  for (const [name, value] of Object.entries(values)) {
    const areObjects = [job[name], value].every((one) => one && typeof one === "object");
    job[name] = areObjects && !Array.isArray(value) ? { ...job[name], ...value } : value;
  }
}

// Fill ------------------------------------------------------------------------------------------

/** Show this job in the form. What has no field of its own goes into "More fields as JSON". */
export function fill(job) {
  clear();
  const { loras = [], init_images: pictures = [], task, ...rest } = job;
  const more = {};
  for (const [name, value] of flat(rest)) {
    if (!set(name, value)) put(more, name, value);
  }
  for (const lora of loras) addLora(lora);
  if (task && !(task in TASKS)) more.task = task;
  if (pictures.length === 1) setInit(pictures[0]);
  if (Object.keys(more).length) $("more").value = JSON.stringify(more, null, 1);
  openUsed();
  changed();
}

/** Name and value; of an object whose parts are fields, those of its parts. */
function* flat(values, prefix = "") {
  for (const [key, value] of Object.entries(values)) {
    const name = prefix + key;
    const hasParts = inputs().some((one) => one.name.startsWith(`${name}.`));
    if (hasParts && value && typeof value === "object") yield* flat(value, `${name}.`);
    else yield [name, value];
  }
}

function set(name, value) {
  const found = name === "more" ? [] : named(name);
  return found.map((input) => setOne(input, value)).some(Boolean);
}

function setOne(input, value) {
  const kind = input.dataset.kind;
  if (value === null || (typeof value === "object" && kind !== "json")) return value === null;
  if (input.type === "checkbox") input.checked = value === true;
  else if (kind === "json") input.value = JSON.stringify(value);
  else {
    setText(input, `${value}`);
  }
  return true;
}

/** Set a value; a list of choices that does not have it gets it. */
function setText(input, text) {
  if (input.tagName === "SELECT" && ![...input.options].some((one) => one.value === text)) {
    input.append(el("option", {}, text));
  }
  input.value = text;
}

/** Empty every field. */
export function clear() {
  $("form").reset();
  $("lora-rows").replaceChildren();
  setInit(null);
  clearErrors();
  changed();
}

function openUsed() {
  for (const details of $("form").querySelectorAll("details")) {
    const used = [...details.querySelectorAll("[name]")].some(
      (one) => (one.type === "checkbox" ? one.checked : one.value !== one.defaultValue && one.value),
    );
    if (used) details.open = true;
  }
}

// LoRAs and the picture ---------------------------------------------------------------------------

/** Add a row for a LoRA: a job's reference, or an empty row. */
export function addLora(lora = "") {
  const { scale, name, url, air, version_id: version, ...rest } =
    lora && typeof lora === "object" ? lora : { name: `${lora}` };
  const reference = url ?? air ?? version ?? name ?? rest.filename ?? "";
  const number = ++rowNumber;
  const row = el("li", { class: "row" },
    el("div", { class: "field wide" },
      el("label", { for: `lora-${number}` }, "LoRA"),
      el("input", { id: `lora-${number}`, list: "lora-names", spellcheck: "false", value: reference,
        placeholder: "Name, URL or AIR" })),
    el("div", { class: "field" },
      el("label", { for: `weight-${number}` }, "Weight"),
      el("input", { id: `weight-${number}`, type: "number", min: "-10", max: "10", step: "0.05",
        value: scale ?? "", placeholder: "1" })),
    el("button", { type: "button", "aria-label": "Remove this LoRA", onclick: () => {
      row.remove();
      $("add-lora").focus();
      changed();
    } }, "✕"));
  row.rest = rest;
  row.dataset.field = "loras";
  $("lora-rows").append(row);
  return row;
}

function loraOf(row) {
  const [reference, weight] = row.querySelectorAll("input");
  const text = reference.value.trim();
  const scale = valueOf(weight);
  if (!text) return null;
  const how = /^https?:/i.test(text) ? { url: text }
    : /^\d+$/.test(text) ? { version_id: Number(text) }
    : /^(urn:air:|civitai:|huggingface:)/i.test(text) ? { air: text } : { name: text };
  return { ...how, ...(scale === undefined ? {} : { scale }), ...row.rest };
}

/** Set the picture to start from, as a data URI or URL; null removes it. */
export function setInit(picture) {
  initImage = picture;
  const isInline = picture?.startsWith("data:") ?? false;
  $("init").hidden = !isInline;
  if (isInline) $("init").src = picture;
  else $("init").removeAttribute("src");
  $("remove-init").hidden = picture === null;
  $("init-file").value = "";
  if (picture) $("start").open = true;
  switchParts();
}

/** Read a picture's file into the form. Raises an Error with a sentence for the user. */
export function readInit(file) {
  if (!file) return;
  if (file.size > LARGEST_INIT) throw new Error("The picture is larger than 20 MB.");
  const reader = new FileReader();
  reader.addEventListener("load", () => setInit(reader.result));
  reader.readAsDataURL(file);
}

function switchParts() {
  $("with-init").disabled = initImage === null;
  $("enable_hr").disabled = initImage !== null;
  $("with-hr").disabled = initImage !== null || !$("enable_hr").checked;
}

// Errors ------------------------------------------------------------------------------------------

/** Show a sentence beside the field that it names; returns whether there is one. */
export function showProblem(name, sentence) {
  const [first, place, part] = name.split(".");
  const row = first === "loras" ? $("lora-rows").children[Number(place)] : null;
  const found = row?.querySelectorAll("input")[part === "scale" ? 1 : 0]
    ?? named(name).find((one) => !one.matches(":disabled"))
    ?? (first === "init_images" ? $("init-file") : named(first)[0]);
  if (found) showError(found, sentence);
  return Boolean(found);
}

/** Show a sentence beside this input; it is read out with the input's hint. */
export function showError(input, sentence) {
  const id = `error-${input.id}`;
  clearErrors(input);
  for (let part = input.closest("details"); part; part = part.parentElement.closest("details")) {
    part.open = true;
  }
  input.setAttribute("aria-invalid", "true");
  input.dataset.about = input.getAttribute("aria-describedby") ?? "";
  input.setAttribute("aria-describedby", `${id} ${input.dataset.about}`.trim());
  input.after(el("p", { id, class: "error" }, sentence));
}

/** Remove the errors beside fields: all, or that of one input. */
export function clearErrors(input = null) {
  for (const one of input ? [input] : $("form").querySelectorAll("[aria-invalid]")) {
    if (!one.hasAttribute("aria-invalid")) continue;
    $(`error-${one.id}`)?.remove();
    one.removeAttribute("aria-invalid");
    if (one.dataset.about) one.setAttribute("aria-describedby", one.dataset.about);
    else one.removeAttribute("aria-describedby");
  }
}

// What survives a reload --------------------------------------------------------------------------

/** Keep the values, also of fields that the schema has not brought yet. */
export function changed() {
  switchParts();
  const values = Object.fromEntries(inputs().map((one) => [keyOf(one), contentOf(one)]));
  const loras = [...$("lora-rows").children].map((row) => {
    const [reference, weight] = row.querySelectorAll("input");
    return { name: reference.value, scale: weight.value, ...row.rest };
  });
  keep(KEPT, { ...kept(KEPT, {}), ...values, loras });
  $("form").dispatchEvent(new Event("changed"));
}

/** Put the kept values into these fields. */
export function restore(fields = inputs()) {
  const values = kept(KEPT, {});
  for (const input of fields) {
    const value = values[keyOf(input)];
    if (input.type === "checkbox") input.checked = value === true;
    else if (typeof value === "string") setText(input, value);
  }
}

/** Put everything that was kept into the form, at the start. */
export function restoreAll() {
  restore();
  const loras = kept(KEPT, {}).loras;
  for (const lora of Array.isArray(loras) ? loras : []) addLora(lora);
  switchParts();
  openUsed();
}

const keyOf = (input) => (input.id === "hr_strength" ? input.id : input.name);
const contentOf = (input) => (input.type === "checkbox" ? input.checked : input.value);
