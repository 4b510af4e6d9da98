"""`llm=transformers`: any causal language model in a folder of transformers or a GGUF file, batched and constrained.

How tokens are written is in `generation`, what they may be in `constrained`, which prompts go together in `batching`.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dysen.imagination import Question
from dysen.llm.base import Answer, LanguageModel
from dysen.llm.batching import Group, batches, group
from vdm.bounds import NonNegativeFloat, NonNegativeInt, PositiveInt
from vdm.errors import ConfigError, RunError

if TYPE_CHECKING:
    from dysen.llm.generation import Prefix, Writing
    from dysen.llm.log_probs import Drawn

log = logging.getLogger(__name__)

BLANK_LINE = "\n\n"  # between the parts of a prompt; also the end of an answer that nothing constrains
KEPT_PREFIXES = 4
WHOLE = 2**23  # bytes: larger files are hashed in samples


class TransformersModel(LanguageModel):
    """Reads the longest common beginning of the prompts once, and all prompts of a batch together.

    Args:
        model: a folder that `save_pretrained` wrote, its tokenizer with it, or a .gguf file.
        device: auto is a GPU where there is one.
        dtype: auto is float32 on a CPU and bfloat16 on a GPU.
        max_tokens: of an answer. A constrained answer is complete within them, any other is cut.
        temperature: 0 takes the likeliest token.
        seed: of the drawn tokens; with the prompt it decides them, whatever else is in the batch.
        constrained: only what the reply's json schema allows can be written.
        chat: whether prompts go through the tokenizer's chat template; null: where it has one.
        batch_tokens: tokens of all rows of a batch, prompts beyond the common beginning and answers.
        share_prefix: false reads each prompt whole, for comparisons.
        adapter: a LoRA for these weights: a run of stage=planner planner.tune=grpo, or a folder that peft wrote.
        output_root: where runs are.
    """

    def __init__(
        self,
        *,
        model: str,
        device: Literal["auto", "cpu", "cuda"],
        dtype: Literal["auto", "float32", "bfloat16", "float16"],
        max_tokens: PositiveInt,
        temperature: NonNegativeFloat,
        seed: NonNegativeInt,
        constrained: bool,
        chat: bool | None,
        batch_tokens: PositiveInt,
        share_prefix: bool,
        adapter: str | None,
        output_root: str,
    ):
        self.max_tokens, self.temperature, self.seed = max_tokens, temperature, seed
        self.batch_tokens = batch_tokens
        self.tokenizer, self.model = load(Path(model), device, dtype)
        self._generation = importlib.import_module("dysen.llm.generation")
        self._log_probs = importlib.import_module("dysen.llm.log_probs")
        self.chat = _chat(self.tokenizer, chat)
        added = self.tokenizer.added_tokens_decoder.values()
        self._special = [token.content for token in added if token.special and len(token.content) > 1]
        self.stop_tokens = _stop_tokens(self.tokenizer, self.model)
        self.context = _context(self.tokenizer, self.model)
        if max_tokens >= self.context:
            raise ConfigError("an answer as long as the model's context", key="llm.max_tokens", got=max_tokens,
                              allowed=f"< {self.context}")  # fmt: skip
        self.schemas = None
        if constrained:
            from dysen.llm.constrained import Schemas

            width = self._generation.num_outputs(self.model)
            self.schemas = Schemas(
                tokenizer=self.tokenizer, vocab_size=width, stop_tokens=self.stop_tokens, max_tokens=max_tokens
            )
        self.shares = share_prefix and self._generation.can_share(self.model)
        if share_prefix and not self.shares:
            log.info("%s: its attention cannot share a prefix; every prompt is read whole", Path(model).name)
        self._prefixes: list[Any] = []
        self.name, self.weights = Path(model).name, digest(Path(model))
        self._identity = {"model": self.name, "weights": self.weights}
        if adapter is not None:
            from dysen.llm.adapter import put_in

            self._identity["adapter"] = put_in(self.model, adapter, base=self.weights, output_root=output_root)

    def fingerprint(self) -> dict[str, Any]:
        return self._identity | {
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "chat": self.chat,
            "constrained": self.schemas is not None,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "seed": self.seed if self.temperature else None,
        }

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        return [answer for answer, _ in self._answered(questions, self.temperature, self.seed, is_kept=False)]

    def draw(
        self, questions: Sequence[Question], *, temperature: float, seed: int
    ) -> list[tuple[Answer, Drawn | None]]:
        """Answers with what their log-probabilities need; None where there is no answer, or nothing was drawn."""
        return self._answered(questions, temperature, seed, is_kept=temperature > 0)

    def _answered(
        self, questions: Sequence[Question], temperature: float, seed: int, *, is_kept: bool
    ) -> list[tuple[Answer, Drawn | None]]:
        prompts: list[list[int]] = []
        answers: list[Answer | None] = []
        drawn: list[Drawn | None] = [None] * len(questions)
        num_cut = 0
        for question in questions:
            ids, dropped = self._fitting(question.prompt)
            num_cut += dropped > 0
            room = self.context - self.max_tokens
            too_long = f"the prompt has {len(ids)} tokens, and the model reads {room} before an answer"
            answers.append(Answer("", len(ids), error=too_long) if len(ids) > room else None)
            prompts.append(ids)
        if num_cut:
            log.warning("%d of %d prompts lost their first demonstrations: too long", num_cut, len(questions))
        ready = [i for i, answer in enumerate(answers) if answer is None]
        random = _generators(questions, seed)
        together = group([prompts[i] for i in ready]) if self.shares else [Group(0, tuple(range(len(ready))))]
        for part in together:
            members = [ready[i] for i in part.members]
            prefix = self._prefix([prompts[i] for i in members], part.common)
            common = 0 if prefix is None else len(prefix.ids)
            own = {i: prompts[i][common:] for i in members}
            for batch in batches(own, self.max_tokens, self.batch_tokens):
                written = [
                    self._generation.Writing(own[i], self.schemas and self.schemas.constraint(questions[i].reply),
                                             random[i], choices=[] if is_kept else None)
                    for i in batch
                ]  # fmt: skip
                self._write(written, prefix, temperature)
                for i, one in zip(batch, written, strict=True):
                    answers[i] = Answer(self._text(one.tokens), len(prompts[i]), len(one.tokens))
                    drawn[i] = self._log_probs.drawn(prompts[i], one) if is_kept else None
        return list(zip(answers, drawn, strict=True))

    def forget(self) -> None:
        """What was read of prompts; to be called when weights have changed."""
        self._prefixes.clear()

    def close(self) -> None:
        self.forget()

    def encode(self, prompt: str) -> list[int]:
        """The tokens the model reads."""
        prompt = prompt.encode("utf-8", "replace").decode()  # half a pair of surrogates cannot be read
        for special in self._special:  # a caption may not end its turn
            prompt = prompt.replace(special, f"{special[0]} {special[1:]}")
        if self.chat:
            message = [{"role": "user", "content": prompt}]
            prompt = self.tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        ids = self.tokenizer(prompt, add_special_tokens=not self.chat, verbose=False)["input_ids"]
        return ids or self.stop_tokens[:1]  # an empty prompt begins somewhere

    def _fitting(self, prompt: str) -> tuple[list[int], int]:
        """Tokens of a prompt, and how many of its demonstrations, the least relevant first, had to go for it to fit."""
        ids = self.encode(prompt)
        instruction, *shown, query = [prompt, ""] if BLANK_LINE not in prompt else prompt.split(BLANK_LINE)
        dropped = 0
        while len(ids) > self.context - self.max_tokens and dropped < len(shown):
            dropped += 1
            ids = self.encode(BLANK_LINE.join([instruction, *shown[dropped:], query]))
        return ids, dropped

    def _prefix(self, prompts: Sequence[Sequence[int]], common: int) -> Any:
        """What these prompts begin with: kept from before where that is nearly as long, else read now."""
        if not self.shares:
            return None
        assert prompts, "a group has members"
        wanted = tuple(prompts[0][:common])
        fitting = [kept for kept in self._prefixes if kept.ids == wanted[: len(kept.ids)]]
        best = max(fitting, key=lambda kept: len(kept.ids), default=None)
        if best is None or (len(prompts) > 1 and len(best.ids) < 0.9 * common):
            if len(prompts) == 1 or not common:
                return None
            best = self._generation.read_prefix(self.model, wanted)
        self._prefixes = [*(kept for kept in self._prefixes if kept is not best), best][-KEPT_PREFIXES:]
        return best

    def _write(self, answers: list[Writing], prefix: Prefix | None, temperature: float) -> None:
        generation = self._generation
        rows, longest = len(answers), max(len(answer.prompt) for answer in answers)
        if self.shares:
            capacity = longest + self.max_tokens
            decoder = generation.SharedDecoder(self.model, rows=rows, capacity=capacity, prefix=prefix)
        else:
            decoder = generation.PlainDecoder(self.model, rows=rows)
        generation.write(decoder, answers, schemas=self.schemas, max_tokens=self.max_tokens,
                         temperature=temperature, is_over=self._is_over)  # fmt: skip

    def _is_over(self, tokens: Sequence[int]) -> bool:
        return tokens[-1] in self.stop_tokens or BLANK_LINE in self._decode(tokens[-6:]).lstrip("\n")

    def _text(self, tokens: Sequence[int]) -> str:
        text = self._decode(tokens)
        if self.schemas is None:
            start = len(text) - len(text.lstrip())
            text = text[start:].split(BLANK_LINE)[0]
        return text

    def _decode(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def load(path: Path, device: str, dtype: str) -> tuple[Any, Any]:
    """Tokenizer and model, from files only."""
    try:
        import torch
        import transformers
    except ImportError:
        remedy = "pip install -e .[llm]"
        raise ConfigError("llm=transformers needs the package transformers", key="llm", remedy=remedy) from None
    from vdm.devices import this_device

    is_gguf = path.is_file() and path.suffix == ".gguf"
    if not is_gguf and not (path / "config.json").is_file():
        remedy = "give a folder with config.json, weights and tokenizer, or a .gguf file; nothing is downloaded"
        raise ConfigError("no language model is here", key="llm.model", got=path, remedy=remedy)
    place = this_device(device, key="llm.device")
    kind = {"auto": "float32" if place.type == "cpu" else "bfloat16"}.get(dtype, dtype)
    source = {"gguf_file": path.name} if is_gguf else {}
    folder = path.parent if is_gguf else path
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, **source)
        model, report = transformers.AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, dtype=getattr(torch, kind), output_loading_info=True, **source
        )
    except ImportError as error:
        remedy = "pip install -e .[llm]"
        raise ConfigError("a package is missing to read this file", key="llm.model", got=str(error).strip()[:200],
                          remedy=remedy) from None  # fmt: skip
    except Exception as error:  # a damaged folder makes this library raise nearly anything
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise ConfigError("this language model cannot be read", key="llm.model", got=f"{path}: {reason}") from error
    finally:
        transformers.logging.set_verbosity(verbosity)
        transformers.logging.enable_progress_bar()
    missing = sorted({*report["missing_keys"], *(str(key) for key in report["mismatched_keys"])})
    if missing:
        got = f"{len(missing)} missing or of another size, such as {', '.join(missing[:3])}"
        raise RunError("the weights are not those of this model", key="llm.model", got=f"{path}: {got}")
    return tokenizer, model.to(place).eval().requires_grad_(False)


def digest(path: Path) -> str:
    """A hash over the files of a model: small ones whole, large ones in 64 samples, since reading tens of GB takes minutes."""
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.is_file() and p.suffix != ".md")
    found = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        found.update(f"{file.name if path.is_dir() else ''} {size} ".encode())
        with open(file, "rb") as stream:
            if size <= WHOLE:
                found.update(stream.read())
                continue
            for sample in range(64):
                stream.seek(sample * (size - 2**16) // 63)
                found.update(stream.read(2**16))
    return found.hexdigest()[:16]


def _generators(questions: Sequence[Question], seed: int) -> list[np.random.Generator]:
    """One for each question: the same for the same prompt in any batch, another where it is asked again in one."""
    seen: dict[tuple[str, str], int] = {}
    found = []
    for question in questions:
        key = (question.prompt, question.reply.__name__)
        seen[key] = seen.get(key, 0) + 1
        name = json.dumps([seed, seen[key], *key])
        found.append(np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest()[:16])))
    return found


def _chat(tokenizer: Any, wanted: bool | None) -> bool:
    has_template = bool(getattr(tokenizer, "chat_template", None))
    if wanted and not has_template:
        raise ConfigError("the tokenizer has no chat template", key="llm.chat", got=wanted, allowed="false, null")
    return has_template if wanted is None else wanted


def _stop_tokens(tokenizer: Any, model: Any) -> list[int]:
    """A chat model ends its turn with another token than its text: the generation settings name both."""
    named = getattr(model.generation_config, "eos_token_id", None)
    named = [named] if isinstance(named, int) else list(named or [])
    found = [*dict.fromkeys([*named, *([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])])]
    if not found:
        raise ConfigError("the tokenizer has no token for the end", key="llm.model", remedy="set its eos_token")
    return found


def _context(tokenizer: Any, model: Any) -> int:
    """Tokens that prompt and answer may have together."""
    config = model.config.get_text_config()
    known = [getattr(config, "max_position_embeddings", None), getattr(tokenizer, "model_max_length", None)]
    return min([length for length in known if isinstance(length, int) and length > 0], default=2**31)
