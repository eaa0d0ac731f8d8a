"""What is asked, what the answer is when nobody else asks, and whether an answer is that one."""
import json
import os
import random

WORDS = ("river stone bell crow garden story count number list sort word letter color sum "
         "small large quiet lost first last morning winter").split()


class Case:
    """A greedy request. `alone`: its Answer from a server that computes one request at a time."""

    def __init__(self, path, body):
        self.path, self.body, self.alone = path, body, None

    @property
    def is_chat(self):
        return self.path.endswith("chat/completions")


class Answer:
    """Text, tokens with log probabilities as they were printed, and why it ended."""

    def __init__(self):
        self.text, self.tokens, self.finish = "", [], None

    def add(self, choice, is_chat):
        """A choice of a chunk, or of a whole answer."""
        if is_chat:
            part = choice["delta"] if "delta" in choice else choice["message"]
            self.text += part.get("content") or ""
            self.tokens += [(t["token"], t["logprob"])
                            for t in (choice.get("logprobs") or {}).get("content") or []]
        else:
            self.text += choice["text"]
            logprobs = choice.get("logprobs") or {"tokens": [], "token_logprobs": []}
            self.tokens += zip(logprobs["tokens"], logprobs["token_logprobs"])
        self.finish = choice["finish_reason"] or self.finish

    def check(self, alone, whole, what):
        """whole: it has come to its end; else it was cut off somewhere."""
        if whole and (self.text, self.tokens, self.finish) == (alone.text, alone.tokens, alone.finish):
            return
        if not whole and alone.tokens[:len(self.tokens)] == self.tokens and alone.text.startswith(self.text):
            return
        same = next((i for i, (a, b) in enumerate(zip(self.tokens, alone.tokens)) if a != b),
                    min(len(self.tokens), len(alone.tokens)))
        raise AssertionError(
            f"{what}: not what it is alone. Tokens {len(self.tokens)} of {len(alone.tokens)}, the first "
            f"{same} alike, then {self.tokens[same:same + 3]} for {alone.tokens[same:same + 3]}; "
            f"finish {self.finish} for {alone.finish}; text {self.text[-60:]!r} for {alone.text[-60:]!r}")


def make_cases(checkout, count, seed):
    """The reference's prompts, random tokens, with common beginnings and without, and chats."""
    rng = random.Random(seed)
    with open(os.path.join(checkout, "tests/golden/demo/reference.json")) as file:
        prompts = [entry["prompt"] for entry in json.load(file)]
    common = [[rng.randrange(4000) for _ in range(rng.randrange(150, 500))] for _ in range(3)]
    cases = []
    for i in range(count):
        body = {"temperature": 0, "max_tokens": rng.choice([4, 16, 40, 40, 80, 120]), "ignore_eos": True}
        if i % 4 == 0:
            text = " ".join(rng.choices(WORDS, k=rng.randrange(3, 40)))
            body |= {"messages": [{"role": "user", "content": text}], "logprobs": True}
            cases.append(Case("/v1/chat/completions", body))
            continue
        if i % 4 == 1 and prompts:
            body["prompt"] = prompts.pop()
        else:
            begin = rng.choice(common) if rng.random() < 0.4 else []
            body["prompt"] = begin[:rng.randrange(len(begin) + 1)] + [
                rng.randrange(4000) for _ in range(rng.choice([1, 5, 30, 120, 400]))]
        cases.append(Case("/v1/completions", body | {"logprobs": 1}))
    return cases


async def ask_whole(client, case, choices=1):
    """One answer a choice, not streamed. None: the queue is full."""
    await client.request("POST", case.path, case.body | {"n": choices})
    status, fields = await client.head()
    body = await client.body(fields)
    if status == 429:
        return None
    if status != 200:
        raise AssertionError(f"{case.path}: {status} {body!r}")
    answers = [Answer() for _ in range(choices)]
    for choice in json.loads(body)["choices"]:
        answers[choice["index"]].add(choice, case.is_chat)
    return answers
