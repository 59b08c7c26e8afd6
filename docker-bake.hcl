# The images: docker buildx bake -f docker-bake.hcl [base|baked|embedded]
# Without -f, it would also read compose.yaml. docs/internals/container-management.md describes each image.

variable "IMAGE" {
  default = "a1111-worker"
}

variable "VERSION" {
  default = "dev"
}

variable "REVISION" {
  default = "unknown"
}

# Arguments of `model_manager.py bake`: the models in the `baked` image.
variable "BAKE" {
  default = "--template jib_mix_realistic"
}

group "default" {
  targets = ["base", "embedded"]
}

target "common" {
  context   = "."
  platforms = ["linux/amd64"]
  args = {
    REVISION = REVISION
    VERSION  = VERSION
  }
}

# A1111 v1.9.3 without a model.
target "base" {
  inherits = ["common"]
  target   = "a1111"
  tags     = ["${IMAGE}:${VERSION}"]
}

# The same with the models of the default template. CivitAI requires a key: CIVITAI_API_KEY=... bake baked
target "baked" {
  inherits = ["base"]
  tags     = ["${IMAGE}:${VERSION}-baked"]
  args = {
    BAKE = BAKE
  }
  secret = ["id=civitai_api_key,env=CIVITAI_API_KEY"]
}

# diffusers instead of A1111, for GPUs or none; with the demo model.
target "embedded" {
  inherits = ["common"]
  target   = "embedded"
  tags     = ["${IMAGE}:${VERSION}-embedded"]
}
