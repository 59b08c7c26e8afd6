// Keeps pictures in the browser (IndexedDB), the newest ones up to a number and a size.

const MOST = 200;
const MOST_BYTES = 300 * 2 ** 20;
const PICTURES = "pictures";
let opened = null;

function database() {
  opened ??= new Promise((resolve, reject) => {
    const request = indexedDB.open("a1111-worker", 1);
    request.onupgradeneeded = () => request.result.createObjectStore(PICTURES, { keyPath: "id" });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
    request.onblocked = () => reject(new Error("another tab holds the pictures"));
  });
  return opened;
}

/** Run `work` on the pictures; its result, or null where the browser keeps nothing. */
async function within(mode, work) {
  try {
    const transaction = (await database()).transaction(PICTURES, mode);
    const request = work(transaction.objectStore(PICTURES));
    await new Promise((resolve, reject) => {
      transaction.oncomplete = resolve;
      transaction.onabort = transaction.onerror = () => reject(transaction.error);
    });
    return request.result;
  } catch (error) {
    console.info(`Pictures are not kept in this browser: ${error?.message ?? error}`);
    return null;
  }
}

/** All kept pictures, newest first. */
export async function all() {
  const pictures = (await within("readonly", (store) => store.getAll())) ?? [];
  return pictures.sort((one, other) => other.time - one.time);
}

export const add = (picture) => within("readwrite", (store) => store.put(picture));
export const remove = (id) => within("readwrite", (store) => store.delete(id));
export const removeAll = () => within("readwrite", (store) => store.clear());

/** The oldest of these pictures, newest first, for which there is no room. */
export function tooMany(pictures) {
  let bytes = 0;
  return pictures.filter((picture, number) => {
    bytes += (picture.blob?.size ?? 0) + (picture.job.init_images ?? []).join("").length;
    return number >= MOST || (bytes > MOST_BYTES && number > 0);
  });
}
