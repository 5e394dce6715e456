#!/usr/bin/env bash
# Installs Debian's packages for SLURM's tests and those of the page, where apt-get and root are there to do it; else
# these tests are skipped.
needed=()
command -v slurmctld && command -v slurmd && command -v munged || needed+=(slurm-wlm munge)
command -v chromium || command -v google-chrome || needed+=(chromium)
[[ ${#needed[@]} -gt 0 && $EUID == 0 ]] && command -v apt-get || exit 0
export DEBIAN_FRONTEND=noninteractive
install=(timeout 300 apt-get install --yes --no-install-recommends "${needed[@]}")
"${install[@]}" || { timeout 120 apt-get update && "${install[@]}"; } || echo "some tests will be skipped"
