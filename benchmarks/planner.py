"""What batches and a shared prefix make of a language model's prompts/s, what a corpus costs, and how good a model plans.

    python benchmarks/planner.py                                     a random model of SmolLM2's shape, smaller
    python benchmarks/planner.py --model <folder or .gguf> --captions 16 --alone 3
    python benchmarks/planner.py quality --model <folder or .gguf> --shapes datasets/shapes

The first asks for plans of captions of the shapes world in four ways that take turns: one call at a time as transformers
does it; the same without computing tokens that the schema forces; in batches; in batches that read their common beginning
once. Answers have to be equal. Then comes the cost of three million captions on one GPU, from arithmetic alone.

The second plans captions of prepared shards with demonstrations of each selector, then once more through an HTTP server
on this machine. What is counted is CPU time of one thread, so other work on the machine hardly matters.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from data.captions import CaptionCorpus
from data.shapes.lessons import draw_script, tell_lesson
from data.shapes.script import ScriptSettings
from data.shapes.timeline import Chances
from data.shard_cache import ShardCache
from dysen.action_plan import Plan
from dysen.demonstrations import Demonstration, RandomSelector, Selector, demonstration_of
from dysen.icl.features import HashedWords
from dysen.icl.rewards import is_exact, order_accuracy, plan_f1
from dysen.icl.selectors import NearestSelector, policy_of_run
from dysen.imagination import Question
from dysen.llm.base import Answer, LanguageModel
from dysen.llm.local import TransformersModel
from dysen.llm.server import OpenAIModel
from dysen.llm.serving import Server
from dysen.parsing_answers import parse_plan
from dysen.prompts import plan_prompt
from dysen.replies import PlanReply
from tests.dysen.random_language_model import save
from vdm.errors import PlanError

WORLD = ScriptSettings(ticks=7, min_things=1, max_things=3, min_events=1, max_events=7, textured=0.0)
RANDOM = {"hidden_size": 144, "num_hidden_layers": 15, "num_attention_heads": 9, "num_key_value_heads": 3,
          "intermediate_size": 384, "context": 8192}  # fmt: skip
SERVER = {"api_key_env": None, "temperature": 0.0, "seed": None, "format": "json_schema", "concurrency": 64,
          "timeout": 3600.0, "retries": 0, "max_wait": 1.0, "token_budget": None, "price_prompt": None,
          "price_answer": None}  # fmt: skip
# parameters, bytes of keys and values for a token in bf16
LARGER = {"SmolLM2-1.7B": (1.71e9, 196_608), "Llama-3.1-8B": (8.03e9, 131_072)}
GPU = {"name": "H100 SXM", "flops": 989e12, "bandwidth": 3.35e12, "computing": 0.5, "reading": 0.6, "rows": 256}
CORPUS = 3_000_000


def lessons(count: int, seed: int) -> list[Demonstration]:
    found = []
    for i in range(count):
        chances = Chances(np.random.default_rng([seed, i]))
        told = tell_lesson(draw_script(chances, WORLD), chances, {})
        found.append(Demonstration(f"{seed}-{i}", told.caption, Plan.from_json(told.to_json()["plan"])))
    return found


def question(caption: str, shown: Sequence[Demonstration]) -> Question:
    shots = [one.for_plan("json") for one in shown]
    return Question(plan_prompt(caption, demonstrations=shots, form="json"), PlanReply)


def build(model: str, *, share_prefix: bool, given: argparse.Namespace) -> TransformersModel:
    return TransformersModel(
        model=model, device="auto", dtype=given.dtype, max_tokens=given.max_tokens, temperature=0.0, seed=0,
        constrained=True, chat=None, batch_tokens=given.batch_tokens, share_prefix=share_prefix,
        adapter=None, output_root="",
    )  # fmt: skip


def clock() -> float:
    import torch

    return time.perf_counter() if torch.cuda.is_available() else time.process_time()


# ---- speed ------------------------------------------------------------------------------------------------------------


def speed(given: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        pool, asked = lessons(given.shots * 8, 1), lessons(given.captions, 2)
        words = [question(one.caption, [one]).prompt for one in pool]
        path = given.model or save(Path(folder), texts=words, **RANDOM)
        whole, shared = build(path, share_prefix=False, given=given), build(path, share_prefix=True, given=given)
        num_parameters = sum(p.numel() for p in shared.model.parameters())
        print(f"{given.model or 'random weights'}: {num_parameters / 1e6:.1f} M parameters, {given.captions} captions, "
              f"{given.shots} demonstrations, {given.turns} turns; CPU seconds unless there is a GPU")  # fmt: skip
        same = [question(one.caption, pool[: given.shots]) for one in asked]
        choose = RandomSelector(pool=pool, shots=given.shots, seed=0).choose([one.caption for one in asked])
        own = [question(one.caption, [pool[i] for i in row]) for one, row in zip(asked, choose, strict=True)]
        for title, questions in (("the same demonstrations for all", same), ("each caption its own", own)):
            answers = compare(title, questions, whole, shared, given)
            if title.startswith("the same"):
                tokens = [
                    statistics.mean(getattr(a, f"{kind}_tokens") for a in answers) for kind in ("prompt", "answer")
                ]
                common = len(shared._prefixes[-1].ids)
    print_cost({"this model": sized(shared.model), **LARGER}, tokens[0], common, tokens[1])


def compare(
    title: str,
    questions: list[Question],
    whole: TransformersModel,
    shared: TransformersModel,
    given: argparse.Namespace,
) -> list[Answer]:
    def one_by_one(llm: TransformersModel) -> Callable[[], list[Answer]]:
        def run() -> list[Answer]:
            found = []
            for one in questions[: given.alone]:
                llm.close()  # nothing is known of the prompts before
                found += llm.answer([one])
            return found

        return run

    def together(llm: TransformersModel) -> Callable[[], list[Answer]]:
        def run() -> list[Answer]:
            llm.close()
            return llm.answer(questions)

        return run

    ways = {
        "one call at a time, as transformers does": one_by_one(whole),
        "... forced tokens not computed": one_by_one(shared),
        "batches": together(whole),
        "batches, common beginning read once": together(shared),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(given.turns):
        texts = {}
        for name, run in ways.items():
            began = clock()
            answers = run()
            seconds[name].append((clock() - began) / len(answers))
            texts[name] = [answer.text for answer in answers]
        equal = [all(row[i] == texts["batches"][i] for row in texts.values()) for i in range(given.alone)]
        assert given.dtype == "bfloat16" or all(equal), f"the answers differ: {texts}"
    print(f"\n{title}: {statistics.mean(a.prompt_tokens for a in answers):.0f} tokens a prompt, "
          f"{statistics.mean(a.answer_tokens for a in answers):.0f} an answer")  # fmt: skip
    base = statistics.median(seconds["one call at a time, as transformers does"])
    for name, row in seconds.items():
        print(f"  {name:42} {1 / statistics.median(row):8.3f} prompts/s {base / statistics.median(row):8.1f} x")
    print(f"  answers equal in {sum(equal)} of {len(equal)} asked in all four ways")
    return answers


# ---- cost -------------------------------------------------------------------------------------------------------------


def sized(model: Any) -> tuple[float, float]:
    config = model.config.get_text_config()
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
    return float(sum(p.numel() for p in model.parameters())), 4.0 * config.num_hidden_layers * heads * width


def print_cost(models: dict[str, tuple[float, float]], prompt: float, common: float, answer: float) -> None:
    """Two operations a parameter and token where prompts are read; where answers are written, the slower of that and of
    reading the weights and all keys and values from memory."""
    own = prompt - common
    gpu = GPU
    print(f"\n{CORPUS / 1e6:g} M captions on one {gpu['name']}, computed, not measured. Assumed: {own:.0f} own tokens a "
          f"prompt after {common:.0f} common ones, {answer:.0f} an answer, each call like this one; bf16; "
          f"{gpu['flops'] / 1e12:.0f} TFLOP/s at {gpu['computing']:.0%}, {gpu['bandwidth'] / 1e12:.2f} TB/s at "
          f"{gpu['reading']:.0%}; {gpu['rows']} rows a batch; nothing for the masks of the schema")  # fmt: skip
    print(f"  {'hours for':16}{'plans':>12}{'+ imagination in 1 call, polish':>34}{'+ a call for each of 8 ticks':>32}")
    for name, (parameters, cache) in models.items():
        reading = 2 * parameters * own / (gpu["flops"] * gpu["computing"])
        rows = gpu["rows"]
        memory = (2 * parameters + rows * (own + answer) * cache + common * cache) / (gpu["bandwidth"] * gpu["reading"])
        step = max(memory, 2 * parameters * rows / (gpu["flops"] * gpu["computing"])) / rows
        hours = CORPUS * (reading + answer * step) / 3600
        print(f"  {name:16}{hours:12.2f}{3 * hours:34.2f}{10 * hours:32.2f}")


# ---- quality ----------------------------------------------------------------------------------------------------------


def read(root: str, split: str, count: int) -> list[Demonstration]:
    cache = ShardCache(
        folder=None, gigabytes=1.0, retries=0, pause=1.0, timeout=60.0, ahead=0
    )  # not used by local shards
    corpus = CaptionCorpus(name="shapes", root=root, split=split, cache=cache)
    found: list[Demonstration] = []
    for shard in range(len(corpus.shards)):
        for key, captions, extras in corpus.read(shard):
            found.append(demonstration_of(key, captions[0], extras))
            if len(found) == count:
                return found
    return found


def quality(given: argparse.Namespace) -> None:
    pool, asked = read(given.shapes, "train", given.pool), read(given.shapes, given.split, given.captions)
    words = HashedWords(width=2048, longest=2, is_weighted=True)
    selectors: dict[str, Selector] = {
        "random": RandomSelector(pool=pool, shots=given.shots, seed=0),
        "nearest": NearestSelector(pool=pool, shots=given.shots, features=words),
    }
    if "policy" in given.selectors:
        selectors["policy"] = policy_of_run(run=given.policy, output_root=given.outputs, shots=given.shots)
    model = build(given.model, share_prefix=True, given=given)
    print(f"{given.model}: {len(asked)} captions of {given.split}, {given.shots} of {len(pool)} demonstrations")
    print(
        f"  {'':24}{'valid':>7}{'exact':>7}{'F1':>7}{'order':>7}{'prompts/s':>11}{'tokens a prompt':>17}{'an answer':>11}"
    )
    with Server(model, name="served") as server:
        client = OpenAIModel(base_url=server.base_url, model="served", max_tokens=given.max_tokens, **SERVER)
        for name in given.selectors:
            questions = questions_of(selectors[name], asked)
            local = assess(name, questions, asked, model)
            if name in given.served:
                few = given.served_captions or len(asked)
                served = assess(f"{name}, HTTP server", questions[:few], asked[:few], client)
                equal = sum(a.text == b.text for a, b in zip(local, served, strict=False))
                print(f"  {'':24}the server's answers are the same for {equal} of {few} captions")
        client.close()


def questions_of(selector: Selector, asked: list[Demonstration]) -> list[Question]:
    chosen = selector.choose([one.caption for one in asked])
    return [
        question(one.caption, [selector.pool[i] for i in row]) for one, row in zip(asked, chosen, strict=True)
    ]  # fmt: skip


def assess(title: str, questions: list[Question], asked: list[Demonstration], llm: LanguageModel) -> list[Answer]:
    began = clock()
    answers = llm.answer(questions)
    seconds = clock() - began
    valid, plans = 0, []
    for answer in answers:
        assert answer.error is None, answer.error
        PlanReply.model_validate_json(answer.text)
        valid += 1
        try:
            plans.append(parse_plan(answer.text).plan)
        except PlanError:
            plans.append(None)
    pairs = list(zip(plans, [one.plan for one in asked], strict=True))
    scores = [statistics.mean(float(score(a, b)) for a, b in pairs) for score in (is_exact, plan_f1, order_accuracy)]
    row = "".join(f"{value:7.2f}" for value in (valid / len(answers), *scores))
    lengths = [statistics.mean(getattr(a, f"{kind}_tokens") for a in answers) for kind in ("prompt", "answer")]
    print(f"  {title:24}{row}{len(answers) / seconds:11.3f}{lengths[0]:17.0f}{lengths[1]:11.0f}", flush=True)
    return answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", choices=("speed", "quality"), default="speed")
    parser.add_argument("--model", help="a folder of transformers or a .gguf file")
    parser.add_argument("--captions", type=int)
    parser.add_argument("--alone", type=int, default=2, help="of the captions, asked one by one as well")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--shots", type=int, default=8)
    parser.add_argument("--dtype", default="float32", help="bfloat16 is twice as fast where the CPU knows it")
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--batch-tokens", type=int, default=16384)
    parser.add_argument("--shapes", help="quality: the folder with the prepared splits")
    parser.add_argument("--split", default="test")
    parser.add_argument("--pool", type=int, default=200, help="quality: clips of the train split to choose from")
    parser.add_argument("--selectors", nargs="*", default=["random", "nearest"])
    parser.add_argument(
        "--policy", help="quality: the run of stage=planner for `--selectors policy`, which brings its pool"
    )
    parser.add_argument("--outputs", default="outputs", help="where runs are")
    parser.add_argument("--served", nargs="*", default=["random"], help="quality: also through a server")
    parser.add_argument("--served-captions", type=int, help="only so many of them")
    given = parser.parse_args()
    if given.what == "quality":
        if not given.model or not given.shapes:
            parser.error("quality needs --model and --shapes")
        given.captions = given.captions or 50
        quality(given)
    else:
        given.captions = given.captions or 16
        given.alone = min(given.alone, given.captions)
        speed(given)


if __name__ == "__main__":
    main()
