// Running jobs: a card each, from the queue to the pictures or to the worker's own sentence.
import * as api from "./api.js";
import { $, announce, el, keep, kept, notice } from "./dom.js";
import * as form from "./form.js";
import * as gallery from "./gallery.js";

const KEPT = "jobs";
const FIRST_WAIT = 250; // ms between two looks at a job; grows to the slowest
const SLOWEST = 1000;
const UNKNOWN = 2; // answers that the job is not known, in a row: RunPod gives one now and then
const AWAY = 3000; // ms between two tries while the server does not answer
const FINAL = new Set(["COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"]);
const PHASES = {
  validate: "Checking", resolve: "Finding the models", download: "Downloading a model",
  queue: "Waiting for the GPU", load: "Loading the checkpoint", generate: "Drawing", upload: "Saving",
};
const running = new Map(); // id -> {job, since}

const pause = (ms) => new Promise((resolve) => { setTimeout(resolve, ms); });

/** Send a job and follow it; `finished` is called when it has made pictures. */
export async function draw(job, finished) {
  const card = new Card(job.prompt, Date.now());
  try {
    const { id } = await api.submit({ ...job, output: { ...job.output, preview: true } });
    const { init_images: _, ...small } = job; // the browser keeps only little
    running.set(id, { job: small, since: card.since });
    remember();
    await follow(id, job, card, finished);
  } catch (error) {
    card.fail(error.message);
  }
}

/** Follow the jobs that ran when the page was closed or reloaded. */
export function resume(finished) {
  for (const [id, { job, since }] of Object.entries(kept(KEPT, {})).filter(([, one]) => one?.job)) {
    running.set(id, { job, since });
    follow(id, job, new Card(job.prompt, since), finished);
  }
}

async function follow(id, job, card, finished) {
  card.cancelling = () => api.cancel(id);
  let unknown = 0;
  for (let wait = FIRST_WAIT; ; wait = Math.min(wait * 1.3, SLOWEST)) {
    try {
      const state = await api.status(id);
      unknown = 0;
      if (FINAL.has(state.status)) return await end(state, job, card, finished);
      card.show(state);
      await pause(wait);
    } catch (error) {
      unknown += error.status === 404 ? 1 : 0;
      if (!isPassing(error.status) || unknown > UNKNOWN) {
        card.fail(error.message);
        return forget(id);
      }
      card.say(`${error.message} Trying again.`);
      await pause(AWAY);
    }
  }
}

const isPassing = (status) => [0, 404, 408, 429].includes(status) || status >= 500;

async function end(state, job, card, finished) {
  forget(state.id);
  if (state.status === "CANCELLED") {
    card.remove();
    announce("The job is cancelled.");
  } else if (state.status !== "COMPLETED") {
    fail(state, card);
  } else if (!Array.isArray(state.output?.images)) {
    card.fail("The answer has no pictures.");
  } else {
    await show(state, job, card);
    finished();
  }
}

async function show({ id, output }, job, card) {
  const unsigned = output.images.find((one) => `${one}`.startsWith("s3://"));
  if (unsigned) {
    card.fail(`The pictures are drawn, and only the keys of their bucket can read them, such as ${unsigned}.`
      + " Copy them with `aws s3 cp`, or set BUCKET_PUBLIC_URL on the endpoint.");
    return;
  }
  let made;
  try {
    made = await gallery.add(job, id, output);
  } catch (error) {
    console.info(error);
    card.fail("The answer has no pictures that this page can read.");
    return;
  }
  card.remove();
  const count = made.length === 1 ? "1 picture" : `${made.length} pictures`;
  announce(`${count} drawn in ${Math.round(output.timings?.total ?? 0)} seconds.`);
  notice((output.warnings ?? []).join(" "));
}

/** Show the worker's sentence, and what belongs to a field also beside it. */
function fail(state, card) {
  const output = state.output ?? {};
  const sentence = state.error ?? output.error ?? output.detail ?? `The job ended as ${state.status}.`;
  card.fail(typeof sentence === "string" ? sentence : JSON.stringify(sentence));
  const problems = Array.isArray(output.problems) ? output.problems : [];
  for (const problem of problems.map(String)) {
    const name = /^[\w.]+/.exec(problem)?.[0];
    if (name) form.showProblem(name, problem);
  }
  if (typeof output.field === "string" && !problems.length) form.showProblem(output.field, `${sentence}`);
}

function forget(id) {
  running.delete(id);
  remember();
}

function remember() {
  keep(KEPT, Object.fromEntries(running));
  $("jobs").hidden = $("job-list").children.length === 0;
}

/** One job on the page. */
class Card {
  constructor(prompt, since) {
    const words = prompt || "A job without a prompt";
    this.since = since;
    this.said = "";
    this.preview = el("img", { alt: "The unfinished picture", class: "preview", hidden: true });
    this.text = el("p", { class: "phase" }, "Sending");
    this.bar = el("progress", { max: 100, "aria-label": `Progress of: ${words.slice(0, 80)}` });
    this.time = el("span", { class: "time" });
    this.button = el("button", { type: "button", onclick: () => this.cancel() }, "Cancel");
    this.item = el("li", { class: "job" }, this.preview,
      el("div", {}, el("p", { class: "prompt" }, words), this.text, this.bar, this.time), this.button);
    $("job-list").append(this.item);
    $("jobs").hidden = false;
    this.clock = setInterval(() => this.tick(), 1000);
  }

  /** A job that is not over. */
  show(state) {
    const report = state.status === "IN_PROGRESS" ? (state.output ?? {}) : {};
    const phase = state.status === "IN_QUEUE" ? "Waiting in the queue" : (PHASES[report.phase] ?? "Running");
    if (phase !== this.said) announce(phase);
    this.said = phase;
    const details = [phase, report.message].filter(Boolean).join(": ");
    const left = Number.isFinite(report.eta_seconds) ? `, ${seconds(report.eta_seconds)} left` : "";
    this.say(details + left);
    if (Number.isFinite(report.percent)) this.bar.value = report.percent;
    else this.bar.removeAttribute("value");
    if (typeof report.preview === "string") {
      this.preview.src = `data:image/jpeg;base64,${report.preview}`;
      this.preview.hidden = false;
    }
  }

  say(text) {
    if (this.text.textContent !== text) this.text.textContent = text;
  }

  tick() {
    this.time.textContent = seconds((Date.now() - this.since) / 1000);
  }

  async cancel() {
    this.button.disabled = true;
    this.say("Cancelling");
    try {
      await this.cancelling?.();
    } catch (error) {
      this.say(error.message);
      this.button.disabled = false;
    }
  }

  /** The job failed: its card stays until the user removes it. */
  fail(sentence) {
    clearInterval(this.clock);
    this.item.classList.add("failed");
    this.text.setAttribute("role", "alert");
    this.say(sentence);
    this.bar.remove();
    this.preview.remove();
    this.button.replaceWith(el("button", { type: "button", onclick: () => this.remove() }, "Dismiss"));
  }

  remove() {
    clearInterval(this.clock);
    const hasFocus = this.item.contains(document.activeElement);
    this.item.remove();
    $("jobs").hidden = $("job-list").children.length === 0;
    if (hasFocus) $("draw").focus();
  }
}

function seconds(number) {
  const whole = Math.round(number);
  return whole < 60 ? `${whole} s` : `${Math.floor(whole / 60)} min ${whole % 60} s`;
}
