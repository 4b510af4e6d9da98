#!/usr/bin/env bash
# A SLURM cluster on this machine: cluster.sh start <folder> [<nodes>] | stop <folder>
# Controller and node daemons run as root without systemd or cgroups. Two emulated nodes, n1 and n2, of 2 CPUs each.
# Clients need SLURM_CONF=<folder>/slurm.conf.
set -euo pipefail
action="${1:?start or stop}"
folder="$(realpath -m "${2:?folder}")"
nodes="${3:-2}"

running() { [ -s "$1" ] && kill -0 "$(cat "$1")" 2>/dev/null; }

taken() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

stop() {
  export SLURM_CONF="$folder/slurm.conf"
  [ ! -s "$SLURM_CONF" ] || timeout 5 scancel --user="$(id -un)" --signal=KILL --full 2>/dev/null || true
  for pid in "$folder"/run/*.pid; do
    running "$pid" && kill "$(cat "$pid")" || true
  done
  for _ in $(seq 50); do
    alive=0
    for pid in "$folder"/run/*.pid; do running "$pid" && alive=1 || true; done
    [ $alive -eq 1 ] || break
    sleep 0.1
  done
  for pid in "$folder"/run/*.pid; do
    running "$pid" && kill -KILL "$(cat "$pid")" || true
  done
  # Steps outlive their node's daemon; those of this cluster name its folder.
  for steps in $(pgrep -x slurmstepd || true); do
    if tr '\0' '\n' < "/proc/$steps/environ" 2>/dev/null | grep -qx "SLURM_CONF=$folder/slurm.conf"; then
      kill -KILL "$steps" || true
    fi
  done
  if [ -s "$folder/munge.started" ] && ! pgrep -x slurmctld >/dev/null; then
    kill "$(cat "$folder/munge.started")" 2>/dev/null || true
    rm -f "$folder/munge.started"
  fi
}

start() {
  for program in slurmctld slurmd munged sbatch; do
    command -v "$program" >/dev/null || { echo "$program is not installed: apt-get install slurm-wlm munge" >&2; exit 3; }
  done
  [ "$(id -u)" -eq 0 ] || { echo "daemons of several nodes on one machine need root" >&2; exit 3; }
  mkdir -p "$folder"/{state,spool,log,run}
  if ! munge -n >/dev/null 2>&1; then
    install -d -o munge -g munge -m 755 /run/munge
    su -s /bin/sh munge -c /usr/sbin/munged
    cp /run/munge/munged.pid "$folder/munge.started"
  fi
  host="$(hostname -s)"
  base=16800 # another cluster may run here
  while taken "$((base + 17))" || taken "$((base + 21))"; do base=$((base + 50)); done
  cat > "$folder/slurm.conf" <<CONF
ClusterName=local
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# Without it a requeued job waits for its old credential to expire: two minutes.
AuthInfo=cred_expire=5
SlurmctldPort=$((base + 17))
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool/%n
SlurmctldPidFile=$folder/run/slurmctld.pid
SlurmdPidFile=$folder/run/slurmd-%n.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,sched_min_interval=0
JobRequeue=1
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
KillWait=${KILL_WAIT:-20}
SlurmdTimeout=${SLURMD_TIMEOUT:-10}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
CONF
  for number in $(seq "$nodes"); do
    echo "NodeName=n$number NodeHostname=$host NodeAddr=127.0.0.1 Port=$((base + 20 + number)) CPUs=2 State=UNKNOWN"
  done >> "$folder/slurm.conf"
  all="n[1-$nodes]"
  echo "PartitionName=debug Nodes=$all Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=0" >> "$folder/slurm.conf"
  echo "PartitionName=urgent Nodes=$all MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF" >> "$folder/slurm.conf"
  export SLURM_CONF="$folder/slurm.conf"
  slurmctld -c
  for _ in $(seq 50); do [ -s "$folder/run/slurmctld.pid" ] && break; sleep 0.1; done
  running "$folder/run/slurmctld.pid" || { echo "slurmctld did not start: see $folder/log" >&2; exit 4; }
  for number in $(seq "$nodes"); do
    mkdir -p "$folder/spool/n$number"
    slurmd -N "n$number"
  done
  for _ in $(seq 100); do
    [ "$(sinfo --noheader --Node --partition=debug --format=%T 2>/dev/null | grep -c idle)" = "$nodes" ] && exit 0
    sleep 0.1
  done
  echo "the nodes did not come up" >&2
  sinfo >&2 || true
  exit 4
}

case "$action" in
  start) start ;;
  stop) stop ;;
  *) echo "start or stop" >&2; exit 2 ;;
esac
