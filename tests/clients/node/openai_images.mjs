// Draws with OpenAI's own client; prints what the test looks at as JSON.
import fs from "node:fs";
import OpenAI, { toFile } from "openai";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none" });

async function errorOf(call) {
  try {
    await call();
  } catch (error) {
    const { status, code, param, type, message } = error;
    return { name: error.constructor.name, status, code, param, type, message };
  }
  return null;
}

const models = [];
for await (const model of client.models.list()) models.push(model.id);

const drawn = await client.images.generate({
  model: "second",
  prompt: "a fox <lora:detail:0.5>",
  n: 2,
  size: "256x128",
  steps: 3, // a field of our own
});

const events = [];
const stream = await client.images.generate({ prompt: "a fox", stream: true, partial_images: 1 });
for await (const event of stream) events.push([event.type, event.b64_json.slice(0, 8)]);

const image = await toFile(Buffer.from(drawn.data[0].b64_json, "base64"), "fox.png", {
  type: "image/png",
});
const edited = await client.images.edit({ image, prompt: "a wolf" });

const unknown = await errorOf(() => client.images.generate({ model: "dall-e-3", prompt: "a fox" }));
const wrong = await errorOf(() => client.images.generate({ prompt: "a fox", size: "big" }));
const streamed = await errorOf(() => client.images.generate({ prompt: "", stream: true }));

fs.writeSync(
  1,
  JSON.stringify({
    models,
    pictures: drawn.data.length,
    size: drawn.size,
    events,
    edited: edited.size,
    errors: [unknown, wrong, streamed],
  }),
);
