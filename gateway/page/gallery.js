// The pictures: each with its job, so that it can be drawn again.
import { $, announce, copy, describe, el, notice } from "./dom.js";
import * as form from "./form.js";
import { infotextOf, parsed } from "./infotext.js";
import { asCurl, asJson, asPython } from "./snippets.js";
import * as store from "./store.js";

let pictures = []; // newest first
let shown = null; // the picture in the viewer
const urls = new Map(); // id -> object URL

/** Show the pictures that the browser has kept. */
export async function open() {
  pictures = await store.all();
  $("gallery").replaceChildren(...pictures.map(tile));
  changed();
}

/** Add the pictures of a finished job. */
export async function add(job, id, output) {
  const info = infoOf(output.info);
  const added = await Promise.all(output.images.map((image, number) => pictureOf(
    { id: `${id}-${number}`, number, job, output, infotext: info.infotexts?.[number] }, image)));
  for (const picture of added) {
    if (pictures.some((one) => one.id === picture.id)) continue;
    pictures.unshift(picture);
    $("gallery").prepend(tile(picture));
    await store.add(picture);
  }
  for (const picture of store.tooMany(pictures)) await remove(picture);
  changed();
  return added;
}

function infoOf(text) {
  try {
    return JSON.parse(text) ?? {};
  } catch {
    return {};
  }
}

/** Of a task whose answer has no infotext, the picture itself has it. */
async function pictureOf({ id, number, job, output, infotext }, image) {
  const isUrl = /^https?:/.test(image);
  const blob = isUrl ? null : blobOf(image);
  const text = infotext ?? (blob ? await infotextOf(blob).catch(() => "") : "");
  return {
    id, job, blob,
    infotext: text,
    url: isUrl ? image : null,
    time: Date.now() + number / 1000,
    seed: parsed(text).values.get("Seed") ?? null,
    seconds: output.timings?.total ?? null,
    warnings: output.warnings ?? [],
  };
}

const KINDS = { iVBOR: "png", "/9j/": "jpeg", UklGR: "webp" };

function blobOf(base64) {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  const kind = Object.entries(KINDS).find(([start]) => base64.startsWith(start))?.[1] ?? "png";
  return new Blob([bytes], { type: `image/${kind}` });
}

// The grid ------------------------------------------------------------------------------------------

function tile(picture) {
  const words = promptOf(picture) || "Picture without a prompt";
  return el("li", { "data-id": picture.id },
    el("button", { type: "button", class: "tile", onclick: () => view(picture) },
      el("img", { src: urlOf(picture), alt: words, loading: "lazy" })),
    el("div", { class: "under" },
      picture.seed === null ? null
        : el("span", { class: "seed" }, el("span", { class: "unseen" }, "Seed "), picture.seed),
      el("button", { type: "button", "aria-label": `Use the settings of: ${words.slice(0, 80)}`,
        title: "Use these settings", onclick: () => reuse(picture) }, "Reuse")));
}

const promptOf = (picture) => parsed(picture.infotext).prompt || picture.job.prompt || "";

function urlOf(picture) {
  if (picture.url) return picture.url;
  if (!urls.has(picture.id)) urls.set(picture.id, URL.createObjectURL(picture.blob));
  return urls.get(picture.id);
}

function changed() {
  $("empty").hidden = pictures.length > 0;
  $("delete-all").hidden = pictures.length === 0;
  $("last-seed").disabled = !pictures.some((one) => one.seed !== null);
}

async function remove(picture) {
  pictures = pictures.filter((one) => one !== picture);
  [...$("gallery").children].find((one) => one.dataset.id === picture.id)?.remove();
  URL.revokeObjectURL(urls.get(picture.id));
  urls.delete(picture.id);
  changed();
  await store.remove(picture.id);
}

/** Delete all pictures, after a question. */
export async function removeAll() {
  if (!window.confirm(`Delete ${pictures.length} pictures from this browser?`)) return;
  pictures = [];
  urls.forEach((url) => URL.revokeObjectURL(url));
  urls.clear();
  $("gallery").replaceChildren();
  changed();
  await store.removeAll();
  announce("All pictures are deleted.");
}

// Reuse ---------------------------------------------------------------------------------------------

function reuse(picture) {
  form.fill(exactJob(picture));
  $("viewer").close();
  $("prompt").focus();
  notice("");
  announce("The settings of the picture are in the form.");
}

/** The job that draws this one picture again. */
function exactJob(picture) {
  const { n_iter: _, batch_size: __, ...job } = picture.job;
  return picture.seed === null ? picture.job : { ...job, seed: picture.seed };
}

/** Put the seed of a picture, by default of the newest one, into the form. */
export function reuseSeed(picture = pictures.find((one) => one.seed !== null)) {
  $("seed").value = picture.seed;
  form.clearErrors($("seed"));
  form.changed();
  announce(`The seed is ${picture.seed}.`);
}

function useAsStart(picture) {
  form.readInit(picture.blob);
  $("viewer").close();
  $("prompt").focus();
  announce("The next job starts from this picture.");
}

// The viewer ----------------------------------------------------------------------------------------

function view(picture) {
  shown = picture;
  const { negative, values } = parsed(picture.infotext);
  $("viewer-picture").src = urlOf(picture);
  $("viewer-picture").alt = promptOf(picture);
  $("viewer-link").href = urlOf(picture);
  $("viewer-link").setAttribute("aria-label", "Open the picture alone");
  $("viewer-prompt").textContent = promptOf(picture);
  describe($("viewer-facts"), {
    "Negative prompt": negative || null,
    ...Object.fromEntries(values),
    "Seconds": picture.seconds?.toFixed(1),
    "Drawn": new Date(picture.time).toLocaleString(),
  });
  $("viewer-warnings").replaceChildren(...picture.warnings.map((one) => el("li", {}, one)));
  $("viewer-buttons").replaceChildren(...buttonsOf(picture));
  const place = pictures.indexOf(picture);
  $("newer").disabled = place === 0;
  $("older").disabled = place === pictures.length - 1;
  if (!$("viewer").open) $("viewer").showModal();
}

function buttonsOf(picture) {
  const job = exactJob(picture);
  const kind = picture.blob?.type.split("/")[1];
  const button = (text, onclick, look = null) =>
    el("button", { type: "button", class: look, onclick }, text);
  const copying = (name, text) => button(`Copy ${name}`, async ({ currentTarget }) => {
    const isCopied = await copy(text(job), name);
    currentTarget.textContent = isCopied ? "Copied" : "Not copied";
  });
  return [
    button("Reuse settings", () => reuse(picture), "primary"),
    picture.seed === null ? null : button("Reuse seed", () => {
      reuseSeed(picture);
      $("viewer").close();
    }),
    picture.blob ? button("Start from it", () => useAsStart(picture)) : null,
    copying("curl", asCurl), copying("Python", asPython), copying("JSON", asJson),
    picture.blob
      ? el("a", { class: "button", href: urlOf(picture), download: `${picture.id}.${kind}` }, "Download")
      : el("a", { class: "button", href: picture.url, target: "_blank", rel: "noopener" }, "Open"),
    button("Delete", async () => {
      $("viewer").close();
      await remove(picture);
      announce("The picture is deleted.");
    }, "danger"),
  ].filter(Boolean);
}

/** Show the next newer (-1) or older (1) picture. */
export function turn(by) {
  const next = pictures[pictures.indexOf(shown) + by];
  if (next) view(next);
}
