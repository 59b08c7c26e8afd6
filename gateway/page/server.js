// What the server has and does: its lists in the form, its health in the header.
import * as api from "./api.js";
import { $, describe, el } from "./dom.js";
import * as form from "./form.js";
import { buildFields } from "./schema.js";

const SIZES = [[512, 512], [512, 768], [768, 512], [768, 768], [1024, 1024], [832, 1216], [1216, 832],
  [896, 1152], [1344, 768]];
const EVERY = 5000; // ms between two looks at the server's health
let templates = [];
let hasFields = false;
let report = null;

// Lists -----------------------------------------------------------------------------------------

/** Fetch the lists and the schema. */
async function load() {
  const { lists = {}, schema = null, health = null } = await api.data();
  report = health;
  templates = lists.templates ?? [];
  options("template", templates, (one) => [one.template, one.name],
    [["", defaultName()], ["none", "No template"]]);
  options("sampler_name", lists.samplers, (one) => [one.name, one.name], [["", "Default"]]);
  options("scheduler", lists.schedulers, (one) => [one.name, one.name], [["", "Default"]]);
  options("hr_upscaler", lists.upscalers, (one) => [one.name, one.name], [["", "Default"]]);
  suggestions("models", lists.models);
  suggestions("lora-names", lists.loras);
  if (schema && !hasFields) {
    form.restore(buildFields(schema, ["txt2img", "img2img"]));
    hasFields = true;
  }
  form.restore(["template", "sampler_name", "scheduler", "hr_upscaler"].map($));
  showTemplate();
  $("form").classList.toggle("known", schema !== null);
}

const defaultName = () => {
  const standard = templates.find((one) => one.default);
  return standard ? `Default: ${standard.name}` : "Default";
};

function options(id, items, read, fixed) {
  if (!items?.length) return;
  $(id).replaceChildren(
    ...[...fixed, ...items.map(read)].map(([value, text]) => el("option", { value }, text)));
}

function suggestions(id, items) {
  const names = (items ?? []).map((one) => one.model_name ?? one.name.replace(/\.safetensors$/, ""));
  $(id).replaceChildren(...names.map((value) => el("option", { value })));
}

/** Show in the empty fields what the chosen template brings. */
export function showTemplate() {
  const chosen = $("template").value;
  const template = templates.find((one) => (chosen ? one.template === chosen : one.default));
  const defaults = template?.defaults ?? {};
  const usual = { steps: 50, cfg_scale: 7, width: 512, height: 512, ...defaults };
  for (const name of ["steps", "cfg_scale", "width", "height"]) $(name).placeholder = usual[name];
  for (const name of ["sampler_name", "scheduler"]) {
    $(name).options[0].textContent = defaults[name] ? `Default: ${defaults[name]}` : "Default";
  }
  $("checkpoint").placeholder = template?.checkpoint ?? "The engine's own";
  $("negative_prompt").placeholder = defaults.negative_prompt ?? "What it must not show";
  const loras = (template?.loras ?? []).map((one) => `${one.name} (${one.scale})`).join(", ");
  $("about-template").textContent =
    [template?.description, loras && `LoRAs: ${loras}.`].filter(Boolean).join(" ");
  const [first] = $("size").options;
  first.textContent = `Default: ${usual.width} × ${usual.height}`;
}

/** Fill the list of sizes, and keep it and the two numbers alike. */
export function connectSizes() {
  const [width, height, size] = ["width", "height", "size"].map($);
  size.append(...SIZES.map(([w, h]) => el("option", { value: `${w}x${h}` }, `${w} × ${h}`)),
    el("option", { value: "other" }, "Other"));
  const show = () => {
    const value = width.value || height.value ? `${width.value}x${height.value}` : "";
    size.value = [...size.options].some((one) => one.value === value) ? value : "other";
  };
  size.addEventListener("change", () => {
    if (size.value === "other") width.focus();
    else [width.value, height.value] = size.value ? size.value.split("x") : ["", ""];
    form.changed();
  });
  $("form").addEventListener("changed", show);
  show();
}

// Health ----------------------------------------------------------------------------------------

/** Look at the server again and again, while the page can be seen. */
export async function watch() {
  for (;;) {
    if (!document.hidden) await look();
    await new Promise((resolve) => { setTimeout(resolve, EVERY); });
  }
}

/** Look at the server once; its lists may be others after a job, and when its state has changed. */
export async function look(hasDrawn = false) {
  try {
    const health = await api.health();
    const before = $("state").textContent;
    showHealth(health);
    if (hasDrawn || $("state").textContent !== before) {
      await load();
      showHealth(health);
    }
  } catch (error) {
    lamp("away", "Away", error.message);
    describe($("facts"), {});
  }
}

/** RunPod's numbers as a state and a sentence, the first that holds. */
function stateOf({ ready = 0, idle = 0, running = 0, initializing = 0, throttled = 0, unhealthy = 0 }) {
  if (running) return ["busy", "Drawing", "A worker is drawing."];
  if (ready || idle) return ["ready", "Ready", "A worker is ready for jobs."];
  if (initializing) {
    return ["starting", "Starting", "A worker is starting: jobs wait until its engine has drawn once."];
  }
  if (throttled) return ["starting", "No GPU free", "RunPod has no free GPU for this endpoint now."];
  if (unhealthy) return ["away", "Unhealthy", "The workers of this endpoint fail at their start."];
  return ["asleep", "Asleep", "No worker runs: the first picture takes longer, because one must start."];
}

function showHealth({ jobs = {}, workers = {} }) {
  lamp(...stateOf(workers));
  const engine = report?.engine ?? {};
  const stored = report?.models?.stored ?? {};
  const counts = Object.entries(stored).filter(([, one]) => one.count);
  describe($("facts"), {
    "Jobs that wait": jobs.inQueue,
    "Jobs that run": jobs.inProgress,
    "GPU": engine.gpu ?? (engine.device === "cpu" ? "None: the engine uses the CPU" : null),
    "Checkpoint": engine.checkpoint,
    "Engine": engine.state,
    "Restarts": engine.restarts || null,
    "Models": counts.map(([kind, one]) =>
      `${kind === "loras" ? "LoRAs" : kind}: ${one.count} (${size(one.total_size)})`).join(", ")
      || null,
  });
}

function lamp(kind, word, sentence) {
  $("lamp").className = `lamp ${kind}`;
  if ($("state").textContent !== word) $("state").textContent = word;
  $("explanation").textContent = sentence;
}

const size = (bytes) =>
  bytes < 1e9 ? `${Math.ceil(bytes / 1e6)} MB` : `${(bytes / 1e9).toFixed(1)} GB`;
