// Fields that the page does not have by itself, made from the JSON Schema of the task.
import { $, el } from "./dom.js";

// Accepted by the worker only with their default values, or shown elsewhere on the page.
const NOT_SHOWN = new Set([
  "task", "loras", "init_images", "include_init_images", "sampler_index", "send_images", "save_images",
  "do_not_save_samples", "do_not_save_grid", "force_task_id", "comments", "infotext",
  "firstpass_image", "firstphase_width", "firstphase_height", "override_settings_restore_afterwards",
  "output.preview", "override_settings.sd_model_checkpoint", "override_settings.sd_vae",
  "override_settings.CLIP_stop_at_last_layers",
]);

/** Build the fields for these tasks; returns the inputs, which are still empty. */
export function buildFields(document, tasks) {
  const shared = document.$defs;
  const properties = tasks.reduceRight(
    (all, task) => ({ ...all, ...resolved(document.tasks[task].input, shared).properties }), {},
  );
  const place = $("schema-fields");
  place.replaceChildren(...fieldsOf(properties, shared, ""));
  $("no-schema").hidden = true;
  return [...place.querySelectorAll("[name]")];
}

function fieldsOf(properties, shared, prefix) {
  return Object.entries(properties)
    .filter(([name]) => !NOT_SHOWN.has(prefix + name) && !isOnPage(prefix + name))
    .map(([name, property]) => fieldOf(prefix + name, property, resolved(property, shared), shared));
}

const isOnPage = (name) =>
  [...$("form").elements].some((one) => one.name === name && !$("schema-fields").contains(one));

/** What a property's value may be, without null and references. */
function resolved(property, shared) {
  if (property.$ref) return resolved(shared[property.$ref.split("/").pop()], shared);
  const kinds = (property.anyOf ?? []).filter((one) => one.type !== "null");
  return kinds.length === 1 ? { ...resolved(kinds[0], shared) } : property;
}

function fieldOf(name, property, type, shared) {
  if (type.type === "object" && type.properties) {
    return el("details", { class: "group" }, el("summary", {}, wordsOf(name)),
      hint(property.description), ...fieldsOf(type.properties, shared, `${name}.`));
  }
  const id = `field-${name}`;
  const about = property.description ?? type.description;
  const input = inputOf(id, name, type, property.default, about);
  return el("div", { class: "field" }, el("label", { for: id }, wordsOf(name)), input,
    hint(about, `about-${id}`));
}

const hint = (text, id) => (text ? el("p", { class: "hint", id: id ?? null }, text) : null);

function inputOf(id, name, type, standard, about) {
  const common = { id, name, "aria-describedby": about ? `about-${id}` : null };
  const usual = standard === null || standard === undefined ? "" : `${standard}`;
  const choices = type.enum ?? (type.type === "boolean" ? [true, false] : null);
  if (choices) {
    const kind = type.type === "boolean" ? "flag" : null;
    return el("select", { ...common, "data-kind": kind },
      el("option", { value: "" }, usual ? `Default (${choiceWords(standard)})` : "Default"),
      ...choices.map((one) => el("option", { value: `${one}` }, choiceWords(one))));
  }
  if (type.type === "integer" || type.type === "number") {
    const step = type.type === "integer" ? "1" : "any";
    return el("input", { ...common, type: "number", step, min: type.minimum, max: type.maximum,
      placeholder: usual || rangeOf(type) });
  }
  if (type.type === "string") {
    return el("input", { ...common, maxlength: type.maxLength, placeholder: usual });
  }
  const isReference = type.anyOf?.some((one) => one.type === "string");
  return isReference
    ? el("input", { ...common, spellcheck: "false", placeholder: "Name, URL or AIR" })
    : el("textarea", { ...common, "data-kind": "json", rows: "2", spellcheck: "false",
      placeholder: type.type === "array" ? "JSON: []" : "JSON" });
}

const choiceWords = (value) => ({ true: "Yes", false: "No" })[`${value}`] ?? `${value}`;
const rangeOf = (type) =>
  type.minimum === undefined ? "" : `${type.minimum} to ${type.maximum ?? "…"}`;

/** "override_settings.eta_ddim" as "Eta ddim". */
function wordsOf(name) {
  const words = name.split(".").pop().replaceAll("_", " ");
  return words[0].toUpperCase() + words.slice(1);
}
