// Uses RunPod's own client; prints what the test looks at as JSON on its last line.
import fs from "node:fs";
import runpodSdk from "runpod-sdk";

const endpoint = runpodSdk("a-key", { baseUrl: process.argv[2] }).endpoint("ep0");
const fails = { error: "INVALID_INPUT: steps = 0. Send 1 to 150." };
const never = { until: "/nonexistent/file" };
const short = 60000;

const ended = async (id) => {
  let state = await endpoint.status(id, short);
  while (!state.completed) state = await endpoint.statusSync(id);
  return state;
};

const synced = await endpoint.runSync({ input: { echo: "sync" } });
const queued = await endpoint.run({ input: { echo: "run" } }, short);
const done = await ended(queued.id);
const failed = await ended((await endpoint.run({ input: fails }, short)).id);

const chunks = [];
const streamed = await endpoint.run({ input: { echo: "stream" } }, short);
for await (const chunk of endpoint.stream(streamed.id)) chunks.push(chunk.output.echo);

const many = [...Array(40).keys()].map((number) => ({ type: "picture", number }));
const streaming = await endpoint.run({ input: { chunks: many } }, short);
const numbers = [];
for await (const chunk of endpoint.stream(streaming.id)) numbers.push(chunk.output.number);

const running = await endpoint.run({ input: never }, short);
while ((await endpoint.status(running.id, short)).status !== "IN_PROGRESS");
const waiting = await endpoint.run({ input: never }, short);
const health = await endpoint.health(short);
const purged = await endpoint.purgeQueue(short);
const cancelled = await endpoint.cancel(running.id, short);

fs.writeSync(
  1,
  "\n" +
    JSON.stringify({
      sync: [synced.output.echo, synced.status, synced.succeeded],
      run: [queued.status, done.output.echo, done.succeeded],
      failed: [failed.status, failed.error, failed.output.detail],
      chunks,
      streamed: numbers,
      jobs: [health.jobs.inProgress, health.jobs.inQueue],
      purged,
      cancelled: [cancelled.status, (await ended(waiting.id)).status],
    }),
);
