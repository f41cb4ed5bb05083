"""Foreign clients against the server: schemathesis on its OpenAPI document, then OpenAI's own client.

    pip install schemathesis openai
    python tests/clients/check.py target/release/forerun [--examples N]

Starts the program with the embedded pair on a free port. Fails on any 5xx, on any reply the client
cannot read, and on any reply that is not what was asked for.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import openai

QUESTION = "Tom has 3 apples and buys 4 more. How many apples does Tom have?"
MESSAGES = [{"role": "user", "content": QUESTION}]
SCHEMA = {
    "type": "object",
    "properties": {"answer": {"type": "integer", "minimum": 0, "maximum": 999}},
    "required": ["answer"],
    "additionalProperties": False,
}


def schemathesis(url, examples):
    """Only what the server must never do: fail."""
    tool = Path(sys.executable).with_name("schemathesis")
    command = [tool, "run", f"{url}/openapi.json", "--checks", "not_a_server_error"]
    command += ["--max-examples", str(examples), "--request-timeout", "60", "--seed", "1"]
    subprocess.run(command, check=True)


def joined(stream, field):
    parts = (getattr(c.choices[0].delta, field, None) for c in stream if c.choices)
    return "".join(part for part in parts if part)


def chat(client):
    ask = client.chat.completions.create
    for model in ["tiny", "tiny-base", "tiny-draft"]:
        common = {"model": model, "messages": MESSAGES, "temperature": 0, "seed": 1}
        whole = ask(**common)
        assert whole.choices[0].finish_reason == "stop", whole
        assert whole.usage.completion_tokens_details.reasoning_tokens > 0, whole
        pieces = list(ask(**common, stream=True, stream_options={"include_usage": True}))
        assert joined(pieces, "content") == whole.choices[0].message.content
        assert pieces[-1].usage.completion_tokens == whole.usage.completion_tokens
        cut = ask(**common, max_completion_tokens=5, stop=["zzz"], top_p=0.9, n=2)
        assert [c.finish_reason for c in cut.choices] == ["length", "length"], cut
        assert cut.usage.completion_tokens == 10, cut
        if model != "tiny-draft":
            told = ask(**common, logprobs=True, top_logprobs=3, max_tokens=20)
            entries = told.choices[0].logprobs.content
            assert len(entries) >= 20 and all(len(e.top_logprobs) == 3 for e in entries), told
        extra = {"separate_reasoning": True, "priority": -1, "timeout_ms": 60000}
        style = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
        held = ask(**common, response_format=style, extra_body=extra)
        assert 0 <= json.loads(held.choices[0].message.content)["answer"] <= 999, held
    penalties = {"presence_penalty": 0.5, "frequency_penalty": 0.5, "logit_bias": {"7": -5}}
    ask(model="tiny", messages=MESSAGES, **penalties, extra_body={"top_k": 5, "min_p": 0.05})
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    ask(model="tiny", messages=MESSAGES, tools=[tool], tool_choice="auto")
    policy = {"forerun": {"policy": "base"}, "thinking_token_budget": 10}
    short = ask(model="tiny", messages=MESSAGES, extra_body=policy)
    assert short.usage.completion_tokens_details.draft_tokens == 0, short


def continuation(client):
    """An assistant's turn that is gone on with, whole and streamed."""
    begun = [*MESSAGES, {"role": "assistant", "content": "<think>3 + 4"}]
    going_on = {"add_generation_prompt": False, "continue_final_message": True}
    common = {"model": "tiny-base", "messages": begun, "temperature": 0, "extra_body": going_on}
    whole = client.chat.completions.create(**common, max_tokens=6)
    pieces = client.chat.completions.create(**common, max_tokens=6, stream=True)
    assert joined(pieces, "content") == whole.choices[0].message.content != "", whole


def endpoints(client, url):
    """What is beside the protocol, at the root."""
    root = client.with_options(base_url=url)
    ids = root.post("/tokenize", body={"prompt": "3 + 4"}, cast_to=object)["tokens"]
    text = root.post("/detokenize", body={"tokens": ids}, cast_to=object)["prompt"]
    assert text == "3 + 4", (ids, text)
    prompt = root.post("/apply-template", body={"messages": MESSAGES}, cast_to=object)["prompt"]
    assert QUESTION in prompt, prompt
    assert "forerun" in root.get("/metrics", cast_to=str)
    root.get("/health", cast_to=str)


def completions(client):
    ask = client.completions.create
    common = {"model": "tiny-base", "prompt": "3 + 4 =", "max_tokens": 8, "temperature": 0}
    whole = ask(**common, logprobs=2)
    assert len(whole.choices[0].logprobs.tokens) == whole.usage.completion_tokens, whole
    streamed = "".join(c.choices[0].text for c in ask(**common, stream=True) if c.choices)
    assert streamed == whole.choices[0].text
    echoed = ask(**common, echo=True)
    assert echoed.choices[0].text == "3 + 4 =" + streamed, echoed
    pieces = ask(**common, echo=True, stream=True)
    assert "".join(c.choices[0].text for c in pieces if c.choices) == echoed.choices[0].text
    on = ask(**{**common, "max_tokens": 200}, extra_body={"ignore_eos": True})
    assert on.choices[0].finish_reason == "length" and on.usage.completion_tokens == 200, on
    many = ask(**{**common, "prompt": ["1 +", "2 +"]}, n=2)
    assert len(many.choices) == 4, many


def refusals(client):
    for kind, body in [
        (openai.BadRequestError, {"model": "tiny", "messages": []}),
        (openai.BadRequestError, {"model": "tiny", "messages": MESSAGES, "temperature": -1}),
        (openai.NotFoundError, {"model": "gpt-4", "messages": MESSAGES}),
    ]:
        try:
            client.chat.completions.create(**body)
        except kind as error:
            assert error.body["message"] and error.body["type"] == "invalid_request_error", error
        else:
            raise AssertionError(f"{body} was not refused")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("--examples", type=int, default=30)
    options = parser.parse_args()
    command = [options.program, "serve", "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        url = server.stdout.readline().split()[2]
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="EMPTY", max_retries=0)
        assert [m.id for m in client.models.list()] == ["tiny", "tiny-base", "tiny-draft"]
        chat(client)
        continuation(client)
        completions(client)
        endpoints(client, url)
        refusals(client)
        print("OpenAI's client: as expected")
        schemathesis(url, options.examples)
    finally:
        server.terminate()
        assert server.wait(30) == 0, "the server did not end as it should"


if __name__ == "__main__":
    main()
