"""A language model answers questions about an index: it asks for tools, they run, and it reads what they give."""

import json

from huggingface_hub import InferenceClient
from transformers.utils import get_json_schema

from onepeace.errors import UserError


def converse(respond, tools, question, turns=8):
    """The messages of a conversation. `respond` gives the model's next message; the last one holds no more calls."""
    messages = [{"role": "user", "content": question}]
    for _ in range(turns):
        messages.append(respond(messages))
        calls = messages[-1].get("tool_calls") or []
        for call in calls:
            name, arguments = call["function"]["name"], call["function"]["arguments"]
            try:
                result = tools.call(name, arguments)
            except UserError as error:  # one line that says what to do
                result = {"error": str(error)}
            answer = {"role": "tool", "name": name, "content": json.dumps(result)}
            messages.append(answer | ({"tool_call_id": call["id"]} if "id" in call else {}))
        if not calls:
            break
    return messages


def by_transformers(model, tokenizer, tools, **options):
    """Of a chat model of transformers; `options` of its `generate`. The tokenizer's `response_template` says how the
    model writes its calls; set it where its folder does not."""
    functions = list(tools.functions.values())

    def respond(messages):
        inputs = tokenizer.apply_chat_template(
            messages, tools=functions, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        ).to(model.device)
        prompt = inputs["input_ids"][0]
        written = model.generate(**inputs, **options)[0, len(prompt) :]
        return tokenizer.parse_response(written, prefix=prompt, tools=functions)

    return respond


def by_server(url, tools, model=None, api_key=None):
    """Of a server that speaks OpenAI's protocol: llama.cpp, vLLM, Ollama, `transformers serve`."""
    client = InferenceClient(base_url=url, api_key=api_key)
    schemas = [get_json_schema(function) for function in tools.functions.values()]

    def respond(messages):
        answer = client.chat.completions.create(messages, model=model, tools=schemas)
        message = answer.choices[0].message
        calls = [
            {"id": call.id, "type": "function",
             "function": {"name": call.function.name, "arguments": call.function.arguments}}
            for call in message.tool_calls or []
        ]  # fmt: skip
        return {"role": "assistant", "content": message.content} | ({"tool_calls": calls} if calls else {})

    return respond
