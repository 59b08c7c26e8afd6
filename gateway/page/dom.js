// Small helpers for the document. Texts from outside only ever become text nodes or attributes.

export const $ = (id) => document.getElementById(id);

/** A new element; `on...` are listeners, `false` and `null` leave an attribute out. */
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== false && value !== null && value !== undefined) {
      node.setAttribute(name, value === true ? "" : value);
    }
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** Rows of a description list; a list or a missing value is shown as text or left out. */
export function describe(list, facts) {
  const shown = Object.entries(facts).filter(([, value]) => value !== null && value !== undefined);
  list.replaceChildren(
    ...shown.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, String(value))]),
  );
}

/** Tell a screen reader what has happened. */
export function announce(text) {
  $("news").textContent = text;
}

/** A message above the pictures; an empty text removes it. */
export function notice(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

/** Copy a text; without the browser's clipboard (plain http on another host), by selecting it. */
export async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
    announce(`${what} is copied.`);
    return true;
  } catch {
    const field = el("textarea", { class: "unseen", "aria-label": what });
    const place = document.querySelector("dialog[open]") ?? document.body;
    const focused = document.activeElement;
    field.value = text;
    place.append(field);
    field.select();
    const isCopied = document.execCommand("copy");
    field.remove();
    focused?.focus();
    announce(isCopied ? `${what} is copied.` : `${what} could not be copied.`);
    return isCopied;
  }
}

/** Read JSON that this page has kept in the browser; `fallback` if there is none. */
export function kept(name, fallback) {
  try {
    return JSON.parse(localStorage.getItem(name)) ?? fallback;
  } catch {
    return fallback; // not JSON, or the browser keeps nothing
  }
}

/** Keep JSON in the browser; without room, or in a private window, it is only not kept. */
export function keep(name, value) {
  try {
    localStorage.setItem(name, JSON.stringify(value));
  } catch (error) {
    console.info(`${name} is not kept: ${error.message}`);
  }
}
