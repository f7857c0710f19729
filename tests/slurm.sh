#!/usr/bin/env bash
# A Slurm cluster of two nodes on this machine's loopback interface, for tests; as root, on Debian.
#
#   tests/slurm.sh install        what it needs: slurm-wlm and munge
#   tests/slurm.sh start FOLDER   everything it keeps is in FOLDER; then export SLURM_CONF=FOLDER/slurm.conf
#   tests/slurm.sh stop FOLDER    ends exactly the processes that start began
#
# One slurmd a node, told apart by -N and a port: https://slurm.schedmd.com/programmer_guide.html#multiple_slurmd_support
set -euo pipefail

start() {
  local folder=$1 host ports
  host=$(hostname -s)
  # Held together until all are known, so that they differ.
  read -ra ports < <(python3 -c '
import socket
held = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
print(*(one.getsockname()[1] for one in held))')
  mkdir -p "$folder"/{state,n1,n2}
  chmod 755 "$folder"
  head -c 1024 /dev/urandom >"$folder/munge.key"
  chmod 400 "$folder/munge.key"
  munged --force --socket="$folder/munge.socket" --key-file="$folder/munge.key" --pid-file="$folder/munged.pid" \
    --log-file="$folder/munged.log" --seed-file="$folder/munge.seed" --origin=127.0.0.1
  cat >"$folder/slurm.conf" <<EOF
ClusterName=loopback
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=${ports[0]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
CryptoType=crypto/munge
# Nothing that needs cgroups, which a container may not have.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
SchedulerParameters=sched_interval=2
KillWait=2
MessageTimeout=30
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/%n.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/%n.log
NodeName=n1 NodeHostname=$host NodeAddr=127.0.0.1 Port=${ports[1]} CPUs=1 RealMemory=8000
NodeName=n2 NodeHostname=$host NodeAddr=127.0.0.1 Port=${ports[2]} CPUs=1 RealMemory=8000
PartitionName=both Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
EOF
  export SLURM_CONF=$folder/slurm.conf
  slurmctld -c
  slurmd -N n1
  slurmd -N n2
  for _ in $(seq 60); do
    [ "$(sinfo -h -N -t idle -o %N 2>/dev/null | sort -u | wc -l)" = 2 ] && return
    sleep 1
  done
  sinfo -N -l >&2
  tail -n 5 "$folder"/*.log >&2
  return 1
}

stop() {
  local file
  for file in "$1"/{n1,n2,slurmctld,munged}.pid; do
    [ -f "$file" ] && kill "$(cat "$file")" || true
  done
}

case ${1:-} in
  install)
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q
    apt-get install -y -q --no-install-recommends -o DPkg::Lock::Timeout=120 slurm-wlm munge
    ;;
  start | stop) "$1" "$(realpath -m "$2")" ;;
  *) sed -n 2,7p "$0" && exit 2 ;;
esac
