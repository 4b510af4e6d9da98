#!/usr/bin/env bash
# The whole chain in one go: autoencoder, vdm, language, planner, plans, dysen, finetune, evaluation. Each stage waits for what
# it needs, any of them may be preempted and requeued, and one whose parent has failed says so. Given again, what is complete is
# not done again.
#   chain.sh data=shapes finetune_data=ucf101 protocol=ucf101 [key=value ...]
#   COMMON       settings of all stages, such as paths:      COMMON="paths.data_root=/data paths.output_root=/runs"
#   LAUNCHER     settings of all jobs:                       LAUNCHER="hydra.launcher.partition=gpu hydra.launcher.time=1-0"
#   AUTOENCODER VDM LANGUAGE PLANNER PLANS DYSEN FINETUNE EVALUATION      settings of one stage: VDM="trainer.max_steps=200000"
#   NAME=chain   the beginning of the names of its runs
#   FROM=<stage> leaves out what comes before, which is complete: FROM=vdm
#   SKIP         stages that are not wanted: SKIP="language planner" has captions planned by rules
# Further arguments go to every training that reads clips. A word of a setting holds no spaces.
source "$(dirname "${BASH_SOURCE[0]}")/../environment.sh"
set -f # [text,scene_graph] is no pattern of files
NAME="${NAME:-chain}"
data=shapes finetune_data=shapes protocol=shapes more=()
for word in "$@"; do
  case "$word" in
    data=*) data="${word#*=}" ;;
    finetune_data=*) finetune_data="${word#*=}" ;;
    protocol=*) protocol="${word#*=}" ;;
    *=*) more+=("$word") ;;
    *)
      echo "usage: chain.sh [data=<data>] [finetune_data=<data>] [protocol=<protocol>] [key=value ...]" >&2
      exit 2
      ;;
  esac
done
STAGES=(autoencoder vdm language planner plans dysen finetune evaluation)
FROM="${FROM:-autoencoder}" SKIP=" ${SKIP:-} "
for stage in $FROM $SKIP; do
  [[ " ${STAGES[*]} " == *" $stage "* ]] || { echo "stages are ${STAGES[*]}; not $stage" >&2; exit 2; }
done
planner=(llm=tiny "llm.run=$NAME-language" selector=policy "selector.run=$NAME-planner")
[[ "$SKIP" == *" planner "* ]] && planner=(llm=tiny "llm.run=$NAME-language")
[[ "$SKIP" == *" language "* ]] && planner=(llm=rules)
begun=""

# submit <stage> <stages before it, by commas> <program> <settings>
submit() {
  local stage="$1" parents="$2" own="${1^^}" after="" parent program
  shift 2
  [ "$1" = "-m" ] && program=(-m "$2") || program=("$1")
  shift ${#program[@]}
  [ "$stage" != "$FROM" ] || begun=1
  [[ -n "$begun" && "$SKIP" != *" $stage "* ]] || return 0
  for parent in ${parents//,/ }; do
    [[ "$SKIP" == *" $parent "* ]] || after+="${after:+,}$NAME-$parent"
  done
  echo "== $stage"
  "$PYTHON" "${program[@]}" -m "$@" hydra/launcher=slurm "hydra.launcher.name=$NAME-$stage" "hydra.launcher.after=[$after]" \
    ${LAUNCHER:-} ${COMMON:-} ${!own:-}
}

submit autoencoder "" train.py stage=autoencoder "data=$data" "run.id=$NAME-autoencoder" "${more[@]}"
submit vdm autoencoder train.py stage=vdm "data=$data" 'condition=[text,scene_graph]' "run.id=$NAME-vdm" \
  "init.autoencoder=$NAME-autoencoder" "${more[@]}"
submit language "" train.py stage=language "data=$data" "run.id=$NAME-language"
submit planner language train.py stage=planner "data=$data" "run.id=$NAME-planner" "llm.run=$NAME-language"
submit plans language,planner -m dysen.plan "data=$data" captions=all "${planner[@]}"
submit dysen vdm,plans train.py stage=dysen "data=$data" "run.id=$NAME-dysen" "init.vdm=$NAME-vdm" "${more[@]}"
submit finetune dysen train.py stage=finetune "data=$finetune_data" "run.id=$NAME-finetune" "init.vdm=$NAME-dysen" "${more[@]}"
submit evaluation finetune evaluate.py "protocol=$protocol" "run=$NAME-finetune"
