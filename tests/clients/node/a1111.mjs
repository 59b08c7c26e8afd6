// Uses both npm clients of A1111's API; prints what the test looks at as JSON.
import fs from "node:fs";
import nodeSdWebui from "node-sd-webui";
import stableDiffusionApi from "stable-diffusion-api";

const url = process.argv[2];
const small = { prompt: "a fox", steps: 2, width: 64, height: 64, seed: 1 };
const api = new stableDiffusionApi.default({ baseUrl: url });
const webui = nodeSdWebui({ apiUrl: url });

async function errorOf(call) {
  try {
    await call();
  } catch (error) {
    return [error.message, error.response?.data?.detail ?? null];
  }
  return null;
}

const sizeOf = async (result) => {
  const { width, height } = await result.image.metadata();
  return [width, height];
};

const drawn = await api.txt2img(small);
const again = await api.img2img({ ...small, init_images: [drawn.image] });
const enlarged = await api.extraSingle({
  image: drawn.image,
  upscaler_1: "Lanczos",
  upscaling_resize: 2,
});
const picture = await webui.txt2img(small);
const changed = await webui.img2img({ ...small, imageData: picture.images });

fs.writeSync(
  1,
  JSON.stringify({
    samplers: (await api.getSamplers()).length,
    models: (await api.getSdModels()).map((model) => model.title),
    upscalers: (await api.getUpscalers()).length,
    lists: [
      await api.getHypernetworks(),
      await api.getFaceRestorers(),
      await api.getPromptStyles(),
    ],
    realesrgan: (await api.getRealesrganModels()).length,
    flags: (await api.getCmdFlags()).api,
    options: (await api.getOptions()).samples_format,
    set: await api.setOptions({ CLIP_stop_at_last_layers: 1 }),
    progress: (await api.getProgress()).progress,
    model: await api.getCurrentModel(),
    sizes: [await sizeOf(drawn), await sizeOf(again), await sizeOf(enlarged)],
    pictures: [picture.images.length, changed.images.length],
    errors: [
      await errorOf(() => api.txt2img({ ...small, sampler_name: "nope" })),
      await errorOf(() => webui.txt2img({ ...small, samplingMethod: "nope" })),
    ],
  }),
);
