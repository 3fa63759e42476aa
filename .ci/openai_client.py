"""Every endpoint and option of the server through the openai client, unmodified: `python openai_client.py URL`."""
import json
import sys
import urllib.request

import openai

url = sys.argv[1]
client = openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0)
model = client.models.list().data[0].id
assert client.models.retrieve(model).id == model
QUESTION = [{"role": "user", "content": "Name three colours."}]


def chat(**options):
    options = {"max_tokens": 16, "temperature": 0, **options}
    return client.chat.completions.create(model=model, messages=QUESTION, **options)


def completion(prompt="The capital of France is", **options):
    options = {"max_tokens": 8, "temperature": 0, **options}
    return client.completions.create(model=model, prompt=prompt, **options)


def refused(status, call):
    try:
        call()
    except openai.APIStatusError as e:
        assert e.status_code == status, e
        assert e.body["message"], e
        return
    raise AssertionError(f"not refused with {status}")


def post(path, body):
    request = urllib.request.Request(url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    return json.load(urllib.request.urlopen(request))


plain = chat()
text = plain.choices[0].message.content
assert text and plain.usage.completion_tokens == 16 and plain.choices[0].finish_reason == "length"
streamed = list(chat(stream=True, stream_options={"include_usage": True}))
assert "".join(c.choices[0].delta.content or "" for c in streamed if c.choices) == text
assert streamed[-1].usage.completion_tokens == 16
assert chat(max_tokens=None, max_completion_tokens=16).choices[0].message.content == text
several = chat(n=3, temperature=1, seed=5)
again = chat(n=3, temperature=1, seed=5)
assert [c.message.content for c in several.choices] == [c.message.content for c in again.choices]
assert len({c.message.content for c in several.choices}) > 1
word = text.split()[0]
assert chat(stop=[word]).choices[0].message.content.strip() == ""
logged = chat(logprobs=True, top_logprobs=3).choices[0].logprobs.content
assert len(logged) == 16 and all(len(t.top_logprobs) == 3 and t.top_logprobs[0].logprob == t.logprob for t in logged)
assert chat(logit_bias={str(i): -100 for i in range(40)}).choices[0].message.content
assert chat(presence_penalty=1.5, frequency_penalty=1.0).choices[0].message.content
for extra in ({"top_k": 1, "temperature": 1}, {"min_p": 0.99, "temperature": 1}):
    assert chat(extra_body=extra, temperature=1).choices[0].message.content == text, extra
assert chat(extra_body={"repetition_penalty": 1.3}).choices[0].message.content
long = chat(max_tokens=40, extra_body={"ignore_eos": True, "min_tokens": 40})
assert long.usage.completion_tokens == 40
prefilled = client.chat.completions.create(
    model=model, messages=[*QUESTION, {"role": "assistant", "content": "Red, green and"}], max_tokens=4, temperature=0,
    extra_body={"continue_final_message": True, "add_generation_prompt": False})
assert prefilled.choices[0].message.content

one = completion()
assert one.choices[0].text and one.usage.prompt_tokens > 3
both = completion(prompt=["The capital of France is", "Two and two is"], n=2)
assert [c.index for c in both.choices] == [0, 1, 2, 3] and both.choices[0].text == one.choices[0].text == both.choices[1].text
assert completion(best_of=1).choices[0].text == one.choices[0].text
echoed = completion(echo=True, max_tokens=0, logprobs=1)
logprobs = echoed.choices[0].logprobs
assert echoed.choices[0].text == "The capital of France is" and logprobs.token_logprobs[0] is None
assert len(logprobs.tokens) == one.usage.prompt_tokens and all(v < 0 for v in logprobs.token_logprobs[1:])
ids = post("/tokenize", {"prompt": "The capital of France is"})["tokens"]
assert completion(prompt=ids).choices[0].text == one.choices[0].text
assert completion(prompt=[ids, ids]).choices[1].text == one.choices[0].text
assert post("/detokenize", {"tokens": ids})["prompt"] == "The capital of France is"
assert "".join(c.choices[0].text for c in completion(stream=True) if c.choices) == one.choices[0].text
assert completion(stop="\n", suffix="").choices[0].text is not None
vectors = client.embeddings.create(model=model, input=["red and green", "green and red"])
assert len(vectors.data) == 2 and abs(sum(v * v for v in vectors.data[0].embedding) - 1) < 1e-4
assert client.embeddings.create(model=model, input=ids, encoding_format="float").usage.prompt_tokens == len(ids)
for path in ("/health", "/ready", "/metrics", "/"):
    assert urllib.request.urlopen(url + path).status == 200, path

refused(404, lambda: client.models.retrieve("nobody"))
refused(404, lambda: client.chat.completions.create(model="nobody", messages=QUESTION))
refused(400, lambda: chat(extra_body={"no_such_field": 1}))
refused(400, lambda: chat(temperature=3))
refused(400, lambda: completion(prompt=[10**7]))
refused(400, lambda: completion(prompt="a " * 40000))
refused(400, lambda: client.chat.completions.create(model=model, messages=[]))
refused(400, lambda: client.embeddings.create(model=model, input=""))
print("every check of the openai client passed")
