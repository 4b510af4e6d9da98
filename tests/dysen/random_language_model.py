"""A language model with random weights in a folder, as `save_pretrained` writes it: what it says is noise, how is not."""

from pathlib import Path

import torch

from dysen.prompts import plan_prompt, plan_query


def save(
    folder: Path,
    *,
    chat: bool = False,
    padding: int = 37,
    family: str = "llama",
    context: int = 2048,
    texts=(),
    **settings,
) -> str:
    """A byte-level tokenizer trained on `texts`, and two layers. The outputs are `padding` wider than the tokenizer."""
    import transformers

    transformers.logging.disable_progress_bar()
    tokenizer = train_tokenizer(texts)
    if chat:
        tokenizer.chat_template = (
            "{% for message in messages %}<user>{{ message['content'] }}<end>{% endfor %}"
            "{% if add_generation_prompt %}<reply>{% endif %}"
        )
    torch.manual_seed(5)
    sizes = {
        "vocab_size": len(tokenizer) + padding, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 128, "max_position_embeddings": context,
        "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None, "initializer_range": 0.2, **settings,
    }  # fmt: skip
    configs = {
        "llama": transformers.LlamaConfig,
        "mistral": transformers.MistralConfig,
        "qwen2": transformers.Qwen2Config,
        "gpt_neox": transformers.GPTNeoXConfig,
    }
    config = configs[family](**sizes)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def train_tokenizer(texts=()):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    shown = plan_query(
        "A lady drinks.", '{"events":[{"agent":"lady","predicate":"drinking","target":null,"start":0,"end":1}]}'
    )
    texts = texts or [plan_prompt("A dog runs.", demonstrations=[shown], form="json")] * 3
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=2048, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False
    )
    words.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>")
