// The parameters in a PNG: A1111's infotext, and what it means as a job's input.

const LARGEST_FILE = 64 * 2 ** 20;
const LONGEST_TEXT = 2 ** 20;
const SIGNATURE = 0x89504e47;

/** A sentence for the user: this file has no parameters. */
export class NoParameters extends Error {}

/** The infotext of a PNG file. Raises NoParameters. */
export async function infotextOf(file) {
  const texts = await textsOf(file);
  if (!texts.parameters) {
    throw new NoParameters(`${file.name ?? "The picture"} has no generation parameters in it.`);
  }
  return texts.parameters;
}

/** The texts of a PNG by their names; text that is too long is left out. */
async function textsOf(file) {
  if (file.size > LARGEST_FILE) throw new NoParameters(`${file.name} is larger than 64 MB.`);
  const buffer = await file.arrayBuffer();
  const view = new DataView(buffer);
  if (buffer.byteLength < 8 || view.getUint32(0) !== SIGNATURE) {
    throw new NoParameters(`${file.name ?? "The file"} is not a PNG.`);
  }
  const texts = {};
  for (let at = 8; at + 12 <= buffer.byteLength; ) {
    const length = view.getUint32(at);
    const kind = String.fromCharCode(...new Uint8Array(buffer, at + 4, 4));
    if (at + 12 + length > buffer.byteLength || kind === "IEND") break;
    if (kind in READ && length <= LONGEST_TEXT) {
      const [name, text] = await READ[kind](new Uint8Array(buffer, at + 8, length));
      texts[name] ??= text;
    }
    at += 12 + length;
  }
  return texts;
}

const latin1 = (bytes) => new TextDecoder("latin1").decode(bytes);
const utf8 = (bytes) => new TextDecoder().decode(bytes);

/** Kind of a chunk -> [name, text] of its content. */
const READ = {
  tEXt: async (bytes) => split(bytes).map(latin1),
  zTXt: async (bytes) => {
    const [name, rest] = split(bytes);
    return [latin1(name), latin1(await inflated(rest.subarray(1)))];
  },
  iTXt: async (bytes) => {
    const [name, rest] = split(bytes);
    const [, text] = split(split(rest.subarray(2))[1]); // behind the language and the other name
    return [latin1(name), utf8(rest[0] === 1 ? await inflated(text) : text)];
  },
};

/** The bytes before and behind the first zero. */
function split(bytes) {
  const zero = bytes.indexOf(0);
  return zero < 0 ? [bytes, bytes.subarray(0, 0)] : [bytes.subarray(0, zero), bytes.subarray(zero + 1)];
}

/** Inflate, up to the longest text; empty if the data are damaged or the text is longer. */
async function inflated(bytes) {
  const reader = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate")).getReader();
  const parts = [];
  let size = 0;
  try {
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      size += part.value.length;
      if (size > LONGEST_TEXT) return new Uint8Array();
      parts.push(part.value);
    }
  } catch {
    return new Uint8Array();
  } finally {
    reader.cancel().catch(() => {});
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

// The infotext --------------------------------------------------------------------------------------

/** Prompt, negative prompt, and the values of the last line by A1111's names, as texts. */
export function parsed(infotext) {
  const lines = infotext.trim().split("\n");
  let values = valuesOf(lines.at(-1));
  if (values.size >= 3) lines.pop();
  else values = new Map();
  const start = lines.findIndex((line) => line.startsWith("Negative prompt:"));
  const prompt = (start < 0 ? lines : lines.slice(0, start)).join("\n").trim();
  const negative = start < 0 ? "" : lines.slice(start).join("\n").slice("Negative prompt:".length).trim();
  return { prompt, negative, values };
}

/** `Steps: 20, Sampler: Euler a, Hires prompt: "a, b"`; one pass over the line. */
function valuesOf(line) {
  const values = new Map();
  const part = /\s*([\w /-]{1,64}):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)/y;
  for (let found = part.exec(line); found && found[0]; found = part.exec(line)) {
    values.set(found[1].trim(), unquoted(found[2]));
  }
  return values;
}

function unquoted(text) {
  try {
    return text.startsWith('"') ? JSON.parse(text) : text.trim();
  } catch {
    return text;
  }
}

const number = (text) => (Number.isFinite(Number(text)) ? Number(text) : undefined);
const text = (value) => value;
const size = (value, names) => {
  const found = /^(\d{1,5})x(\d{1,5})$/.exec(value);
  return found ? { [names[0]]: Number(found[1]), [names[1]]: Number(found[2]) } : {};
};

// A1111's name -> a job's field, and how its value is read.
const FIELDS = {
  "Steps": ["steps", number], "Sampler": ["sampler_name", text], "Schedule type": ["scheduler", text],
  "CFG scale": ["cfg_scale", number], "Seed": ["seed", text], "Model": ["checkpoint", text],
  "VAE": ["vae", text], "Denoising strength": ["denoising_strength", number],
  "Clip skip": ["clip_skip", number], "Variation seed": ["subseed", number],
  "Variation seed strength": ["subseed_strength", number], "Eta": ["eta", number],
  "Tiling": ["tiling", (value) => value === "True"], "Refiner": ["refiner_checkpoint", text],
  "Refiner switch at": ["refiner_switch_at", number], "NGMS": ["s_min_uncond", number],
  "Hires upscale": ["hr_scale", number], "Hires steps": ["hr_second_pass_steps", number],
  "Hires upscaler": ["hr_upscaler", text], "Hires sampler": ["hr_sampler_name", text],
  "Hires schedule type": ["hr_scheduler", text], "Hires prompt": ["hr_prompt", text],
  "Hires negative prompt": ["hr_negative_prompt", text],
  "Hires checkpoint": ["hr_checkpoint_name", text],
};
const SIZES = {
  "Size": ["width", "height"], "Hires resize": ["hr_resize_x", "hr_resize_y"],
  "Seed resize from": ["seed_resize_from_w", "seed_resize_from_h"],
};
const SETTINGS = {
  "ENSD": ["eta_noise_seed_delta", number], "RNG": ["randn_source", text],
  "Emphasis": ["emphasis", text], "Token merging ratio": ["token_merging_ratio", number],
};

/** The job that draws this picture again; without a template, because every value is in it. */
export function jobOf(infotext) {
  const { prompt, negative, values } = parsed(infotext);
  const job = { prompt, negative_prompt: negative };
  if (!values.size) return job;
  job.template = "none";
  for (const [name, value] of values) {
    const [field, read] = FIELDS[name] ?? [];
    if (field && read(value) !== undefined) job[field] = read(value);
    if (name in SIZES) Object.assign(job, size(value, SIZES[name]));
    if (name in SETTINGS) {
      const [setting, convert] = SETTINGS[name];
      (job.override_settings ??= {})[setting] = convert(value);
    }
  }
  if (["hr_scale", "hr_resize_x", "hr_upscaler"].some((field) => field in job)) job.enable_hr = true;
  return job;
}
