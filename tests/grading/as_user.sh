#!/usr/bin/env bash
# As root: runs a command as an ordinary user, who need not be able to read root's home.
#   tests/grading/as_user.sh .venv/bin/python -m pytest tests/grading -p no:cacheprovider
# In mounts of its own, root's home is replaced by an open one that holds Python only.
set -euo pipefail
base=$("$1" -c 'import sys; print(sys.base_prefix)' 2>/dev/null || python3 -c 'import sys; print(sys.base_prefix)')
export base
# shellcheck disable=SC2016
exec unshare -m bash -c '
  if [[ $base == /root/* ]]; then
    keep=$(mktemp -d); mount --bind "$base" "$keep"; mount -t tmpfs -o mode=755 none /root
    mkdir -p "$base"; mount --bind "$keep" "$base"
  fi
  home=$(mktemp -d); chown 54321:54321 "$home"; export HOME=$home TMPDIR=$home
  exec setpriv --reuid=54321 --regid=54321 --clear-groups "$@"' as_user "$@"
