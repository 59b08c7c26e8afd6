#!/usr/bin/env bash
# Puts one commit of a git repository into a folder, without its history.
#
# usage: GIT_URL=https://github.com fetch-source.sh FOLDER COMMIT "REPOSITORY [MIRROR...]" PATH...
#
# A commit's id is a hash of its content, so a mirror that has the commit has the same files.
# Only PATHs are kept.
set -euo pipefail

readonly folder=$1 commit=$2
read -ra repositories <<<"$3"
shift 3
export GIT_TERMINAL_PROMPT=0  # else git waits for a user name if a repository is gone

history=$(mktemp -d)
trap 'rm -rf "$history"' EXIT
mkdir -p "$folder"
git() { command git --git-dir="$history" --work-tree="$folder" "$@"; }
git init --quiet
git config gc.auto 0

# Fetches the commit without its files, of which git then downloads only those below PATHs.
# usage: fetch REPOSITORY PATH...
fetch() {
  git config remote.source.url "$GIT_URL/$1"
  git fetch --quiet --depth 1 --filter=blob:none source "$commit" &&
    git checkout --quiet "$commit" -- "${@:2}"
}

for attempt in 1 2 3; do
  for repository in "${repositories[@]}"; do
    if fetch "$repository" "$@"; then
      echo "fetch-source: $folder is $repository at $commit"
      exit 0
    fi
    echo "fetch-source: $commit cannot be fetched from $GIT_URL/$repository (attempt $attempt of 3)" >&2
  done
  sleep $((attempt * 5))
done
echo "fetch-source: $commit cannot be fetched from any of: ${repositories[*]}; check the network, or\
 set the build argument GIT_URL to a mirror" >&2
exit 1
