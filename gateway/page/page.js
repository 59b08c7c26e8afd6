// Starts the page and connects its parts.
import { $, announce, notice } from "./dom.js";
import * as form from "./form.js";
import * as gallery from "./gallery.js";
import { infotextOf, jobOf } from "./infotext.js";
import * as jobs from "./jobs.js";
import * as server from "./server.js";

const finished = () => server.look(true);

function draw() {
  form.clearErrors();
  try {
    jobs.draw(form.read(), finished);
    $("jobs").scrollIntoView({ block: "nearest" });
  } catch (error) {
    if (!(error instanceof form.FieldError)) throw error;
    form.showError(error.input, error.message);
    error.input.focus();
  }
}

async function readParameters(file) {
  if (!file) return;
  try {
    form.fill(jobOf(await infotextOf(file)));
    notice(`The form has the settings of ${file.name}.`);
    $("prompt").focus();
  } catch (error) {
    notice(error.message);
  }
  server.showTemplate();
}

function readInit(file) {
  try {
    form.readInit(file);
  } catch (error) {
    notice(error.message);
  }
}

function connectForm() {
  $("form").addEventListener("submit", (event) => {
    event.preventDefault();
    draw();
  });
  $("form").addEventListener("input", ({ target }) => {
    form.clearErrors(target);
    form.changed();
  });
  $("clear").addEventListener("click", () => {
    form.clear();
    server.showTemplate();
    announce("The form is empty.");
  });
  $("template").addEventListener("change", server.showTemplate);
  $("add-lora").addEventListener("click", () => form.addLora().querySelector("input").focus());
  $("random-seed").addEventListener("click", () => {
    $("seed").value = "";
    form.changed();
    announce("The seed is random.");
  });
  $("last-seed").addEventListener("click", () => gallery.reuseSeed());
  $("read-file").addEventListener("change", ({ target }) => {
    readParameters(target.files[0]);
    target.value = "";
  });
  $("init-file").addEventListener("change", ({ target }) => readInit(target.files[0]));
  $("remove-init").addEventListener("click", () => {
    form.setInit(null);
    $("init-file").focus();
  });
}

/** A picture that is dropped on its own field starts the next job; elsewhere, its settings do. */
function connectDrop() {
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", $("drop").contains(event.target));
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    $("drop").classList.remove("over");
    const [file] = event.dataTransfer.files;
    if (file && $("drop").contains(event.target)) readInit(file);
    else readParameters(file);
  });
}

function connectKeys() {
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !$("viewer").open) {
      event.preventDefault();
      draw();
    } else if (event.key === "Escape") {
      $("health").open = false;
    } else if ($("viewer").open && ["ArrowLeft", "ArrowRight"].includes(event.key)) {
      gallery.turn(event.key === "ArrowLeft" ? -1 : 1);
    }
  });
}

function connectViewer() {
  $("newer").addEventListener("click", () => gallery.turn(-1));
  $("older").addEventListener("click", () => gallery.turn(1));
  $("close").addEventListener("click", () => $("viewer").close());
  $("viewer").addEventListener("click", ({ target }) => target === $("viewer") && $("viewer").close());
  $("delete-all").addEventListener("click", gallery.removeAll);
}

form.restoreAll();
server.connectSizes();
connectForm();
connectDrop();
connectKeys();
connectViewer();
await gallery.open();
jobs.resume(finished);
server.watch();
