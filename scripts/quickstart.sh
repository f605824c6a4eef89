#!/usr/bin/env bash
# From a fresh clone to a searched network: set up, then `nas search` on the embedded digits.
#
#   bash scripts/quickstart.sh                       the defaults
#   bash scripts/quickstart.sh data=fashion_mnist    arguments go to `nas search`
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

"$bin/nas" search "$@"

cat <<END

Every run has its own folder below runs/ (named above). Next:
  $bin/tensorboard --logdir runs     curves and the heat map of the search
  $bin/nas report runs               all runs on one front: table, picture, HTML page
END
