#!/usr/bin/env bash
# Installs SLURM for the tests beside this file, where apt-get and root are there to do it; else they are skipped.
command -v slurmctld && command -v slurmd && command -v munged && exit
[[ $EUID == 0 ]] && command -v apt-get || exit 0
export DEBIAN_FRONTEND=noninteractive
install=(timeout 180 apt-get install --yes --no-install-recommends slurm-wlm munge)
"${install[@]}" || { timeout 120 apt-get update && "${install[@]}"; } || echo "SLURM's tests will be skipped"
