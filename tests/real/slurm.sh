#!/usr/bin/env bash
# slurm.sh: the smoke scale through a real Slurm, of which this machine is the controller and, by another name, the
# node: undisturbed; then with the submitting snakemake killed, the node's daemon killed, a job cancelled, Ctrl-C, and
# taken up again each time. Either way the hashes must be those of a run without Slurm.
#
# Needs Debian and root; installs slurm-wlm and munge. Runs what is committed, in clones in a temporary folder. Slurm's
# configuration lies in /etc/slurm, as the executor takes SLURM_CONF from its jobs. At the end that configuration and
# all that was started are gone.
set -euo pipefail
set -m # each background command is a process group of its own, which Ctrl-C reaches
cd "$(dirname "$0")/../.."
export PATH=$PWD/.venv/bin:$PATH HF_HUB_OFFLINE=1
there=$(mktemp -d -t slurm.XXXX) node=slurm-node
slurm=$there/slurm profile=(--profile workflow/profiles/slurm --slurm-status-command squeue # there is no accounting
    --seconds-between-status-checks 2 --slurm-init-seconds-before-status-checks 2 --cores 16)

say() { echo "[$(date +%T)] $*"; }

# until_ COMMAND: waits for it to hold.
until_() {
    for _ in $(seq 1200); do if "$@"; then return; fi; sleep 0.5; done
    say "not in ten minutes: $*"
    exit 1
}

# working [WORDS]: the processes in the clones, those whose command line has the words.
working() {
    local pid
    for pid in $(pgrep -f -- "${1:-.}"); do
        [[ $(readlink "/proc/$pid/cwd") != "$there"/* ]] || echo "$pid"
    done
}

# begin: `snakemake` through Slurm, in the background. As on a cluster, it does not see the processes of the node.
begin() {
    last=$(squeue --noheader --states=all --format=%i | sort -n | tail -1)
    (cd "$slurm" && exec unshare --pid --fork --kill-child --mount-proc \
        snakemake "${profile[@]}" --config scale=smoke) >>"$there/snakemake.log" 2>&1 &
    run=$!
}

# end: waits for it; its exit status is in `code`.
end() {
    code=0
    wait "$run" 2>/dev/null || code=$?
}

# finish: begin, and wait for all to be made.
finish() {
    begin
    end
    [[ $code == 0 ]] || { say "snakemake ended with $code, see $there/snakemake.log"; exit 1; }
}

# computes RULE: whether a job that this run has submitted is at work on it; its id is in `job`.
computes() {
    kill -0 "$run" || { say "snakemake has ended before $1, see $there/snakemake.log"; exit 1; }
    local pid
    for pid in $(working "apr run $1"); do
        job=$(sed -zn 's/^SLURM_JOB_ID=//p' "/proc/$pid/environ" 2>/dev/null | tr -d '\0')
        if ((job > last)) && [[ $(squeue --noheader --jobs="$job" --format=%T) == RUNNING ]]; then return; fi
    done
    return 1
}

again() { computes "$1" && [[ $job == "$lost" ]]; }
states() { squeue --noheader --states=all --format='%T' | sort | uniq -c | tr -s ' \n' ' '; }
idle() { [[ $(sinfo --noheader --format=%t 2>&1) == idle ]]; }
down() { [[ $(sinfo --noheader --format=%t) == down* ]]; }
empty() { [[ ! $(squeue --noheader) && ! $(working) ]]; }
# The node has a name of its own, by which its processes know that they cannot see the submitter's.
node() { unshare --uts sh -c "hostname $node && exec slurmd"; }

# hashes NAME: of all that does not hold measured seconds, in this clone.
hashes() {
    (cd "$there/$1" && python -c 'from pathlib import Path
from tests.faults.kills import hashes
print(*(f"{hash} {path}" for path, hash in sorted(hashes(Path("scales/smoke").resolve()).items())), sep="\n")')
}

# same WHAT: the hashes are those of the run without Slurm, and nothing is left of the run.
same() {
    until_ empty
    hashes slurm | diff "$there/hashes" - || { say "$1: other hashes"; exit 1; }
    left=$(find "$slurm" -path '*/.snakemake/locks/*' -o -path '*/.snakemake/apr-runs/*' \
        -o -name '.*.partial-*' -o -name '*.work')
    [[ ! $left ]] || { say "$1: left behind: $left"; exit 1; }
    say "$1: $(wc -l <"$there/hashes") equal hashes, no job, process, lock or partial file left; jobs:$(states)"
}

stop() {
    kill $(cat "$there"/*.pid) || true
    kill -KILL $(working) || true
    rm -f /etc/slurm/{slurm,gres}.conf
    say "stopped; logs are in $there"
} 2>/dev/null

[[ ! -e /etc/slurm/slurm.conf ]] || { say "/etc/slurm/slurm.conf is there: this machine has a Slurm"; exit 2; }
[[ $(type -P slurmctld) && $(type -P munged) ]] || { apt-get update && DEBIAN_FRONTEND=noninteractive \
    apt-get install -y --no-install-recommends slurm-wlm munge; } >"$there/apt.log"
mkdir -p "$there/state" "$there/spool" /run/munge
chown munge: /run/munge
# More cores, memory and GPUs than there are, as the profile asks for them: `config_overrides` believes it.
cat >"$there/slurm.conf" <<END
ClusterName=here
SlurmctldHost=$(hostname)(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
StateSaveLocation=$there/state
SlurmdSpoolDir=$there/spool
SlurmctldPidFile=$there/slurmctld.pid
SlurmdPidFile=$there/slurmd.pid
SlurmctldLogFile=$there/slurmctld.log
SlurmdLogFile=$there/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=10
MinJobAge=3600
GresTypes=gpu
NodeName=$node NodeAddr=127.0.0.1 CPUs=16 RealMemory=64000 Gres=gpu:2 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
END
printf 'Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n' >"$there/gres.conf"
trap stop EXIT
ln -s "$there/slurm.conf" "$there/gres.conf" /etc/slurm/
[[ -S /run/munge/munge.socket.2 ]] || { runuser -u munge -- munged; cp /run/munge/munged.pid "$there"; }
slurmctld
node
until_ idle
say "$(sinfo --version): $(sinfo --noheader --Node --format='node %N, %c cores, %m MB, %G, %t')"

for name in plain slurm; do
    git clone --quiet . "$there/$name"
    ln -s "$PWD/.venv" "$there/$name/.venv"
done
(cd "$there/plain" && snakemake --cores 2 --config scale=smoke) >"$there/plain.log" 2>&1
hashes plain >"$there/hashes"
say "without Slurm: done"

finish
same "from nothing"
rm -rf "$slurm/scales/smoke/"{data,results,logs}

begin
until_ computes sft
{ kill -KILL "$run"; end; } 2>/dev/null
say "killed snakemake in job $job (sft); its workers: $(working "apr run sft" | wc -l)"

begin
until_ computes rl
lost=$job
# As on a node that hangs: so small a job would end before the controller gives the node up.
kill -STOP $(working "apr run rl")
kill -KILL "$(cat "$there/slurmd.pid")"
until_ down
say "killed slurmd in job $lost (rl): $(squeue --noheader --states=all --jobs="$lost" --format='%T, %r')"
node
until_ again rl
say "slurmd started again: job $lost (rl) is at work again"

until_ computes evaluate
scancel "$job"
end
say "cancelled job $job (evaluate): snakemake ended with $code"

begin
until_ computes report
kill -INT -- "-$run"
end
until_ empty
say "Ctrl-C in job $job (report): snakemake ended with $code; no job left"

finish
same "disturbed four times, taken up three times"
