#!/usr/bin/env bash
# Puts one commit of a git repository into a folder, without its history.
#
# usage: GIT_URL=https://github.com fetch-source.sh FOLDER COMMIT "REPOSITORY [MIRROR...]" PATH...
#
# A commit's id is a hash of its content, so whoever has that commit serves the same files.
# PATHs are what is kept of it.
set -euo pipefail

readonly folder=$1 commit=$2
read -ra repositories <<<"$3"
shift 3
export GIT_TERMINAL_PROMPT=0  # a repository that is gone would ask for a user name for ever

history=$(mktemp -d)
trap 'rm -rf "$history"' EXIT
mkdir -p "$folder"
git() { command git --git-dir="$history" --work-tree="$folder" "$@"; }
git init --quiet
git config gc.auto 0

# Without the files that are not kept (assets, videos): git fetches the others when it needs them.
# usage: take REPOSITORY PATH...
take() {
  git config remote.source.url "$GIT_URL/$1"
  git fetch --quiet --depth 1 --filter=blob:none source "$commit" &&
    git checkout --quiet "$commit" -- "${@:2}"
}

for attempt in 1 2 3; do
  for repository in "${repositories[@]}"; do
    if take "$repository" "$@"; then
      echo "fetch-source: $folder is $repository at $commit"
      exit 0
    fi
    echo "fetch-source: $GIT_URL/$repository did not give $commit (attempt $attempt of 3)" >&2
  done
  sleep $((attempt * 5))
done
echo "fetch-source: no repository gave $commit: ${repositories[*]}" >&2
exit 1
