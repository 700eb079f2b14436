"""Checks a server of the seeded model with the `openai` client: `python client.py http://127.0.0.1:8000/v1`."""

import sys

import openai

client = openai.OpenAI(base_url=sys.argv[1], api_key="none", max_retries=0)

model = client.models.list().data[0].id
assert client.models.retrieve(model).id == model

whole = client.completions.create(model=model, prompt="The capital of France is", max_tokens=12, temperature=0)
assert len(whole.choices[0].text) == 12 and whole.choices[0].finish_reason == "length"
assert whole.usage.completion_tokens == 12
assert whole.usage.prompt_tokens_details.cached_tokens == 0

messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Why is the sky blue, and the sea too?"}]
options = dict(model=model, messages=messages, max_tokens=20, seed=3, temperature=0.8, top_p=0.9, n=2)
chat = client.chat.completions.create(**options)
assert [choice.index for choice in chat.choices] == [0, 1]
assert chat.choices[0].message.role == "assistant"
assert chat.usage.completion_tokens == 40

texts, usage, reasons = ["", ""], None, [None, None]
stream = client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True})
for chunk in stream:
    usage = chunk.usage or usage
    for choice in chunk.choices:
        texts[choice.index] += choice.delta.content or ""
        reasons[choice.index] = choice.finish_reason or reasons[choice.index]
assert texts == [choice.message.content for choice in chat.choices], texts
assert reasons == ["length", "length"] and usage.completion_tokens == 40
assert usage.prompt_tokens_details.cached_tokens > 0

stopped = client.completions.create(model=model, prompt="The capital of France is", max_tokens=12, temperature=0,
                                    stop=whole.choices[0].text[5:7])
assert stopped.choices[0].finish_reason == "stop"
assert whole.choices[0].text.startswith(stopped.choices[0].text)

extra = client.completions.create(model=model, prompt="a", extra_body={"cache_salt": "tenant", "priority": -1})
assert extra.usage.completion_tokens == 16

for error, arguments in [
    (openai.BadRequestError, dict(model=model, prompt="a", max_tokens=100_000)),
    (openai.BadRequestError, dict(model=model, prompt="a", n=1000)),
    (openai.NotFoundError, dict(model="other", prompt="a")),
]:
    try:
        client.completions.create(**arguments)
    except error as refused:
        assert refused.body["message"] and refused.type == "invalid_request_error"
    else:
        raise AssertionError(f"{arguments} was served")

for part in client.completions.create(model=model, prompt="leave", max_tokens=900, stream=True):
    break  # the client leaves

print("all passed")
