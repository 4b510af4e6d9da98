"""Language models for tests: answers from a function, counted."""

from dysen.demonstrations import NoSelector
from dysen.imagination import Imagination
from dysen.llm.base import Answer, LanguageModel
from dysen.planner import Planner


class Scripted(LanguageModel):
    """`respond` maps a question to a text or an `Answer`; what was asked stays in `rounds`."""

    def __init__(self, respond, name="scripted"):
        self.respond, self.name, self.rounds = respond, name, []

    @property
    def asked(self):
        return [question for questions in self.rounds for question in questions]

    def answer(self, questions):
        self.rounds.append(list(questions))
        found = [self.respond(question) for question in questions]
        return [one if isinstance(one, Answer) else Answer(one, 100, 10) for one in found]

    def fingerprint(self):
        return {"model": self.name}


def imagination(**changes):
    return Imagination(**({"window": 1, "calls": "each", "polish": True, "retries": 1, "form": "json"} | changes))


def planner(llm, **changes):
    settings = {"selector": NoSelector(), "imagination": imagination(), "form": "json", "retries": 2, "max_tick": 15,
                "ticks": None, "fallback": "rules"}  # fmt: skip
    return Planner(llm=llm, **(settings | changes))
