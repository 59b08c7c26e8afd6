// A job as something to paste: JSON, a curl command, a Python program. The key is never in it.
import { address, jsonOf } from "./api.js";

const LONGEST_ARGUMENT = 100_000; // characters; Linux allows 128 kB

export const asJson = (job) => `${jsonOf({ input: job }, 2)}\n`;

/** For a POSIX shell; a job with a picture in it is too long for an argument. */
export function asCurl(job) {
  const json = jsonOf({ input: job });
  const call = `curl -s ${quoted(address("runsync"))} -H 'Content-Type: application/json'`;
  return json.length < LONGEST_ARGUMENT
    ? `${call} -d ${quoted(json)}\n`
    : `${call} --data-binary @- <<'END'\n${json}\nEND\n`;
}

/** With Python's standard library; it waits for the pictures and saves them. */
export function asPython(job) {
  return `import base64
import json
import time
import urllib.request

URL = ${JSON.stringify(address(""))}


def call(path, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(URL + path, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as response:
        return json.load(response)


job = call("run", {"input": ${python(job)}})
while job["status"] in ("IN_QUEUE", "IN_PROGRESS"):
    time.sleep(1)
    job = call("status/" + job["id"])
if job["status"] != "COMPLETED":
    raise SystemExit(job.get("error") or job["status"])
for number, picture in enumerate(job["output"]["images"]):
    if picture.startswith("https://"):
        print(picture)
    else:
        with open(f"picture-{number}.png", "wb") as file:
            file.write(base64.b64decode(picture))
`;
}

const quoted = (text) => `'${text.replaceAll("'", String.raw`'\''`)}'`;

/** A JSON value as Python writes it; JSON's texts are also Python's. */
function python(value, name = "") {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map((one) => python(one)).join(", ")}]`;
  if (typeof value === "object") {
    const items = Object.entries(value).map(([key, one]) => `${JSON.stringify(key)}: ${python(one, key)}`);
    return `{${items.join(", ")}}`;
  }
  return name === "seed" && /^-?\d+$/.test(value) ? `${value}` : JSON.stringify(value);
}
