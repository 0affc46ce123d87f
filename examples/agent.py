"""An agent: the model calls tools, the program runs them, until the model calls no more."""

import json

import dgemma

RATES = {"pounds": 0.88, "dollars": 1.1}
RUN = {
    "get_weather": lambda city: f"The weather in {city} is nice.",
    "convert": lambda amount, to: f"{amount * RATES[to]:.2f} {to}",
}
SCHEMAS = {"get_weather": {"city": "string"}, "convert": {"amount": "number", "to": "string"}}
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {
        "type": "object", "required": list(kinds),
        "properties": {key: {"type": kind} for key, kind in kinds.items()}}}}
    for name, kinds in SCHEMAS.items()
]  # fmt: skip
llm = dgemma.load("nano")

for question in ("Convert 7.25 euros to pounds.", "How much are 12.75 euros in francs?",
                 "What is the weather in Bern?"):  # fmt: skip
    messages = [{"role": "user", "content": question}]
    while calls := (answer := llm.chat(messages, tools=TOOLS, seed=1, max_tokens=96)).tool_calls:
        made = [{"name": call.name, "arguments": dict(call.arguments)} for call in calls]
        asked = [{"id": str(number), "function": call} for number, call in enumerate(made)]
        messages.append({"role": "assistant", "tool_calls": asked})
        for number, call in enumerate(made):
            try:
                result = RUN[call["name"]](**call["arguments"])
            except (KeyError, TypeError) as error:  # the model reads what went wrong
                result = f"Error: {error!r}"
            print(call["name"], json.dumps(call["arguments"]), "->", result)
            messages.append({"role": "tool", "tool_call_id": str(number), "content": result})
    for broken in answer.invalid_tool_calls:
        print("not a call:", broken.text, "because", broken.error)
# nano never learned to go on after a result, so it gets the last one in a question that it knows.
print("answer:", llm.chat([{"role": "user", "content": f"Sentiment: {result}"}], seed=1).text)
